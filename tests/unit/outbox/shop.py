"""An application whose events are saved, for the tests of storage."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from cqrs.outbox import Fate

SAVED = "SELECT count(*) FROM cqrs_outbox"


class Start(cqrs.Command[None]):
    orders: list[str]


class Happened(cqrs.Event):
    order: str


class Followed(cqrs.Event):
    order: str


class Shop:
    """What an application of these tests is made of; each call of `app` is another process of it."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.seen: list[str] = []
        self.failing = False

    def app(self, *, handler: str | None = "receive", follows: bool = False, **wishes: Any) -> cqrs.Mediator:
        registry = cqrs.Registry()
        registry.integration_event(topic="orders", key="order")(Happened)
        registry.integration_event(topic="orders", key="order")(Followed)

        @registry.command_handler(name="start")
        async def start(command: Start, context: cqrs.Context) -> None:
            for order in command.orders:
                context.emit(Happened(order=order))

        async def receive(event: Happened, context: cqrs.Context, session: AsyncSession) -> None:
            if self.failing:
                raise ValueError("no stock")
            self.seen.append(event.order)
            if follows:
                context.emit(Followed(order=event.order))

        async def follow(event: Followed) -> None:
            self.seen.append(f"after {event.order}")

        if handler is not None:
            registry.event_handler(name=handler)(receive)
            registry.event_handler(name="follow")(follow)
        else:
            # Somebody has to wait for the event, or nobody could emit it.
            wishes.setdefault("broker", FakeBroker())
        options = {"name": "shop", "database": self.database, "retry": cqrs.Retry(attempts=1), **wishes}
        return cqrs.bootstrap(registry=registry, **options)


class FakeBroker:
    """A broker that notes when it is opened and closed, and takes everything."""

    def __init__(self, log: list[str] | None = None, *, refuses: bool = False) -> None:
        self.log = log if log is not None else []
        self.refuses = refuses

    async def open(self) -> None:
        self.log.append("open")
        if self.refuses:
            raise ConnectionError("no broker")

    async def close(self) -> None:
        self.log.append("close")

    async def publish(self, envelopes: Sequence[cqrs.Envelope]) -> Sequence[Fate]:
        self.log += [f"publish {envelope.key}" for envelope in envelopes]
        return [Fate.DELIVERED] * len(envelopes)


async def is_parked(app: cqrs.Mediator, *, dead: int, waiting: int) -> bool:
    counts = await app.outbox.counts()
    return (counts.outbox, counts.dead, counts.waiting) == (0, dead, waiting)
