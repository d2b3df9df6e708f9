"""Starts the shop's worker, kills it with SIGKILL, and starts it again, until it ends by itself."""

import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
    """What the worker is to do."""

    database: Path
    orders: Path
    lines: int

    @property
    def log(self) -> Path:
        return self.database.with_suffix(".log")


def conduct(job: Job, kills: Iterator[IsTime], screen: Screen) -> int:
    """Run workers until one has done all there is to do; returns how many were killed."""
    killed = 0
    while not run_worker(job, next(kills, never), screen):
        killed += 1
    return killed


def run_worker(job: Job, is_time: IsTime, screen: Screen) -> bool:
    """Run one worker until it is done, or until it is time to kill it; returns whether it was done."""
    with started(job) as worker:
        while worker.poll() is None:
            progress = look(job.database)
            screen.show(progress)
            if is_time(progress):
                worker.kill()
                worker.wait()
                screen.say(f"Worker {worker.pid} was killed after {progress.lines} lines; the next one goes on.")
                return False
            time.sleep(LOOK)
    screen.show(look(job.database))
    if worker.returncode != 0:
        raise WorkerFailed(f"Worker {worker.pid} ended with status {worker.returncode}: {last_words(job)} ({job.log})")
    return True


@contextmanager
def started(job: Job) -> Generator[subprocess.Popen[bytes]]:
    """Start a worker, and leave none behind."""
    command = [sys.executable, "-m", "examples.shop.worker", str(job.database), str(job.orders)]
    with job.log.open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as worker:  # noqa: S603 - our own
        try:
            yield worker
        finally:
            worker.kill()


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
