"""Times contestants against each other; stdlib only, because the peer's environment imports it too.

Machines are noisy, so contestants alternate in many short rounds and are compared within each round: a ratio is the
median of the rounds' ratios, not a ratio of medians.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter_ns
from typing import Any

Runner = Callable[[int], Awaitable[float]]
"""Makes so many calls and returns the nanoseconds that each took."""


@dataclass(frozen=True, slots=True)
class Race:
    """What each contestant took in each round, in nanoseconds a call."""

    rounds: Mapping[str, Sequence[float]]

    def typical(self, name: str) -> float:
        """Return the median nanoseconds of a call."""
        return median(self.rounds[name])

    def ratio(self, name: str, base: str) -> float:
        """Return how many times as long as `base` a contestant took: the median over the rounds."""
        return median(self._ratios(name, base))

    def spread(self, name: str, base: str) -> tuple[float, float]:
        """Return the quartiles of that ratio: half of the rounds lie between them."""
        low, _, high = quantiles(self._ratios(name, base), n=4)
        return low, high

    def _ratios(self, name: str, base: str) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.rounds[name], self.rounds[base], strict=True)]


def repeat(call: Callable[[Any], Awaitable[Any]], argument: Any) -> Runner:
    """Return the runner of one call, awaited again and again; it is back to speed before the clock runs."""

    async def run(calls: int) -> float:
        for _ in range(calls // 10 + 1):
            await call(argument)
        times = range(calls)
        began = perf_counter_ns()
        for _ in times:
            await call(argument)
        return (perf_counter_ns() - began) / calls

    return run


async def race(runners: Mapping[str, Runner], *, rounds: int, sample: float) -> Race:
    """Let contestants alternate for so many rounds, each for about `sample` seconds a round."""
    calls = {name: await _calls_in(sample, run) for name, run in runners.items()}
    taken: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners)
    with quiet_memory() as tidy:
        for _ in range(rounds):
            for name in order:
                taken[name].append(await runners[name](calls[name]))
                tidy()
            order.append(order.pop(0))  # so that nobody always runs behind the same neighbour
    return Race(taken)


async def _calls_in(seconds: float, run: Runner) -> int:
    calls = 1
    while True:
        nanoseconds = await run(calls) * calls
        if nanoseconds > seconds * 1e9 / 2:
            return max(1, round(calls * seconds * 1e9 / nanoseconds))
        calls *= 2


class quiet_memory:  # noqa: N801 - used like a function
    """Keep the collector out of what is timed; the callable that it gives collects what was left behind."""

    def __enter__(self) -> Callable[[], int]:
        gc.collect()
        gc.freeze()
        gc.disable()
        return gc.collect

    def __exit__(self, *exception: object) -> None:
        gc.enable()
        gc.unfreeze()
