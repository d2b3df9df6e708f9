"""From the commit of a command to the publish by a relay in another process, on an idle system."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import quantiles
from time import monotonic_ns
from typing import Any

import cqrs
from benchmarks import servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line
from benchmarks.ours import OrderPlaced, application, migrate, registry
from benchmarks.raw import COLUMNS
from benchmarks.relay import database
from benchmarks.rows import Outbox, filler, key_of
from benchmarks.worker import Worker, workers

POLL = 0.1
PAUSES = (0.03, 0.13)
"""Between two commands, at random, so that nothing falls into step."""


class Place(cqrs.Command[None]):
    number: int


@registry.command_handler
async def place(command: Place, context: cqrs.Context) -> None:
    name = f"order-{command.number:09}"
    context.emit(OrderPlaced(order_id=name, customer=key_of(command.number), note=filler()))


class Arrivals:
    """When each order was published."""

    def __init__(self) -> None:
        self.at: dict[str, int] = {}
        self._news = asyncio.Event()

    def hear(self, _: Worker, report: dict[str, Any]) -> None:
        if "begun" in report:
            self.note(report["orders"], report["begun"])

    def note(self, orders: list[str], at: int) -> None:
        self.at.update(dict.fromkeys(orders, at))
        self._news.set()

    async def of(self, order: str) -> int:
        """Wait until an order was published, and return when."""
        async with asyncio.timeout(10):
            while order not in self.at:
                self._news.clear()
                await self._news.wait()
        return self.at[order]


async def commit_to_publish(effort: Effort) -> list[Line]:
    """Send commands one by one, in turn to an application with a woken relay and to one whose outbox is polled."""
    woken, polled = Arrivals(), Arrivals()
    async with AsyncExitStack() as stack:
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, 1))
        for prefix in ("cqrs_", "polled_"):
            await migrate(engine, prefix)
            await Outbox(engine, prefix).park_dead_letters()
        relays = await stack.enter_async_context(workers(1, woken.hear, url=url, detailed=True, at_once=True))
        poller = asyncio.create_task(_poll(url, polled))
        stack.callback(poller.cancel)
        options = {"relay": False}
        app = await stack.enter_async_context(application(url, Nowhere(), **options))
        other = await stack.enter_async_context(application(url, Nowhere(), prefix="polled_", **options))
        found: dict[str, list[float]] = {"ours": [], "polled": []}
        ways: dict[str, tuple[Callable[[Any], Awaitable[Any]], Arrivals]] = {
            "ours": (app.send, woken),
            "polled": (other.send, polled),
        }
        for number in range(-5, effort.samples):
            for who, (send, arrivals) in ways.items():
                await asyncio.sleep(random.uniform(*PAUSES))
                await send(Place(number=number + 5))
                committed = monotonic_ns()
                took = (await arrivals.of(f"order-{number + 5:09}") - committed) / 1e6
                if number >= 0:
                    found[who].append(max(took, 0.0))
    ours, beside = ({each: quantiles(times, n=100)[each - 1] for each in (50, 99)} for times in found.values())
    return [
        Line(
            name=f"latency-p{each}",
            what=f"commit → published, idle, second process, PostgreSQL, p{each}",
            bar=Bar(limit, "ms", most=True),
            measured=ours[each],
            rates={f"polling each {POLL * 1000:.0f} ms": f"{beside[each]:.1f} ms"},
            conditions=f"{effort.samples} commands one by one, {relays[0].shown_pace}",
        )
        for each, limit in ((50, 3.0), (99, 10.0))
    ]


class Nowhere:
    """The broker of an application that does not relay."""

    async def open(self) -> None:
        """Have nothing to open."""

    async def close(self) -> None:
        """Have nothing to close."""

    async def publish(self, envelopes: Any) -> Any:
        raise NotImplementedError


async def _poll(url: str, arrivals: Arrivals) -> None:
    """Do by hand what is usual: look ten times a second."""
    import json

    connection = await servers.asyncpg_connection(url)
    select = await connection.prepare(f"SELECT {COLUMNS} FROM polled_outbox ORDER BY slot, id LIMIT 1000")
    while True:
        if rows := await select.fetch():
            arrivals.note([json.loads(row[8])["order_id"] for row in rows], monotonic_ns())
            await connection.execute("DELETE FROM polled_outbox WHERE id = ANY($1)", [row[0] for row in rows])
        await asyncio.sleep(POLL)


JOBS = [Job("latency", "commit → published", commit_to_publish, (servers.POSTGRESQL,))]
