"""What SQLite does in its own way: one writer at a time, transactions opened by hand, time as text."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractAsyncContextManager, nullcontext
from math import inf
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, event, func, insert, literal
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from cqrs.outbox.aiosqlite_driver import Connection as DriverConnection
from cqrs.outbox.aiosqlite_driver import creator
from cqrs.outbox.leases import LeasedLane
from cqrs.outbox.prepared import run_for_each

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sqlalchemy import Insert, Table
    from sqlalchemy.engine import URL, Connection
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.pool import PoolResetState

    from cqrs.outbox.store import Store

BUSY_TIMEOUT = 10.0
TIME = "%Y-%m-%d %H:%M:%f"
NOW = f"strftime('{TIME}', 'now', ?)"
"""The database's time as it is stored; the parameter is a `shift`."""


def is_in_memory(url: URL) -> bool:
    """Whether the database would live in one connection's memory, shared by all sessions."""
    name = url.database or ""
    return name in ("", ":memory:") or name.startswith("file::memory:") or url.query.get("mode") == "memory"


def connect(url: URL) -> tuple[AsyncEngine, AsyncEngine]:
    """Return an engine for writers and one for readers of a database file.

    Writers wait in line for the one connection of their pool, where SQLite would let them poll for the lock and starve.
    """
    options: dict[str, Any] = {"async_creator": creator(url, BUSY_TIMEOUT)}
    writers = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=60.0, **options)
    readers = create_async_engine(url, pool_size=4, max_overflow=12, **options)
    for engine in (writers, readers):
        event.listen(engine.sync_engine, "connect", _set_pragmas)
    return writers, readers


class SQLite:
    """The dialect; see `cqrs.outbox.dialect.Dialect`."""

    carries_log = False
    locks = False
    pace: Mapping[str, int] = {"batch": 500, "lanes": 1}

    def writing(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine with transactions that hold the write lock from their beginning.

        A deferred transaction that reads before it writes fails at once when another has written since, whatever the
        busy timeout. Other users of the engine are left alone: this is a copy over the same pool.
        """
        return _beginning_with(engine, "BEGIN IMMEDIATE")

    def reading(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine with transactions that see one snapshot and take no lock."""
        return _beginning_with(engine, "BEGIN DEFERRED")

    def short(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the same as `writing` does: the only one that writes sees all that was committed."""
        return self.writing(engine)

    def later(self, seconds: float) -> ColumnElement[Any]:
        """Return the database's time so many seconds from now, as it is stored."""
        return func.strftime(literal(TIME), literal("now"), literal(shift(seconds)))

    def seconds_until(self, moment: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the seconds from the database's time to a stored moment."""
        return (func.julianday(moment) - func.julianday("now")) * 86400.0

    def taking(self, inbox: Table) -> Insert:
        """Return what writes inbox rows unless they are there."""
        return insert(inbox).prefix_with("OR IGNORE")

    def run(self, connection: Connection, statement: str, parameters: Sequence[Any]) -> int:
        """Run a compiled statement in one trip; returns how many rows it touched."""
        return execute(connection, statement, *parameters)

    begin_with = run

    async def longest_body(self, connection: AsyncConnection) -> float:  # noqa: ARG002 - the port's
        """Return how many bytes of a body a statement may carry."""
        return inf

    def begin(self, connection: Connection) -> None:
        """Wait for the lock, which otherwise the first statement would do."""
        driver = connection.connection.driver_connection
        if isinstance(driver, DriverConnection) and driver.begins_with is not None:
            begin, driver.begins_with = driver.begins_with, None
            execute(connection, begin)

    def lost(self, connection: Connection) -> bool:
        """Whether a transaction that was begun was ended past SQLAlchemy, as far as the driver tells."""
        driver = connection.connection.driver_connection
        return isinstance(driver, DriverConnection) and driver.begins_with is None and not driver.in_transaction

    def commit_with(self, connection: Connection, statement: str, rows: Sequence[Any]) -> None:
        """Run a compiled statement as a transaction's last, in one trip with COMMIT where the driver can."""
        driver = connection.connection.driver_connection
        if isinstance(driver, DriverConnection):
            driver.ends_with = statement, rows
        else:
            run_for_each(connection, statement, rows)

    async def check(self, store: Store) -> None:
        """Rely on nothing that could be changed."""

    def migrating(self, connection: AsyncConnection) -> AbstractAsyncContextManager[None]:  # noqa: ARG002 - the port's
        """Need nothing: the transaction is the only one that writes."""
        return nullcontext()

    async def hold(self, connection: AsyncConnection, store: Store, slots: Sequence[int]) -> None:
        """Need nothing: the transaction is the only one that writes."""

    async def serialise(self, connection: AsyncConnection, store: Store, keys: Collection[str]) -> None:
        """Need nothing: the transaction is the only one that writes."""

    def lane(self, store: Store, owner: str, lease: float) -> LeasedLane:
        """Return a way to the database for a relay."""
        return LeasedLane(store, owner, lease)

    def bell(self, store: Store, heard: Callable[[], None] | None, listen_url: str | None) -> None:
        """Have none: other processes poll."""

    def slots(self, store: Store) -> Sequence[int]:
        """Return the rows that the slot table must have."""
        return range(store.slots)


def shift(seconds: float) -> str:
    """Return a distance in time as SQLite's date functions read it."""
    return f"{seconds:+.3f} seconds"


def execute(connection: Connection, statement: str, *values: Any) -> int:
    """Run a statement by the driver itself, and return how many rows it touched.

    One trip to the driver's thread, where a SQLAlchemy cursor makes four. For use inside of SQLAlchemy's greenlet.
    """
    driver: Any = connection.connection.driver_connection
    try:
        cursor = await_only(driver.execute(statement, values))
    except sqlite3.Error as error:
        raise OperationalError(statement, values, error) from error
    return int(cursor.rowcount)


def _beginning_with(engine: AsyncEngine, statement: str) -> AsyncEngine:
    own = engine.execution_options()
    event.listen(own.sync_engine, "begin", _begin(statement))
    pool = engine.sync_engine.pool
    if not event.contains(pool, "reset", _roll_back):
        event.listen(pool, "reset", _roll_back)
    return own


def _roll_back(connection: Any, _record: Any, state: PoolResetState) -> None:
    """End what a COMMIT has left open that failed, by a deferred constraint say; SQLAlchemy takes it for ended."""
    if state.asyncio_safe and connection.driver_connection.in_transaction:
        connection.rollback()


def _begin(statement: str) -> Callable[[Connection], None]:
    def begin(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        if isinstance(driver, DriverConnection):
            driver.begins_with = statement
        else:
            execute(connection, statement)

    return begin


def _set_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()
