"""How relays share a database server: a lane's one open transaction holds the locks of its slots until it settles.

Whatever kills the lane rolls the transaction back and frees the slots: nothing is lost, and at most one batch is sent
again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import text

from cqrs.outbox.dialect import Nothing
from cqrs.outbox.prepared import COUNTED, run_for_each

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from cqrs.outbox.rows import Claimed, Probe, Verdict, View
    from cqrs.outbox.store import Store

MOST_BYTES = 16 * 1024 * 1024
"""How many bytes of bodies a claim may have, as far as the one before lets guess."""
CAREFUL = 100
"""How many rows are taken while it is not known how large they are."""


class Server:
    """What the dialects of database servers have in common."""

    locks = True
    pace: Mapping[str, int] = {"batch": 2000, "lanes": 2}

    def writing(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine as it is."""
        return engine

    def reading(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine as it is."""
        return engine

    def short(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine with transactions in which each statement sees what was committed before it."""
        return engine.execution_options(isolation_level="READ COMMITTED")

    def run(self, connection: Connection, statement: str, parameters: Any) -> int:
        """Run a compiled statement; returns how many rows it touched."""
        return int(connection.exec_driver_sql(statement, parameters, COUNTED).rowcount)

    async def longest_body(self, connection: AsyncConnection) -> float:  # noqa: ARG002 - the port's
        """Return how many bytes of a body a statement may carry."""
        return inf

    def begin(self, connection: Connection) -> None:
        """Need nothing: the driver begins with the first statement."""

    def lost(self, connection: Connection) -> bool:  # noqa: ARG002 - the port's
        """Whether a transaction that was begun was ended past SQLAlchemy: nothing tells."""
        return False

    def begin_with(self, connection: Connection, statement: str, parameters: Any) -> int:
        """Run a compiled statement as a transaction's first; returns how many rows it touched."""
        return self.run(connection, statement, parameters)

    def commit_with(self, connection: Connection, statement: str, rows: Sequence[Any]) -> None:
        """Run a compiled statement as a transaction's last, for each of the rows."""
        run_for_each(connection, statement, rows)


class Slots(Protocol):
    """How one kind of server locks slots, reads their rows and deletes them; one object a lane."""

    ends_idle_sessions: bool
    """Whether the limit on a silent client would also end a session that has nothing to do."""

    def floors(self, view: View) -> Mapping[int, int]:
        """Return below which id nothing of this view is left in a slot, where that is known."""
        ...

    def forget(self) -> None:
        """Forget what was learned over a connection that is gone."""
        ...

    async def autocommits(self, connection: AsyncConnection) -> bool:
        """Whether a statement may stand without a transaction."""
        ...

    async def limit(self, connection: AsyncConnection, lease: float) -> None:
        """Let the server end the transaction when its client has been silent for a lease."""
        ...

    async def lock(self, connection: AsyncConnection, view: View, lease: float) -> Sequence[int] | Nothing:
        """Lock some of the free slots that have work until the transaction ends, and limit it as `limit` does."""
        ...

    async def read(
        self, connection: AsyncConnection, slots: Sequence[int], view: View, limit: int
    ) -> tuple[list[Claimed], list[Claimed]]:
        """Return the first rows of locked slots in order: those to deliver, and those whose key is parked."""
        ...

    async def delete(self, connection: AsyncConnection, rows: Sequence[Claimed]) -> None:
        """Delete rows of locked slots."""
        ...

    def settled(self, gone: Sequence[Claimed]) -> None:
        """Hear that a claim was committed: of what `read` returned to deliver, these rows have left the table."""
        ...


class Appetite:
    """How many rows a lane's next claim takes: fewer where they are large, and deeper where few slots have many.

    The first claim is small, since nobody knows how large its rows are.
    """

    def __init__(self) -> None:
        self._size = MOST_BYTES / CAREFUL
        self._depth = 1

    def portions(self, limit: int, slots: int) -> tuple[int, int]:
        """Return how many rows to take, and how many of each slot."""
        most = min(limit, max(1, int(MOST_BYTES / self._size)))
        return most, min(most, -(-most // slots) * self._depth)

    def learn(self, rows: Sequence[Sequence[Any]], most: int, each: int) -> None:
        """Learn from rows of (number, slot, ..., payload, place)."""
        taken = sum([len(row[8]) for row in rows])
        self._size = max(taken / max(len(rows), 1), self._size / 4, 1.0)
        if len(rows) >= most:
            self._depth = max(1, self._depth // 2)
        elif len(rows) < most / 2 and max(Counter(row[1] for row in rows).values(), default=0) >= each:
            self._depth = min(self._depth * 2, most)


class LockedLane:
    """One connection, held from its first claim on, and replaced after every fault."""

    def __init__(self, store: Store, slots: Slots, engine: AsyncEngine, lease: float) -> None:
        self._store = store
        self._slots = slots
        self._engine = engine
        self._lease = lease
        self._connection: AsyncConnection | None = None

    def floors(self, view: View) -> Mapping[int, int]:
        """Return below which id nothing of this view is left in a slot, where that is known."""
        return self._slots.floors(view)

    async def close(self) -> None:
        """Roll back what is open, and give the connection back."""
        connection, self._connection = self._connection, None
        self._slots.forget()
        if connection is not None:
            # Not back into the pool: a session may be limited as the application's own should not be.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease):
                    await connection.invalidate()
                    await connection.close()

    async def probe(self, view: View, floors: Mapping[int, int]) -> Probe:
        """Say whether there is anything to do, in one statement, without a transaction where that can be."""
        async with self._in_time() as connection:
            if connection.in_transaction():
                return await self._store.probe(connection, view, floors)
            if await self._slots.autocommits(connection):
                plain = await connection.execution_options(isolation_level="AUTOCOMMIT")
                return await self._store.probe(plain, view, floors)
            async with connection.begin():
                return await self._store.probe(connection, view, floors)

    async def claim(self, view: View, limit: int) -> LockedRows | Nothing:
        """Lock some slots that have work, and return their first rows."""
        async with self._in_time() as connection:
            locked = await self._slots.lock(connection, view, self._lease)
            if isinstance(locked, Nothing):
                await self._rest(connection, soon=locked is Nothing.BUSY)
                return locked
            rows, held = await self._slots.read(connection, locked, view, limit)
            await self._store.parked.hold_back(connection, held)
        return LockedRows(self, connection, rows, len(held), self._settle_slots)

    async def retry(self, view: View, limit: int) -> LockedRows | None:
        """Lock parked rows that are due, without their slots: rows behind them may come in meanwhile."""
        parked = self._store.parked
        async with self._in_time() as connection:
            seqs = await parked.heads(connection, view, limit)
            if seqs:
                await self._slots.limit(connection, self._lease)
                rows = await parked.read(connection, view, seqs, lock=True)
                if rows:
                    return LockedRows(self, connection, rows, 0, partial(self._settle_retries, view.skipping))
            await self._rest(connection)
        return None

    async def _rest(self, connection: AsyncConnection, *, soon: bool = False) -> None:
        """End a transaction in which there was nothing to do; `soon` the next one follows."""
        if self._slots.ends_idle_sessions and not soon:
            await self.close()
        else:
            await connection.rollback()

    async def keep(self, claimed_over: AsyncConnection) -> None:
        """Show a sign of life."""
        async with self._in_time(claimed_over) as connection:
            await connection.execute(text("SELECT 1"))

    async def _settle_slots(
        self,
        claimed_over: AsyncConnection,
        done: Sequence[Claimed],
        failed: Sequence[Verdict],
        _returned: Sequence[Claimed],
    ) -> None:
        # Each failed row takes statements of its own, and each of them is a sign of life.
        async with self._in_time(claimed_over, leases=1 + len(failed) // 100) as connection:
            if done:
                await self._slots.delete(connection, done)
            for verdict in failed:
                await self._store.parked.park(connection, verdict)
            await connection.commit()
            self._slots.settled([*done, *(verdict.row for verdict in failed)])

    async def _settle_retries(
        self,
        skipping: Collection[str],
        claimed_over: AsyncConnection,
        done: Sequence[Claimed],
        failed: Sequence[Verdict],
        returned: Sequence[Claimed],
    ) -> None:
        # Longer than the lease, for which another relay may hold a slot; each row takes statements of its own.
        async with self._in_time(claimed_over, leases=2 + (len(done) + len(failed)) // 100) as connection:
            await self._store.parked.end(connection, done, failed, returned, skipping)
            await connection.commit()

    @asynccontextmanager
    async def _in_time(
        self, claimed_over: AsyncConnection | None = None, *, leases: int = 1
    ) -> AsyncGenerator[AsyncConnection]:
        """Work on the connection; whatever goes wrong or does not answer within the lease costs the connection.

        With it go the locks of what was claimed over it: that claim cannot be settled any more.
        """
        if claimed_over is not None and claimed_over is not self._connection:
            raise ConnectionError("The connection of a claim was lost, and its locks with it: its rows come again.")
        try:
            async with asyncio.timeout(self._lease * leases):
                if self._connection is None:
                    self._connection = await self._engine.connect()
                yield self._connection
        except BaseException:
            await asyncio.shield(self.close())
            raise


class LockedRows:
    """Rows that the lane's open transaction has locked, themselves or by their slots."""

    def __init__(
        self, lane: LockedLane, connection: AsyncConnection, rows: Sequence[Claimed], held_back: int, settle: Settle
    ) -> None:
        self.rows = rows
        self.held_back = held_back
        self._lane = lane
        self._connection = connection
        self._settle = settle

    async def keep(self) -> None:
        """Show a sign of life, so that the server does not end the transaction."""
        await self._lane.keep(self._connection)

    async def settle(self, done: Sequence[Claimed], failed: Sequence[Verdict], returned: Sequence[Claimed]) -> None:
        """Delete what was delivered, park what failed, and commit."""
        await self._settle(self._connection, done, failed, returned)


Settle = Callable[
    ["AsyncConnection", "Sequence[Claimed]", "Sequence[Verdict]", "Sequence[Claimed]"], Coroutine[None, None, None]
]
"""How a claim ends."""
