"""Relays that are wrong on purpose: what the checker must find, or it finds nothing.

Each wraps the publisher of a relay: it says that all was delivered, as it should be, and does something else.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import cqrs
from cqrs.codec import Envelope
from cqrs.outbox.publisher import Outcome
from cqrs.outbox.storage import Storage

Change = Callable[[Sequence[Envelope]], list[Envelope]]


def swapped(envelopes: Sequence[Envelope]) -> list[Envelope]:
    """Let one event overtake the one before it of its key."""
    sent = list(envelopes)
    last: dict[tuple[str, str, str], int] = {}
    for index, envelope in enumerate(sent):
        before = last.get(envelope.strand)
        if before is not None:
            sent[before], sent[index] = sent[index], sent[before]
            return sent
        last[envelope.strand] = index
    return sent


def dropped(envelopes: Sequence[Envelope]) -> list[Envelope]:
    """Forget one event now and then."""
    return list(envelopes[1:] if random.random() < 0.1 else envelopes)


def repeated(envelopes: Sequence[Envelope]) -> list[Envelope]:
    """Send everything twice."""
    return [envelope for envelope in envelopes for _ in range(2)]


class Mutant:
    """A publisher that delivers something else than it is given, and says that it did as it was told."""

    def __init__(self, inner: cqrs.Publisher, change: Change) -> None:
        self._inner = inner
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def publish(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        outcomes = await self._inner.publish(self._change(envelopes))
        if all(outcome is cqrs.Fate.DELIVERED for outcome in outcomes):
            return [cqrs.Fate.DELIVERED] * len(envelopes)
        return [cqrs.Fate.NOT_SENT] * len(envelopes)


def _mutated(change: Change) -> Callable[[Storage], None]:
    def mutate(storage: Storage) -> None:
        relay = storage.relay
        relay._handover.publishers = {name: Mutant(inner, change) for name, inner in relay._handover.publishers.items()}

    return mutate


MUTATIONS = {change.__name__: _mutated(change) for change in (swapped, dropped, repeated)}
