"""What PostgreSQL does in its own way: advisory locks, snapshots that can be looked at, a log that carries rows."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from zlib import crc32

from sqlalchemy import ColumnElement, Float, cast, extract, func, text
from sqlalchemy.dialects.postgresql import insert

from cqrs.outbox.bell import Bell
from cqrs.outbox.floor import Floor, Snapshot
from cqrs.outbox.locks import MOST_BYTES, LockedLane
from cqrs.outbox.rows import Claimed, View, claimed
from cqrs.outbox.store import Nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from cqrs.outbox.store import Store

VIEWS = 4
"""Of how many views the floors are kept."""
LIMIT = "set_config('idle_in_transaction_session_timeout', :silence, true), set_config('synchronous_commit', 'off', true)"
"""Both for the transaction alone: a session's settings would reach other clients behind a pooling PgBouncer.

A settled batch that is lost with the server's memory comes once more, which is a duplicate.
"""


class PostgreSQL:
    """The dialect; see `cqrs.outbox.store.Dialect`."""

    carries_log = True
    locks = True
    pace: Mapping[str, int] = {"batch": 1000, "lanes": 2}

    def writing(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine as it is."""
        return engine

    def reading(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine as it is."""
        return engine

    def short(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine with transactions in which each statement sees what was committed before it."""
        return engine.execution_options(isolation_level="READ COMMITTED")

    def later(self, seconds: float) -> ColumnElement[Any]:
        """Return the time so many seconds from now; `now()` would be when the transaction began."""
        return func.statement_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, cast(seconds, Float))

    def seconds_until(self, moment: ColumnElement[Any]) -> ColumnElement[float]:
        """Return the seconds from the database's time to a stored moment."""
        return extract("epoch", moment - func.statement_timestamp())

    def take(self, connection: Connection, store: Store, handler: str, message_id: str) -> bool:
        """Write an inbox row unless it is there; returns whether it was not."""
        row = insert(store.tables.inbox).values(handler=handler, message_id=message_id, handled_at=store.now())
        return connection.execute(row.on_conflict_do_nothing().execution_options(preserve_rowcount=True)).rowcount == 1

    async def hold(self, connection: AsyncConnection, store: Store, slots: Sequence[int]) -> None:
        """Wait until no relay works on these slots, and keep all from them until the transaction ends."""
        statement = text("SELECT pg_advisory_xact_lock(:class, s) FROM unnest(CAST(:slots AS integer[])) s")
        await connection.execute(statement, {"class": lock_class(store), "slots": sorted(slots)})

    async def serialise(self, connection: AsyncConnection, store: Store, keys: Collection[str]) -> None:
        """Let transactions that write one of these keys come one after the other, by locks on hashes of them."""
        hashes = sorted({_hash(f"{store.name}\0{key}") for key in keys})
        statement = text("SELECT pg_advisory_xact_lock(h) FROM unnest(CAST(:hashes AS bigint[])) h")
        await connection.execute(statement, {"hashes": hashes})

    def lane(self, store: Store, owner: str, lease: float) -> LockedLane:
        """Return a way to the database for a relay; its locks know it by its connection, not by its name."""
        return LockedLane(store, AdvisorySlots(store), store.short, lease)

    def bell(self, store: Store, heard: Callable[[], None] | None, listen_url: str | None) -> Bell:
        """Return what rings by NOTIFY and hears by LISTEN."""
        return Bell(store.short, f"cqrs_{lock_class(store)}", heard=heard, listen_url=listen_url)

    def slots(self, store: Store) -> Sequence[int]:
        """Return the rows that the slot table must have: none, slots are numbers here."""
        return range(store.slots)


