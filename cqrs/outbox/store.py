"""The statements over the outbox and the settings of one set of tables.

With `parked`, `inbox`, `leases`, `locks` and the dialects the only module that speaks SQL about them.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import (
    ARRAY,
    BigInteger,
    MetaData,
    SmallInteger,
    any_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.exc import IntegrityError

from cqrs.codec import BROKER
from cqrs.outbox.inbox import Inbox
from cqrs.outbox.parked import Parked, chunks
from cqrs.outbox.prepared import Prepared
from cqrs.outbox.rows import COPIED, DEAD, SCHEDULED, WAITING, Claimed, Counts, Probe, Verdict, View
from cqrs.schema import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy import ColumnElement, Executable, Insert, Table
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from cqrs.codec import Envelope
    from cqrs.outbox.bell import Bell

FRONT = 100
"""How many rows at the front of each slot are looked at for somebody to deliver them."""
SLOTS_ASKED = 64
"""Of how many slots a probe asks one by one."""


class Nothing(Enum):
    """Why a claim has no rows."""

    IDLE = "no row waits"
    BUSY = "rows wait in slots that others work on"


class Claim(Protocol):
    """Rows that are this relay's until they are settled, or until it has shown no sign of life for a lease."""

    rows: Sequence[Claimed]
    held_back: int
    """How many more rows were moved behind parked ones of their key."""

    async def keep(self) -> None:
        """Show a sign of life."""
        ...

    async def settle(self, done: Sequence[Claimed], failed: Sequence[Verdict], returned: Sequence[Claimed]) -> None:
        """End the claim: delete what was delivered, park what failed, and leave the rest as it was."""
        ...


class Lane(Protocol):
    """One of a relay's ways to the database: it has one claim at a time. What fails may be called again."""

    async def claim(self, view: View, limit: int) -> Claim | Nothing:
        """Take some slots and return their first rows, in order.

        At most about half of the free slots that have work are taken, but at least one, so that relays share without
        knowing each other. Rows of parked keys are moved to the end of their key instead.
        """
        ...

    async def retry(self, view: View, limit: int) -> Claim | None:
        """Take parked rows that are due, each the first of its key."""
        ...

    async def probe(self, view: View, floors: Mapping[int, int]) -> Probe:
        """Say, in one statement, whether there is anything to do; no row of a slot lies at or below its floor."""
        ...

    def floors(self, view: View) -> Mapping[int, int]:
        """Return below which id nothing of this view is left in a slot, where that is known."""
        ...

    async def close(self) -> None:
        """Give back what the lane holds."""
        ...


