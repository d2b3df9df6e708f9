"""What PostgreSQL does in its own way: advisory locks, snapshots that can be looked at, a log that carries rows."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Float, cast, extract, func, text
from sqlalchemy.dialects.postgresql import insert

from cqrs.errors import SchemaError
from cqrs.outbox.advisory_slots import AdvisorySlots, Names, lock_class
from cqrs.outbox.bell import Bell
from cqrs.outbox.locks import LockedLane, Server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence
    from types import ModuleType

    from sqlalchemy import Insert, Table
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.outbox.store import Store

JOINED_ROWS = 4
JOINED_BYTES = 65_536
"""Of how many rows, with how many bytes of bodies, COMMIT takes the INSERT along."""


@cache
def _joining(driver: str) -> ModuleType | None:
    """Return what lets BEGIN and COMMIT take statements along, where that is made for the driver."""
    if driver != "asyncpg":
        return None
    from cqrs.outbox import asyncpg_driver

    return asyncpg_driver


class PostgreSQL(Server):
    """The dialect; see `cqrs.outbox.dialect.Dialect`."""

    carries_log = True

    def later(self, seconds: float) -> ColumnElement[Any]:
        """Return the time so many seconds from now; `now()` would be when the transaction began."""
        if not seconds:
            return func.statement_timestamp()
        return func.statement_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, cast(seconds, Float))

    def seconds_until(self, moment: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the seconds from the database's time to a stored moment."""
        return extract("epoch", moment - func.statement_timestamp())

    def taking(self, inbox: Table) -> Insert:
        """Return what writes inbox rows unless they are there."""
        return insert(inbox).on_conflict_do_nothing()

    def begin(self, connection: Connection) -> None:
        """Begin where the driver otherwise does when SQLAlchemy sees the first statement."""
        joining = _joining(connection.dialect.driver)
        if joining is not None:
            joining.begin(connection)

    def lost(self, connection: Connection) -> bool:
        """Whether a transaction that was begun was ended past SQLAlchemy, as far as the driver tells."""
        joining = _joining(connection.dialect.driver)
        return joining is not None and joining.lost(connection)

    def begin_with(self, connection: Connection, statement: str, parameters: Any) -> int:
        """Run a compiled statement as a transaction's first, in one trip with BEGIN where the driver can."""
        joining = _joining(connection.dialect.driver)
        touched = None if joining is None else joining.begin_with(connection, statement, parameters)
        return self.run(connection, statement, parameters) if touched is None else touched

    def commit_with(self, connection: Connection, statement: str, rows: Sequence[Any]) -> None:
        """Run a compiled statement as a transaction's last, in one trip with COMMIT where the driver can.

        Of many rows or bytes that would cost more than it saves: bodies are twice as long as text.
        """
        joining = _joining(connection.dialect.driver) if len(rows) <= JOINED_ROWS else None
        if joining is None or _size(rows) > JOINED_BYTES or not joining.commit_with(connection, statement, rows):
            super().commit_with(connection, statement, rows)

    async def check(self, store: Store) -> None:
        """Refuse a sequence that hands out ids in advance: a floor may then pass over rows that are still to come."""
        names = Names(store)
        async with store.readers.connect() as connection:
            statement = text("SELECT seqcache FROM pg_sequence WHERE seqrelid = CAST(:name AS regclass)")
            cached = await connection.scalar(statement, {"name": names.sequence})
        if cached != 1:
            raise SchemaError(
                f"The sequence {names.sequence} hands out {cached} ids at a time, and the relay relies on their order. "
                f"Run: ALTER SEQUENCE {names.sequence} CACHE 1"
            )

    @asynccontextmanager
    async def migrating(self, connection: AsyncConnection) -> AsyncGenerator[None]:
        """Hold an advisory lock, until the transaction ends."""
        await connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _hash("cqrs migration")})
        yield

    async def hold(self, connection: AsyncConnection, store: Store, slots: Sequence[int]) -> None:
        """Wait until no relay works on these slots, and keep all from them until the transaction ends."""
        statement = text("SELECT pg_advisory_xact_lock(:class, s) FROM unnest(CAST(:slots AS integer[])) s")
        await connection.execute(statement, {"class": lock_class(store), "slots": sorted(slots)})

    async def serialise(self, connection: AsyncConnection, store: Store, keys: Collection[str]) -> None:
        """Let transactions that write one of these keys come one after the other, by locks on hashes of them."""
        hashes = sorted({_hash(f"{store.name}\0{key}") for key in keys})
        statement = text("SELECT pg_advisory_xact_lock(h) FROM unnest(CAST(:hashes AS bigint[])) h")
        await connection.execute(statement, {"hashes": hashes})

    def lane(self, store: Store, owner: str, lease: float) -> LockedLane:  # noqa: ARG002 - the port's
        """Return a way to the database for a relay; its locks know it by its connection, not by its name."""
        return LockedLane(store, AdvisorySlots(store), store.short, lease)

    def bell(self, store: Store, heard: Callable[[], None] | None, listen_url: str | None) -> Bell:
        """Return what rings by NOTIFY and hears by LISTEN."""
        return Bell(store.short, f"cqrs_{lock_class(store)}", heard=heard, listen_url=listen_url)

    def slots(self, store: Store) -> Sequence[int]:
        """Return the rows that the slot table has on every database; here nobody reads them, slots are numbers."""
        return range(store.slots)


def _size(rows: Sequence[Any]) -> int:
    return sum(len(value) for row in rows for value in row if isinstance(value, bytes))


def _hash(value: str) -> int:
    return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), signed=True)
