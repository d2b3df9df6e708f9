"""The unit of work: one session a command or delivery, and what was emitted inserted right before its COMMIT."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from cqrs.codec import BROKER, Envelope, headers_text, key_text, saved_headers
from cqrs.context import trace_of
from cqrs.errors import CommitUnknown, EncodingError, TransactionMisuse
from cqrs.outbox.faults import check_fault, forget_fault, has_fault
from cqrs.running import innermost

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session, SessionTransaction

    from cqrs.context import Context
    from cqrs.outbox.store import Store
    from cqrs.plan import Plan

log = logging.getLogger(__name__)

UNIT = "cqrs_unit"
"""Where a session's `info` holds the unit that it belongs to."""
PENDING = "cqrs_pending"
"""Where the `info` of a user's own session holds what was saved in its transaction."""


class AlreadyTaken(Exception):
    """The inbox says that this handler has taken this message before."""


class Transaction:
    """The unit of work of one root context, over a session that connects at its first use."""

    def __init__(
        self,
        open_session: Callable[[], AsyncSession],
        store: Store,
        *,
        source: str,
        publishes: bool,
        saved: Callable[[Sequence[Envelope]], None],
        takes: tuple[str, Collection[str]] | None = None,
    ) -> None:
        self._open_session = open_session
        self._session: AsyncSession | None = None
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
            self._session = self._open_session()
            self._session.sync_session.info[UNIT] = self
        return self._session

    def save(self, plan: Plan, event: Any, context: Context) -> str:
        """Encode an event for each of its destinations; the rows are inserted right before COMMIT. Returns its id."""
        envelopes = self.envelopes(plan, event, context)
        self._envelopes.extend(envelopes)
        return envelopes[0].message_id

    def envelopes(self, plan: Plan, event: Any, context: Context) -> list[Envelope]:
        """Return what an event is saved as: one envelope for the broker, or one for each handler that it waits for."""
        route = plan.route(event)
        destinations = [handler.name for handler in plan.handlers if handler.durable or (route and not self._publishes)]
        if route and self._publishes:
            destinations = [BROKER]
        if route and not destinations:
            raise EncodingError(
                f"{plan.name} is published to '{route.topic}', but there is neither a broker nor a handler of it. "
                "Give bootstrap a broker, or decorate a handler of it."
            )
        name, topic, key = (route.name, route.topic, route.key) if route else (plan.name, plan.name, None)
        trace = trace_of(context).caused()
        if plan.notification:
            event.event_id = UUID(trace.message_id)
        assert plan.codec is not None  # noqa: S101 - is_saved() implies one
        payload = plan.codec.encode(event)
        headers = headers_text(saved_headers(trace, self._source))
        text = key_text(key, plan.name)
        return [Envelope(trace.message_id, where, topic, text, name, headers, payload) for where in destinations]

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
        if self._session is not None or self._envelopes:
            session, self._ending = self.session, True
            await shielded(self._finish(session))

    async def rollback(self) -> None:
        """Undo everything and close the session."""
        self._ending = True
        self._envelopes.clear()
        if self._session is not None:
            session, self._session = self._session, None
            await shielded(session.close())

    async def _prepare(self) -> None:
        """Do what may wait, and be cancelled: flush, begin, take the message, come after other writers of the keys."""
        if self._session is not None and _has_changes(self._session):
            await self._session.flush()
        if self._connection is not None and has_fault(self._connection):
            await self.session.run_sync(lambda session: check_fault(session.connection()))
        if not self._begun and (self._envelopes or self._takes is not None):
            await self.session.run_sync(lambda session: self._store.dialect.begin(session.connection()))
        if self._envelopes and self._store.strict:
            await self._store.serialise(await self.session.connection(), self._envelopes)

    async def _finish(self, session: AsyncSession) -> None:
        await session.run_sync(self._end)
        if self._envelopes:
            self._saved(self._envelopes)

    def _insert(self, session: Session) -> None:
        self._store.add(session.connection(), self._envelopes)

    def _end(self, session: Session) -> None:
        """Insert, commit and close in one go: three ways into SQLAlchemy would cost as much as the statements."""
        try:
            if self._envelopes:
                self._store.add(session.connection(), self._envelopes, last=True)
            _commit(session)
        finally:
            session.close()

    # What happens to the session, told by its events

    def begun(self, connection: Connection) -> None:
        """Write the inbox row as the first statement of a delivery; a row that stands there ends the delivery.

        A savepoint begins nothing: the row that it would find is the delivery's own.
        """
        if self._begun:
            return
        forget_fault(connection)
        self._connection = connection
        if self._takes is not None:
            self.already_taken = not self._store.inbox.take(connection, *self._takes)
            if self.already_taken:
                raise AlreadyTaken
        self._begun = True

    def used(self) -> None:
        """Refuse another task than the handler's own."""
        if not self._ending:
            innermost()

    def committing(self, session: Session) -> None:
        """Refuse a commit by the handler: what it emitted would not be in it."""
        if not self._ending and not session.in_nested_transaction():
            self._spoiled = (
                "A handler called session.commit(). The transaction is committed after the handler has returned, "
                "together with the events that it emitted: use `await session.flush()` to see what was written."
            )
            raise TransactionMisuse(self._spoiled)

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


class Adopted(Transaction):
    """Events saved in a transaction that somebody else began and will commit."""

    async def commit(self) -> None:
        """Insert what was emitted now; it exists when the session commits, and only then is the relay woken."""
        session, envelopes = self.session, list(self._envelopes)
        if envelopes:
            await self._prepare()
            await session.run_sync(self._insert)
            self._tell_at_commit(session.sync_session, envelopes)
        session.sync_session.info.pop(UNIT, None)

    def _tell_at_commit(self, session: Session, envelopes: Sequence[Envelope]) -> None:
        """Tell of the rows when the session commits, not when a savepoint does, and never when it rolls back."""
        if PENDING not in session.info:
            event.listen(session, "after_commit", self._committed)
            event.listen(session, "after_transaction_end", _forget_pending)
        session.info.setdefault(PENDING, []).extend(envelopes)

    def _committed(self, session: Session) -> None:
        if not session.in_nested_transaction() and session.info[PENDING]:
            self._saved(session.info[PENDING])

    async def rollback(self) -> None:
        """Save nothing; the session stays its owner's."""
        self._envelopes.clear()
        self.session.sync_session.info.pop(UNIT, None)


def _forget_pending(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info[PENDING] = []


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


def _commit(session: Session) -> None:
    try:
        session.commit()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise CommitUnknown(
                "The connection was lost during COMMIT: everything of this command was saved, or nothing. "
                "Look before you send it again, or make its handler safe to repeat."
            ) from error
        raise


def _has_changes(session: AsyncSession) -> bool:
    """Whether there is anything to flush; asking costs less than flushing nothing."""
    return bool(session.new or session.dirty or session.deleted)


async def shielded(ending: Any) -> None:
    """Finish a COMMIT or ROLLBACK although the task is cancelled meanwhile; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(ending)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            log.exception("The end of a cancelled command's transaction failed.", exc_info=error)
        raise
