"""What comes of the envelopes of one `publish`: the bookkeeping that publishers share."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cqrs.errors import DecodingError, PublishError
from cqrs.outbox.publisher import Failed, Fate, Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cqrs.codec import Envelope


UNSENDABLE = (TypeError, ValueError, DecodingError)
"""What is raised for a message that a client cannot encode, or whose headers somebody edited into nonsense."""


class Tally:
    """The outcome of each envelope, which ones have no end yet, and the keys that a refused message holds back."""

    def __init__(self, envelopes: Sequence[Envelope]) -> None:
        self.envelopes = envelopes
        self.outcomes: list[Outcome] = [Fate.NOT_SENT] * len(envelopes)
        self.open = set(range(len(envelopes)))
        self.held: set[tuple[str, str | None]] = set()

    def settle(self, indexes: Collection[int], outcome: Outcome) -> None:
        """End some with this outcome."""
        for index in indexes:
            self.outcomes[index] = outcome
        self.open.difference_update(indexes)

    def stop(self, index: int, outcome: Outcome) -> None:
        """End one with this outcome; what comes after it in its strand is not to be sent."""
        self.settle((index,), outcome)
        envelope = self.envelopes[index]
        if envelope.key is not None:
            self.held.add((envelope.topic, envelope.key))

    def is_held(self, index: int) -> bool:
        """Whether one before it in its strand was stopped; then it ends as not sent."""
        envelope = self.envelopes[index]
        if (envelope.topic, envelope.key) not in self.held:
            return False
        self.open.discard(index)
        return True

    def give_up(self, indexes: Iterable[int], outcome: Outcome) -> None:
        """End the first of each strand with this outcome, and the rest as not sent."""
        seen = set()
        for index in indexes:
            if self.is_held(index):
                continue
            strand = self.envelopes[index].strand
            self.settle((index,), Fate.NOT_SENT if strand in seen else outcome)
            seen.add(strand)

    def give_up_all(self, outcome: Outcome) -> None:
        """End all that have no end yet: the first of each strand with this outcome, and the rest as not sent."""
        self.give_up(sorted(self.open), outcome)

    def is_silent(self) -> bool:
        """Whether nothing at all has been heard of any."""
        return all(outcome is Fate.NOT_SENT for outcome in self.outcomes)

    def by_strand(self, indexes: Iterable[int]) -> Iterable[deque[int]]:
        """Return the strands that these are in, each in its order; one without a key is a strand of its own."""
        strands: dict[tuple[str, str | int], deque[int]] = {}
        for index in indexes:
            envelope = self.envelopes[index]
            strand = envelope.topic, index if envelope.key is None else envelope.key
            strands.setdefault(strand, deque()).append(index)
        return strands.values()

    def by_topic(self) -> dict[str, list[int]]:
        """Return those that have no end yet, in their order."""
        topics: dict[str, list[int]] = {}
        for index in sorted(self.open):
            topics.setdefault(self.envelopes[index].topic, []).append(index)
        return topics


def caused(text: str, error: BaseException) -> PublishError:
    """Return an error with its cause."""
    problem = PublishError(text)
    problem.__cause__ = error
    return problem


def refused(text: str, error: BaseException | None = None, *, final: bool = False) -> Failed:
    """Return the outcome of a message that was refused."""
    return Failed(PublishError(text) if error is None else caused(text, error), final)


def name_of(envelope: Envelope) -> str:
    """Name a message in an error's text."""
    return f"{envelope.type} {envelope.message_id} to topic '{envelope.topic}'"


def text_of(error: BaseException) -> str:
    """Return an error's text, and where it has none its type."""
    return str(error) or type(error).__name__
