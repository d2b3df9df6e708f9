"""What the log says of faults of lanes: a line when something begins to be wrong, and one when nothing is any more."""

from __future__ import annotations

import logging
from collections import Counter

log = logging.getLogger("cqrs.outbox.relay")
"""The relay's own: whoever reads its log looks for its faults there."""


class Troubles:
    """What is wrong with which lane."""

    def __init__(self) -> None:
        self._current: dict[str, BaseException] = {}
        self._told: set[str] = set()
        self._counts: Counter[str] = Counter()

    def add(self, lane: str, error: BaseException) -> int:
        """Note a fault; returns how many this lane has had in a row."""
        self._current[lane] = error
        self._counts[lane] += 1
        if not self._told:
            self._tell(lane)
        return self._counts[lane]

    def end(self, lane: str) -> None:
        """Note that a lane works; others may not yet."""
        if self._current.pop(lane, None) is None:
            return
        self._told.discard(lane)
        if not self._current:
            log.warning("The relay works again after %d faults.", self._counts.total())
            self._counts.clear()
        elif not self._told:
            self._tell(next(iter(self._current)))

    def _tell(self, lane: str) -> None:
        log.error("The relay's lane '%s' has a fault and goes on trying: %s", lane, self._current[lane])
        self._told.add(lane)
