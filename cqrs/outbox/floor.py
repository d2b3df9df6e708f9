"""Below which id nothing is left in a slot: a hint that keeps a relay's reads off rows that were deleted long ago.

Without it every read passes over all index entries that a vacuum has not removed yet, which an open transaction
anywhere in the cluster can put off for hours. The rule was checked with spin: docs/models/floor.pml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REMEMBERED = 60.0
"""Seconds after which everything is forgotten and learned anew."""
PATIENCE = 0.5
"""Seconds for which a transaction is taken for one that is about to end."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which transactions had ended when a statement began, as `pg_current_snapshot()` tells it."""

    below: int
    """The first transaction id that was not given out yet (xmax)."""
    running: frozenset[int]

    @classmethod
    def of(cls, text: str) -> Snapshot:
        """Read PostgreSQL's `xmin:xmax:xip,xip`."""
        _, below, running = text.split(":")
        return cls(int(below), frozenset(map(int, running.split(","))) if running else frozenset())

    def is_running(self, transaction: int) -> bool:
        """Whether a transaction had not ended."""
        return transaction >= self.below or transaction in self.running


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An id that may become the floor: all ids up to it belong to ended transactions, or to one of `open`."""

    last: int
    before: int
    """The last id of the candidate before: what is in `open` and was not then drew its ids later."""
    open: frozenset[int]
    since: float


@dataclass(slots=True)
class Floor:
    """What one lane knows. Not shared between lanes, and gone with the lane's connection."""

    slots: dict[int, int] = field(default_factory=dict)
    _members: dict[int, int] = field(default_factory=dict)
    """Transactions that stay open, each with an id above which all of its own lie."""
    _candidate: _Candidate | None = None
    _last: int = 0
    _proven: int = 0
    """The candidate that the last read has let count: what it showed up to here is all there was. 0: none."""
    _born: float = field(default_factory=monotonic)

    def fresh(self, last: int) -> Floor:
        """Return this floor, or an empty one when it is old, or when the sequence stands below what it has seen."""
        return Floor() if last < self._last or monotonic() - self._born > REMEMBERED else self

    def copy(self) -> Floor:
        """Return a floor for a narrower view, which may rise on its own."""
        return Floor(dict(self.slots), dict(self._members), self._candidate, self._last, 0, self._born)

    def safe(self) -> dict[int, int]:
        """Return floors that hold for whoever reads without looking at snapshots."""
        if monotonic() - self._born > REMEMBERED:
            return {}
        least = min(self._members.values(), default=None)
        return dict(self.slots) if least is None else {slot: min(floor, least) for slot, floor in self.slots.items()}

    def falls(self, snapshot: Snapshot) -> bool:
        """Whether a read shows that an open transaction has ended: the floor falls, and the read is worth nothing."""
        ended = [member for member in self._members if not snapshot.is_running(member)]
        if not ended:
            return False
        least = min(self._members.pop(member) for member in ended)
        self.slots = {slot: min(floor, least) for slot, floor in self.slots.items()}
        return True

    def learn(self, snapshot: Snapshot, own: int, last: int, read: Iterable[int], lowest: Mapping[int, int]) -> None:
        """Learn from a read that `falls` has let pass.

        `own` is the reader's transaction id, drawn after the read's snapshot was taken; `last` the sequence's last
        value, read in an earlier statement; `read` the slots of which the lowest rows above the floor were seen;
        `lowest` the lowest id seen of each slot that had rows.
        """
        candidate = self._candidate
        self._proven = 0
        if candidate is not None and not self._is_ripe(candidate, snapshot):
            return
        before = 0
        if candidate is not None:
            before = self._proven = candidate.last
            self.rise({slot: lowest[slot] - 1 if slot in lowest else candidate.last for slot in read})
        still = {*snapshot.running, *range(snapshot.below, own)} - {own}
        self._candidate = _Candidate(last, before, frozenset(still), monotonic())
        self._last = last

    def rise(self, slots: Mapping[int, int]) -> None:
        """Raise the floors of slots, each to an id up to which nothing of what the last read has shown is left.

        Told also after the commit of what was read: else the next look would pass over the remains of those rows.
        """
        for slot, number in slots.items():
            self.slots[slot] = max(min(self._proven, number), self.slots.get(slot, 0))

    def _is_ripe(self, candidate: _Candidate, snapshot: Snapshot) -> bool:
        """Whether all that was open has ended, but for what stays open for long and is remembered as a member."""
        late = [one for one in candidate.open if snapshot.is_running(one) and one not in self._members]
        if late and monotonic() - candidate.since < PATIENCE:
            return False
        for one in late:
            self._members[one] = candidate.before
        return True
