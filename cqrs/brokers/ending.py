"""How a publisher ends: what is under way is finished, and what was given up is disconnected beside the work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cqrs.outbox.waiting import came

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Idle:
    """Knows whether a publish is under way: each is an `async with` of it."""

    def __init__(self) -> None:
        self._running = 0
        self._none = asyncio.Event()
        self._none.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until no publish is under way, at most so long; returns whether none is."""
        return await came(self._none, seconds)

    async def __aenter__(self) -> None:
        self._running += 1
        self._none.clear()

    async def __aexit__(self, *_: object) -> None:
        self._running -= 1
        if not self._running:
            self._none.set()


class Endings:
    """What disconnects, each in a task of this name, while others publish."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, ending: Coroutine[Any, Any, None]) -> None:
        """Let this run beside the work."""
        task = asyncio.create_task(ending, name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self, seconds: float) -> None:
        """Wait for all at most so long, and cancel the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