class AdvisorySlots:
    """Locks slots by transaction-scoped advisory locks, and reads them above a floor; see `cqrs.outbox.locks.Slots`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._class = lock_class(store)
        self._names = _Names(store)
        self._floors: dict[View, Floor] = {}
        self._last = 0
        self._depth = 1

    @property
    def floors(self) -> Mapping[int, int]:
        """Below which id nothing is left in a slot, as the widest view so far has shown."""
        return next((floor.safe() for floor in self._floors.values()), {})

    def forget(self) -> None:
        """Forget the floors: another connection may lead to another server."""
        self._floors.clear()

    async def autocommits(self, connection: AsyncConnection) -> bool:
        """Refuse it where asyncpg keeps no statements, as behind a pooler: it would prepare on one session of the server
        and execute on another.
        """
        driver: Any = (await connection.get_raw_connection()).driver_connection
        return getattr(getattr(driver, "_config", None), "statement_cache_size", 1) > 0

    async def limit(self, connection: AsyncConnection, lease: float) -> None:
        """Let the server end the transaction when its client has been silent for a lease."""
        await connection.execute(text(f"SELECT {LIMIT}"), {"silence": _milliseconds(lease)})

    async def lock(self, connection: AsyncConnection, view: View, lease: float) -> Sequence[int] | Nothing:
        """Lock half of the free slots that have work, at least one, from a random one on.

        The same statement tells the last id that was drawn, before the transaction draws an id of its own (`Floor`).
        """
        floor = self._floor_of(view)
        slots = list(range(self._store.slots))
        start = random.randrange(len(slots))
        slots = slots[start:] + slots[:start]
        values = {
            "silence": _milliseconds(lease),
            "class": self._class,
            "slots": slots,
            "floors": [floor.slots.get(slot, 0) for slot in slots],
            "destinations": list(view.destinations),
            **dict(zip(("topic",) if view.topic is not None else ("gone", "gone_topics"), _view_values(view))),
        }
        statement = text(self._names.fill(_LOCK, view))
        _, _, last, working, locked = (await connection.execute(statement, values)).one()
        self._last = last
        self._floors[view] = floor.fresh(last)
        if not locked:
            return Nothing.BUSY if working else Nothing.IDLE
        return list(locked)

    async def read(
        self, connection: AsyncConnection, slots: Sequence[int], view: View, limit: int
    ) -> tuple[list[Claimed], list[Claimed]]:
        """Return the first rows of locked slots in order: those to deliver, and those whose key is parked."""
        floor = self._floor_of(view)
        deep = min(limit, -(-limit // len(slots)) * self._depth)
        statement = self._names.fill(_READ, view)
        while True:
            floors = [floor.slots.get(slot, 0) for slot in slots]
            values = [slots, floors, list(view.destinations), deep, limit, MOST_BYTES, sorted(view.skipping)]
            (own, _, seen, *_), *found = await fetch(connection, statement, *values, *_view_values(view))
            snapshot = Snapshot.of(seen)
            if not floor.falls(snapshot):
                break
        rows = claimed(found, places=True)
        lowest: dict[int, int] = {}
        for row in rows:
            lowest.setdefault(row.slot, row.id)
        cut = len(rows) >= limit or sum(len(row[8]) for row in found) >= MOST_BYTES
        floor.learn(snapshot, own, self._last, lowest if cut else slots, lowest)
        self._go_deeper(rows, deep, limit)
        return [row for row in rows if row.place is not None], [row for row in rows if row.place is None]

    def _go_deeper(self, rows: Sequence[Claimed], deep: int, limit: int) -> None:
        """Take more of each slot next time where few slots have many rows, and less where many have."""
        if len(rows) >= limit:
            self._depth = max(1, self._depth // 2)
        elif len(rows) < limit / 2 and max(Counter(row.slot for row in rows).values(), default=0) >= deep:
            self._depth = min(self._depth * 2, limit)

    async def delete(self, connection: AsyncConnection, rows: Sequence[Claimed]) -> None:
        """Delete rows of locked slots where they stand; the ids guard against a place that somebody emptied by hand."""
        await fetch(connection, self._names.fill(_DELETE), [row.place for row in rows], [row.id for row in rows])

    def _floor_of(self, view: View) -> Floor:
        """Return the floor of a view; one that is seen first begins where a wider view stands."""
        found = self._floors.get(view)
        if found is None:
            wider = next((floor for other, floor in self._floors.items() if other.covers(view)), None)
            found = self._floors[view] = Floor() if wider is None else wider.copy()
            for old in list(self._floors)[1:-VIEWS]:
                del self._floors[old]
        return found


class _Names:
    """Fills the names of tables, and the conditions of a view, into statements."""

    def __init__(self, store: Store) -> None:
        preparer = store.short.dialect.identifier_preparer
        outbox = store.tables.outbox
        schema = f"{preparer.quote_schema(outbox.schema)}." if outbox.schema else ""
        self._names = {
            "outbox": preparer.format_table(outbox),
            "parked": preparer.format_table(store.tables.parked),
            "sequence": schema + preparer.quote(f"{outbox.name}_id_seq"),
        }
        self._filled: dict[tuple[str, bool, bool], str] = {}

    def fill(self, statement: str, view: View | None = None) -> str:
        """Return the statement for these tables and this view."""
        variant = (statement, bool(view and view.topic is not None), bool(view and view.without))
        if variant not in self._filled:
            positional = statement is _READ
            shown = (_TOPIC[positional] if variant[1] else "") + (_WITHOUT[positional] if variant[2] else "")
            self._filled[variant] = statement.format(**self._names, shown=shown)
        return self._filled[variant]


_TOPIC = ("AND o.topic = :topic ", "AND o.topic = $8::text ")
_WITHOUT = (
    """AND NOT EXISTS (SELECT 1 FROM unnest(CAST(:gone AS text[]), CAST(:gone_topics AS text[])) AS g(d, t)
        WHERE g.d = o.destination AND g.t = o.topic) """,
    """AND NOT EXISTS (SELECT 1 FROM unnest($8::text[], $9::text[]) AS g(d, t)
        WHERE g.d = o.destination AND g.t = o.topic) """,
)
"""Conditions of a view, for statements with named and with numbered parameters."""

_LOCK = f"""
WITH work AS MATERIALIZED (
    SELECT s.slot
    FROM unnest(CAST(:slots AS smallint[]), CAST(:floors AS bigint[])) WITH ORDINALITY AS s(slot, floor, place)
    WHERE EXISTS (
        SELECT 1 FROM {{outbox}} o
        WHERE o.slot = s.slot AND o.id > s.floor AND o.destination = ANY(CAST(:destinations AS text[])) {{shown}})
    ORDER BY s.place
), free AS MATERIALIZED (
    SELECT slot FROM work WHERE slot NOT IN (
        SELECT objid::bigint FROM pg_locks
        WHERE locktype = 'advisory' AND classid::bigint = :class AND objsubid = 2
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
)
SELECT {LIMIT},
    (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {{sequence}}),
    (SELECT count(*) FROM work),
    ARRAY(
        SELECT slot FROM free WHERE pg_try_advisory_xact_lock(CAST(:class AS integer), slot)
        LIMIT (SELECT (count(*) + 1) / 2 FROM free))
"""

_READ = """
SELECT pg_current_xact_id()::text::bigint AS id, NULL::smallint AS slot, pg_current_snapshot()::text AS event_id,
    NULL AS destination, NULL AS topic, NULL AS message_key, NULL AS type, NULL AS headers, NULL::bytea AS payload,
    NULL::tid AS place
UNION ALL
SELECT * FROM (
    SELECT r.id, r.slot, r.event_id, r.destination, r.topic, r.message_key, r.type, r.headers, r.payload,
        CASE WHEN (SELECT EXISTS (SELECT 1 FROM {parked})) AND EXISTS (
            SELECT 1 FROM {parked} p
            WHERE p.destination = r.destination AND p.topic = r.topic AND p.message_key = r.message_key
            AND (p.state = 'waiting' OR p.state = 'dead' AND p.destination <> ALL($7::text[]))
        ) THEN NULL ELSE r.place END
    FROM (
        SELECT o.*, sum(octet_length(o.payload)) OVER (ROWS UNBOUNDED PRECEDING) - octet_length(o.payload) AS before
        FROM unnest($1::smallint[], $2::bigint[]) AS s(slot, floor) CROSS JOIN LATERAL (
            SELECT o.ctid AS place, o.id, o.slot, o.event_id, o.destination, o.topic, o.message_key, o.type, o.headers,
                o.payload
            FROM {outbox} o
            WHERE o.slot = s.slot AND o.id > s.floor AND o.destination = ANY($3::text[]) {shown}
            ORDER BY o.id LIMIT $4::bigint
        ) o
    ) r
    WHERE r.before < $6::bigint
    LIMIT $5::bigint
) found
"""
"""First what the reader's snapshot was, then the rows, slot by slot, until there are enough or they are too large."""

_DELETE = "DELETE FROM {outbox} WHERE ctid = ANY($1::tid[]) AND id = ANY($2::bigint[])"


async def fetch(connection: AsyncConnection, statement: str, *values: Any) -> Sequence[Sequence[Any]]:
    """Run a statement with numbered parameters by the driver itself, within SQLAlchemy's transaction.

    At the relay's rates SQLAlchemy's own way costs as much as the database.
    """
    driver: Any = (await connection.get_raw_connection()).driver_connection
    if hasattr(driver, "fetch"):
        rows: Sequence[Sequence[Any]] = await driver.fetch(statement, *values)
        return rows
    from psycopg import AsyncRawCursor

    async with AsyncRawCursor(driver) as cursor:
        await cursor.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description else []


def lock_class(store: Store) -> int:
    """Return the first number of these tables' advisory locks, which are known all over the database."""
    return crc32(store.name.encode()) & 0x7FFFFFFF


def _hash(value: str) -> int:
    return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), signed=True)


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def _view_values(view: View) -> list[Any]:
    if view.topic is not None:
        return [view.topic]
    gone = sorted(view.without)
    return [[destination for destination, _ in gone], [topic for _, topic in gone]] if gone else []

