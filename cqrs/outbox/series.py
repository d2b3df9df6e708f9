"""Deliveries one after the other on one connection: to fetch one from the pool costs nearly two statements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from cqrs.outbox.shielding import shielded

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import Pool

    from cqrs.outbox.transaction import Transaction
    from cqrs.signature import Handler


class Series:
    """Gives each delivery of one task its unit of work, on the connection of the one before.

    That goes for handlers that ask for the connection, which have it from beginning to end; before anything else it is
    given back, so that a task never holds two. So is one that was lost, is no longer as it came, or that others may
    wait for; and each where somebody listens to their coming and going: what is done then is done for each delivery.
    """

    def __init__(self, engine: AsyncEngine, make: Callable[[Handler, str, Series | None], Transaction]) -> None:
        self._engine = engine.sync_engine
        self._make = make
        self._kept: Connection | None = None
        told, pool = self._engine.dispatch, self._engine.pool.dispatch
        self._is_heard = bool(told.engine_connect or pool.checkout or pool.checkin or pool.reset)

    async def unit(self, handler: Handler, message_id: str) -> Transaction:
        """Return a unit in which this handler's inbox row says that it has taken this message."""
        if handler.connects:
            return self._make(handler, message_id, self)
        await self.release()
        return self._make(handler, message_id, None)

    def connect(self) -> Connection:
        """Return the connection that was left, or another one."""
        kept, self._kept = self._kept, None
        return kept or self._engine.connect()

    def leave(self, connection: Connection) -> None:
        """Keep a connection for the next delivery."""
        if not self._is_heard and self._is_as_it_came(connection) and _has_more(self._engine.pool):
            self._kept = connection
        else:
            connection.close()

    def _is_as_it_came(self, connection: Connection) -> bool:
        same = connection.get_execution_options() is self._engine.get_execution_options()
        return same and not connection.invalidated and connection.get_transaction() is None

    async def release(self) -> None:
        """Give the connection back, if there is one."""
        kept, self._kept = self._kept, None
        if kept is not None:
            await shielded(greenlet_spawn(kept.close))

    async def __aenter__(self) -> Self:
        """Begin with nothing."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the connection back."""
        await self.release()


def _has_more(pool: Pool) -> bool:
    """Whether a pool has a connection for who asks next, so that nobody waits for one."""
    if not isinstance(pool, QueuePool):
        return False
    limit: int = pool._max_overflow  # noqa: SLF001 - nothing public tells; -1 is none
    return pool.checkedin() > 0 or limit < 0 or pool.overflow() < limit
