"""What handlers are given of a transaction: sessions and connections that tell its unit what is done with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from cqrs.outbox.faults import suspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, PoolProxiedConnection
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.orm import Session

    from cqrs.outbox.transaction import Transaction

UNIT = "cqrs_unit"
"""Where a session's `info` holds the unit that it belongs to."""


def watched(base: type[Session]) -> type[Session]:
    """Return a session class that tells its unit what is done with it; made once an application."""
    session_class: type[Session] = type(f"Watched{base.__name__}", (base,), {})
    for name, tell in _TOLD.items():
        event.listen(session_class, name, _telling(tell))
    return session_class


_TOLD: dict[str, Callable[..., None]] = {
    "after_begin": lambda unit, _session, _transaction, connection: unit.begun(connection),
    "do_orm_execute": lambda unit, _session: unit.used(),
    "before_flush": lambda unit, _session, *_: unit.used(),
    "before_commit": lambda unit, session: unit.committing(session),
    "after_transaction_end": lambda unit, _session, transaction: unit.ended(transaction),
}


def _telling(tell: Callable[..., None]) -> Callable[..., None]:
    def listener(subject: Any, *arguments: Any) -> None:
        session: Session = getattr(subject, "session", subject)
        unit = session.info.get(UNIT)
        if unit is not None:
            tell(unit, session, *arguments)

    return listener


class HandlerConnection(AsyncConnection):
    """The connection of a unit's transaction. It ends with the unit, not before."""

    __slots__ = ("_unit",)

    def __init__(self, engine: AsyncEngine, connection: Connection, unit: Transaction) -> None:
        super().__init__(engine, connection)
        self._unit = unit

    async def start(self, is_ctxmanager: bool = False) -> AsyncConnection:  # noqa: ARG002, FBT001, FBT002 - SQLAlchemy's
        """Do nothing: it has begun."""
        return self

    @property
    def _proxied(self) -> Connection:
        """What every use of it asks for. Refuses another task than the handler's own."""
        self._unit.used()
        return super()._proxied

    async def get_raw_connection(self) -> PoolProxiedConnection:
        """Return the pooled connection, whose `driver_connection` is the driver's own, with the transaction begun.

        What fails there fails past SQLAlchemy, so the database is asked before COMMIT whether it still would.
        """
        connection = self._proxied
        if connection.invalidated:
            return await super().get_raw_connection()
        await self._unit.begin_on_server(connection)
        suspect(connection)
        return connection.connection

    async def commit(self) -> NoReturn:
        """Refuse: what the handler emits would not be in it."""
        self._unit.refuse(
            "A handler called connection.commit(). The transaction is committed after the handler has returned, "
            "together with the events that it emitted: leave the call out."
        )

    async def rollback(self) -> NoReturn:
        """Refuse: it would take back all that the command did before."""
        self._unit.refuse(
            "A handler called connection.rollback(), which takes back all that the command did before. Raise an "
            "exception to roll back; to undo a part, use `async with connection.begin_nested():`."
        )

    async def close(self) -> NoReturn:
        """Refuse: it is closed when its transaction has ended."""
        self._unit.refuse(
            "A handler closed its connection, which is closed when its transaction has ended: leave out the call, or "
            "the `async with connection:`."
        )
