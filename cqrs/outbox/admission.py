"""What a consumer writes into the table of parked rows: what failed, and what has to wait behind it."""

from __future__ import annotations

import logging
from itertools import groupby
from math import inf
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, null, select

from cqrs.outbox.parked import chunks, held_back
from cqrs.outbox.rows import Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.outbox.rows import Claimed, Strand
    from cqrs.outbox.store import Store

log = logging.getLogger(__name__)

SHORT = 256 * 1024
"""How many bytes of a body every database takes."""

Place = tuple[str, str]
"""A destination and a topic: what the index over parked rows begins with."""


class Admission:
    """Keeps a handler's messages of a key in order while one of them is parked. `skipping` is as in `View`."""

    def __init__(self, store: Store, skipping: Collection[str]) -> None:
        self._store = store
        self._table = store.tables.parked
        self._skipping = skipping

    async def look(self, rows: Sequence[Claimed]) -> tuple[list[Claimed], list[Claimed]]:
        """Return the rows that may be delivered, and those that have to wait. What is parked already is in neither."""
        async with self._store.readers.connect() as connection:
            parked, known = await self._parked_among(connection, rows)
        new = [row for row in rows if _identity(row) not in known]
        return [row for row in new if row.strand not in parked], [row for row in new if row.strand in parked]

    async def park(self, failed: Sequence[Verdict], held: Sequence[Claimed]) -> list[Claimed]:
        """Park what failed, and what is held back behind it; return what nothing holds back any more.

        The slots are held meanwhile: a row that relays are about to end would leave what follows it without an end.
        """
        rows = [*(verdict.row for verdict in failed), *held]
        async with self._store.short.begin() as connection:
            await self._store.dialect.hold(connection, self._store, sorted({row.slot for row in rows}))
            parked, known = await self._parked_among(connection, rows)
            longest = await self._longest_body(connection, rows)
            for verdict in failed:
                if _identity(verdict.row) not in known:
                    kept = (
                        verdict
                        if _fits(verdict.row, longest)
                        else self._without_body(verdict.row, longest, verdict.error)
                    )
                    await self._insert(connection, [kept.row], self._ending(kept, parked))
                    if kept.row.strand[2] is not None and (kept.wait is not None or kept.blocks):
                        parked.add(kept.row.strand)
            behind = [row for row in held if row.strand in parked and _identity(row) not in known]
            for fits, some in groupby(behind, lambda row: _fits(row, longest)):
                if fits:
                    await self._insert(connection, list(some), held_back())
                else:
                    for lost in (self._without_body(row, longest) for row in some):
                        await self._insert(connection, [lost.row], self._ending(lost, parked))
        return [row for row in held if row.strand not in parked]

    def _without_body(self, row: Claimed, longest: float, error: str = "") -> Verdict:
        """Return the verdict on a row that cannot be kept as it is: dead, or it would be tried again for ever."""
        envelope = row.envelope
        reason = (
            f"Its body of {len(envelope.payload):,} bytes is not kept here, since the database takes {longest:,.0f} at "
            "most: raise max_allowed_packet, and have it sent again.\n"
        )
        log.error("%s %s to %s: %s", envelope.type, envelope.message_id, envelope.destination, reason.strip())
        blocks = envelope.destination not in self._skipping
        return Verdict(row._replace(envelope=envelope._replace(payload=b"")), reason + error, None, blocks)

    async def _longest_body(self, connection: AsyncConnection, rows: Iterable[Claimed]) -> float:
        """Return how many bytes of a body the database takes; it is not asked where all are short."""
        if all(len(row.envelope.payload) <= SHORT for row in rows):
            return inf
        return await self._store.dialect.longest_body(connection)

    def _ending(self, verdict: Verdict, parked: Collection[Strand]) -> dict[str, Any]:
        ending = self._store.parked.ending(verdict)
        return {**ending, "next_attempt_at": null()} if verdict.row.strand in parked else ending

    async def _insert(self, connection: AsyncConnection, rows: Sequence[Claimed], ending: Mapping[str, Any]) -> None:
        values = {"source_id": null(), "created_at": self._store.now(), **ending}
        await connection.execute(insert(self._table).values(values), [self._store.values(row.envelope) for row in rows])

    async def _parked_among(
        self, connection: AsyncConnection, rows: Iterable[Claimed]
    ) -> tuple[set[Strand], set[tuple[str, str]]]:
        """Return the strands of these rows that are parked, and the (destination, id) of rows that stand there."""
        table = self._table
        strands: set[Strand] = set()
        known: set[tuple[str, str]] = set()
        for (destination, topic), here in _by_place(rows).items():
            place = (table.c.destination == destination, table.c.topic == topic)
            if await connection.scalar(select(table.c.seq).where(*place).limit(1)) is None:
                continue
            keys = sorted({row.strand[2] for row in here if row.strand[2] is not None})
            for some in chunks(keys):
                held = (*place, table.c.message_key.in_(some), self._store.parked.parks(table, self._skipping))
                found = await connection.scalars(select(table.c.message_key).where(*held).distinct())
                strands.update((destination, topic, key) for key in found)
            for part in chunks(here):
                wanted = (table.c.event_id.in_([row.envelope.message_id for row in part]), _keys(table, part))
                ids = await connection.scalars(select(table.c.event_id).where(*place, *wanted))
                known.update((destination, event_id) for event_id in ids)
        return strands, known


def _fits(row: Claimed, longest: float) -> bool:
    return len(row.envelope.payload) <= longest


def _identity(row: Claimed) -> tuple[str, str]:
    return row.envelope.destination, row.envelope.message_id


def _by_place(rows: Iterable[Claimed]) -> dict[Place, list[Claimed]]:
    found: dict[Place, list[Claimed]] = {}
    for row in rows:
        found.setdefault(row.strand[:2], []).append(row)
    return found


def _keys(table: Any, rows: Sequence[Claimed]) -> Any:
    """Return the condition by which the index is used: rows of these keys, or without one."""
    keys = {row.strand[2] for row in rows}
    named = table.c.message_key.in_(sorted(key for key in keys if key is not None))
    return named | table.c.message_key.is_(None) if None in keys else named
