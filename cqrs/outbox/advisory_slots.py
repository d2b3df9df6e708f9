"""How a relay's lane takes slots on PostgreSQL: by advisory locks, and by reads above a floor.

This is the relay's hot path there: its statements are text, and go to the driver itself.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any
from zlib import crc32

from cqrs.outbox.dialect import Nothing
from cqrs.outbox.floor import Floor, Snapshot
from cqrs.outbox.locks import Appetite
from cqrs.outbox.parked import PARKS
from cqrs.outbox.rows import Claimed, View, claimed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.outbox.store import Store

VIEWS = 4
"""Of how many views the floors are kept."""
LIMIT = (
    "set_config('idle_in_transaction_session_timeout', $1::text, true), "
    "set_config('statement_timeout', $2::text, true), "
    "set_config('synchronous_commit', 'off', true), set_config('enable_seqscan', 'off', true), "
    "set_config('jit', 'off', true)"
)
"""All for the transaction alone: a session's settings would reach other clients behind a pooling PgBouncer.

A client that is stopped while the server still sends it rows is not idle in a transaction, but in a statement. A
settled batch that is lost with the server's memory comes once more, which is a duplicate. Rows are deleted by their
places, for which the planner would read a small table whole. What has to be read whole counts as so dear then that the
server would compile it, for half a second each time.
"""


class AdvisorySlots:
    """Locks slots by transaction-scoped advisory locks, and reads them above a floor; see `cqrs.outbox.locks.Slots`."""

    ends_idle_sessions = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self._class = lock_class(store)
        self._names = Names(store)
        self._floors: dict[View, Floor] = {}
        self._last = 0
        self._server = ""
        self._appetite = Appetite()
        self._unsettled: tuple[Floor, Sequence[Claimed], dict[int, int]] | None = None
        """Of the last read its floor, the rows to deliver, and the highest id of each slot; None once it is settled."""

    def floors(self, view: View) -> Mapping[int, int]:
        """Return below which id nothing of this view is left in a slot."""
        return next((floor.safe() for other, floor in self._floors.items() if other.covers(view)), {})

    def forget(self) -> None:
        """Forget the floors: another connection may lead to another server."""
        self._floors.clear()
        self._unsettled = None

    async def autocommits(self, connection: AsyncConnection) -> bool:
        """Refuse it where asyncpg keeps no statements, as behind a pooler.

        It would prepare the statement in one of the server's sessions and execute it in another.
        """
        driver: Any = (await connection.get_raw_connection()).driver_connection
        return getattr(getattr(driver, "_config", None), "statement_cache_size", 1) > 0

    async def limit(self, connection: AsyncConnection, lease: float) -> None:
        """Let the server end the transaction when its client has been silent for a lease."""
        # Twice the lease for a statement: the end of a retry may wait for a slot as long as another relay holds it.
        await begin(self._store, connection, f"SELECT {LIMIT}", _milliseconds(lease), _milliseconds(2 * lease))

    async def lock(self, connection: AsyncConnection, view: View, lease: float) -> Sequence[int] | Nothing:
        """Lock half of the free slots that have work, at least one, from a random one on.

        The same statement tells the last id that was drawn, before the transaction draws an id of its own (`Floor`).
        """
        start = random.randrange(self._store.slots)  # noqa: S311 - nothing secret
        slots = [*range(start, self._store.slots), *range(start)]
        statement = self._names.fill(_LOCK, view)
        silence = _milliseconds(lease)
        while True:
            floor = self._floor_of(view)
            floors = [floor.slots.get(slot, 0) for slot in slots]
            values = [silence, silence, self._class, slots, floors, list(view.destinations), *_view_values(view)]
            row = await begin(self._store, connection, statement, *values)
            *_, server, seen, self._last, working, locked = row
            if server != self._server:
                # Another server under a living connection, as behind a pooler: what the floors say is not of it.
                self._server = server
                self._floors.clear()
                floor = self._floor_of(view)
            self._floors[view] = floor = floor.fresh(self._last)
            # Nothing is read where no work is seen, so that only this look shows that an open transaction has ended.
            if locked or not floor.falls(Snapshot.of(seen)):
                break
        if not locked:
            return Nothing.BUSY if working else Nothing.IDLE
        return list(locked)

    async def read(
        self, connection: AsyncConnection, slots: Sequence[int], view: View, limit: int
    ) -> tuple[list[Claimed], list[Claimed]]:
        """Return the first rows of locked slots in order: those to deliver, and those whose key is parked."""
        floor = self._floor_of(view)
        most, each = self._appetite.portions(limit, len(slots))
        statement = self._names.fill(_READ, view)
        while True:
            floors = [floor.slots.get(slot, 0) for slot in slots]
            values = [slots, floors, list(view.destinations), each, most, sorted(view.skipping)]
            (own, _, seen, *_), *found = await fetch(connection, statement, *values, *_view_values(view))
            snapshot = Snapshot.of(seen)
            if not floor.falls(snapshot):
                break
        self._appetite.learn(found, most, each)
        rows = claimed(found)
        ids = [(row[1], row[0]) for row in found]
        lowest = dict(reversed(ids))
        floor.learn(snapshot, own, self._last, lowest if len(rows) >= most else slots, lowest)
        free = [row for row in rows if row.place is not None]
        self._unsettled = floor, free, dict(ids)
        return free, [] if len(free) == len(rows) else [row for row in rows if row.place is None]

    async def delete(self, connection: AsyncConnection, rows: Sequence[Claimed]) -> None:
        """Delete rows of locked slots where they stand.

        Rows are immutable and the slots are ours, so a place has its row; should a person have deleted one, what was
        put there since has a higher id.
        """
        places = '{"' + '","'.join([row.place for row in rows]) + '"}'
        await fetch(connection, self._names.fill(_DELETE), places, max(row.id for row in rows))

    def settled(self, gone: Sequence[Claimed]) -> None:
        """Raise the floor over what is gone; it ends below what is left."""
        if self._unsettled is None:
            return
        (floor, read, ended), self._unsettled = self._unsettled, None
        if len(gone) < len(read):
            ids = {row.id for row in gone}
            ended |= {row.slot: row.id - 1 for row in reversed(read) if row.id not in ids}
        floor.rise(ended)

    def _floor_of(self, view: View) -> Floor:
        """Return the floor of a view; one that is seen first begins where a wider view stands."""
        found = self._floors.get(view)
        if found is None:
            wider = next((floor for other, floor in self._floors.items() if other.covers(view)), None)
            found = self._floors[view] = Floor() if wider is None else wider.copy()
            for old in list(self._floors)[1:-VIEWS]:
                del self._floors[old]
        return found


class Names:
    """Fills the names of tables, and the conditions of a view, into statements."""

    def __init__(self, store: Store) -> None:
        preparer = store.short.dialect.identifier_preparer
        outbox = store.tables.outbox
        schema = f"{preparer.quote_schema(outbox.schema)}." if outbox.schema else ""
        self.sequence = schema + preparer.quote(f"{outbox.name}_id_seq")
        self._names = {
            "outbox": preparer.format_table(outbox),
            "parked": preparer.format_table(store.tables.parked),
            "limit": LIMIT,
            "sequence": self.sequence,
        }
        self._filled: dict[tuple[str, bool, bool], str] = {}

    def fill(self, statement: str, view: View | None = None) -> str:
        """Return the statement for these tables and this view."""
        variant = (statement, bool(view and view.topic is not None), bool(view and view.without))
        if variant not in self._filled:
            first = 1 + max((int(number) for number in re.findall(r"\$(\d+)", statement)), default=0)
            condition = _TOPIC if variant[1] else _WITHOUT if variant[2] else ""
            shown = condition.format(first=first, second=first + 1)
            self._filled[variant] = statement.format(**self._names, shown=shown)
        return self._filled[variant]


_TOPIC = "AND o.topic = ${first}::text "
_WITHOUT = """AND NOT EXISTS (
    SELECT 1 FROM unnest(${first}::text[], ${second}::text[]) AS g(d, t)
    WHERE g.d = o.destination AND g.t = o.topic) """
"""Conditions of a view."""

_LOCK = """
WITH work AS MATERIALIZED (
    SELECT s.slot
    FROM unnest($4::smallint[], $5::bigint[]) WITH ORDINALITY AS s(slot, floor, place) CROSS JOIN LATERAL (
        SELECT 1 FROM {outbox} o
        WHERE o.slot = s.slot AND o.id > s.floor AND o.destination = ANY($6::text[]) {shown}
        ORDER BY o.id LIMIT 1
    ) first
    ORDER BY s.place
), free AS MATERIALIZED (
    SELECT slot FROM work WHERE slot NOT IN (
        SELECT objid::bigint FROM pg_locks
        WHERE locktype = 'advisory' AND classid::bigint = $3::integer AND objsubid = 2
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
)
SELECT {limit}, pg_postmaster_start_time()::text, pg_current_snapshot()::text,
    (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {sequence}),
    (SELECT count(*) FROM work),
    ARRAY(
        SELECT slot FROM free WHERE pg_try_advisory_xact_lock($3::integer, slot)
        LIMIT (SELECT (count(*) + 1) / 2 FROM free))
"""
"""The LIMIT keeps the look for work slot by slot along the index: EXISTS may become a join with the whole table."""

_READ = """
SELECT pg_current_xact_id()::text::bigint AS id, NULL::smallint AS slot, pg_current_snapshot()::text AS event_id,
    NULL AS destination, NULL AS topic, NULL AS message_key, NULL AS type, NULL AS headers, NULL::bytea AS payload,
    NULL AS place
UNION ALL
SELECT * FROM (
    SELECT r.id, r.slot, r.event_id, r.destination, r.topic, r.message_key, r.type, r.headers, r.payload,
        CASE WHEN (SELECT EXISTS (SELECT 1 FROM {parked})) AND EXISTS (
            SELECT 1 FROM {parked} p
            WHERE p.destination = r.destination AND p.topic = r.topic AND p.message_key = r.message_key
            AND {parks}
        ) THEN NULL ELSE r.place::text END
    FROM unnest($1::smallint[], $2::bigint[]) AS s(slot, floor) CROSS JOIN LATERAL (
        SELECT o.ctid AS place, o.id, o.slot, o.event_id, o.destination, o.topic, o.message_key, o.type, o.headers,
            o.payload
        FROM {outbox} o
        WHERE o.slot = s.slot AND o.id > s.floor AND o.destination = ANY($3::text[]) {shown}
        ORDER BY o.id LIMIT $4::bigint
    ) r
    LIMIT $5::bigint
) found
""".replace("{parks}", PARKS.format(blocks="p.destination <> ALL($6::text[])"))
"""First what the reader's snapshot was, then the rows, slot by slot, until there are enough."""

_DELETE = "DELETE FROM {outbox} WHERE ctid = ANY($1::text::tid[]) AND id <= $2::bigint"


async def begin(store: Store, connection: AsyncConnection, statement: str, *values: Any) -> Sequence[Any]:
    """Begin SQLAlchemy's transaction, and the server's, with a statement, and return its only row."""
    if not connection.in_transaction():
        await connection.run_sync(lambda begun: begun.begin())
        await connection.run_sync(store.dialect.begin)
    (row,) = await fetch(connection, statement, *values)
    return row


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


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def _view_values(view: View) -> list[Any]:
    if view.topic is not None:
        return [view.topic]
    gone = sorted(view.without)
    return [[destination for destination, _ in gone], [topic for _, topic in gone]] if gone else []
