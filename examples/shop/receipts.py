"""Receipts, written in the background when an order was placed."""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from examples.shop.messages import MissingReceipts, OrderPlaced
from examples.shop.tables import Order, Receipt


@cqrs.event_handler
async def send_receipt(event: OrderPlaced, session: AsyncSession) -> None:
    text = f"{event.quantity} x {event.sku}: {event.total / 100:.2f}"
    session.add(Receipt(order_id=event.order_id, customer=event.customer, text=text))


@cqrs.query_handler
async def missing_receipts(_query: MissingReceipts, session: AsyncSession) -> int:
    missing = select(func.count()).where(Order.order_id.not_in(select(Receipt.order_id)))
    return (await session.execute(missing)).scalar_one()
