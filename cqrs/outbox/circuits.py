"""Topics, or whole destinations, that are out of reach: left alone for a while, then tried with one row."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from cqrs.outbox.publisher import Fate, Unavailable
from cqrs.outbox.rows import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cqrs.codec import Envelope
    from cqrs.outbox.publisher import Outcome

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds until the first trial, and the most between two."""

Wire = tuple[str, str | None]
"""A destination and a topic of it; all of it without one."""


@dataclass(slots=True)
class _Circuit:
    failures: int
    until: float


class Circuits:
    """Which ways are open; a row that comes back because its topic is out of reach is not to blame."""

    def __init__(self, skipping: Iterable[str] = ()) -> None:
        self._open: dict[Wire, _Circuit] = {}
        self._half_open: dict[Wire, _Circuit] = {}
        self._skipping = frozenset(skipping)

    def view(self, destinations: Sequence[str]) -> View:
        """Return what may be claimed: everything that is in reach."""
        gone = {destination for destination, topic in self._open if topic is None}
        without = frozenset((destination, topic) for destination, topic in self._open if topic is not None)
        return View(tuple(one for one in destinations if one not in gone), without, None, self._skipping)

    def trial(self, wire: Wire) -> View:
        """Return what may be claimed to try a way again."""
        destination, topic = wire
        return View((destination,), frozenset(), topic, self._skipping)

    def due(self) -> list[Wire]:
        """Return the ways whose pause is over."""
        return [wire for wire, circuit in self._open.items() if circuit.until <= monotonic()]

    @property
    def pause(self) -> float | None:
        """The seconds until the next trial; None when everything is in reach."""
        return max(0.0, min(c.until for c in self._open.values()) - monotonic()) if self._open else None

    def learn(self, envelopes: Sequence[Envelope], outcomes: Sequence[Outcome]) -> None:
        """Open the circuits of what is out of reach, and close those of what is in reach again."""
        if not self._open and not self._half_open and Unavailable not in map(type, outcomes):
            return
        for envelope, outcome in zip(envelopes, outcomes, strict=True):
            if isinstance(outcome, Unavailable):
                self._trip((envelope.destination, None if outcome.everything else envelope.topic), outcome.error)
            elif (self._open or self._half_open) and outcome is not Fate.NOT_SENT:
                self._close((envelope.destination, envelope.topic))
                self._close((envelope.destination, None))

    def postpone(self, wire: Wire, seconds: float) -> None:
        """Try a way a little later: others work on its rows."""
        if wire in self._open:
            self._open[wire].until = monotonic() + seconds

    def half_open(self, wire: Wire) -> None:
        """Let the next row of this way be its trial: there is none to try now."""
        if wire in self._open:
            self._half_open[wire] = self._open.pop(wire)

    def _close(self, wire: Wire) -> None:
        circuit = self._open.pop(wire, None) or self._half_open.pop(wire, None)
        if circuit is not None:
            log.warning("%s is in reach again after %d failures.", _named(wire), circuit.failures)

    def _trip(self, wire: Wire, error: BaseException) -> None:
        circuit = self._half_open.pop(wire, None) or self._open.get(wire)
        if circuit is None:
            log.error("%s is out of reach; its rows wait and nothing else does: %s", _named(wire), error)
            circuit = _Circuit(0, 0.0)
        self._open[wire] = circuit
        if circuit.until <= monotonic():
            circuit.failures += 1
            circuit.until = monotonic() + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(circuit.failures - 1, 8))


def _named(wire: Wire) -> str:
    destination, topic = wire
    return f"The destination '{destination}'" if topic is None else f"The topic '{topic}' of '{destination}'"
