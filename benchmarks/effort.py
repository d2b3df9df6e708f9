"""How much is measured, and in which event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

try:
    import uvloop
except ModuleNotFoundError:  # it has no wheels for Windows
    uvloop = None

LOOP = "uvloop" if uvloop else "asyncio"

Result = TypeVar("Result")


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run in the faster loop where it is installed, for ours and for what it is compared with alike."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
        return runner.run(coroutine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure.

    `rows` are those of a round, `backlog` those that stand in front or have passed already, `lease` in seconds,
    `samples` latencies, `idle` seconds of doing nothing.
    """

    rounds: int
    rows: int
    few_rounds: int
    backlog: int
    passed: int
    samples: int
    inserts: int
    idle: float
    lease: float
    scaled: int
    peers: int


FULL = Effort(
    rounds=7,
    rows=100_000,
    few_rounds=5,
    backlog=1_000_000,
    passed=400_000,
    samples=400,
    inserts=500,
    idle=60.0,
    lease=10.0,
    scaled=200_000,
    peers=3_000,
)
QUICK = Effort(
    rounds=2,
    rows=5_000,
    few_rounds=1,
    backlog=20_000,
    passed=10_000,
    samples=20,
    inserts=20,
    idle=10.0,
    lease=2.0,
    scaled=10_000,
    peers=300,
)
