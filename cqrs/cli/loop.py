"""How commands run what is asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Found = TypeVar("Found")

PATIENCE = 1.0
"""Seconds that a driver's threads have to end."""


def run_async(work: Coroutine[Any, Any, Found]) -> Found:
    """Run a command's work in a loop of its own, and return what it returns."""
    return asyncio.run(_until_threads_have_ended(work))


async def _until_threads_have_ended(work: Coroutine[Any, Any, Found]) -> Found:
    before = set(threading.enumerate())
    try:
        return await work
    finally:
        # aiosqlite does not wait for the thread of a connection that failed to open; one that outlives the loop prints
        # a traceback.
        for thread in set(threading.enumerate()) - before:
            if "connection_worker" in thread.name:
                await asyncio.to_thread(thread.join, PATIENCE)
