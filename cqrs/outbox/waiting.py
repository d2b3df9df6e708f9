"""Waiting for an event, but not for ever, and knowing what ended it."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def came(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event at most so long; returns whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def is_being_cancelled() -> bool:
    """Whether somebody stops this task, rather than something that it waited for was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
