"""One of two busy relays is killed, or stopped as by a frozen host: when the other one delivers from its slots."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from contextlib import AsyncExitStack
from time import monotonic_ns
from typing import Any

from benchmarks import servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line, typical
from benchmarks.ours import migrate
from benchmarks.relay import conditions, database
from benchmarks.rows import Outbox
from benchmarks.worker import Worker, workers

PAUSE = 0.2
"""A publish takes so long, so that the rows last until the lease has ended."""
PER_SECOND = 2 * 2 * 1000 / PAUSE
BUSY = 1.5
"""Seconds of work before somebody is killed."""
PATIENCE = 2.5


class History:
    """What each process has begun to publish, and when."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.slots: dict[int, list[tuple[int, list[int]]]] = {0: [], 1: []}
        self.open: dict[int, list[list[int]]] = {0: [], 1: []}
        self._news = asyncio.Event()

    def hear(self, worker: Worker, report: dict[str, Any]) -> None:
        if "begun" in report:
            self.times.update(report["orders"])
            self.slots[worker.number].append((report["begun"], report["slots"]))
            self.open[worker.number].append(report["slots"])
        elif self.open[worker.number]:
            self.open[worker.number].pop(0)
        self._news.set()

    async def taken_over(self, by: int, slots: set[int], since: int) -> float:
        """Wait until a process has delivered from each of these slots, and return the seconds that it took."""
        while True:
            self._news.clear()
            left = set(slots)
            for at, delivered in self.slots[by]:
                if at > since:
                    left -= set(delivered)
                if not left:
                    return (at - since) / 1e9
            await self._news.wait()

    @property
    def duplicates(self) -> int:
        return sum(times - 1 for times in self.times.values())


async def measure(effort: Effort) -> list[Line]:
    """Kill, and stop, one of two, several times each."""
    killed = [await _once(effort, signal.SIGKILL) for _ in range(effort.few_rounds)]
    stopped = [await _once(effort, signal.SIGSTOP) for _ in range(max(1, effort.few_rounds // 2))]
    pace, shown = killed[0][2:]
    batch, lanes = pace
    after, between = typical([found[0] for found in killed])
    lease, around = typical([found[0] for found in stopped])
    most = max(found[1] for found in killed)
    return [
        Line(
            name="takeover-killed",
            what="one of two busy relays is killed (SIGKILL): the other delivers from its slots after",
            bar=Bar(1.0, "s", most=True),
            measured=after,
            spread=between,
            rates={"worst": f"{max(found[0] for found in killed):.2f} s"},
            conditions=shown,
        ),
        Line(
            name="takeover-stopped",
            what=f"the same for one that is stopped (SIGSTOP), lease {effort.lease:.0f} s",
            bar=Bar(effort.lease + 1.0, "s", most=True),
            measured=lease,
            spread=around,
            rates={"worst": f"{max(found[0] for found in stopped):.2f} s"},
            conditions=shown,
        ),
        Line(
            name="takeover-duplicates",
            what="most duplicates after a kill: one batch a lane",
            bar=Bar(batch * lanes, "rows", most=True),
            measured=float(most),
            rates={"each": "/".join(str(found[1]) for found in killed)},
            conditions=shown,
        ),
    ]


async def _once(effort: Effort, how: signal.Signals) -> tuple[float, int, list[int], str]:
    wait = PATIENCE + (effort.lease if how is signal.SIGSTOP else 0.0)
    number = int((BUSY + wait) * PER_SECOND)
    history = History()
    async with AsyncExitStack() as stack:
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, number))
        await migrate(engine)
        outbox = Outbox(engine)
        await outbox.park_dead_letters()
        await outbox.fill(number)
        asked = {"url": url, "pause": PAUSE, "detailed": True, "lease": effort.lease}
        relays = await stack.enter_async_context(workers(2, history.hear, **asked))
        for relay in relays:
            relay.start()
        async with asyncio.timeout(30):
            while not all(history.slots.values()):  # noqa: ASYNC110 - a condition of two processes
                await asyncio.sleep(0.01)
        await asyncio.sleep(BUSY * (0.5 + random.random() / 2))
        while not history.open[0]:  # noqa: ASYNC110 - caught in the act
            await asyncio.sleep(0.001)
        relays[0].signal(how)
        at = monotonic_ns()
        await asyncio.sleep(0.02)  # for what it had still written
        slots = {slot for some in history.open[0] for slot in some}
        async with asyncio.timeout(wait + 10):
            took = await history.taken_over(1, slots, at)
        await asyncio.sleep(PAUSE)
        duplicates = history.duplicates
        if how is signal.SIGSTOP:
            relays[0].signal(signal.SIGKILL)
        shown = conditions(number, relays[0].shown_pace, f"a publish takes {PAUSE * 1000:.0f} ms a batch")
        return took, duplicates, relays[0].pace, shown


JOBS = [Job("takeover", "one of two relays is killed, or stopped", measure, (servers.POSTGRESQL,))]
