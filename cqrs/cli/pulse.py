"""The live line of `run` on a terminal: rates and backlog."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from cqrs.mediator import Mediator

INTERVAL = 1.0
"""Seconds between two looks."""


@cache
def console() -> Console:
    """Return the terminal that the line and the log share."""
    from rich.console import Console

    return Console(stderr=True)


@asynccontextmanager
async def pulse(app: Mediator) -> AsyncGenerator[None]:
    """Show, on a terminal, a line that is renewed every second."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.live import Live

    with Live("", console=console(), transient=True, auto_refresh=False) as live:
        task = asyncio.create_task(_beat(app, live), name="cqrs pulse")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _beat(app: Mediator, live: Any) -> None:
    from rich.text import Text

    before, since = Totals.of(app), monotonic()
    while True:
        await asyncio.sleep(INTERVAL)
        now, until = Totals.of(app), monotonic()
        live.update(Text(f"{now.rates(before, until - since)}; {await _backlog(app)}"), refresh=True)
        before, since = now, until


@dataclass(frozen=True, slots=True)
class Totals:
    """What this process has done so far."""

    delivered: int
    consumed: int

    @classmethod
    def of(cls, app: Mediator) -> Totals:
        """Return what an application's process has done so far."""
        relay = getattr(app.storage, "relay", None)
        return cls(getattr(relay, "delivered", 0), app.consumer.taken if app.consumer is not None else 0)

    def rates(self, before: Totals, seconds: float) -> str:
        """Return how fast it was since an earlier look."""
        delivered, consumed = self.delivered - before.delivered, self.consumed - before.consumed
        return f"{delivered / seconds:.0f} delivered/s, {consumed / seconds:.0f} consumed/s"


async def _backlog(app: Mediator) -> str:
    if app.consumer is not None and app.consumer.fault is not None:
        return app.consumer.fault.partition(":")[0]
    try:
        counts = await app.outbox.counts()
    except Exception:  # noqa: BLE001 - the line is no reason to stop; the relay logs what is wrong
        return "the database does not answer"
    return f"{counts.outbox} in the outbox, {counts.waiting} waiting, {counts.dead} dead"
