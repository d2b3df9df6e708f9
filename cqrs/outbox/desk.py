"""`app.outbox`: what a person does about rows that have not ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from sqlalchemy.exc import DBAPIError

from cqrs.outbox.faults import is_transient
from cqrs.outbox.parked import chunks
from cqrs.outbox.rows import DEAD, Counts
from cqrs.outbox.survey import Survey, in_utc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from sqlalchemy import Row

    from cqrs.outbox.store import Store
    from cqrs.outbox.survey import Backlog, Saved


TRIES = 5

State = Literal["ready", "waiting", "dead", "scheduled"]


class Which(TypedDict, total=False):
    """Which parked rows are meant, by equal values; without any, all."""

    seq: int
    event_id: str
    destination: str
    topic: str
    key: str
    type: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was given up for one destination, with its body as it was saved and the last error."""

    seq: int
    event_id: str
    destination: str
    topic: str
    key: str | None
    type: str
    payload: bytes
    attempts: int
    error: str
    created_at: datetime


class Outbox:
    """What was saved and has not ended, to be counted, looked at, replayed and discarded."""

    def __init__(self, store: Store, changed: Callable[[], None], skipping: Collection[str] = ()) -> None:
        self._store = store
        self._changed = changed
        self._skipping = skipping

    async def counts(self) -> Counts:
        """Return how many rows are on their way, wait for a retry or behind one, are dead, or not yet due."""
        return await self._store.counts()

    async def backlog(self) -> list[Backlog]:
        """Return how much has not ended for each destination: the broker, or a handler of this application."""
        return await Survey(self._store).backlog()

    async def find(self, *, limit: int = 100, state: State | None = None, **which: Unpack[Which]) -> list[Saved]:
        """Return rows that have not ended, parked ones first: of these and of the others at most so many, oldest first.

        `state` is "ready" (relays take it as soon as they can), "waiting" (for its next attempt, or behind another row
        of its key), "dead" or "scheduled".
        """
        conditions = _conditions(which) if state is None else {**_conditions(which), "state": state}
        return await Survey(self._store).find(conditions, limit)

    async def dead(self, *, limit: int = 100, **which: Unpack[Which]) -> list[DeadLetter]:
        """Return dead letters, the oldest first."""
        return [_letter(row) for row in await self._store.parked.find(_dead(which), limit)]

    async def replay(self, **which: Unpack[Which]) -> int:
        """Deliver dead letters again, with all attempts before them; returns how many.

        One that held back its key goes first; one that did not (`on_dead="skip"`) goes behind what waits of its key.
        """
        return await self._each(lambda seqs: self._store.parked.replay(seqs, self._skipping), which)

    async def discard(self, **which: Unpack[Which]) -> int:
        """Delete dead letters for good and let go on what they held back; returns how many."""
        return await self._each(lambda seqs: self._store.parked.discard(seqs, self._skipping), which)

    async def _each(self, act: Callable[[Sequence[int]], Awaitable[int]], which: Which) -> int:
        acted = 0
        for some in chunks(await self._store.parked.numbers(_dead(which))):
            # In parts: each holds the slots of its rows.
            acted += await _again(lambda: act(some), TRIES)  # noqa: B023 - it has run when the next part comes
            self._changed()
        return acted


async def _again(act: Callable[[], Awaitable[int]], tries: int) -> int:
    """Return what a transaction returns, which is tried again after a deadlock: a relay was in the way."""
    try:
        return await act()
    except DBAPIError as error:
        if tries == 1 or not is_transient(error):
            raise
    return await _again(act, tries - 1)


def _conditions(which: Which) -> dict[str, Any]:
    unknown = sorted(set(which) - Which.__optional_keys__)
    if unknown:
        known = ", ".join(sorted(Which.__optional_keys__))
        raise TypeError(f"Parked rows have no {', '.join(unknown)}; choose by {known}")
    return {("message_key" if name == "key" else name): value for name, value in which.items()}


def _dead(which: Which) -> dict[str, Any]:
    return {**_conditions(which), "state": DEAD}


def _letter(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        row.seq,
        row.event_id,
        row.destination,
        row.topic,
        row.message_key,
        row.type,
        row.payload,
        row.attempts,
        row.error or "",
        in_utc(row.created_at),
    )
