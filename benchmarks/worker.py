"""A relay in a process of its own, and the other end of its pipes.

Started with what it is to do as JSON. Reads `start` and `stop`, writes a JSON object a line: what it has begun and what
is done, batch by batch, in `time.monotonic_ns()`, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic_ns
from typing import Any

from benchmarks.effort import run
from benchmarks.ours import Publisher, application
from benchmarks.rows import slot_of
from cqrs.codec import Envelope
from cqrs.outbox.publisher import Outcome

ROOT = Path(__file__).parents[1]
LIMIT = 2**22
"""Bytes of the longest line: the numbers of a batch."""
SAMPLE = 0.1


class Reporting(Publisher):
    """Tells of every batch when it begins and when it is done."""

    def __init__(self, *, pause: float, detailed: bool) -> None:
        super().__init__(pause=pause)
        self._detailed = detailed

    async def publish(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        if self._detailed:
            orders = [json.loads(envelope.payload)["order_id"] for envelope in envelopes]
            slots = sorted({slot_of(envelope.topic, envelope.key or "") for envelope in envelopes})
            tell(begun=monotonic_ns(), orders=orders, slots=slots)
        outcomes = await super().publish(envelopes)
        tell(done=monotonic_ns(), rows=len(envelopes))
        return outcomes


def tell(**report: Any) -> None:
    """Write a line at once: the process may be killed at any moment."""
    os.write(1, json.dumps(report).encode() + b"\n")


async def work(asked: dict[str, Any]) -> None:
    """Relay until the other end closes the pipe."""
    publisher = Reporting(pause=asked.get("pause", 0.0), detailed=asked.get("detailed", False))
    at_once = asked.get("at_once", False)
    options = {"lease": asked["lease"]} if "lease" in asked else {}
    async with application(asked["url"], publisher, relay=at_once, **options) as app, asyncio.TaskGroup() as tasks:
        sampler = tasks.create_task(_sample()) if asked.get("memory") else None
        relay = app.storage.relay
        tell(ready=monotonic_ns(), pace=[relay._pace.batch, relay._pace.lanes])  # noqa: SLF001 - nothing public tells
        async for command in _commands():
            if command == "start":
                relay.start()
            elif command == "stop":
                await relay.stop()
                tell(stopped=monotonic_ns())
        if sampler is not None:
            sampler.cancel()


async def _commands() -> AsyncIterator[str]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().strip()


async def _sample() -> None:
    while True:
        tell(memory=_resident())
        await asyncio.sleep(SAMPLE)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# The other end

Heard = Callable[["Worker", dict[str, Any]], None]


class Worker:
    """A running relay process."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.process = process
        self.pace: list[int] = []
        self._stopped = asyncio.Event()
        self._ready = asyncio.Event()

    @property
    def shown_pace(self) -> str:
        """Return how its relay works, as a condition of what was measured."""
        batch, lanes = self.pace
        return f"batch {batch:,}, {lanes} lane{'s' if lanes > 1 else ''}"

    async def ready(self) -> None:
        """Wait until its application is open. Raises ConnectionError when it has ended instead."""
        async with asyncio.timeout(30):
            await self._ready.wait()
        if not self.pace:
            raise ConnectionError("A relay process ended early; its errors stand above.")

    def start(self) -> None:
        """Let its relay run."""
        self._stopped.clear()
        self.process.stdin.write(b"start\n")

    async def stop(self) -> None:
        """Let its relay end, and wait for that."""
        self.process.stdin.write(b"stop\n")
        async with asyncio.timeout(30):
            await self._stopped.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send this process, and no other, a signal."""
        self.process.send_signal(number)

    async def listen(self, heard: Heard) -> None:
        """Hear its reports until it ends."""
        while line := await self.process.stdout.readline():
            with suppress(ValueError):  # half a line of a process that was killed
                self._note(json.loads(line), heard)
        self._ready.set()

    def _note(self, report: dict[str, Any], heard: Heard) -> None:
        if "ready" in report:
            self.pace = report["pace"]
            self._ready.set()
        elif "stopped" in report:
            self._stopped.set()
        else:
            heard(self, report)


@asynccontextmanager
async def workers(number: int, heard: Heard, **asked: Any) -> AsyncIterator[list[Worker]]:
    """Start so many relay processes, and end them."""
    started: list[Worker] = []
    listening: list[asyncio.Task[None]] = []
    try:
        for each in range(number):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.worker",
                json.dumps(asked),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LIMIT,
                cwd=ROOT,
            )
            started.append(Worker(each, process))
            listening.append(asyncio.create_task(started[-1].listen(heard)))
        for worker in started:
            await worker.ready()
        yield started
    finally:
        for worker in started:
            await _end(worker.process)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    run(work(json.loads(sys.argv[1])))
