"""asyncpg with fewer trips to the server: BEGIN takes the first statement along, and COMMIT the last one.

asyncpg has no pipeline, but several statements without parameters are one trip.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection


Value = str | bytes | float | None


class JoinedConnection(asyncpg.Connection):  # type: ignore[misc] # untyped
    """A connection that sends statements along with BEGIN and COMMIT."""

    after_begin: str | None = None
    """What the next BEGIN takes along."""
    before_commit: str | None = None
    """What the COMMIT of this transaction takes along; a ROLLBACK forgets it."""
    status = ""
    """What the server said of what followed BEGIN, as `INSERT 0 1`."""

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


def can_begin_with(connection: Connection) -> bool:
    """Whether BEGIN can take a statement along: the connection is ours, and no statement has reached the server."""
    return _is_ours(connection) and not connection.connection.driver_connection.is_in_transaction()  # type: ignore[union-attr]


def can_commit_with(connection: Connection) -> bool:
    """Whether COMMIT can: the connection is ours, and there will be a COMMIT."""
    return _is_ours(connection) and connection.connection.driver_connection.is_in_transaction()  # type: ignore[union-attr]


def _is_ours(connection: Connection) -> bool:
    # asyncpg lets every connection pass for an instance
    return type(connection.connection.driver_connection) is JoinedConnection and not getattr(
        connection.connection.dbapi_connection, "autocommit", True
    )


def begin_with(connection: Connection, statement: str, parameters: Sequence[Value]) -> int:
    """Send BEGIN and a statement in one trip; returns how many rows it touched.

    For use inside of SQLAlchemy's greenlet. The connection is given up if it fails: SQLAlchemy knows nothing of the
    transaction then.
    """
    driver: Any = connection.connection.driver_connection
    adapter: Any = connection.connection.dbapi_connection
    driver.after_begin = inlined(statement, parameters)
    try:
        await_only(adapter._start_transaction())  # noqa: SLF001 - what SQLAlchemy itself begins with
    except BaseException as error:
        connection.invalidate()
        base = connection.dialect.loaded_dbapi.Error
        if isinstance(error, base):
            raise DBAPIError.instance(statement, None, error, base, connection_invalidated=True) from error
        raise
    return int(driver.status.rpartition(" ")[2])


def commit_with(connection: Connection, statement: str, rows: Sequence[Sequence[Value]]) -> None:
    """Let the COMMIT that follows send a statement for each of the rows before."""
    driver: Any = connection.connection.driver_connection
    driver.before_commit = "".join(f"{inlined(statement, row)};" for row in rows)


def inlined(statement: str, parameters: Sequence[Value]) -> str:
    """Return a statement with its parameters in it: only the extended protocol carries them, one statement a trip."""
    between, places = _parts(statement)
    return between[0] + "".join(
        _literal(parameters[place]) + text for place, text in zip(places, between[1:], strict=True)
    )


@lru_cache
def _parts(statement: str) -> tuple[list[str], list[int]]:
    """Return what stands between the places of parameters, and which parameter each of them is for."""
    parts = re.split(r"\$(\d+)", statement)
    return parts[::2], [int(number) - 1 for number in parts[1::2]]


def _literal(value: Value) -> str:
    """Return a value as SQL: a text by its bytes in hexadecimal, so that nothing in it can end the literal."""
    match value:
        case None:
            return "NULL"
        case bytes():
            return rf"'\x{value.hex()}'"
        case str():
            return rf"convert_from('\x{value.encode().hex()}', 'UTF8')"
        case _:
            return repr(value)
