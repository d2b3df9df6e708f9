"""A box office: it sells seats, mails tickets, and gives the money back when a show is cancelled elsewhere."""

from sqlalchemy import UniqueConstraint, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import cqrs

HOUR = 3600.0


class Base(DeclarativeBase):
    pass


class Ticket(Base):
    __tablename__ = "tickets"
    __table_args__ = (UniqueConstraint("show", "seat"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    show: Mapped[str]
    seat: Mapped[int]
    email: Mapped[str]
    refunded: Mapped[bool] = mapped_column(default=False)


class Mailer:
    async def send(self, address: str, text: str) -> None:
        raise NotImplementedError(f"This example mails nothing to {address}, not even {text!r}.")


class SeatTakenError(Exception):
    """Somebody has this seat."""


class BuyTicket(cqrs.Command[int]):
    show: str
    seat: int
    email: str


class TicketsOf(cqrs.Query[list[int]]):
    show: str


@cqrs.integration_event(topic="tickets", key="show")
class TicketBought(cqrs.Event):
    show: str
    seat: int
    email: str


@cqrs.integration_event(topic="tickets", key="show")
class TicketRefunded(cqrs.Event):
    show: str
    seat: int


@cqrs.integration_event(topic="shows", key="show")  # another service publishes it
class ShowCancelled(cqrs.Event):
    show: str


@cqrs.command_handler
async def buy_ticket(command: BuyTicket, session: AsyncSession, context: cqrs.Context) -> int:
    ticket = Ticket(show=command.show, seat=command.seat, email=command.email)
    session.add(ticket)
    context.emit(TicketBought(show=command.show, seat=command.seat, email=command.email))
    try:
        await session.flush()
    except IntegrityError:
        raise SeatTakenError(f"Seat {command.seat} of {command.show} is taken.") from None
    return ticket.id


@cqrs.query_handler
async def tickets_of(query: TicketsOf, session: AsyncSession) -> list[int]:
    return list(await session.scalars(select(Ticket.seat).where(Ticket.show == query.show).order_by(Ticket.seat)))


@cqrs.event_handler(name="mail_ticket", retry=cqrs.Retry(attempts=3, first=HOUR))
async def mail_ticket(event: TicketBought, mailer: Mailer) -> None:
    await mailer.send(event.email, f"{event.show}, seat {event.seat}")


@cqrs.event_handler(name="refund")
async def refund(event: ShowCancelled, session: AsyncSession, context: cqrs.Context) -> None:
    for ticket in await session.scalars(select(Ticket).where(Ticket.show == event.show)):
        ticket.refunded = True
        context.emit(TicketRefunded(show=ticket.show, seat=ticket.seat))


app = cqrs.bootstrap(
    "examples.testing.app",
    name="box-office",
    container={Mailer: Mailer},
    database="postgresql+asyncpg://box-office@database/tickets",
    broker="kafka://broker:9092",
)
