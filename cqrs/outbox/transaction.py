"""The unit of work: one transaction a command or delivery, and what was emitted inserted right before its COMMIT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import greenlet_spawn

from cqrs.errors import CommitUnknown, TransactionMisuse
from cqrs.outbox.envelopes import envelopes_of
from cqrs.outbox.faults import UNSEEN, check_fault, forget_fault, has_fault, misuse, rolled_back
from cqrs.outbox.handed import UNIT, HandlerConnection
from cqrs.outbox.shielding import shielded
from cqrs.running import innermost

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sqlalchemy.engine import Connection, RootTransaction
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, SessionTransaction

    from cqrs.codec import Envelope
    from cqrs.context import Context
    from cqrs.outbox.series import Series
    from cqrs.outbox.store import Store
    from cqrs.plan import Plan, Route

ENDED = (
    "A handler ended the transaction past its session or connection. What it had done is saved or gone as it chose, "
    "what it emitted is not saved. The transaction is committed after the handler has returned: leave that out."
)


class AlreadyTaken(Exception):
    """The inbox says that this handler has taken this message before."""


class Transaction:
    """The unit of work of one root context: a session, or a connection of its own, begun at the first use.

    Whichever a handler asks for first begins; the other one joins it.
    """

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        store: Store,
        *,
        source: str,
        publishes: bool,
        saved: Callable[[Sequence[Envelope]], None],
        takes: tuple[str, Collection[str]] | None = None,
        session: AsyncSession | None = None,
        connection: Connection | None = None,
        series: Series | None = None,
    ) -> None:
        self._engine: AsyncEngine = sessions.kw["bind"]
        self._sessions = sessions
        self._session = session
        self._own = connection
        self._series = series
        self._root: RootTransaction | None = None
        self._store = store
        self._source = source
        self._publishes = publishes
        self._saved = saved
        self._takes = takes
        self._envelopes: list[Envelope] = []
        self._ending = False
        self._spoiled: str | None = None
        self._begun = False
        self._connection: Connection | None = None
        self.already_taken = False

    @property
    def session(self) -> AsyncSession:
        """The session of this transaction."""
        if self._session is None:
            self._session = self._sessions(**self._place())
            self._session.sync_session.info[UNIT] = self
        return self._session

    def _place(self) -> Mapping[str, Any]:
        if self._own is None:
            return {}
        return {"bind": AsyncConnection(self._engine, self._own), "join_transaction_mode": "rollback_only"}

    async def connect(self) -> AsyncConnection:
        """Return the connection of its session, or without one its own, begun; in a delivery with its inbox row."""
        self.used()
        connection = self._own if self._begun else None
        if connection is None:
            connection = await greenlet_spawn(self._connected)
        return HandlerConnection(self._engine, connection, self)

    async def begin_on_server(self, connection: Connection) -> None:
        """Begin for who uses the driver itself: with asyncpg what SQLAlchemy does not see would stand alone."""
        if self._takes is None:
            await greenlet_spawn(self._store.dialect.begin, connection)

    def _connected(self) -> Connection:
        if self._session is not None:
            return self._session.sync_session.connection()
        if self._own is None:
            self._own = (self._series or self._engine.sync_engine).connect()
            self._root = self._own.begin()
        self.begun(self._own)
        return self._own

    def save(self, plan: Plan, event: Any, route: Route | None, context: Context) -> str:
        """Encode an event for each of its destinations; the rows are inserted right before COMMIT. Returns its id."""
        envelopes = envelopes_of(plan, event, route, context, source=self._source, publishes=self._publishes)
        self._envelopes.extend(envelopes)
        return envelopes[0].message_id

    def doom(self, message: Any) -> None:
        """Refuse the commit: a nested command failed after it may have changed something here."""
        self._spoiled = self._spoiled or (
            f"The nested {type(message).__qualname__} failed and its exception was caught, but it shared this "
            "transaction, which is rolled back. Let the exception pass, or let the inner handler answer instead."
        )

    async def commit(self) -> None:
        """Insert what was emitted and commit, shielded from cancellation. Nothing is left half done."""
        if self._spoiled is not None:
            await self.rollback()
            raise TransactionMisuse(self._spoiled)
        if self.already_taken:
            # The handler went on although it was told: what it did since is the second time.
            await self.rollback()
            return
        try:
            await self._prepare()
        except AlreadyTaken:
            await self.rollback()
            return
        except BaseException:
            await self.rollback()
            raise
        if self._session is not None or self._own is not None:
            self._ending = True
            await shielded(self._finish())

    async def rollback(self) -> None:
        """Undo everything and close."""
        self._ending = True
        self._envelopes.clear()
        if self._session is not None or self._own is not None:
            await shielded(greenlet_spawn(self._close))

    async def _prepare(self) -> None:
        """Do what may wait, and be cancelled: flush, begin, take the message, come after other writers of the keys."""
        if self._session is not None and _has_changes(self._session):
            await self._session.flush()
        if self._was_ended():
            raise TransactionMisuse(ENDED)
        if self._connection is not None and has_fault(self._connection):
            await greenlet_spawn(lambda: check_fault(self._connected()))
        if not self._begun and (self._envelopes or self._takes is not None):
            await greenlet_spawn(lambda: self._store.dialect.begin(self._connected()))
        if self._envelopes and self._store.strict:
            await self._store.serialise(await self.connect(), self._envelopes)

    def _was_ended(self) -> bool:
        """Whether somebody ended the transaction past the session or connection that it was begun by."""
        if self._root is not None and not self._root.is_active:
            return True
        begun = self._connection
        return begun is not None and not (begun.closed or begun.invalidated) and self._store.dialect.lost(begun)

    async def _finish(self) -> None:
        await greenlet_spawn(self._end)
        if self._envelopes:
            self._saved(self._envelopes)

    def _insert(self) -> None:
        self._store.add(self._connected(), self._envelopes)

    def _end(self) -> None:
        """Insert, commit and close in one go: three ways into SQLAlchemy would cost as much as the statements."""
        try:
            if self._envelopes:
                self._store.add(self._connected(), self._envelopes, last=True)
            self._commit()
        finally:
            self._close()

    def _commit(self) -> None:
        try:
            if self._session is not None:
                self._session.sync_session.commit()
            if self._root is not None and self._root.is_active:
                self._root.commit()
        except DBAPIError as error:
            _tell_what_became_of_it(error)
            raise

    def _close(self) -> None:
        session, own = self._session, self._own
        self._session = self._own = None
        try:
            if session is not None:
                session.sync_session.close()
        finally:
            if own is not None and self._series is not None:
                self._series.leave(own)
            elif own is not None:
                own.close()

    # What happens to the session and the connection, told by them

    def begun(self, connection: Connection) -> None:
        """Write the inbox row as the first statement of a delivery; a row that stands there ends the delivery.

        A savepoint begins nothing: the row that it would find is the delivery's own.
        """
        if self._begun:
            self._refuse_another(connection)
            return
        forget_fault(connection)
        self._connection = connection
        if self._takes is not None:
            self.already_taken = not self._store.inbox.take(connection, *self._takes)
            if self.already_taken:
                raise AlreadyTaken
        self._begun = True

    def _refuse_another(self, connection: Connection) -> None:
        """Refuse a second transaction in the same database: it could be committed without this one."""
        if self._own not in {None, connection} and connection.engine.pool is self._engine.pool:
            self.refuse(
                "The session did not join the connection that a handler had asked for: its class has a get_bind() of "
                "its own, or binds=, which chooses the engine. Ask for one of the two in this transaction."
            )

    def used(self) -> None:
        """Refuse another task than the handler's own."""
        if not self._ending:
            innermost()

    def committing(self, session: Session) -> None:
        """Refuse a commit by the handler: what it emitted would not be in it."""
        if not self._ending and not session.in_nested_transaction():
            self.refuse(
                "A handler called session.commit(). The transaction is committed after the handler has returned, "
                "together with the events that it emitted: use `await session.flush()` to see what was written."
            )

    def refuse(self, why: str) -> NoReturn:
        """Refuse what the handler did with the transaction, and its commit as well."""
        self._spoiled = why
        raise TransactionMisuse(why)

    def ended(self, transaction: SessionTransaction) -> None:
        """Remember that the handler rolled back or closed: what follows must not be committed as if all were there."""
        if not self._ending and transaction.parent is None:
            self._spoiled = self._spoiled or (
                "A handler rolled back or closed its session, which takes back all that the command did before. "
                "Raise an exception to roll back; to undo a part, use `async with session.begin_nested():`."
            )


class Query(Transaction):
    """The unit of a query: a session that is never committed."""

    async def commit(self) -> None:
        """Give the session back; whatever was written in it is gone."""
        await self.rollback()


def _tell_what_became_of_it(error: DBAPIError) -> None:
    if error.connection_invalidated:
        raise CommitUnknown(
            "The connection was lost during COMMIT: everything of this command was saved, or nothing. "
            "Look before you send it again, or make its handler safe to repeat."
        ) from error
    if rolled_back(error):
        raise misuse(UNSEEN) from error


def _has_changes(session: AsyncSession) -> bool:
    """Whether there is anything to flush; asking costs less than flushing nothing."""
    return bool(session.new or session.dirty or session.deleted)
