"""What stands in the tables, as values on their way from the store to the relay and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cqrs.codec import Envelope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WAITING, DEAD, SCHEDULED = "waiting", "dead", "scheduled"
COPIED = ("event_id", "destination", "topic", "message_key", "type", "headers", "payload", "slot", "created_at")
"""The columns that a row takes along when its key is parked."""
CLAIMED = ("slot", "event_id", "destination", "topic", "message_key", "type", "headers", "payload")
"""The columns of a claimed row, behind its number."""

Strand = tuple[str, str, str | None]
"""Destination, topic and key: what order is kept within."""


class Claimed(NamedTuple):
    """A row that this relay may deliver: from the outbox (`id`), or parked (`seq`)."""

    id: int
    slot: int
    envelope: Envelope
    place: Any = None
    """Where the database keeps it, if that is the shortest way back to it."""

    @property
    def attempts(self) -> int:
        """How many attempts have failed."""
        return self.envelope.attempt - 1

    @property
    def strand(self) -> Strand:
        """Within what it keeps its order; without a key it stands alone."""
        return self.envelope.destination, self.envelope.topic, self.envelope.key


class Unended(NamedTuple):
    """A row that has not ended; `error` is why it was parked, if it was for a failure of its own."""

    event_id: str
    type: str
    destination: str
    state: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a row whose delivery failed: tried again after `wait` seconds, or dead where that is None.

    `counts` is false where it was given up for want of time: the attempt is not counted.
    """

    row: Claimed
    error: str
    wait: float | None
    blocks: bool
    counts: bool = True

    @property
    def attempts(self) -> int:
        """How many attempts have failed, this one included if it counts."""
        return self.row.attempts + self.counts


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows have not ended: on their way, held back or waiting for a retry, dead, not yet due."""

    outbox: int
    waiting: int
    dead: int
    scheduled: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What a relay has to do: rows in the outbox now, and the seconds until the first retry is due (None: no retry)."""

    outbox: bool
    due: float | None


@dataclass(frozen=True, slots=True)
class View:
    """Which rows a claim may take: those of these destinations, but of no topic `without`, or of one `topic` alone.

    `skipping` are the destinations whose dead rows hold back nothing.
    """

    destinations: tuple[str, ...]
    without: frozenset[tuple[str, str]] = frozenset()
    topic: str | None = None
    skipping: frozenset[str] = frozenset()

    def covers(self, other: View) -> bool:
        """Whether this view shows all that the other one does."""
        shown = set(other.destinations) <= set(self.destinations) and self.without <= other.without
        return shown and self.topic in (None, other.topic)


def claimed(rows: Iterable[Sequence[Any]]) -> list[Claimed]:
    """Return rows of the outbox, (number, *CLAIMED, place), as values."""
    new = tuple.__new__  # a named tuple's own is a function in Python, which takes as long as to make the tuple
    return [
        new(
            Claimed,
            (
                number,
                slot,
                new(Envelope, (event_id, destination, topic, key, kind, headers, payload, 1, False)),
                place,
            ),
        )
        for number, slot, event_id, destination, topic, key, kind, headers, payload, place in rows
    ]


def retried(rows: Iterable[Sequence[Any]]) -> list[Claimed]:
    """Return parked rows, (number, *CLAIMED, attempts), as values."""
    return [
        Claimed(
            number,
            slot,
            Envelope(event_id, destination, topic, key, kind, headers, payload, attempts + 1, parked=True),
        )
        for number, slot, event_id, destination, topic, key, kind, headers, payload, attempts in rows
    ]


def by_slot(rows: Sequence[Claimed]) -> dict[int, list[int]]:
    """Return the ids of rows of the outbox by their slot: its primary key begins with the slot."""
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(row.slot, []).append(row.id)
    return found
