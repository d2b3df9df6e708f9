"""The service that takes orders, and wants to know when they have been invoiced."""

import os

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs

registry = cqrs.Registry()
TABLES = sa.MetaData()
ORDERS = sa.Table(
    "orders",
    TABLES,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("amount", sa.Integer, nullable=False),
    sa.Column("invoice", sa.Integer),
)


class PlaceOrder(cqrs.Command[None]):
    order_id: str
    amount: int


@registry.integration_event(topic="two-services.orders", key="order_id")
class OrderPlaced(cqrs.Event):
    order_id: str
    amount: int


@registry.integration_event(topic="two-services.invoices", key="order_id")
class InvoiceIssued(cqrs.Event):
    """What billing publishes, as far as this service cares."""

    order_id: str
    number: int


@registry.command_handler
async def place_order(command: PlaceOrder, session: AsyncSession, context: cqrs.Context) -> None:
    await session.execute(ORDERS.insert().values(id=command.order_id, amount=command.amount))
    context.emit(OrderPlaced(order_id=command.order_id, amount=command.amount))


@registry.event_handler
async def note_invoice(event: InvoiceIssued, session: AsyncSession) -> None:
    await session.execute(ORDERS.update().where(ORDERS.c.id == event.order_id).values(invoice=event.number))


def make() -> cqrs.Mediator:
    return cqrs.bootstrap(
        registry=registry,
        name="orders",
        database=os.environ["ORDERS_DATABASE"],
        broker=os.environ["BROKER_URL"],
    )
