"""The service `billing`: hears of orders, and issues one invoice for each."""

import os

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import cqrs


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    __tablename__ = "invoices"

    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(unique=True)
    cents: Mapped[int]


@cqrs.integration_event(topic="two_services.orders", key="order_id")  # orders publishes it; this is how we see it
class OrderPlaced(cqrs.Event):
    order_id: str
    cents: int


@cqrs.integration_event(topic="two_services.invoices", key="order_id")
class InvoiceIssued(cqrs.Event):
    order_id: str
    number: int
    cents: int


@cqrs.event_handler(name="issue_invoice")
async def issue_invoice(event: OrderPlaced, session: AsyncSession, context: cqrs.Context) -> None:
    invoice = Invoice(order_id=event.order_id, cents=event.cents)
    session.add(invoice)
    await session.flush()  # draws the number
    context.emit(InvoiceIssued(order_id=event.order_id, number=invoice.number, cents=invoice.cents))


app = cqrs.bootstrap(
    "examples.two_services.billing.app",
    name="two_services_billing",
    database=os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///billing.db"),
    broker=os.environ.get("BROKER_URL", "kafka://localhost:9092"),
)
