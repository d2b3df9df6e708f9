"""How several relays share one outbox when a publish takes its time, as it does with a broker far away."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from statistics import median
from time import monotonic_ns
from typing import Any

from benchmarks import servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line, rate, ratio, typical
from benchmarks.ours import Contestant, alternate, migrate
from benchmarks.relay import conditions, database
from benchmarks.rows import Outbox
from benchmarks.worker import Worker, workers

PAUSE = 0.01
MOST = 4


class Tally:
    """Counts what the processes have delivered since it was begun."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, expected: int) -> None:
        self.rows = [0] * MOST
        self.last = [0] * MOST
        self._expected = expected
        self.complete = asyncio.Event()

    def hear(self, worker: Worker, report: dict[str, Any]) -> None:
        if "done" in report:
            self.rows[worker.number] += report["rows"]
            self.last[worker.number] = report["done"]
            if sum(self.rows) >= self._expected:
                self.complete.set()


async def share(effort: Effort) -> list[Line]:
    """Let one, two and four processes empty the same outbox."""
    number = effort.scaled
    tally = Tally()
    shares: list[float] = []
    async with AsyncExitStack() as stack:
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, number))
        await migrate(engine)
        outbox = Outbox(engine)
        await outbox.park_dead_letters()
        relays = await stack.enter_async_context(workers(MOST, tally.hear, url=url, pause=PAUSE))

        def by(count: int) -> Contestant:
            async def drain() -> float:
                await outbox.empty()
                await outbox.fill(number)
                tally.begin(number)
                began = monotonic_ns()
                for relay in relays[:count]:
                    relay.start()
                await tally.complete.wait()
                took = (max(tally.last) - began) / number
                for relay in relays[:count]:
                    await relay.stop()
                if count == 2:
                    shares.append(min(tally.rows[:2]) / sum(tally.rows))
                return took

            return drain

        taken = await alternate({"one": by(1), "two": by(2), "four": by(4)}, effort.few_rounds)
    pace = relays[0].shown_pace
    two, spread = ratio(taken["one"], taken["two"])
    four, wide = ratio(taken["one"], taken["four"])
    least, between = typical(shares[1:])
    rates = {f"{who} process{'es' * (who != 'one')}": rate(1e9 / median(found)) for who, found in taken.items()}
    shown = conditions(number, pace, f"a publish takes {PAUSE * 1000:.0f} ms a batch")
    return [
        Line(
            name="relay-two",
            what="two relays against one, a publish takes 10 ms a batch",
            bar=Bar(1.4),
            measured=two,
            spread=spread,
            rates=rates,
            conditions=shown,
        ),
        Line(name="relay-four", what="four relays against one", measured=four, spread=wide, conditions=shown),
        Line(
            name="relay-share",
            what="share of the one of two busy relays that has less",
            bar=Bar(35, "%"),
            measured=least * 100,
            spread=(between[0] * 100, between[1] * 100),
            conditions=shown,
        ),
    ]


JOBS = [Job("relay-two", "two and four relays against one", share, (servers.POSTGRESQL,))]
