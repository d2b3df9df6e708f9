"""The toolkit's relay as a contestant: an application as bootstrap makes it, whose outbox is filled and emptied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter_ns
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

import cqrs
from benchmarks.rows import TOPIC, Outbox
from cqrs import migrations
from cqrs.cli.serving import spare_collector
from cqrs.codec import Envelope
from cqrs.outbox.publisher import Fate, Outcome, Unavailable

NAME = "benchmarks"
DEAD_TOPIC = "gone"
SETTLED = 20_000
"""Within so many of the newest ids stands what the last batches have not deleted yet."""
LOOK = 0.0005
PATIENCE = 120.0
"""Seconds after which a relay that delivers nothing more is given up."""

registry = cqrs.Registry()


@registry.integration_event(topic=TOPIC, key="customer")
class OrderPlaced(cqrs.Event):
    order_id: str
    customer: str
    note: str


class Stalled(Exception):
    """The relay delivered nothing more."""


class Publisher:
    """Counts what is delivered, by another publisher or, without one, by nobody.

    `pause` is how long each batch takes. A closed gate sends nothing and leaves all rows where they are.
    """

    def __init__(
        self, inner: cqrs.Publisher | None = None, *, pause: float = 0.0, dead_topic: str | None = None
    ) -> None:
        self._inner = inner
        self._pause = pause
        self._dead_topic = dead_topic
        self._left = 0
        self._complete = asyncio.Event()
        self.is_open = True

    async def open(self) -> None:
        if self._inner is not None:
            await self._inner.open()

    async def close(self) -> None:
        if self._inner is not None:
            await self._inner.close()

    async def publish(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        if not self.is_open:
            return [Fate.NOT_SENT] * len(envelopes)
        if self._dead_topic is not None and envelopes[0].topic == self._dead_topic:
            return _refuse(envelopes, self._dead_topic)
        if self._pause:
            await asyncio.sleep(self._pause)
        if self._inner is None:
            outcomes: Sequence[Outcome] = [Fate.DELIVERED] * len(envelopes)
        else:
            outcomes = await self._inner.publish(envelopes)
        self._left -= outcomes.count(Fate.DELIVERED)
        if self._left <= 0:
            self._complete.set()
        return outcomes

    def expect(self, number: int) -> None:
        """Begin to count down from so many."""
        self._left = number
        self._complete.clear()

    async def delivered(self) -> None:
        """Wait until all that is expected was delivered."""
        left = self._left
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    return await self._complete.wait()
            except TimeoutError:
                if self._left == left:
                    raise Stalled(f"The relay delivered nothing for {PATIENCE:g} s; {left} rows are left.") from None
                left = self._left


def _refuse(envelopes: Sequence[Envelope], topic: str) -> list[Outcome]:
    """Say that a topic is out of reach, of the first envelope of each strand."""
    seen: set[tuple[str, str, str]] = set()
    outcomes: list[Outcome] = []
    for envelope in envelopes:
        if envelope.topic == topic and envelope.strand not in seen:
            outcomes.append(Unavailable(ConnectionError("The topic is out of reach.")))
        else:
            outcomes.append(Fate.NOT_SENT if envelope.topic == topic else Fate.DELIVERED)
        seen.add(envelope.strand)
    return outcomes


def application(database: str | AsyncEngine, publisher: Any, *, prefix: str = "cqrs_", **options: Any) -> cqrs.Mediator:
    """Return the application, as a user would make it."""
    return cqrs.bootstrap(registry=registry, name=NAME, database=database, broker=publisher, prefix=prefix, **options)


class Ours:
    """An open application whose relay runs, and the outbox that it empties."""

    def __init__(self, app: cqrs.Mediator, outbox: Outbox, publisher: Publisher) -> None:
        self.app = app
        self.outbox = outbox
        self.publisher = publisher

    @property
    def batch(self) -> int:
        """Return how many rows a claim has at most."""
        return self.app.storage.relay._pace.batch  # noqa: SLF001 - nothing public tells

    @property
    def pace(self) -> str:
        """Return how the relay works, as a condition of what was measured."""
        pace = self.app.storage.relay._pace  # noqa: SLF001 - nothing public tells
        return f"batch {pace.batch:,}, {pace.lanes} lane{'s' if pace.lanes > 1 else ''}"

    async def drain(self, number: int, *, topic: str = TOPIC) -> float:
        """Fill the outbox, let the relay empty it, and return the nanoseconds of each row."""
        await self.outbox.empty()
        self.publisher.expect(number)
        await self.outbox.fill(number, topic=topic)
        return await self.delivered(number)

    async def delivered(self, number: int) -> float:
        """Wake the relay, wait until all rows are delivered and settled, and return the nanoseconds of each."""
        last = await self.outbox.last_id()
        began = perf_counter_ns()
        self.app.storage.relay.wake()
        await self.publisher.delivered()
        while True:
            while await self.outbox.has_rows_above(last - SETTLED):  # noqa: ASYNC110 - nobody tells of a settled batch
                await asyncio.sleep(LOOK)
            ended = perf_counter_ns()
            if not await self.outbox.count():
                return (ended - began) / number

    async def part(self, number: int) -> float:
        """Open the gate for so many rows, wait until they are delivered, and return the nanoseconds of each."""
        self.publisher.expect(number)
        self.publisher.is_open = True
        began = perf_counter_ns()
        self.app.storage.relay.wake()
        await self.publisher.delivered()
        took = perf_counter_ns() - began
        self.publisher.is_open = False
        return took / number

    async def refilled_part(self, number: int, *, afresh: bool) -> float:
        """Fill the outbox while the gate is closed, and deliver as much."""
        self.publisher.is_open = False
        if afresh:
            await self.outbox.empty()
        await self.outbox.fill(number)
        return await self.part(number)


@asynccontextmanager
async def running(
    engine: AsyncEngine, publisher: Publisher, *, url: str | None = None, prefix: str = "cqrs_", **options: Any
) -> AsyncIterator[Ours]:
    """Give the application with its tables and some dead letters; its relay runs."""
    await migrate(engine, prefix)
    outbox = Outbox(engine, prefix)
    await outbox.park_dead_letters()
    async with application(url or engine, publisher, prefix=prefix, **options) as app:
        yield Ours(app, outbox, publisher)


async def migrate(engine: AsyncEngine, prefix: str = "cqrs_") -> None:
    """Create the tables."""
    async with engine.begin() as connection:
        await connection.run_sync(migrations.migrate, prefix=prefix)


Contestant = Callable[[], Awaitable[float]]
"""Runs once, and returns the nanoseconds of each row."""


async def alternate(contestants: dict[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Let contestants take turns, after one round that only warms up; return the nanoseconds of each by round.

    Then the garbage collector is spared, for all of them, as `cqrs run` does and docs/production.md advises.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for number in range(rounds + 1):
        if number == 1:
            spare_collector()
        for name in order:
            took = await contestants[name]()
            if number:
                taken[name].append(took)
        order.append(order.pop(0))
    return taken
