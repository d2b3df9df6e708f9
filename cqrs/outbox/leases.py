"""How relays share a SQLite file, which has one writer: by leases, with no transaction open while handlers run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from sqlalchemy import String, and_, delete, exists, literal, or_, select, type_coerce, update

from cqrs.outbox.dialect import Nothing
from cqrs.outbox.parked import chunks
from cqrs.outbox.rows import CLAIMED, Claimed, Probe, Verdict, View, claimed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.outbox.store import Store

FAR = 600.0
"""Seconds beyond its own lease from which on a relay takes no lease for one: the clock was put back meanwhile.

SQLite's clock is the machine's. What a dead relay has claimed would else wait until the old time comes again.
"""


class LeasedLane:
    """Claims slots by writing the relay's name into them, and retries by moving the time at which they are due."""

    def __init__(self, store: Store, owner: str, lease: float) -> None:
        self._store = store
        self._owner = owner
        self._lease = lease

    def floors(self, view: View) -> Mapping[int, int]:  # noqa: ARG002 - the port's
        """Know none."""
        return {}

    async def close(self) -> None:
        """Hold nothing: every statement has a connection of its own."""

    async def probe(self, view: View, floors: Mapping[int, int]) -> Probe:
        """Say whether there is anything to do."""
        async with self._store.readers.connect() as connection:
            return await self._store.probe(connection, view, floors)

    async def claim(self, view: View, limit: int) -> LeasedSlots | Nothing:
        """Take half of the free slots that have work, and return their first rows."""
        async with self._store.short.begin() as connection:
            slots = await self._take_slots(connection, view)
            if isinstance(slots, Nothing):
                return slots
            rows, held = await self._read(connection, slots, view, limit)
            await self._store.parked.hold_back(connection, held)
        return LeasedSlots(self._store, self._owner, self._lease, rows, len(held))

    async def _take_slots(self, connection: AsyncConnection, view: View) -> list[int] | Nothing:
        store, slot, outbox = self._store, self._store.tables.slot, self._store.tables.outbox
        work = exists().where(outbox.c.slot == slot.c.slot, *store.wanted(view))
        ended = or_(slot.c.until < store.now(), slot.c.until > store.now(self._lease + FAR))
        free = or_(slot.c.owner.is_(None), slot.c.owner == self._owner, ended)
        working = list(await connection.execute(select(slot.c.slot, free).where(slot.c.slot >= 0, work)))
        found = [row[0] for row in working if row[1]]
        taken = random.sample(found, (len(found) + 1) // 2)
        if not taken:
            return Nothing.BUSY if working else Nothing.IDLE
        owned = update(slot).where(slot.c.slot.in_(taken))
        await connection.execute(owned.values(owner=self._owner, until=store.now(self._lease)))
        return taken

    async def _read(
        self, connection: AsyncConnection, slots: Sequence[int], view: View, limit: int
    ) -> tuple[list[Claimed], list[Claimed]]:
        store, table, parked = self._store, self._store.tables.outbox, self._store.tables.parked
        before = exists().where(
            parked.c.destination == table.c.destination,
            parked.c.topic == table.c.topic,
            parked.c.message_key == table.c.message_key,
            store.parked.parks(parked, view.skipping),
        )
        query = select(table.c.id, *(table.c[name] for name in CLAIMED), before.label("held"))
        query = query.where(table.c.slot.in_(slots), *store.wanted(view)).order_by(table.c.id).limit(limit)
        rows = claimed(await connection.execute(query))
        return [row for row in rows if not row.place], [row for row in rows if row.place]

    async def retry(self, view: View, limit: int) -> LeasedRetries | None:
        """Take parked rows that are due, by making them due one lease later."""
        store = self._store
        async with store.short.begin() as connection:
            seqs = await store.parked.heads(connection, view, limit)
            rows = await store.parked.read(connection, view, seqs, lock=False)
            token = await _hold_until(store, connection, [row.id for row in rows], self._lease)
        return LeasedRetries(store, self._lease, token, rows, view.skipping) if rows else None


class LeasedSlots:
    """Rows of slots that are this relay's for a lease, and longer while it is renewed."""

    def __init__(self, store: Store, owner: str, lease: float, rows: Sequence[Claimed], held_back: int) -> None:
        self.rows = rows
        self.held_back = held_back
        self._store = store
        self._owner = owner
        self._lease = lease

    async def keep(self) -> None:
        """Hold this relay's slots for a lease more."""
        slot, until = self._store.tables.slot, self._store.now(self._lease)
        async with self._store.short.begin() as connection:
            await connection.execute(update(slot).where(slot.c.owner == self._owner).values(until=until))

    async def settle(
        self,
        done: Sequence[Claimed],
        failed: Sequence[Verdict],
        returned: Sequence[Claimed],  # noqa: ARG002 - stays where it is
    ) -> None:
        """Delete the rows that were delivered, park those that failed, and give the slots back.

        A slot whose lease ran out meanwhile may be another relay's: failures in it are left for that one to find.
        """
        store, slot, table = self._store, self._store.tables.slot, self._store.tables.outbox
        async with store.short.begin() as connection:
            for some in chunks([row.id for row in done]):
                await connection.execute(delete(table).where(table.c.id.in_(some)))
            if failed:
                own = select(slot.c.slot).where(slot.c.owner == self._owner, slot.c.until >= store.now())
                slots = set(await connection.scalars(own))
                for verdict in failed:
                    if verdict.row.slot in slots:
                        await store.parked.park(connection, verdict)
            await connection.execute(update(slot).where(slot.c.owner == self._owner).values(owner=None, until=None))


class LeasedRetries:
    """Parked rows that nobody else takes before a moment, which is also the token by which they are known."""

    held_back = 0

    def __init__(
        self, store: Store, lease: float, token: str, rows: Sequence[Claimed], skipping: Collection[str]
    ) -> None:
        self.rows = rows
        self._skipping = skipping
        self._store = store
        self._lease = lease
        self._token = token

    async def keep(self) -> None:
        """Hold the rows that still carry the token for a lease more."""
        async with self._store.short.begin() as connection:
            mine = await self._mine(connection)
            self._token = await _hold_until(self._store, connection, sorted(mine), self._lease)

    async def settle(self, done: Sequence[Claimed], failed: Sequence[Verdict], returned: Sequence[Claimed]) -> None:
        """End the retries that still carry the token: any other has been taken over."""
        async with self._store.short.begin() as connection:
            mine = await self._mine(connection)
            await self._store.parked.end(
                connection,
                [row for row in done if row.id in mine],
                [verdict for verdict in failed if verdict.row.id in mine],
                [row for row in returned if row.id in mine],
                self._skipping,
            )

    async def _mine(self, connection: AsyncConnection) -> set[int]:
        table = self._store.tables.parked
        held = and_(table.c.seq.in_([row.id for row in self.rows]), _moment(table) == self._token)
        return set(await connection.scalars(select(table.c.seq).where(held)))


async def _hold_until(store: Store, connection: AsyncConnection, seqs: Sequence[int], lease: float) -> str:
    table = store.tables.parked
    token = str(await connection.scalar(select(store.now(lease))))
    for some in chunks(seqs):
        held = update(table).where(table.c.seq.in_(some)).values(next_attempt_at=literal(token, String()))
        await connection.execute(held)
    return token


def _moment(table: Any) -> Any:
    """Return when a row is due as the text that the database keeps: what was written is what a settle must find."""
    return type_coerce(table.c.next_attempt_at, String())
