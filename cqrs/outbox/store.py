"""The statements over the outbox of one set of tables.

With `parked`, `inbox`, `settings`, `leases`, `locks` and the dialects with their slots the only module that speaks SQL
about them.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

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
    null,
    or_,
    select,
    union_all,
)

from cqrs.codec import BROKER
from cqrs.outbox.inbox import Inbox
from cqrs.outbox.parked import Parked, chunks, shown
from cqrs.outbox.prepared import Prepared, run_for_each
from cqrs.outbox.rows import COPIED, DEAD, SCHEDULED, WAITING, Counts, Probe, Unended, View
from cqrs.schema import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sqlalchemy import ColumnElement, Insert
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from cqrs.codec import Envelope
    from cqrs.outbox.dialect import Dialect, Lane

FRONT = 100
"""How many rows at the front of each slot are looked at for somebody to deliver them."""
SLOTS_ASKED = 64
"""Of how many slots a probe asks one by one."""


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

    def prepared(self, name: str, make: Callable[[], Insert]) -> Prepared:
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
        insert_rows = self.dialect.commit_with if last else run_for_each
        insert_rows(connection, adding.statement, rows)

    def _adding(self) -> Insert:
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
            "headers": envelope.saved_text,
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
        return shown(self.tables.outbox, view)

    # Looking

    async def counts(self) -> Counts:
        """Return how many rows have not ended."""
        outbox, parked = self.tables.outbox, self.tables.parked
        async with self.readers.connect() as connection:
            rows = await connection.scalar(select(func.count()).select_from(outbox))
            states = select(parked.c.state, func.count().label("rows")).group_by(parked.c.state)
            by_state = {row[0]: row[1] for row in await connection.execute(states)}
        return Counts(rows or 0, *(by_state.get(state, 0) for state in (WAITING, DEAD, SCHEDULED)))

    async def unended(self, event_ids: Collection[str]) -> list[Unended]:
        """Return every row of these events that has not ended."""
        outbox, parked = self.tables.outbox, self.tables.parked
        found: list[Unended] = []
        async with self.readers.connect() as connection:
            for some in chunks(sorted(event_ids)):
                here = select(outbox.c.event_id, outbox.c.type, outbox.c.destination, literal(WAITING), null())
                there = select(parked.c.event_id, parked.c.type, parked.c.destination, parked.c.state, parked.c.error)
                both = here.where(outbox.c.event_id.in_(some)).union_all(there.where(parked.c.event_id.in_(some)))
                found.extend(Unended(*row) for row in await connection.execute(both))
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


def _emitted(envelope: Envelope) -> datetime:
    """Return when an event was emitted: nobody but the log's reader sees its row, and makes `ce_time` of it."""
    moment = envelope.headers.get("ce_time")
    return datetime.now(UTC) if moment is None else datetime.fromisoformat(moment)
