"""Rows whose key is parked: moved out of the outbox in order, retried, replayed, discarded.

Its methods that take a connection work within that connection's transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, exists, func, insert, literal, null, or_, select, update

from cqrs.outbox.rows import CLAIMED, COPIED, DEAD, WAITING, Claimed, Verdict, View, by_slot, retried

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Row, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.outbox.rows import Strand
    from cqrs.outbox.store import Store

PARKS = f"(p.state = '{WAITING}' OR p.state = '{DEAD}' AND {{blocks}})"
"""Which parked rows `p` park their key, for statements that are text: those that wait, and dead ones that block it."""
CHUNK = 400
"""How many values go into one IN list."""


class Parked:
    """The statements over the parked rows of one set of tables."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = store.tables.parked

    # Parking

    def parks(self, table: Any, skipping: Collection[str]) -> ColumnElement[bool]:
        """Which parked rows park their key, as an expression of what `PARKS` says."""
        dead = and_(
            table.c.state == DEAD, table.c.destination.not_in(sorted(skipping)) if skipping else literal(1) == 1
        )
        return or_(table.c.state == WAITING, dead)

    async def hold_back(self, connection: AsyncConnection, rows: Sequence[Claimed]) -> None:
        """Move rows behind the parked ones of their key; the end of the one before makes each of them due."""
        if rows:
            await self._move(connection, rows, held_back())

    async def park(self, connection: AsyncConnection, verdict: Verdict) -> None:
        """Move a row that failed, which parks its key."""
        await self._move(connection, [verdict.row], self.ending(verdict))

    async def _move(self, connection: AsyncConnection, rows: Sequence[Claimed], ending: Mapping[str, Any]) -> None:
        outbox = self._store.tables.outbox
        columns = ("source_id", *COPIED, *ending)
        values = [value if hasattr(value, "compile") else literal(value) for value in ending.values()]
        for slot, ids in by_slot(rows).items():
            for some in chunks(sorted(ids)):
                here = (outbox.c.slot == slot, outbox.c.id.in_(some))
                moved = select(outbox.c.id, *(outbox.c[name] for name in COPIED), *values).where(*here)
                await connection.execute(insert(self._table).from_select(columns, moved.order_by(outbox.c.id)))
                await connection.execute(delete(outbox).where(*here))

    def ending(self, verdict: Verdict) -> dict[str, Any]:
        """Return the columns that tell what becomes of a row that failed."""
        return {
            "state": DEAD if verdict.wait is None else WAITING,
            "attempts": verdict.attempts,
            "next_attempt_at": null() if verdict.wait is None else self._store.now(verdict.wait),
            "error": verdict.error,
        }

    # Retrying

    def due(self, view: View) -> list[ColumnElement[bool]]:
        """Which rows are due: each is the first of its key."""
        table = self._table
        return [table.c.state == WAITING, table.c.next_attempt_at <= self._store.now(), *shown(table, view)]

    async def heads(self, connection: AsyncConnection, view: View, limit: int) -> list[int]:
        """Return the numbers of rows that are due, those first that are due first."""
        table = self._table
        query = select(table.c.seq).where(*self.due(view)).order_by(table.c.next_attempt_at).limit(limit)
        return list(await connection.scalars(query))

    async def read(self, connection: AsyncConnection, view: View, seqs: Sequence[int], *, lock: bool) -> list[Claimed]:
        """Return those of these rows that are still due; with `lock` locked, and without those that others work on."""
        table = self._table
        found: list[Claimed] = []
        for some in chunks(seqs):
            query = select(table.c.seq, *(table.c[name] for name in CLAIMED), table.c.attempts)
            query = query.where(table.c.seq.in_(some), *self.due(view))
            if lock:
                query = query.with_for_update(skip_locked=True)
            found += retried(await connection.execute(query))
        return found

    async def end(
        self,
        connection: AsyncConnection,
        done: Sequence[Claimed],
        failed: Sequence[Verdict],
        returned: Sequence[Claimed],
        skipping: Collection[str],
    ) -> None:
        """End retries: delete what was delivered, put off or bury what failed, hand back what was not tried."""
        table = self._table
        freed = [verdict.row for verdict in failed if verdict.wait is None and not verdict.blocks]
        await self._hold_slots(connection, [*done, *freed])
        for some in chunks([row.id for row in done]):
            await connection.execute(delete(table).where(table.c.seq.in_(some)))
        for verdict in failed:
            await connection.execute(update(table).where(table.c.seq == verdict.row.id).values(**self.ending(verdict)))
        for row in (*done, *freed):
            await self._make_next_due(connection, row.strand, skipping)
        for some in chunks([row.id for row in returned]):
            back = update(table).where(table.c.seq.in_(some))
            await connection.execute(back.values(next_attempt_at=self._store.now()))

    async def _hold_slots(self, connection: AsyncConnection, rows: Iterable[Any]) -> None:
        """Keep relays from parking behind a row that is about to leave: what follows it would never be made due."""
        slots = sorted({row.slot for row in rows})
        if slots:
            await self._store.dialect.hold(connection, self._store, slots)

    async def _make_next_due(self, connection: AsyncConnection, strand: Strand, skipping: Collection[str]) -> None:
        """Make the first of a key due, unless what comes first is dead and holds it back."""
        destination, topic, key = strand
        if key is None:
            return
        table = self._table
        left = (_same_strand(table, destination, topic, key), self.parks(table, skipping))
        first = await connection.scalar(select(func.min(table.c.seq)).where(*left))
        if first is not None:
            waits = (table.c.state == WAITING, table.c.next_attempt_at.is_(None))
            due = update(table).where(table.c.seq == first, *waits)
            await connection.execute(due.values(next_attempt_at=self._store.now()))

    async def wake_heads(self, skipping: Collection[str]) -> None:
        """Make due what waits behind nothing: a key whose first row a person removed, or whose policy was changed."""
        table, before = self._table, self._table.alias()
        earlier = exists().where(
            before.c.destination == table.c.destination,
            before.c.topic == table.c.topic,
            before.c.message_key == table.c.message_key,
            before.c.seq < table.c.seq,
            self.parks(before, skipping),
        )
        stranded = (table.c.state == WAITING, table.c.next_attempt_at.is_(None))
        async with self._store.readers.connect() as connection:
            if not await connection.scalar(select(exists().where(*stranded))):
                return
        async with self._store.short.begin() as connection:
            heads = list(await connection.scalars(select(table.c.seq).where(*stranded, ~earlier)))
            for some in chunks(heads):
                due = update(table).where(table.c.seq.in_(some), *stranded)
                await connection.execute(due.values(next_attempt_at=self._store.now()))

    # Looking, replaying, discarding

    async def find(self, conditions: Mapping[str, Any], limit: int) -> Sequence[Row[Any]]:
        """Return parked rows by column values, the oldest first."""
        table = self._table
        query = select(table).where(*(table.c[name] == value for name, value in conditions.items()))
        async with self._store.readers.connect() as connection:
            return (await connection.execute(query.order_by(table.c.seq).limit(limit))).all()

    async def numbers(self, conditions: Mapping[str, Any]) -> list[int]:
        """Return the numbers of parked rows by column values, the oldest first."""
        table = self._table
        query = select(table.c.seq).where(*(table.c[name] == value for name, value in conditions.items()))
        async with self._store.readers.connect() as connection:
            return list(await connection.scalars(query.order_by(table.c.seq)))

    async def replay(self, seqs: Sequence[int], skipping: Collection[str]) -> int:
        """Make dead rows wait for a first attempt again; one whose key went on without it joins the key's tail."""
        table = self._table
        async with self._store.short.begin() as connection:
            rows = await self._dead(connection, seqs)
            for row in rows:
                seq = await self._to_tail(connection, row) if row.destination in skipping else row.seq
                due = null() if await self._waits_behind(connection, row, seq, skipping) else self._store.now()
                values = {"state": WAITING, "attempts": 0, "next_attempt_at": due}
                await connection.execute(update(table).where(table.c.seq == seq).values(**values))
        return len(rows)

    async def _to_tail(self, connection: AsyncConnection, row: Row[Any]) -> int:
        table = self._table
        columns = [column.name for column in table.c if column.name != "seq"]
        copy = select(*(table.c[name] for name in columns)).where(table.c.seq == row.seq)
        await connection.execute(insert(table).from_select(columns, copy))
        await connection.execute(delete(table).where(table.c.seq == row.seq))
        strand = _same_strand(table, row.destination, row.topic, row.message_key)
        return int(await connection.scalar(select(func.max(table.c.seq)).where(strand)) or 0)

    async def _waits_behind(
        self, connection: AsyncConnection, row: Row[Any], seq: int, skipping: Collection[str]
    ) -> bool:
        if row.message_key is None:
            return False
        table = self._table
        strand = _same_strand(table, row.destination, row.topic, row.message_key)
        return bool(
            await connection.scalar(select(exists().where(strand, self.parks(table, skipping), table.c.seq < seq)))
        )

    async def discard(self, seqs: Sequence[int], skipping: Collection[str] = ()) -> int:
        """Delete dead rows for good; what waited behind them goes on."""
        table = self._table
        async with self._store.short.begin() as connection:
            rows = await self._dead(connection, seqs)
            for row in rows:
                await connection.execute(delete(table).where(table.c.seq == row.seq))
                await self._make_next_due(connection, (row.destination, row.topic, row.message_key), skipping)
        return len(rows)

    async def _dead(self, connection: AsyncConnection, seqs: Sequence[int]) -> list[Row[Any]]:
        """Return the dead ones among rows, with their slots held: a dead row may be all that parks its key."""
        table = self._table
        dead = [and_(table.c.seq.in_(some), table.c.state == DEAD) for some in chunks(seqs)]
        slots = [
            row for these in dead for row in await connection.execute(select(table.c.slot).where(these).distinct())
        ]
        await self._hold_slots(connection, slots)
        return [
            row for these in dead for row in await connection.execute(select(table).where(these).order_by(table.c.seq))
        ]


def held_back() -> dict[str, Any]:
    """Return the columns of a row that waits behind another one, whose end makes it due."""
    return {"state": WAITING, "attempts": 0, "next_attempt_at": null(), "error": null()}


def shown(table: Table, view: View) -> list[ColumnElement[bool]]:
    """Return the conditions for the rows of a table that a view shows."""
    conditions: list[ColumnElement[bool]] = [table.c.destination.in_(view.destinations)]
    if view.topic is not None:
        conditions.append(table.c.topic == view.topic)
    return conditions + [
        or_(table.c.destination != destination, table.c.topic != topic) for destination, topic in sorted(view.without)
    ]


def _same_strand(table: Table, destination: str, topic: str, key: str | None) -> ColumnElement[bool]:
    return and_(table.c.destination == destination, table.c.topic == topic, table.c.message_key == key)


def chunks(values: Sequence[Any]) -> list[Sequence[Any]]:
    """Return the values in parts that fit into one IN list."""
    return [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]
