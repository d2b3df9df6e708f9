"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure: rounds of each kind, and the messages of a delivery."""

    rounds: int
    rows: int


FULL = Effort(rounds=7, rows=100_000)
QUICK = Effort(rounds=2, rows=5_000)
