"""Taking orders, and refusing them."""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from examples.shop.messages import (
    Confirmation,
    GetOrder,
    LastLine,
    OrderPlaced,
    PlacedOrder,
    PlaceOrder,
    Refused,
    RefuseLine,
    StockReserved,
    UnknownOrder,
)
from examples.shop.stock import Stock
from examples.shop.tables import Order, RefusedLine


class Orders:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def find(self, order_id: str) -> Order | None:
        return await self._session.get(Order, order_id)

    def add(self, command: PlaceOrder, total: int) -> None:
        self._session.add(Order(**command.model_dump(), total=total))

    async def refuse(self, line: int, reason: str) -> None:
        await self._session.merge(RefusedLine(line=line, reason=reason))

    async def last_line(self) -> int:
        placed, refused = func.max(Order.line), func.max(RefusedLine.line)
        lines = await self._session.execute(select(select(placed).scalar_subquery(), select(refused).scalar_subquery()))
        return max(line or 0 for line in lines.one())


@cqrs.command_handler
async def place_order(command: PlaceOrder, orders: Orders, stock: Stock, context: cqrs.Context) -> Confirmation:
    known = await orders.find(command.order_id)
    if known is not None:
        return confirm_again(known, command)
    article = await stock.reserve(command.sku, command.quantity)
    total = article.price * command.quantity
    orders.add(command, total)
    context.emit(StockReserved(order_id=command.order_id, sku=command.sku, quantity=command.quantity))
    context.emit(OrderPlaced(**command.model_dump(exclude={"line"}), total=total))
    return Confirmation(order_id=command.order_id, total=total)


def confirm_again(order: Order, command: PlaceOrder) -> Confirmation:
    """Answer a line that was sent again because its sender did not live to hear the first answer."""
    if order.line != command.line:
        raise Refused("duplicate order id")
    return Confirmation(order_id=order.order_id, total=order.total)


@cqrs.command_handler
async def refuse_line(command: RefuseLine, orders: Orders) -> None:
    await orders.refuse(command.line, command.reason)


@cqrs.query_handler
async def get_order(query: GetOrder, orders: Orders) -> PlacedOrder:
    order = await orders.find(query.order_id)
    if order is None:
        raise UnknownOrder(f"there is no order {query.order_id}")
    return PlacedOrder.model_validate(order, from_attributes=True)


@cqrs.query_handler
async def last_line(_query: LastLine, orders: Orders) -> int:
    return await orders.last_line()
