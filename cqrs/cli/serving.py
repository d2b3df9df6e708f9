"""The process behind `run`: signals, logs and roles, around an application that is open."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cqrs.cli.pulse import console, pulse

if TYPE_CHECKING:
    from cqrs.mediator import Mediator

log = logging.getLogger(__name__)

GARBAGE = 20_000
"""After how many new objects the garbage collector looks for cycles: some megabytes. Python's default is for programs
that make fewer; a session is a few dozen objects in a cycle."""


@dataclass(frozen=True, slots=True)
class Roles:
    """What a process does for an application."""

    relay: bool
    consume: bool

    def __str__(self) -> str:
        return " and ".join(name for name, has in (("relays", self.relay), ("consumes", self.consume)) if has)


async def serve(app: Mediator, roles: Roles) -> None:
    """Run an application in these roles until a signal comes, then let it finish."""
    async with _signals() as stopped, app, AsyncExitStack() as stack:
        if roles.consume:
            await stack.enter_async_context(app.consuming())
        spare_collector()
        log.info("'%s' %s as process %d.", app.name, roles, os.getpid())
        await stack.enter_async_context(pulse(app))
        await stopped.wait()
        log.info("'%s' stops: what is in flight finishes.", app.name)
    log.info("'%s' has stopped.", app.name)


def spare_collector() -> None:
    """Keep what was imported from the garbage collector, and let it look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, *gc.get_threshold()[1:])


@asynccontextmanager
async def _signals() -> AsyncGenerator[asyncio.Event]:
    """Set an event at the first SIGINT or SIGTERM; the second one does what it does without us."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop() -> None:
        stopped.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            with suppress(NotImplementedError):  # on Windows
                loop.remove_signal_handler(number)
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else handler)

    for number in before:
        _listen(loop, number, stop)
    try:
        yield stopped
    finally:
        if not stopped.is_set():
            restore()


def _listen(loop: asyncio.AbstractEventLoop, number: int, stop: Callable[[], None]) -> None:
    try:
        loop.add_signal_handler(number, stop)
    except NotImplementedError:  # on Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))


def log_to_stderr(level: str) -> None:
    """Log to standard error: readable on a terminal, a line each elsewhere."""
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(console=console(), show_path=False)
        logging.basicConfig(level=level.upper(), format="%(message)s", handlers=[handler])
    else:
        logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
