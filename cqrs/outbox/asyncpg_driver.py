"""asyncpg with one trip to the server for BEGIN and the first statement; SQLAlchemy's use of it makes two."""

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


class JoinedConnection(asyncpg.Connection):  # type: ignore[misc] # untyped
    """A connection that sends a statement along with BEGIN."""

    along: str | None = None
    """What the next statement without parameters is followed by."""
    status = ""
    """What the server said of it, as `INSERT 0 1`."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run a statement, and with it what goes along."""
        along, self.along = self.along, None
        status: str = await super().execute(query + (along or ""), *args, timeout=timeout)
        if along is not None:
            self.status = status
        return status


def can_join(connection: Connection) -> bool:
    """Whether the connection is ours, and its transaction has not reached the server yet."""
    driver = connection.connection.driver_connection
    return (
        type(driver) is JoinedConnection  # asyncpg lets every connection pass for an instance
        and not driver.is_in_transaction()
        and not getattr(connection.connection.dbapi_connection, "autocommit", True)
    )


def begin_with(connection: Connection, statement: str, parameters: Sequence[str | float]) -> int:
    """Send BEGIN and a statement in one trip; returns how many rows it touched.

    For use inside of SQLAlchemy's greenlet. The connection is given up if it fails: SQLAlchemy knows nothing of the
    transaction then.
    """
    driver: Any = connection.connection.driver_connection
    adapter: Any = connection.connection.dbapi_connection
    driver.along = inlined(statement, parameters)
    try:
        await_only(adapter._start_transaction())  # noqa: SLF001 - what SQLAlchemy itself begins with
    except BaseException as error:
        connection.invalidate()
        base = connection.dialect.loaded_dbapi.Error
        if isinstance(error, base):
            raise DBAPIError.instance(statement, None, error, base, connection_invalidated=True) from error
        raise
    return int(driver.status.rpartition(" ")[2])


def inlined(statement: str, parameters: Sequence[str | float]) -> str:
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


def _literal(value: str | float) -> str:
    """Return a value as SQL: a text by its bytes in hexadecimal, so that nothing in it can end the literal."""
    if isinstance(value, str):
        return rf"convert_from('\x{value.encode().hex()}', 'UTF8')"
    return repr(value)
