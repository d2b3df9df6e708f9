"""A mediator's storage: opens the database, begins transactions, runs the relay, and keeps house."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from cqrs.codec import BROKER
from cqrs.errors import MisuseError, NotOpen
from cqrs.outbox import schema_check
from cqrs.outbox.adopted import Adopted
from cqrs.outbox.carrier import Carrier
from cqrs.outbox.database import reach
from cqrs.outbox.desk import Outbox
from cqrs.outbox.emitted import Emitted
from cqrs.outbox.faults import remember_faults
from cqrs.outbox.group import Group, Member, Saved
from cqrs.outbox.handed import UNIT, watched
from cqrs.outbox.publisher import Pingable, Publisher
from cqrs.outbox.relay import Pace, Relay
from cqrs.outbox.series import Series
from cqrs.outbox.settings import agree, record
from cqrs.outbox.transaction import Query, Transaction
from cqrs.outbox.waiting import within
from cqrs.registry import Kind
from cqrs.schema import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.codec import Envelope
    from cqrs.context import Context
    from cqrs.outbox.database import Database
    from cqrs.outbox.store import Store
    from cqrs.outbox.verdicts import End
    from cqrs.signature import Handler

log = logging.getLogger(__name__)

Work = TypeVar("Work", bound=Transaction)

ENDING = 3.0
"""Seconds that each of the last steps has: the database may not answer any more."""
HOUSEKEEPING = 60.0
"""Seconds between two rounds of housekeeping."""
UNCLAIMED = 900.0
"""Seconds after which it reports rows that nobody claims."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What is kept how long, in seconds: inbox rows longer than brokers keep messages, dead letters for ever (None)."""

    inbox: float = 14 * 86400.0
    dead: float | None = None


