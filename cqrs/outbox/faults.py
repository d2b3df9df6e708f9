"""What an error of the database means: that it is away, that the same may pass again, or that nothing is left of it.

A handler may catch an error with which the database ended the transaction, and COMMIT would not tell.

PostgreSQL answers the COMMIT of a transaction in which a statement failed with a rollback, and no driver says so.
MySQL rolls back a deadlock's victim, and what follows is a transaction that lacks what came before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from cqrs.errors import TransactionMisuse

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

FAULT = "cqrs_fault"
"""Where a connection's `info` holds the last error of its transaction."""
UNSEEN = RuntimeError("the driver raised it past SQLAlchemy")
MYSQL_DEADLOCK = 1213
FAILED = "25P02"
"""What PostgreSQL says of statements in a transaction in which one has failed."""
TRANSIENT = frozenset({"40001", "40P01", "1205", "1213"})
"""A serialisation failure or a deadlock, by SQLSTATE or by MySQL's number: the same again may pass."""
ABSENT = re.compile(r"08...|53300|57P0[1-3]|1040|1053|1927|200[236]|2013|2055|4031")
"""A server that is not there, starts, stops or takes no more connections, by SQLSTATE or by MySQL's number."""


def remember_faults(engine: AsyncEngine) -> None:
    """Let the connections of an engine remember what failed."""
    if not event.contains(engine.sync_engine, "handle_error", _remember):
        event.listen(engine.sync_engine, "handle_error", _remember)


def _remember(fault: ExceptionContext) -> None:
    if fault.connection is not None and not fault.is_disconnect:
        fault.connection.info[FAULT] = fault.original_exception


def forget_fault(connection: Connection) -> None:
    """Begin a transaction: what failed before has nothing to do with it."""
    connection.info.pop(FAULT, None)


def has_fault(connection: Connection) -> bool:
    """Whether something has failed in its transaction."""
    return FAULT in connection.info


def suspect(connection: Connection) -> None:
    """Take it that something may fail past SQLAlchemy, where COMMIT would not tell of it."""
    driver = connection.connection.driver_connection
    if connection.dialect.name == "postgresql" and not getattr(driver, "tells_of_rollbacks", False):
        connection.info.setdefault(FAULT, UNSEEN)


def rolled_back(error: DBAPIError) -> bool:
    """Whether a COMMIT found that the transaction had failed before."""
    return getattr(error.orig, "sqlstate", None) == FAILED


def check_fault(connection: Connection) -> None:
    """Raise `TransactionMisuse` if the database has ended the transaction, so that nothing of it would be committed.

    What failed in a savepoint that was rolled back is no harm.
    """
    fault: BaseException = connection.info[FAULT]
    if MYSQL_DEADLOCK in fault.args:
        raise misuse(fault) from fault
    try:
        connection.execute(text("SELECT 1"))
    except DBAPIError:
        raise misuse(fault) from fault


def is_transient(error: BaseException) -> bool:
    """Whether the database ended this transaction for the sake of another one."""
    return isinstance(error, DBAPIError) and not TRANSIENT.isdisjoint(_codes(error.orig))


def is_absence(error: BaseException) -> bool:
    """Whether an error says that the database is out of reach, or that the connection to it was lost."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or (error.orig is not None and is_absence(error.orig))
    return isinstance(error, OSError) or any(ABSENT.fullmatch(code) for code in _codes(error))


def _codes(original: BaseException | None) -> set[str]:
    """Return what a driver's error has as its code: a SQLSTATE, or with MySQL a number."""
    states = {getattr(original, name, None) for name in ("sqlstate", "pgcode")}
    numbers = {argument for argument in getattr(original, "args", ())[:1] if isinstance(argument, int)}
    return {str(code) for code in (states | numbers) - {None}}


def misuse(fault: BaseException) -> TransactionMisuse:
    """Return what is raised in place of a COMMIT that would save nothing."""
    return TransactionMisuse(
        f"A handler caught an error with which the database had ended the whole transaction: {fault}. Let the "
        "exception pass, or try what may fail in a savepoint: `async with session.begin_nested():`."
    )
