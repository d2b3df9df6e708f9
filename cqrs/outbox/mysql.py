"""What MySQL and MariaDB do in their own way: slots are rows, no log that carries rows, times without a zone."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from zlib import crc32

from sqlalchemy import ColumnElement, func, insert, literal_column, select, text

from cqrs.outbox.locks import LockedLane, Server
from cqrs.outbox.slot_rows import SlotRows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence

    from sqlalchemy import Insert, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.outbox.store import Store

BESIDE_BODY = 64 * 1024
"""How many bytes a statement has beside its row's body, at most."""
KEY_ROWS = 1024
"""How many rows of the slot table, below 0, serialise the writers of keys."""


class MySQL(Server):
    """The dialect; see `cqrs.outbox.dialect.Dialect`."""

    carries_log = False

    def later(self, seconds: float) -> ColumnElement[Any]:
        """Return the time so many seconds from now, in UTC: the columns have no zone."""
        return func.timestampadd(literal_column("MICROSECOND"), round(seconds * 1e6), func.utc_timestamp(6))

    def seconds_until(self, moment: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the seconds from the database's time to a stored moment."""
        return func.timestampdiff(literal_column("MICROSECOND"), func.utc_timestamp(6), moment) / 1e6

    def taking(self, inbox: Table) -> Insert:
        """Return what writes inbox rows unless they are there."""
        return insert(inbox).prefix_with("IGNORE")

    async def longest_body(self, connection: AsyncConnection) -> float:
        """Return how many bytes of a body a statement may carry: its text has up to two for each."""
        packet = int(await connection.scalar(text("SELECT @@max_allowed_packet")) or 0)
        return (packet - BESIDE_BODY) // 2

    async def check(self, store: Store) -> None:
        """Rely on nothing that could be changed."""

    @asynccontextmanager
    async def migrating(self, connection: AsyncConnection) -> AsyncGenerator[None]:
        """Hold a lock of the session: DDL ends transactions here."""
        await connection.execute(text("SELECT GET_LOCK(CONCAT(DATABASE(), '.cqrs'), 300)"))
        # What was read before the lock would be read again as it was then, under REPEATABLE READ.
        await connection.execute(text("COMMIT"))
        try:
            yield
        finally:
            await connection.execute(text("SELECT RELEASE_LOCK(CONCAT(DATABASE(), '.cqrs'))"))

    async def hold(self, connection: AsyncConnection, store: Store, slots: Sequence[int]) -> None:
        """Wait until no relay works on these slots, and keep all from them until the transaction ends."""
        table = store.tables.slot
        rows = select(table.c.slot).where(table.c.slot.in_(slots)).order_by(table.c.slot)
        await connection.execute(rows.with_for_update())

    async def serialise(self, connection: AsyncConnection, store: Store, keys: Collection[str]) -> None:
        """Let transactions that write one of these keys come one after the other, by rows below the slots'."""
        await self.hold(connection, store, sorted({-1 - crc32(key.encode()) % KEY_ROWS for key in keys}))

    def lane(self, store: Store, owner: str, lease: float) -> LockedLane:  # noqa: ARG002 - the port's
        """Return a way to the database for a relay; its locks know it by its connection, not by its name."""
        return LockedLane(store, SlotRows(store), store.short, lease)

    def bell(self, store: Store, heard: Callable[[], None] | None, listen_url: str | None) -> None:
        """Have none: other processes poll."""

    def slots(self, store: Store) -> Sequence[int]:
        """Return the rows that the slot table must have."""
        return range(-KEY_ROWS if store.strict else 0, store.slots)
