"""Handing claimed rows to the publishers of their destinations, side by side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cqrs.codec import BROKER
from cqrs.errors import DecodingError, PublishError
from cqrs.outbox.publisher import Failed, Fate, Outcome, Publisher
from cqrs.outbox.waiting import is_being_cancelled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cqrs.codec import Envelope
    from cqrs.outbox.circuits import Circuits
    from cqrs.outbox.rows import Claimed


class Handover:
    """Gives each publisher its rows, and a broker's `patience` seconds for them; circuits learn from what they say."""

    def __init__(self, publishers: Mapping[str, Publisher], circuits: Circuits, patience: float) -> None:
        self.publishers = publishers
        self._circuits = circuits
        self._patience = patience

    async def publish(self, rows: Sequence[Claimed], faults: list[BaseException]) -> Sequence[Outcome]:
        """Publish side by side what goes to different publishers; what one raises, against its word, is a fault."""
        envelopes = [row.envelope for row in rows]
        shares = self._shares(envelopes)
        if len(shares) == 1 and len(shares[0][1]) == len(rows):
            # No task of its own, which would take as long as some hundred rows.
            return await self._outcomes(shares[0][0], envelopes, faults)
        outcomes: list[Outcome] = [Fate.NOT_SENT] * len(rows)

        async def hand_over(publisher: Publisher, places: Sequence[int]) -> None:
            told = await self._outcomes(publisher, [envelopes[place] for place in places], faults)
            for place, outcome in zip(places, told, strict=True):
                outcomes[place] = outcome

        await asyncio.gather(*(hand_over(*share) for share in shares))
        return outcomes

    def _shares(self, envelopes: Sequence[Envelope]) -> list[tuple[Publisher, list[int]]]:
        """Return where among the envelopes stands what goes to each publisher."""
        return [
            (publisher, places)
            for publisher, destinations in _served(self.publishers)
            if (places := [place for place, each in enumerate(envelopes) if each.destination in destinations])
        ]

    async def _outcomes(
        self, publisher: Publisher, envelopes: Sequence[Envelope], faults: list[BaseException]
    ) -> Sequence[Outcome]:
        try:
            told = await self._hand_over(publisher, envelopes)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
                raise
            faults.append(error)
            return [_blame(envelope) for envelope in envelopes]
        self._circuits.learn(envelopes, told)
        return told

    async def _hand_over(self, publisher: Publisher, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        """Publish; a broker's publisher that does not answer within the lease is given up."""
        to_broker = publisher is self.publishers.get(BROKER)
        async with asyncio.timeout(self._patience if to_broker else None):
            outcomes = await publisher.publish(envelopes)
        if len(outcomes) != len(envelopes):
            name = type(publisher).__qualname__
            raise PublishError(
                f"{name} returned {len(outcomes)} outcomes for {len(envelopes)} envelopes: one for each."
            )
        return outcomes


def _served(publishers: Mapping[str, Publisher]) -> list[tuple[Publisher, set[str]]]:
    """Return each publisher with all of its destinations."""
    found: dict[int, tuple[Publisher, set[str]]] = {}
    for destination, publisher in publishers.items():
        found.setdefault(id(publisher), (publisher, set()))[1].add(destination)
    return list(found.values())


def _blame(envelope: Envelope) -> Outcome:
    """Return what becomes of an envelope over which a publisher stumbled: it is to blame if it cannot be read."""
    try:
        envelope.wire_headers  # noqa: B018 - reading is the question
    except DecodingError as fault:
        return Failed(fault, final=True)
    return Fate.NOT_SENT
