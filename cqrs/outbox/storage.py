"""A mediator's storage: opens the database, checks its schema, begins transactions, and runs the relay."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from cqrs import migrations
from cqrs.codec import BROKER
from cqrs.errors import DrainTimeout, NotOpen, SchemaError
from cqrs.outbox.carrier import Carrier
from cqrs.outbox.database import reach, shown
from cqrs.outbox.desk import Outbox
from cqrs.outbox.faults import remember_faults
from cqrs.outbox.group import Group, Member, Saved
from cqrs.outbox.publisher import Pingable, Publisher
from cqrs.outbox.relay import Pace, Relay
from cqrs.outbox.rows import DEAD
from cqrs.outbox.settings import record
from cqrs.outbox.survey import describe
from cqrs.outbox.transaction import Adopted, Query, Transaction, watched
from cqrs.outbox.waiting import came
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

REMEMBERED = 100_000
"""How many events that this process emitted `drain` waits for: the last ones."""
HOUSEKEEPING = 60.0
UNCLAIMED = 900.0
LOOK = 0.05


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
        self._emitted: dict[str, None] = {}
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

    def deliver_to(self, handler: Handler, message_id: str) -> Transaction:
        """Return a unit in which this handler's inbox row says that it has taken this message."""
        return self._unit(Transaction, self._writing, takes=(handler.name, [message_id]))

    def group(self, handler: Handler, message_ids: Sequence[str]) -> Group:
        """Return one transaction in which a handler takes several messages, to be entered."""

        def make(connection: AsyncConnection, saved: Saved) -> Member:
            session = partial(self._writing, bind=connection, join_transaction_mode="rollback_only")
            return self._unit(Member, session, saved=saved)

        return Group(self.store, handler, message_ids, make, self._saved)

    async def has_taken(self, handler: Handler, message_id: str) -> bool:
        """Whether the inbox says that this handler has taken this message."""
        return await self.store.inbox.has_taken(handler.name, message_id)

    def adopt(self, session: AsyncSession) -> Adopted:
        """Return a unit within a transaction that the caller began and will commit."""
        return self._unit(Adopted, lambda: session)

    def _unit(
        self,
        kind: type[Work],
        sessions: Callable[[], AsyncSession],
        takes: tuple[str, Collection[str]] | None = None,
        saved: Saved | None = None,
    ) -> Work:
        if not self.is_open:
            raise NotOpen(self._name)
        told = saved or self._saved
        return kind(sessions, self.store, source=self._name, publishes=self._publishes, saved=told, takes=takes)

    def _saved(self, envelopes: Sequence[Envelope]) -> None:
        """Remember what this process emitted, for `drain`, tell of it, and wake the relay."""
        if self.committed is not None:
            self.committed(envelopes)
        for envelope in envelopes:
            self._emitted[envelope.message_id] = None
        while len(self._emitted) > REMEMBERED:
            del self._emitted[next(iter(self._emitted))]
        self.relay.wake()
        self._ring()

    # Opening and closing

    async def __aenter__(self) -> Self:
        """Open the database, check its schema, and begin to relay."""
        async with AsyncExitStack() as stack:
            if self._database.owned:
                stack.push_async_callback(self._database.readers.dispose)
                stack.push_async_callback(self._database.writers.dispose)
            self.relay.prepare()
            await self.connect()
            await self._check_schema()
            await self._check_settings()
            await self._carrier.agree()
            stack.push_async_callback(self._carrier.leave)
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
            stack.push_async_callback(_end, keeper)
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

    async def _check_schema(self) -> None:
        database = self._database
        async with self.store.writers.begin() as connection:
            number = await connection.run_sync(migrations.recorded_number, database.prefix, database.schema)
            embedded = number == 0 and connection.dialect.name == "sqlite"
            fresh = embedded and not await connection.run_sync(_has_tables, database.prefix)
            if number < VERSION and (fresh or database.migrate):
                async with self.store.dialect.migrating(connection):
                    await connection.run_sync(_migrate, database)
                return
        self._accept(number)
        await self.store.dialect.check(self.store)

    async def check_schema(self) -> None:
        """Raise `SchemaError`, with the command to run, if the tables are not those that this version needs."""
        database = self._database
        await self.connect()
        async with self.store.readers.connect() as connection:
            self._accept(await connection.run_sync(migrations.recorded_number, database.prefix, database.schema))

    async def lag(self) -> float:
        """Return for how many seconds the oldest row has waited that relays would take now."""
        await self.connect()
        return await self.store.lag()

    def _accept(self, number: int) -> None:
        if number != VERSION:
            raise SchemaError(_schema_advice(number, self._database))

    async def _check_settings(self) -> None:
        found = await record(self.store, self._wanted())
        if found["application"] != self._name:
            raise SchemaError(
                f"These tables belong to the application '{found['application']}', and this one is '{self._name}'. "
                f"If it is the same application, pass name='{found['application']}' to bootstrap; "
                "otherwise give it tables of its own: prefix='...', or on a server schema='...'."
            )
        if found["slots"] != str(self.store.slots):
            raise SchemaError(
                f"The outbox was begun with {found['slots']} slots, and this application has {self.store.slots}. "
                f"Pass slots={found['slots']} to bootstrap, or empty the outbox and its slot table before a change."
            )

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

    # Draining

    async def drain(self, timeout: float) -> None:
        """Wait until what this process emitted has ended."""
        end = monotonic() + timeout
        # What was emitted while the database was asked has not been asked for yet.
        while (left := await self._unended()) or self._emitted:
            if left and all(state == DEAD for *_, state in left):
                raise DrainTimeout(describe(left), "given up: app.outbox.replay() or discard() ends them")
            if monotonic() >= end:
                raise DrainTimeout(describe(left), f"not delivered after {timeout:g} s")
            self.relay.settled.clear()
            await came(self.relay.settled, min(LOOK, max(0.0, end - monotonic())))

    async def _unended(self) -> list[tuple[str, str, str, str]]:
        asked = list(self._emitted)
        left = await self.store.unended(asked)
        pending = {event_id for event_id, *_ in left}
        for event_id in asked:
            if event_id not in pending:
                self._emitted.pop(event_id, None)
        return left


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


def _has_tables(connection: Any, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in inspect(connection).get_table_names())


def _migrate(connection: Any, database: Database) -> None:
    migrations.migrate(connection, prefix=database.prefix, schema=database.schema)


def _schema_advice(number: int, database: Database) -> str:
    url = shown(database.writers.url)
    if number > VERSION:
        return (
            f"{url} has schema number {number}, and this version of cqrs-toolkit knows {VERSION}: the database was "
            "upgraded for a newer version. Run `pip install --upgrade cqrs-toolkit`."
        )
    found = "no tables of cqrs-toolkit" if number == 0 else f"schema number {number}"
    return (
        f"{url} has {found}, and this version needs number {VERSION}. Add `cqrs.migrations.upgrade(op, to={VERSION})` "
        "to a revision of your Alembic project and run `alembic upgrade head`; without Alembic, run "
        "`cqrs db upgrade`, or pass migrate=True to bootstrap."
    )