class Storage:
    """One application's database, from `async with app` on."""

    def __init__(
        self,
        name: str,
        database: Database,
        store: Store,
        *,
        publishers: Mapping[str, Publisher],
        handlers: Collection[str],
        end: End,
        skipping: Collection[str],
        publishes: bool,
        relays: bool,
        pace: Pace,
        keeping: Keeping,
        listen_url: str | None = None,
    ) -> None:
        self.store = store
        self.relay = Relay(store, publishers, end=end, skipping=skipping, pace=pace)
        self.outbox = Outbox(store, self.relay.look, skipping)
        self.broker = publishers.get(BROKER)
        self.relays = relays
        self._name = name
        self._carrier = Carrier(store)
        self._database = database
        self._publishers = list({id(publisher): publisher for publisher in publishers.values()}.values())
        self._handlers = handlers
        self._skipping = skipping
        self._publishes = publishes
        self._relays_to_broker = BROKER in publishers
        self._keeping = keeping
        self._listen_url = listen_url
        remember_faults(store.writers)
        self._writing = _sessions(database, store.writers)
        self._reading = _sessions(database, store.readers)
        self.is_open = False
        self._emitted = Emitted(store)
        self._reported: set[str] = set()
        self._opened = AsyncExitStack()
        self._ring: Callable[[], None] = _nobody
        self.committed: Callable[[Sequence[Envelope]], None] | None = None
        """Is told of the rows of every transaction that has committed."""

    # Transactions

    def begin(self, context: Context) -> Transaction:
        """Open the unit of work of a command, or of a query."""
        if context.plan.kind is Kind.QUERY:
            return self._unit(Query, self._reading)
        return self._unit(Transaction, self._writing)

    def series(self) -> Series:
        """Return what gives units to deliveries that follow one another in one task, to be entered."""

        def make(handler: Handler, message_id: str, series: Series | None) -> Transaction:
            return self._unit(Transaction, self._writing, takes=(handler.name, [message_id]), series=series)

        return Series(self.store.writers, make)

    def group(self, handler: Handler, message_ids: Sequence[str]) -> Group:
        """Return one transaction in which a handler takes several messages, to be entered."""

        def make(connection: AsyncConnection, saved: Saved) -> Member:
            return self._unit(Member, self._writing, saved=saved, connection=connection.sync_connection)

        return Group(self.store, handler, message_ids, make, self._saved)

    async def has_taken(self, handler: Handler, message_id: str) -> bool:
        """Whether the inbox says that this handler has taken this message."""
        return await self.store.inbox.has_taken(handler.name, message_id)

    def adopt(self, session: AsyncSession) -> Adopted:
        """Return a unit within a transaction that the caller began and will commit."""
        if not hasattr(session, "sync_session"):
            kind = type(session).__qualname__
            raise MisuseError(f"emit takes an AsyncSession, and was given an object of the type {kind}.")
        unit = self._unit(Adopted, self._writing, session=session)
        session.sync_session.info[UNIT] = unit
        return unit

    def _unit(
        self, kind: type[Work], sessions: async_sessionmaker[AsyncSession], saved: Saved | None = None, **given: Any
    ) -> Work:
        if not self.is_open:
            raise NotOpen(self._name)
        told = saved or self._saved
        return kind(sessions, self.store, source=self._name, publishes=self._publishes, saved=told, **given)

    def _saved(self, envelopes: Sequence[Envelope]) -> None:
        """Remember what this process emitted, for `drain`, tell of it, and wake the relay."""
        if self.committed is not None:
            self.committed(envelopes)
        self._emitted.add(envelopes)
        self.relay.wake()
        self._ring()

    async def drain(self, timeout: float) -> None:
        """Wait until what this process emitted has ended. Raises `DrainTimeout`, which lists what has not."""
        await self._emitted.drain(timeout, self.relay.settled)

    # Opening and closing

    async def __aenter__(self) -> Self:
        """Open the database, check its schema, and begin to relay."""
        async with AsyncExitStack() as stack:
            if self._database.owned:
                for engine in {self._database.readers, self._database.writers}:
                    stack.push_async_callback(within, ENDING, engine.dispose)
            self.relay.prepare()
            await self.connect()
            await schema_check.ensure(self._database, self.store)
            await agree(self.store, self._wanted())
            await self._carrier.agree()
            stack.push_async_callback(within, ENDING, self._carrier.leave)
            await self._report_unserved(0.0)
            for publisher in self._publishers if self.relays else ():
                await publisher.open()
                stack.push_async_callback(publisher.close)
            stack.push_async_callback(self.relay.stop)
            if self.relays:
                self.relay.start()
            heard = self.relay.wake if self.relays else None
            bell = self.store.dialect.bell(self.store, heard, self._listen_url)
            if bell is not None:
                self._ring = (await stack.enter_async_context(bell)).ring
            keeper = asyncio.create_task(self._keep_house(), name="cqrs housekeeping")
            stack.push_async_callback(within, ENDING, lambda: _end(keeper))
            self.is_open = True
            stack.callback(self._close)
            self._opened = stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Begin nothing new, finish what is in flight within the grace period, and close."""
        await self._opened.aclose()

    def _close(self) -> None:
        self.is_open = False

    async def disconnect(self) -> None:
        """Close what a look without opening has left: connections to the database, and to the broker."""
        if self._database.owned:
            await self._database.readers.dispose()
            await self._database.writers.dispose()
        if isinstance(self.broker, Pingable):  # nobody has connected another one
            await self.broker.close()

    async def connect(self) -> None:
        """Raise `DatabaseUnreachable`, which says in plain words why, if the database cannot be reached."""
        await reach(self._database)

    async def check_schema(self) -> None:
        """Raise `SchemaError`, with the command to run, if the tables are not those that this version needs."""
        await self.connect()
        await schema_check.check(self._database, self.store)

    async def lag(self) -> float:
        """Return for how many seconds the oldest row has waited that relays would take now."""
        await self.connect()
        return await self.store.lag()

    def _wanted(self) -> dict[str, str]:
        """Return what the settings say; housekeeping writes it again where somebody deleted it."""
        return {
            "application": self._name,
            "slots": str(self.store.slots),
            "carrier": self._carrier.name,
            "schema": str(VERSION),
        }

    async def _report_unserved(self, age: float) -> None:
        served = [*self._handlers, BROKER] if self._relays_to_broker else self._handlers
        waiting = dict(await self.store.unserved(served, age))
        new = waiting.keys() - self._reported
        self._reported = set(waiting)
        for destination in sorted(new):
            log.warning(
                "%d rows wait for the handler '%s', which this process does not have. If it was renamed, give the "
                "handler its old name: name='%s'. Otherwise they wait for a process that has it.",
                waiting[destination],
                destination,
                destination,
            )

    async def _keep_house(self) -> None:
        """Forget what is past its retention, in small batches, and report what nobody claims."""
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            for chore in self._chores:
                try:
                    await chore()
                except Exception as error:  # noqa: BLE001 - tried again in a minute, and others do not wait for it
                    log.warning("Housekeeping failed and is tried again: %s", error)

    @property
    def _chores(self) -> Sequence[Callable[[], Awaitable[object]]]:
        return (
            lambda: record(self.store, self._wanted()),
            self._carrier.stay,
            lambda: self.store.parked.wake_heads(self._skipping),
            self._forget,
            lambda: self._report_unserved(UNCLAIMED),
        )

    async def _forget(self) -> None:
        for _ in range(100):
            if not await self.store.inbox.forget(
                inbox=self._keeping.inbox, dead=self._keeping.dead, skipping=self._skipping
            ):
                return


def _nobody() -> None:
    """Stand for a bell where the database has none."""


def _sessions(database: Database, engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    options: dict[str, Any] = {"expire_on_commit": False, **database.sessions, "bind": engine}
    options["sync_session_class"] = watched(
        options.get("sync_session_class", database.session_class.sync_session_class)
    )
    return async_sessionmaker(class_=database.session_class, **options)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
