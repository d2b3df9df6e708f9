"""Events in a transaction of the user's: they exist when it commits, and only then is anybody told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import event
from sqlalchemy.util import greenlet_spawn

from cqrs.outbox.handed import UNIT
from cqrs.outbox.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session, SessionTransaction

    from cqrs.codec import Envelope

PENDING = "cqrs_pending"
"""Where the `info` of a user's own session holds what was saved in its transaction."""


class Adopted(Transaction):
    """Events saved in a transaction that somebody else began and will commit."""

    async def commit(self) -> None:
        """Insert what was emitted now; it exists when the session commits, and only then is the relay woken."""
        session, envelopes = self.session, list(self._envelopes)
        if envelopes:
            await self._prepare()
            await greenlet_spawn(self._insert)
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
