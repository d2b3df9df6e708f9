"""The service `orders`: takes orders, and hears from billing which invoice each of them got."""

import os
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import cqrs


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]
    cents: Mapped[int]
    invoice: Mapped[int | None]


class PlaceOrder(cqrs.Command[str]):
    item: str
    cents: int


class InvoicesOf(cqrs.Query[dict[str, int | None]]):
    """Which invoice each of these orders has, if it has one."""

    orders: list[str]


@cqrs.integration_event(topic="two_services.orders", key="order_id")
class OrderPlaced(cqrs.Event):
    order_id: str
    cents: int


@cqrs.integration_event(topic="two_services.invoices", key="order_id")  # billing publishes it; this is how we see it
class InvoiceIssued(cqrs.Event):
    order_id: str
    number: int


@cqrs.command_handler
async def place_order(command: PlaceOrder, session: AsyncSession, context: cqrs.Context) -> str:
    order = Order(id=str(uuid4()), item=command.item, cents=command.cents)
    session.add(order)
    context.emit(OrderPlaced(order_id=order.id, cents=order.cents))
    return order.id


@cqrs.event_handler(name="note_invoice")
async def note_invoice(event: InvoiceIssued, session: AsyncSession) -> None:
    order = await session.get(Order, event.order_id)
    if order is not None:  # an earlier run's, on a broker that keeps messages
        order.invoice = event.number


@cqrs.query_handler
async def invoices_of(query: InvoicesOf, session: AsyncSession) -> dict[str, int | None]:
    found = await session.execute(select(Order.id, Order.invoice).where(Order.id.in_(query.orders)))
    return {row.id: row.invoice for row in found}


app = cqrs.bootstrap(
    "examples.two_services.orders.app",
    name="two_services_orders",
    database=os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///orders.db"),
    broker=os.environ.get("BROKER_URL", "kafka://localhost:9092"),
)
