"""`app.outbox`: what a person does about rows that have not ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from cqrs.outbox.parked import chunks
from cqrs.outbox.rows import DEAD, Counts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from sqlalchemy import Row

    from cqrs.outbox.store import Store


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

    async def dead(self, *, limit: int = 100, **which: Unpack[Which]) -> list[DeadLetter]:
        """Return dead letters, the oldest first."""
        return [_letter(row) for row in await self._store.parked.find(_conditions(which), limit)]

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
        for some in chunks(await self._store.parked.numbers(_conditions(which))):
            # In parts: each holds the slots of its rows.
            acted += await act(some)
            self._changed()
        return acted


def _conditions(which: Which) -> dict[str, Any]:
    unknown = sorted(set(which) - Which.__optional_keys__)
    if unknown:
        known = ", ".join(sorted(Which.__optional_keys__))
        raise TypeError(f"Parked rows have no {', '.join(unknown)}; choose by {known}")
    conditions: dict[str, Any] = {("message_key" if name == "key" else name): value for name, value in which.items()}
    return {**conditions, "state": DEAD}


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
        row.created_at if row.created_at.tzinfo else row.created_at.replace(tzinfo=UTC),
    )
