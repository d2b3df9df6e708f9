"""The service that invoices orders. It knows of them what their events say, and has a database of its own."""

import os

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs

registry = cqrs.Registry()
TABLES = sa.MetaData()
INVOICES = sa.Table(
    "invoices",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("order_id", sa.String(40), nullable=False),
    sa.Column("amount", sa.Integer, nullable=False),
)


@registry.integration_event(topic="two-services.orders", key="order_id")
class OrderPlaced(cqrs.Event):
    """What the other service publishes: the name and the fields agree, the class is this service's own."""

    order_id: str
    amount: int


@registry.integration_event(topic="two-services.invoices", key="order_id")
class InvoiceIssued(cqrs.Event):
    order_id: str
    number: int


@registry.event_handler
async def issue_invoice(event: OrderPlaced, session: AsyncSession, context: cqrs.Context) -> None:
    invoice = INVOICES.insert().values(order_id=event.order_id, amount=event.amount).returning(INVOICES.c.number)
    number = (await session.execute(invoice)).scalar_one()
    context.emit(InvoiceIssued(order_id=event.order_id, number=number))


def make() -> cqrs.Mediator:
    return cqrs.bootstrap(
        registry=registry,
        name="billing",
        database=os.environ["BILLING_DATABASE"],
        broker=os.environ["BROKER_URL"],
    )
