"""Starts the shop's worker, kills it with SIGKILL, and starts it again, until it ends by itself."""

import asyncio
import math
import os
import random
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from examples.shop.demo.audit import Progress, look
from examples.shop.demo.screen import Screen

LOOK = 0.02
"""Seconds between two looks at the database."""

IsTime = Callable[[Progress], bool]
"""Whether the moment has come to kill the worker; asked at every look at how far it has come."""


class WorkerFailed(Exception):
    """The worker ended with an error of its own; nobody had killed it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the worker is to do, and with which servers: their URLs."""

    orders: Path
    lines: int
    database: str
    broker: str | None
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DATABASE_URL": self.database, "BROKER_URL": self.broker or ""}


async def conduct(job: Job, kills: Iterator[IsTime], engine: AsyncEngine, screen: Screen) -> int:
    """Run workers until one has done all there is to do; returns how many were killed."""
    killed = 0
    while not await run_worker(job, next(kills, never), engine, screen):
        killed += 1
    return killed


async def run_worker(job: Job, is_time: IsTime, engine: AsyncEngine, screen: Screen) -> bool:
    """Run one worker until it is done, or until it is time to kill it; returns whether it was done."""
    async with started(job) as worker:
        while worker.returncode is None:
            progress = await look(engine)
            screen.show(progress)
            if is_time(progress):
                worker.kill()
                await worker.wait()
                screen.say(f"Worker {worker.pid} was killed after {progress.lines} lines; the next one goes on.")
                return False
            await asyncio.sleep(LOOK)
    screen.show(await look(engine))
    if worker.returncode != 0:
        raise WorkerFailed(f"Worker {worker.pid} ended with status {worker.returncode}: {last_words(job)} ({job.log})")
    return True


@asynccontextmanager
async def started(job: Job) -> AsyncGenerator[Process]:
    """Start a worker, and leave none behind."""
    command = [sys.executable, "-m", "examples.shop.worker", str(job.orders)]
    with job.log.open("ab") as log:
        worker = await asyncio.create_subprocess_exec(*command, env=job.environment, stdout=log, stderr=log)
        try:
            yield worker
        finally:
            with suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()


def last_words(job: Job) -> str:
    return job.log.read_text(errors="replace").rstrip().rpartition("\n")[2]


def evenly(kills: int, lines: int) -> Iterator[IsTime]:
    """Kill so many times, spread over the lines: two kills are after a third and after two thirds of them."""
    for kill in range(1, kills + 1):
        yield after_lines(lines * kill // (kills + 1))


def at_random(kills: int, within: float) -> Iterator[IsTime]:
    """Kill at most so many times, at any moment within so many seconds of a worker's start or of its first work."""
    for kill in range(kills):
        seconds = random.uniform(0.0, within)  # noqa: S311 - no secret
        yield after_seconds(seconds) if kill % 2 else AfterFirstWork(seconds)


def after_lines(lines: int) -> IsTime:
    return lambda progress: progress.lines > lines


def after_seconds(seconds: float) -> IsTime:
    moment = time.monotonic() + seconds
    return lambda _progress: time.monotonic() >= moment


@dataclass
class AfterFirstWork:
    """So many seconds after the worker was first seen to get on."""

    seconds: float
    start: Progress | None = None
    moment: float = math.inf

    def __call__(self, progress: Progress) -> bool:
        self.start = self.start or progress
        if progress != self.start:
            self.moment = min(self.moment, time.monotonic() + self.seconds)
        return time.monotonic() >= self.moment


def never(_progress: Progress) -> bool:
    return False
