"""What a relay process holds in memory while very many rows pass through it."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import Any

from benchmarks import servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line, rate
from benchmarks.ours import migrate
from benchmarks.relay import conditions, database
from benchmarks.rows import Outbox
from benchmarks.worker import Worker, workers

WARM = 0.1
"""The share of the rows after which pools, caches and the interpreter have what they need."""
MIB = 2**20


class Samples:
    """The memory of a process after so many rows."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self.rows = 0
        self.warm: list[int] = []
        self.began = self.ended = 0
        self.complete = asyncio.Event()

    def hear(self, _: Worker, report: dict[str, Any]) -> None:
        if "done" in report:
            self.rows += report["rows"]
            self.began = self.began or report["done"]
            self.ended = report["done"]
            if self.rows >= self._expected:
                self.complete.set()
        elif self.rows >= WARM * self._expected:
            self.warm.append(report["memory"])


async def flat(effort: Effort) -> list[Line]:
    """Let one relay process empty a long backlog."""
    number = effort.backlog
    samples = Samples(number)
    async with AsyncExitStack() as stack:
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, number))
        await migrate(engine)
        outbox = Outbox(engine)
        await outbox.park_dead_letters()
        await outbox.fill(number)
        relays = await stack.enter_async_context(workers(1, samples.hear, url=url, memory=True))
        relays[0].start()
        await samples.complete.wait()
        await asyncio.sleep(0.3)
        await relays[0].stop()
    first, most = samples.warm[0], max(samples.warm)
    per_second = number / (samples.ended - samples.began) * 1e9
    return [
        Line(
            name="memory",
            what=f"growth of a relay's memory over {number:,} rows, after the first tenth",
            bar=Bar(30, "MiB", most=True),
            measured=(most - first) / MIB,
            rates={
                "after the first tenth": f"{first / MIB:.0f} MiB",
                "most": f"{most / MIB:.0f} MiB",
                "ours": rate(per_second),
            },
            conditions=conditions(number, relays[0].shown_pace, f"resident, {len(samples.warm)} samples"),
        )
    ]


async def measure(effort: Effort) -> list[Line]:
    """Measure where the system tells a process what it holds."""
    if not sys.platform.startswith("linux"):
        what = "growth of a relay's memory"
        return [Line(name="memory", what=what, bar=Bar(30, "MiB", most=True), missing="needs /proc")]
    return await flat(effort)


JOBS = [Job("memory", "memory of a relay", measure, (servers.POSTGRESQL,))]
