"""Several deliveries in one transaction: what a handler with `group=` opts into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.util import greenlet_spawn

from cqrs.codec import Envelope
from cqrs.errors import TransactionMisuse
from cqrs.outbox.shielding import shielded
from cqrs.outbox.transaction import AlreadyTaken, Transaction

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.outbox.store import Store
    from cqrs.signature import Handler

Saved = Callable[[Sequence[Envelope]], None]
"""Is told of rows that were committed."""


class Group:
    """One connection and one transaction; each delivery has a session of its own over them.

    Their inbox rows are its first statement: `AlreadyTaken` is raised where one of them is there. Leaving it commits,
    and what was emitted is saved with that, in the order of the deliveries; an exception rolls all of them back.
    """

    def __init__(
        self,
        store: Store,
        handler: Handler,
        message_ids: Sequence[str],
        make: Callable[[AsyncConnection, Saved], Member],
        saved: Saved,
    ) -> None:
        self._store = store
        self._handler = handler
        self._message_ids = message_ids
        self._make = make
        self._saved = saved
        self._envelopes: list[Envelope] = []
        self._connection: AsyncConnection

    async def __aenter__(self) -> Self:
        """Begin, and take the messages."""
        self._connection = await self._store.writers.connect()
        try:
            await self._connection.run_sync(self._begin)
        except BaseException:
            await shielded(self._connection.close())
            raise
        return self

    def _begin(self, connection: Connection) -> None:
        connection.begin()
        if not self._store.inbox.take(connection, self._handler.name, self._message_ids):
            raise AlreadyTaken

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit, or roll back after an exception; neither is cut short by a cancellation."""
        await shielded(self._end(commit=kind is None))

    async def unit(self) -> Member:
        """Return a unit whose effects are part of this transaction."""
        return self._make(self._connection, self._envelopes.extend)

    async def _end(self, *, commit: bool) -> None:
        try:
            if commit:
                await self._connection.commit()
        finally:
            await self._connection.close()
        if commit and self._envelopes:
            self._saved(self._envelopes)


class Member(Transaction):
    """The unit of one delivery of a group, over its connection, which has begun: the group commits."""

    def __init__(self, *args: Any, connection: Connection, **given: Any) -> None:
        super().__init__(*args, connection=connection, **given)
        self.begun(connection)

    async def begin_on_server(self, connection: Connection) -> None:
        """Do nothing: the inbox rows of the group were written."""

    async def commit(self) -> None:
        """Flush and insert what was emitted; a failure of either is this message's."""
        if self._spoiled is not None:
            raise TransactionMisuse(self._spoiled)
        await self._prepare()
        if self._envelopes:
            await greenlet_spawn(self._insert)
            self._saved(self._envelopes)
        await self.rollback()

    async def rollback(self) -> None:
        """Close the session, which leaves the transaction to the group."""
        self._ending = True
        self._envelopes = []
        if self._session is not None:
            session, self._session = self._session, None
            session.sync_session.close()
