"""A model of outbox, relay and inbox: whatever happens in whatever order, nothing is lost, doubled or out of order."""

import asyncio
import shutil
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from cqrs.outbox.leases import LeasedRetries, LeasedSlots
from cqrs.outbox.relay import Relay
from cqrs.outbox.storage import Storage

KEYS = ("a", "b", "c")


class Boom(Exception):
    """What handlers of the model fail with."""


class Killed(BaseException):
    """The end of a relay between publishing and settling."""


class Happened(cqrs.Event):
    key: str
    number: int


class Record(cqrs.Command[None]):
    key: str
    number: int
    fails: bool


class World:
    """One database and two processes' applications on it, whose relays work only when told."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "model.db"
        self.failing: dict[int, int] = defaultdict(int)
        self.apps = [self._application(), self._application()]

    def _application(self) -> cqrs.Mediator:
        registry = cqrs.Registry()
        registry.integration_event(topic="model", key="key")(Happened)

        @registry.command_handler(name="record")
        async def record(command: Record, context: cqrs.Context) -> None:
            context.emit(Happened(key=command.key, number=command.number))
            if command.fails:
                raise Boom

        @registry.event_handler(name="apply", retry=cqrs.Retry(attempts=3, first=10.0, jitter=0))
        async def apply(event: Happened, session: AsyncSession) -> None:
            values = {"number": event.number, "key": event.key}
            await session.execute(text("INSERT INTO effects (number, key) VALUES (:number, :key)"), values)
            if self.failing[event.number] > 0:
                self.failing[event.number] -= 1
                raise Boom

        return cqrs.bootstrap(
            registry=registry, name="model", database=f"sqlite+aiosqlite:///{self.file}", relay=False, slots=2
        )

    def storage(self, number: int) -> Storage:
        storage = self.apps[number].storage
        assert isinstance(storage, Storage)
        return storage

    async def open(self) -> None:
        for app in self.apps:
            await app.__aenter__()
        async with self.storage(0).store.writers.begin() as connection:
            await connection.execute(
                text("CREATE TABLE IF NOT EXISTS effects (place INTEGER PRIMARY KEY, number INTEGER, key TEXT)")
            )

    async def close(self) -> None:
        for app in self.apps:
            await app.__aexit__(None, None, None)

    async def effects(self) -> list[tuple[str, int]]:
        async with self.storage(0).store.readers.connect() as connection:
            rows = await connection.execute(text("SELECT key, number FROM effects ORDER BY place"))
            return [(row.key, row.number) for row in rows]

    def restart(self, number: int) -> None:
        """Replace a relay by that of a new process: what the old one claimed stays claimed until its lease ends."""
        storage = self.storage(number)
        old = storage.relay
        storage.relay = Relay(
            storage.store, old._handover.publishers, end=old._judge._end, skipping=storage._skipping, pace=old._pace
        )

    async def kill_before_settling(self, number: int) -> None:
        async def die(*_: object) -> None:
            raise Killed

        relay = self.storage(number).relay
        with patch.object(LeasedSlots, "settle", die), patch.object(LeasedRetries, "settle", die), suppress(Killed):
            await relay.relay_outbox()
            await relay.relay_due()
        self.restart(number)

    def advance(self, seconds: float) -> None:
        for number in range(2):
            self.storage(number).store.ahead += seconds


class OutboxModel(RuleBasedStateMachine):
    """Commands, relays, faults and time in any order."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.expected: dict[str, list[int]] = {key: [] for key in KEYS}
        self.count = 0
        self.world = World(self.folder)
        self.run(self.world.open())

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.run(self.drain())
            self.check_all()
        finally:
            self.run(self.world.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    @rule(key=st.sampled_from(KEYS), burst=st.lists(st.sampled_from([0, 0, 1, 4]), min_size=1, max_size=3))
    def commit(self, key, burst):
        """Commit events of a key, each of which fails so many times before it succeeds."""
        for failures in burst:
            self.count += 1
            self.world.failing[self.count] = failures
            self.run(self.world.apps[self.count % 2].send(Record(key=key, number=self.count, fails=False)))
            self.expected[key].append(self.count)

    @rule(key=st.sampled_from(KEYS), number=st.integers(0, 1))
    def roll_back(self, key, number):
        self.count += 1
        try:
            self.run(self.world.apps[number].send(Record(key=key, number=self.count, fails=True)))
        except Boom:
            return
        raise AssertionError("the command's exception did not arrive")

    @rule(number=st.integers(0, 1))
    def relay(self, number):
        async def work():
            await self.world.storage(number).relay.relay_outbox()
            await self.world.storage(number).relay.relay_due()

        self.run(work())

    @rule()
    def relay_side_by_side(self):
        async def both():
            steps = [self.world.storage(n).relay for n in (0, 1)]
            await asyncio.gather(*(s.relay_outbox() for s in steps), *(s.relay_due() for s in steps))

        self.run(both())

    @rule(number=st.integers(0, 1))
    def crash(self, number):
        self.run(self.world.kill_before_settling(number))

    @rule(seconds=st.sampled_from([1.0, 11.0, 40.0]))
    def wait(self, seconds):
        self.world.advance(seconds)

    @rule()
    def replay(self):
        self.run(self.world.apps[0].outbox.replay())

    @rule()
    def check_order_so_far(self):
        """At any moment, what has taken effect of a key is a beginning of what was committed of it."""
        for key, numbers in self.effects_by_key().items():
            assert numbers == self.expected[key][: len(numbers)]

    def effects_by_key(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {key: [] for key in KEYS}
        for key, number in self.run(self.world.effects()):
            found[key].append(number)
        return found

    async def drain(self) -> None:
        """Let time pass, faults end and dead letters be replayed, until everything has ended."""
        self.world.failing.clear()
        for _ in range(40 + 4 * self.count):
            counts = await self.world.apps[0].outbox.counts()
            if counts == type(counts)(0, 0, 0, 0):
                return
            self.world.advance(60.0)
            await self.world.apps[0].outbox.replay()
            for number in (0, 1):
                await self.world.storage(number).relay.relay_outbox()
                await self.world.storage(number).relay.relay_due()
        raise AssertionError(f"it never ends: {await self.world.apps[0].outbox.counts()}")

    def check_all(self) -> None:
        assert self.effects_by_key() == self.expected


TestOutboxModel = OutboxModel.TestCase
TestOutboxModel.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
