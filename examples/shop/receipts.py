"""Receipts, written in the background when an order was placed."""

from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from examples.shop.messages import OrderPlaced
from examples.shop.tables import Receipt


@cqrs.event_handler
async def send_receipt(event: OrderPlaced, session: AsyncSession) -> None:
    text = f"{event.quantity} x {event.sku}: {event.total / 100:.2f}"
    session.add(Receipt(order_id=event.order_id, customer=event.customer, text=text))