class Dialect(Protocol):
    """What one kind of database does in its own way."""

    carries_log: bool
    """Whether its log can carry the broker's rows."""
    locks: bool
    """Whether claims hold locks, which nobody should do for long."""
    pace: Mapping[str, int]
    """How many rows a relay claims at once, and in how many lanes (`cqrs.outbox.relay.Pace`)."""

    def writing(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine as commands use it."""
        ...

    def reading(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine as queries use it."""
        ...

    def short(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine for the store's own transactions, whose every statement sees what was committed before."""
        ...

    def later(self, seconds: float) -> ColumnElement[Any]:
        """Return the database's time so many seconds from now, as it is stored."""
        ...

    def seconds_until(self, moment: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the seconds from the database's time to a stored moment."""
        ...

    def taking(self, inbox: Table) -> Insert:
        """Return what writes inbox rows unless they are there."""
        ...

    def run(self, connection: Connection, statement: str, parameters: Any) -> int:
        """Run a compiled statement; returns how many rows it touched."""
        ...

    def begin(self, connection: Connection) -> None:
        """Begin a transaction that has no statement yet, where that may have to wait."""
        ...

    def begin_with(self, connection: Connection, statement: str, parameters: Any) -> int:
        """Run a compiled statement as a transaction's first; returns how many rows it touched."""
        ...

    def commit_with(self, connection: Connection, statement: str, rows: Sequence[Any], size: int) -> None:
        """Run a compiled statement as a transaction's last, for each of the rows; COMMIT follows.

        `size` is how many bytes their bodies have.
        """
        ...

    async def check(self, store: Store) -> None:
        """Raise `SchemaError` where somebody changed what the dialect relies on."""
        ...

    async def longest_body(self, connection: AsyncConnection) -> float:
        """Return how many bytes of a body a statement may carry."""
        ...

    def migrating(self, connection: AsyncConnection) -> AbstractAsyncContextManager[None]:
        """Wait until nobody else migrates this database, and keep all from it meanwhile."""
        ...

    async def hold(self, connection: AsyncConnection, store: Store, slots: Sequence[int]) -> None:
        """Wait until no relay works on these slots, and keep all from them until the transaction ends."""
        ...

    async def serialise(self, connection: AsyncConnection, store: Store, keys: Collection[str]) -> None:
        """Let transactions that write one of these keys come one after the other."""
        ...

    def lane(self, store: Store, owner: str, lease: float) -> Lane:
        """Return a way to the database for a relay."""
        ...

    def bell(self, store: Store, heard: Callable[[], None] | None, listen_url: str | None) -> Bell | None:
        """Return what tells relays of other processes that rows were saved, where the database can."""
        ...

    def slots(self, store: Store) -> Sequence[int]:
        """Return the rows that the slot table must have."""
        ...


class Store:
    """One set of tables. Every method is one short transaction unless it is given a connection.

    `ahead` shifts the clock by so many seconds, for tests; all other time is the database's.
    """

    def __init__(
        self,
        dialect: Dialect,
        writers: AsyncEngine,
        readers: AsyncEngine,
        *,
        prefix: str = "cqrs_",
        schema: str | None = None,
        slots: int = 16,
        strict: bool = False,
        logged: bool = False,
    ) -> None:
        self.dialect = dialect
        self.writers = dialect.writing(writers)
        self.readers = dialect.reading(readers)
        self.short = dialect.short(writers)
        self.tables = tables(MetaData(schema=schema), prefix)
        self.slots = slots
        self.strict = strict
        self.logged = logged
        self.ahead = 0.0
        self._prepared: dict[str, Prepared] = {}
        self.parked = Parked(self)
        self.inbox = Inbox(self)

    @property
    def name(self) -> str:
        """The outbox's name with its schema: what distinguishes these tables in this database."""
        return self.tables.outbox.fullname

    def slot_of(self, envelope: Envelope) -> int:
        """Return the slot of a row: a hash of its topic and key; without a key the event's id takes its place."""
        return envelope.share(self.slots)

    def now(self, seconds: float = 0.0) -> Any:
        """Return the moment so many seconds from now, as an expression in the database's clock."""
        return self.dialect.later(self.ahead + seconds)

    def prepared(self, name: str, make: Callable[[], Executable]) -> Prepared:
        """Return a statement by its name, made and compiled at its first use."""
        found = self._prepared.get(name)
        if found is None or found.ahead != self.ahead:
            found = self._prepared[name] = Prepared(make(), self.writers.dialect, self.ahead)
        return found

    # Saving

    async def serialise(self, connection: AsyncConnection, envelopes: Sequence[Envelope]) -> None:
        """Come after all transactions that write one of these keys, and let none in before this one's end."""
        keys = {f"{envelope.topic}\0{envelope.key}" for envelope in envelopes if envelope.key is not None}
        await self.dialect.serialise(connection, self, keys)

    def add(self, connection: Connection, envelopes: Sequence[Envelope], *, last: bool = False) -> None:
        """Insert rows in the connection's transaction, in this order. As its `last`, they may go with its COMMIT.

        Where the database's log carries the broker's rows, those are deleted again: the log alone has them.
        """
        logged = [envelope for envelope in envelopes if self.logged and envelope.destination == BROKER]
        kept = [envelope for envelope in envelopes if not self.logged or envelope.destination != BROKER]
        if kept:
            self._insert(connection, kept, last=last)
        if logged:
            self._pass_through(connection, logged)

    def _insert(self, connection: Connection, envelopes: Sequence[Envelope], *, last: bool) -> None:
        adding = self.prepared("add", self._adding)
        rows = [adding.parameters(self.values(envelope)) for envelope in envelopes]
        if last:
            size = sum(len(envelope.payload) for envelope in envelopes)
            self.dialect.commit_with(connection, adding.statement, rows, size)
        else:
            connection.exec_driver_sql(adding.statement, rows if len(rows) > 1 else rows[0])

    def _adding(self) -> Executable:
        given: dict[str, Any] = {name: bindparam(name) for name in COPIED if name != "created_at"}
        return insert(self.tables.outbox).values(created_at=self.now(), **given).inline()

    def _pass_through(self, connection: Connection, envelopes: Sequence[Envelope]) -> None:
        table = self.tables.outbox
        added = insert(table).returning(table.c.slot, table.c.id, sort_by_parameter_order=True)
        values = [{"created_at": _emitted(envelope), **self.values(envelope)} for envelope in envelopes]
        rows = connection.execute(added, values).all()
        slots, ids = sorted({row[0] for row in rows}), [row[1] for row in rows]
        these = (
            table.c.slot == any_(literal(slots, ARRAY(SmallInteger))),
            table.c.id == any_(literal(ids, ARRAY(BigInteger))),
        )
        connection.execute(delete(table).where(*these))

    def values(self, envelope: Envelope) -> dict[str, Any]:
        """Return the columns that outbox and parked rows share, but for `created_at`."""
        return {
            "event_id": envelope.message_id,
            "destination": envelope.destination,
            "topic": envelope.topic,
            "message_key": envelope.key,
            "type": envelope.type,
            "headers": envelope.saved,
            "payload": envelope.payload,
            "slot": self.slot_of(envelope),
        }

    # Relaying

    def lane(self, owner: str, lease: float) -> Lane:
        """Return a way to the database for a relay."""
        return self.dialect.lane(self, owner, lease)

    async def probe(self, connection: AsyncConnection, view: View, floors: Mapping[int, int]) -> Probe:
        """Say, in one statement, whether there is anything to do for these destinations."""
        parked = self.tables.parked
        due = [
            select(self.dialect.seconds_until(parked.c.next_attempt_at))
            .where(
                parked.c.state == state,
                parked.c.next_attempt_at.is_not(None),
                parked.c.destination.in_(view.destinations),
            )
            .order_by(parked.c.next_attempt_at)
            .limit(1)
            .scalar_subquery()
            for state in (WAITING, SCHEDULED)
        ]
        row = (await connection.execute(select(self._waiting(view, floors), *due))).one()
        found = [float(seconds) - self.ahead for seconds in row[1:] if seconds is not None]
        return Probe(bool(row[0]), min(found, default=None))

    def _waiting(self, view: View, floors: Mapping[int, int]) -> ColumnElement[bool]:
        table = self.tables.outbox
        wanted = self.wanted(view)
        if not floors or self.slots > SLOTS_ASKED:
            return exists().where(*wanted)
        slots = range(self.slots)
        return or_(*(exists().where(table.c.slot == s, table.c.id > floors.get(s, 0), *wanted) for s in slots))

    def wanted(self, view: View) -> list[ColumnElement[bool]]:
        """Return the conditions for the outbox's rows that a view shows."""
        table = self.tables.outbox
        conditions: list[ColumnElement[bool]] = [table.c.destination.in_(view.destinations)]
        if view.topic is not None:
            conditions.append(table.c.topic == view.topic)
        return conditions + [
            or_(table.c.destination != destination, table.c.topic != topic)
            for destination, topic in sorted(view.without)
        ]

    # Looking

    async def counts(self) -> Counts:
        """Return how many rows have not ended."""
        outbox, parked = self.tables.outbox, self.tables.parked
        async with self.readers.connect() as connection:
            rows = await connection.scalar(select(func.count()).select_from(outbox))
            states = select(parked.c.state, func.count().label("rows")).group_by(parked.c.state)
            by_state = {row[0]: row[1] for row in await connection.execute(states)}
        return Counts(rows or 0, *(by_state.get(state, 0) for state in (WAITING, DEAD, SCHEDULED)))

    async def unended(self, event_ids: Collection[str]) -> list[tuple[str, str, str, str]]:
        """Return (event id, type, destination, state) of every row of these events that has not ended."""
        outbox, parked = self.tables.outbox, self.tables.parked
        found: list[tuple[str, str, str, str]] = []
        async with self.readers.connect() as connection:
            for some in chunks(sorted(event_ids)):
                here = select(outbox.c.event_id, outbox.c.type, outbox.c.destination, literal(WAITING))
                there = select(parked.c.event_id, parked.c.type, parked.c.destination, parked.c.state)
                both = here.where(outbox.c.event_id.in_(some)).union_all(there.where(parked.c.event_id.in_(some)))
                found.extend((row[0], row[1], row[2], row[3]) for row in await connection.execute(both))
        return found

    async def unserved(self, destinations: Collection[str], age: float = 0.0) -> list[tuple[str, int]]:
        """Return the other destinations that rows older than `age` seconds wait for, with how many.

        Of the outbox only the front of each slot is looked at: what nobody claims stays there.
        """
        parked = self.tables.parked
        found: Counter[str] = Counter()
        async with self.readers.connect() as connection:
            for first in range(0, self.slots, SLOTS_ASKED):
                front = self._front(range(first, min(first + SLOTS_ASKED, self.slots)))
                found += await self._others(connection, front, destinations, age)
            found += await self._others(connection, parked, destinations, age, parked.c.state != DEAD)
        return sorted(found.items())

    async def lag(self) -> float:
        """Return for how many seconds the oldest row at the front of a slot has waited; 0 where none waits."""
        lag = 0.0
        async with self.readers.connect() as connection:
            for first in range(0, self.slots, SLOTS_ASKED):
                front = self._front(range(first, min(first + SLOTS_ASKED, self.slots)), 1)
                oldest = select(self.dialect.seconds_until(func.min(front.c.created_at)))
                lag = max(lag, self.ahead - float(await connection.scalar(oldest) or 0.0))
        return lag

    def _front(self, slots: Sequence[int], rows: int = FRONT) -> Any:
        table = self.tables.outbox
        columns = (table.c.destination, table.c.created_at)
        fronts = (
            select(*columns).where(table.c.slot == slot).order_by(table.c.id).limit(rows).subquery() for slot in slots
        )
        return union_all(*(select(front) for front in fronts)).subquery()

    async def _others(
        self, connection: AsyncConnection, rows: Any, destinations: Collection[str], age: float, *conditions: Any
    ) -> Counter[str]:
        old = (rows.c.destination.not_in(destinations), rows.c.created_at <= self.now(-age), *conditions)
        query = select(rows.c.destination, func.count()).where(*old).group_by(rows.c.destination)
        return Counter({row[0]: row[1] for row in await connection.execute(query)})

    # Settings

    async def settings(self) -> dict[str, str]:
        """Return what this database records of itself."""
        table = self.tables.settings
        async with self.readers.connect() as connection:
            return {row.name: row.value for row in await connection.execute(select(table))}

    async def record(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """Record settings that are not there yet, and the slots; returns all settings as they stand."""
        try:
            return await self._record(wanted)
        except IntegrityError:
            # Another process started at the same moment; now its settings are there.
            return await self._record(wanted)

    async def _record(self, wanted: Mapping[str, str]) -> dict[str, str]:
        table, slot = self.tables.settings, self.tables.slot
        async with self.short.begin() as connection:
            found = {row.name: row.value for row in await connection.execute(select(table))}
            missing = [{"name": name, "value": value} for name, value in wanted.items() if name not in found]
            if missing:
                await connection.execute(insert(table), missing)
            if int(found.get("slots", self.slots)) == self.slots:
                present = set(await connection.scalars(select(slot.c.slot)))
                absent = [{"slot": number} for number in self.dialect.slots(self) if number not in present]
                if absent:
                    await connection.execute(insert(slot), absent)
        return {**wanted, **found}


def _emitted(envelope: Envelope) -> datetime:
    """Return when an event was emitted: nobody but the log's reader sees its row, and makes `ce_time` of it."""
    moment = envelope.headers.get("ce_time")
    return datetime.now(UTC) if moment is None else datetime.fromisoformat(moment)
