"""aiosqlite with fewer trips to its thread, which cost more than most statements.

SQLAlchemy makes three for a statement: cursor, execute, close. Here it is one, which takes BEGIN along;
the last one goes with COMMIT; and none ends a transaction that is not there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

import aiosqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from sqlalchemy.engine import URL

CHUNK = 64
"""How many rows a cursor that is iterated fetches a trip; aiosqlite's own default."""


class _Cursor(aiosqlite.Cursor):
    """A cursor that begins to exist with its statement, and is dropped rather than closed."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        # Not the base class's: that wants the sqlite3 cursor, which only the statement will make.
        self.iter_chunk_size = CHUNK
        self._conn = connection

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> aiosqlite.Cursor:
        """Make the cursor and run the statement in one trip."""
        self._cursor = (await self._conn.execute(sql, parameters))._cursor  # noqa: SLF001 - our own base class
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> aiosqlite.Cursor:
        """Make the cursor and run the statement for each of the parameters in one trip."""
        self._cursor = (await self._conn.executemany(sql, parameters))._cursor  # noqa: SLF001 - our own base class
        return self

    async def close(self) -> None:
        """Leave the end to the last reference: it resets the statement as closing would."""

    def __await__(self) -> Generator[Any, None, _Cursor]:
        """Allow `await connection.cursor()`, as aiosqlite does."""
        yield from ()
        return self


class Connection(aiosqlite.Connection):
    """A connection whose transactions begin with their first statement, and may end with their last."""

    begins_with: str | None = None
    """What begins a transaction that has no statement yet."""
    ends_with: tuple[str, Sequence[Any]] | None = None
    """A statement that is run for each of these rows before the COMMIT; a rollback forgets it."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        self._opened: sqlite3.Connection | None = None
        self._is_settled = True

        def connect() -> sqlite3.Connection:
            self._opened = connector()
            return self._opened

        super().__init__(connect, CHUNK)

    def stop(self) -> Any:
        """Stop the thread, and close in it first what was opened for somebody who was cancelled while he waited."""
        self._tx.put_nowait((None, self._close_opened))
        return super().stop()

    def _close_opened(self) -> None:
        if self._opened is not None:
            self._opened.close()

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        begin, self.begins_with = self.begins_with, None
        if begin is not None:
            fn, args = self._begin_and, (begin, fn, *args)
        self._is_settled = False  # and stays so when this task is cancelled: the thread goes on
        result = await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]  # aiosqlite's
        self._is_settled = True
        return result

    def _begin_and(self, begin: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._conn.execute(begin)
        return fn(*args, **kwargs)

    async def commit(self) -> None:
        """Commit, with what comes last; without a transaction no trip is made."""
        last, self.ends_with = self.ends_with, None
        if last is not None:
            await self._execute(self._commit_with, *last)
        elif self._has_transaction():
            await super().commit()

    def _commit_with(self, statement: str, rows: Sequence[Any]) -> None:
        self._conn.executemany(statement, rows)
        self._conn.commit()

    async def rollback(self) -> None:
        """Roll back, also what the thread still does for somebody who was cancelled; else no trip is made."""
        self.ends_with = None
        if self._has_transaction():
            await super().rollback()

    def _has_transaction(self) -> bool:
        self.begins_with = None
        return self.in_transaction or not self._is_settled

    def cursor(self) -> Any:
        """Return a cursor that has made no trip yet; to be awaited or entered as aiosqlite's is."""
        return _Cursor(self)


def creator(url: URL, timeout: float) -> Callable[[], Coroutine[Any, Any, aiosqlite.Connection]]:
    """Return what opens a connection to the URL's file, for SQLAlchemy's `async_creator`."""
    arguments, options = url.get_dialect()().create_connect_args(url)
    settings: dict[str, Any] = {"timeout": timeout, **options}

    async def connect() -> aiosqlite.Connection:
        connection = Connection(lambda: sqlite3.connect(arguments[0], **settings))
        connection._thread.daemon = True  # noqa: SLF001 - as SQLAlchemy does: a forgotten close must not keep a process
        return await connection

    return connect
