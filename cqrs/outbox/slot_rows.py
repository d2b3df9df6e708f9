"""How a relay's lane takes slots on MySQL and MariaDB: by locks on their rows, read from where work was seen last.

This is the relay's hot path there: its statements are text, and go to the driver itself.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from cqrs.outbox.dialect import Nothing
from cqrs.outbox.locks import Appetite
from cqrs.outbox.parked import PARKS
from cqrs.outbox.rows import Claimed, Strand, View, by_slot, claimed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.outbox.store import Store

MOST_PARKED = 1000
"""How many parked keys a claim fetches at most. Where there are more, each row is looked up, which doubles its cost."""


class SlotRows:
    """Locks slots by their rows; see `cqrs.outbox.locks.Slots`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.ends_idle_sessions = False
        self._limited: AsyncConnection | None = None
        self._appetite = Appetite()
        preparer = store.short.dialect.identifier_preparer
        tables = {"outbox": store.tables.outbox, "parked": store.tables.parked, "slot": store.tables.slot}
        self._names = {name: preparer.format_table(table) for name, table in tables.items()}
        self._fronts: tuple[View | None, dict[int, int]] = None, {}
        """The last view, and below which id each slot had nothing of it. A hint: what commits late may lie below."""

    def floors(self, view: View) -> Mapping[int, int]:  # noqa: ARG002 - the port's
        """Know none."""
        return {}

    def forget(self) -> None:
        """Forget the session's limit, and what the slots held: the next session may lead to another server."""
        self._limited = None
        self._fronts = None, {}

    async def autocommits(self, connection: AsyncConnection) -> bool:  # noqa: ARG002 - the port's
        """Allow it."""
        return True

    async def limit(self, connection: AsyncConnection, lease: float) -> None:
        """Let the server end the session when its client has been silent for a lease; the lane's session is its own."""
        if self._limited is not connection:
            self.ends_idle_sessions = not getattr(connection.dialect, "is_mariadb", False)
            variable = "wait_timeout" if self.ends_idle_sessions else "idle_transaction_timeout"
            await connection.execute(text(f"SET SESSION {variable} = {max(1, round(lease))}"))
            self._limited = connection

    async def lock(self, connection: AsyncConnection, view: View, lease: float) -> Sequence[int] | Nothing:
        """Lock half of the free slots that have work, at least one.

        How many are free is only known once all are locked; a second transaction takes half of them.
        """
        await self.limit(connection, lease)
        working = await self._look(connection, view)
        if not working:
            return Nothing.IDLE
        free = await self._lock(connection, working)
        if len(free) > 1:
            await connection.rollback()
            free = await self._lock(connection, random.sample(free, (len(free) + 1) // 2))
        # A slot whose row somebody deleted has nobody at work, and waits for housekeeping to write it again.
        return free or (Nothing.BUSY if await self._are_there(connection, working) else Nothing.IDLE)

    async def _look(self, connection: AsyncConnection, view: View) -> Sequence[int]:
        """Return the slots that have work.

        A look from the beginning of a slot passes over all rows that were deleted and not purged yet, so it begins
        where the last one found something, and only where nothing is found there, at the beginning.
        """
        seen, fronts = self._fronts
        starts = {slot: fronts.get(slot, 0) if seen == view else 0 for slot in range(self._store.slots)}
        first = await self._first(connection, view, starts)
        again = {slot: 0 for slot, start in starts.items() if start and slot not in first}
        if again:
            first |= await self._first(connection, view, again)
        self._fronts = view, {slot: number - 1 for slot, number in first.items()}
        return list(first)

    async def _first(self, connection: AsyncConnection, view: View, starts: Mapping[int, int]) -> dict[int, int]:
        """Return the first id behind its start of each slot that has one."""
        conditions, values = _shown(view)
        first = _FIRST.format(**self._names, shown=conditions)
        statement = " UNION ALL ".join(
            first.replace(":slot", str(slot)).replace(":start", str(start)) for slot, start in starts.items()
        )
        found: Any = await connection.exec_driver_sql(statement, tuple(values * len(starts)))
        return dict(found.all())

    async def _lock(self, connection: AsyncConnection, slots: Sequence[int]) -> list[int]:
        statement = f"{self._rows_of(slots)} FOR UPDATE SKIP LOCKED"
        return list((await connection.exec_driver_sql(statement)).scalars())

    async def _are_there(self, connection: AsyncConnection, slots: Sequence[int]) -> bool:
        return (await connection.exec_driver_sql(self._rows_of(slots))).first() is not None

    def _rows_of(self, slots: Sequence[int]) -> str:
        return _SLOTS.format(**self._names, slots=",".join(map(str, slots)))

    async def read(
        self, connection: AsyncConnection, slots: Sequence[int], view: View, limit: int
    ) -> tuple[list[Claimed], list[Claimed]]:
        """Return the first rows of locked slots in order: those to deliver, and those whose key is parked."""
        most, each = self._appetite.portions(limit, len(slots))
        parked = await self._parked_strands(connection, view)
        conditions, values = _shown(view)
        look = "1" if parked is not None else _LOOK.format(**self._names, parks=_parks(view))
        one = _READ.format(**self._names, look=look, shown=conditions, each=each)
        statement = " UNION ALL ".join(one.replace(":slot", str(slot)) for slot in slots)
        values = values if parked is not None else [*sorted(view.skipping), *values]
        found = (await fetch(connection, statement, values * len(slots)))[:most]
        self._appetite.learn(found, most, each)
        rows = claimed(found)
        if parked is None:
            return [row for row in rows if row.place is not None], [row for row in rows if row.place is None]
        held = [row for row in rows if row.strand in parked] if parked else []
        return [row for row in rows if row.strand not in parked] if held else rows, held

    async def _parked_strands(self, connection: AsyncConnection, view: View) -> set[Strand] | None:
        """Return all that is parked, or None where that is too much: then each row is looked up where it is read.

        The slots are locked, and nobody parks a key of theirs or ends its parking meanwhile.
        """
        statement = _PARKED.format(**self._names, parks=_parks(view), most=MOST_PARKED + 1)
        strands = await fetch(connection, statement, sorted(view.skipping))
        return None if len(strands) > MOST_PARKED else {(strand[0], strand[1], strand[2]) for strand in strands}

    async def delete(self, connection: AsyncConnection, rows: Sequence[Claimed]) -> None:
        """Delete rows of locked slots along the primary key.

        The index is named, since a scan of the table would wait for rows that others have not committed yet.
        """
        ids = by_slot(rows)
        which = " OR ".join(f"(o.slot = {slot} AND o.id IN ({','.join(map(str, ids[slot]))}))" for slot in ids)
        await fetch(connection, f"DELETE o FROM {self._names['outbox']} o FORCE INDEX (PRIMARY) WHERE {which}", [])

    def settled(self, gone: Sequence[Claimed]) -> None:
        """Learn nothing."""


_FIRST = """
(SELECT o.slot, o.id FROM {outbox} o WHERE o.slot = :slot AND o.id > :start AND {shown} ORDER BY o.id LIMIT 1)
"""

_SLOTS = "SELECT slot FROM {slot} WHERE slot IN ({slots})"

_PARKED = """
SELECT DISTINCT p.destination, p.topic, p.message_key FROM {parked} p
WHERE p.message_key IS NOT NULL AND {parks} LIMIT {most}
"""

_LOOK = """
CASE WHEN EXISTS (
    SELECT 1 FROM {parked} p
    WHERE p.destination = o.destination AND p.topic = o.topic AND p.message_key = o.message_key AND {parks}
) THEN NULL ELSE 1 END
"""

_READ = """
(SELECT o.id, o.slot, o.event_id, o.destination, o.topic, o.message_key, o.type, o.headers, o.payload, {look}
FROM {outbox} o WHERE o.slot = :slot AND {shown} ORDER BY o.id LIMIT {each})
"""


async def fetch(connection: AsyncConnection, statement: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """Run a statement by the driver itself, within SQLAlchemy's transaction: its own way costs too much."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    async with driver.cursor() as cursor:
        await cursor.execute(statement, values)
        rows: Sequence[Sequence[Any]] = await cursor.fetchall()
        return rows


def _parks(view: View) -> str:
    return PARKS.format(blocks=f"p.destination NOT IN ({_marks(view.skipping)})" if view.skipping else "TRUE")


def _shown(view: View) -> tuple[str, list[str]]:
    conditions, values = f"o.destination IN ({_marks(view.destinations)})", list(view.destinations)
    if view.topic is not None:
        conditions, values = f"{conditions} AND o.topic = %s", [*values, view.topic]
    for destination, topic in sorted(view.without):
        conditions, values = (
            f"{conditions} AND NOT (o.destination = %s AND o.topic = %s)",
            [*values, destination, topic],
        )
    return conditions, values


def _marks(values: Collection[str]) -> str:
    return ", ".join(["%s"] * len(values))
