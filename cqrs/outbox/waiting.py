"""Waiting for an event, but not for ever, and knowing what ended it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any


async def came(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event at most so long; returns whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def within(seconds: float, end: Callable[[], Awaitable[object]]) -> None:
    """Wait for an end at most so long.

    Not by `asyncio.timeout`: what hangs may hang in its clean-up, too. It is cancelled then, and left to itself.
    """
    task = asyncio.ensure_future(end())
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(heard)
    if task.done():
        task.result()


def heard(task: asyncio.Future[Any]) -> None:
    """Hear of the error of a task that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def is_being_cancelled() -> bool:
    """Whether somebody stops this task, rather than something that it waited for was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
