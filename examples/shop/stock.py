"""What is on the shelves."""

from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from examples.shop.messages import Refused, StockReserved
from examples.shop.tables import Article, Movement


class Stock:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def reserve(self, sku: str, quantity: int) -> Article:
        article = await self._session.get(Article, sku, with_for_update=True)
        if article is None:
            raise Refused("unknown sku")
        if article.available < quantity:
            raise Refused("not enough in stock")
        article.available -= quantity
        return article


@cqrs.event_handler
async def note_movement(event: StockReserved, session: AsyncSession) -> None:
    session.add(Movement(order_id=event.order_id, sku=event.sku, quantity=event.quantity))
