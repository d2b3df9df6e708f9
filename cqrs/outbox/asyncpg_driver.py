"""asyncpg with fewer trips to the server: BEGIN takes the first statement along, and COMMIT the last one.

asyncpg has no pipeline, but the simple protocol takes several statements a trip. It has no parameters, so what goes
along is EXECUTE, of statements that are prepared once a connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

Value = str | bytes | float | None

KNOWN = "SELECT count(*) FROM pg_prepared_statements WHERE name = $1"


class JoinedConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that sends statements along with BEGIN and COMMIT."""

    tells_of_rollbacks = True
    """Whether a COMMIT raises that the server answers with a rollback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.after_begin: str | None = None
        """What the next BEGIN takes along."""
        self.before_commit: str | None = None
        """What the COMMIT of this transaction takes along; a ROLLBACK forgets it."""
        self.status = ""
        """What the server said of what followed BEGIN, as `INSERT 0 1`."""
        self._names: dict[str, str | None] = {}
        self._kept: list[object] = []

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run a statement, and with it what it takes along."""
        after, self.after_begin = self.after_begin, None
        before, self.before_commit = self.before_commit, None
        if after is not None:
            self.status = await super().execute(query + after, timeout=timeout)
            return self.status
        if before is not None and query.startswith("COMMIT"):
            return await self._commit_with(before, query, timeout)
        status: str = await super().execute(query, *args, timeout=timeout)
        if status == "ROLLBACK" and query.startswith("COMMIT"):
            raise asyncpg.InFailedSQLTransactionError("the transaction had failed, so COMMIT rolled it back")
        return status

    async def _commit_with(self, before: str, commit: str, timeout: float | None) -> str:
        try:
            status: str = await super().execute(before + commit, timeout=timeout)
        except asyncpg.PostgresError:
            # COMMIT was not reached, and who sent it takes the transaction for ended.
            if self.is_in_transaction():
                await super().execute("ROLLBACK")
            raise
        return status

    def name_of(self, statement: str) -> str | None:
        """Return the name of a statement, prepared at its first use; None behind a pooler with names of its own."""
        if statement not in self._names:
            await_only(self._prepare_by_name(statement, f"cqrs_{len(self._names)}"))
        return self._names[statement]

    async def _prepare_by_name(self, statement: str, name: str) -> None:
        self._kept.append(await self.prepare(statement, name=name))  # let go, it would be closed
        self._names[statement] = name if await self.fetchval(KNOWN, name) else None


def begin(connection: Connection) -> None:
    """Send BEGIN, unless it was sent or there is none."""
    adapter, driver = _parts(connection)
    if not (driver.is_in_transaction() or adapter.autocommit):
        try:
            await_only(adapter._start_transaction())  # noqa: SLF001 - what SQLAlchemy itself begins with
        except BaseException as error:
            _give_up(connection, "BEGIN", error)
            raise


def lost(connection: Connection) -> bool:
    """Whether SQLAlchemy takes a transaction for begun that the server has ended."""
    adapter, driver = _parts(connection)
    return adapter._transaction is not None and not driver.is_in_transaction()  # noqa: SLF001 - nothing else tells


def begin_with(connection: Connection, statement: str, parameters: Sequence[Value]) -> int | None:
    """Send BEGIN and a statement in one trip; returns how many rows it touched, or None where that cannot be.

    Like `commit_with` for use inside of SQLAlchemy's greenlet.
    """
    adapter, driver = _parts(connection)
    if not _is_ours(adapter, driver) or driver.is_in_transaction():
        return None
    try:
        name = driver.name_of(statement)
        if name is None:
            return None
        driver.after_begin = executed(name, parameters)
        await_only(adapter._start_transaction())  # noqa: SLF001 - what SQLAlchemy itself begins with
    except BaseException as error:
        _give_up(connection, statement, error)
        raise
    return int(driver.status.rpartition(" ")[2])


def commit_with(connection: Connection, statement: str, rows: Sequence[Sequence[Value]]) -> bool:
    """Let the COMMIT that follows run a statement for each of the rows before; returns whether it will."""
    adapter, driver = _parts(connection)
    if not _is_ours(adapter, driver) or not driver.is_in_transaction():
        return False
    try:
        name = driver.name_of(statement)
    except BaseException as error:
        _give_up(connection, statement, error)
        raise
    if name is not None:
        driver.before_commit = "".join(executed(name, row) for row in rows)
    return name is not None


def _parts(connection: Connection) -> tuple[Any, Any]:
    """Return SQLAlchemy's adapter and asyncpg's own connection."""
    adapter: Any = connection.connection.dbapi_connection
    return adapter, adapter.driver_connection


def _is_ours(adapter: Any, driver: Any) -> bool:
    """Whether this is such a connection, with a transaction; asyncpg lets all pass for instances of each class."""
    return type(driver) is JoinedConnection and not getattr(adapter, "autocommit", True)


def _give_up(connection: Connection, statement: str, error: BaseException) -> None:
    """Close the connection, as SQLAlchemy does not know what was done with it, and raise what SQLAlchemy would."""
    adapter, _ = _parts(connection)
    base = connection.dialect.loaded_dbapi.Error
    connection.invalidate()
    if not isinstance(error, Exception):
        return
    try:
        adapter._handle_exception(error)  # noqa: SLF001 - raises it as SQLAlchemy's drivers do
    except base as told:
        raise DBAPIError.instance(statement, None, told, base, connection_invalidated=True) from error


def executed(name: str, parameters: Sequence[Value]) -> str:
    """Return the statement that runs a prepared one."""
    return f"EXECUTE {name}({','.join(map(_literal, parameters))});"


def _literal(value: Value) -> str:
    """Return a value as SQL; a text in which something could end the literal goes by its bytes in hexadecimal."""
    match value:
        case None:
            return "NULL"
        case bytes():
            return rf"'\x{value.hex()}'"
        case str() if _is_plain(value):
            return f"'{value}'"
        case str():
            return rf"convert_from('\x{value.encode().hex()}','UTF8')"
        case _:
            return repr(value)


def _is_plain(text: str) -> bool:
    """Whether a text means itself between quotes, in every encoding of client and server."""
    return text.isascii() and "'" not in text and "\\" not in text and "\0" not in text
