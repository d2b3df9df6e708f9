"""The story over HTTP: lines are posted to a server, whose events another process may consume; both are killed."""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from examples.shop.demo.audit import Progress, look
from examples.shop.demo.conductor import LOOK, IsTime, Job, WorkerFailed, last_words, never
from examples.shop.demo.screen import Screen
from examples.shop.lines import Line, read_lines

PATIENCE = 60.0
"""Seconds that a server may take to answer, and the last events to arrive."""


async def serve(job: Job, kills: Iterator[IsTime], engine: AsyncEngine, screen: Screen) -> int:
    """Post all lines, and kill what serves them on the way; returns how often."""
    killed = 0
    with reserved_port() as port:
        posting = asyncio.create_task(post_all(job, f"http://127.0.0.1:{port}"))
        try:
            while not await serve_until(job, next(kills, never), engine, screen, port=port, posting=posting):
                killed += 1
        finally:
            posting.cancel()
            with suppress(asyncio.CancelledError):
                await posting
    return killed


async def serve_until(
    job: Job, is_time: IsTime, engine: AsyncEngine, screen: Screen, *, port: int, posting: asyncio.Task[None]
) -> bool:
    """Run a server, and what consumes, until all is done, or until it is time to kill them; returns which it was."""
    commands = [["-m", "uvicorn", "--factory", "examples.shop.api:serve", "--port", str(port), "--no-access-log"]]
    if job.broker is not None:
        commands.append(["-m", "examples.shop.receiver"])
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(started(job, command)) for command in commands]
        patience = Patience(PATIENCE)
        while True:
            progress = await look(engine)
            screen.show(progress)
            fail_if_ended(job, processes)
            if posting.done():
                posting.result()  # raises what it failed with
                if progress.lines >= job.lines and progress.receipts >= progress.orders:
                    return True
            if is_time(progress):
                for process in processes:
                    process.kill()
                who = "The server was" if job.broker is None else "Server and receiver were"
                screen.say(f"{who} killed after {progress.lines} lines; the next goes on.")
                return False
            if patience.ends(progress):
                raise WorkerFailed(f"Nothing went on for {PATIENCE:g} s: {progress} ({job.log})")
            await asyncio.sleep(LOOK)


class Patience:
    """Ends when nothing has changed for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: tuple[Progress | None, float] = (None, 0.0)

    def ends(self, progress: Progress) -> bool:
        now = asyncio.get_running_loop().time()
        if progress != self._last[0]:
            self._last = (progress, now)
        return now - self._last[1] > self._seconds


@asynccontextmanager
async def started(job: Job, command: list[str]) -> AsyncGenerator[Process]:
    """Start a Python process; in the end it is asked to end, and leaves nothing behind."""
    with job.log.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=job.environment, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def fail_if_ended(job: Job, processes: list[Process]) -> None:
    for process in processes:
        if process.returncode is not None:
            status = process.returncode
            raise WorkerFailed(f"Process {process.pid} ended with status {status}: {last_words(job)} ({job.log})")


class reserved_port:  # noqa: N801 - used like a function
    """Keep a port for servers that come one after the other: nobody else is given it meanwhile."""

    def __enter__(self) -> int:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        return int(self._socket.getsockname()[1])

    def __exit__(self, *exception: object) -> None:
        self._socket.close()


# The client


async def post_all(job: Job, url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        for line in read_lines(job.orders):
            await post(client, line)


async def post(client: httpx.AsyncClient, line: Line) -> None:
    """Order a line; where the shop refuses it, have that noted."""
    answer = await ask(client, "POST", "/orders", {"line": line.number, **line.cells})
    if answer.status_code in (409, 422):
        reason = {"reason": reason_of(answer.json())}
        answer = await ask(client, "PUT", f"/refused-lines/{line.number}", reason)
    if answer.is_error:
        raise WorkerFailed(f"Line {line.number} was answered by {answer.status_code}: {answer.text}")


async def ask(client: httpx.AsyncClient, method: str, path: str, body: Mapping[str, Any]) -> httpx.Response:
    """Ask, again and again while the server is away: the same line sent twice is one order."""
    while True:
        try:
            return await client.request(method, path, json=body)
        except httpx.TransportError:
            await asyncio.sleep(LOOK)


def reason_of(problem: Mapping[str, Any]) -> str:
    if "errors" not in problem:
        return str(problem["detail"])
    first = problem["errors"][0]
    return f"{first['loc'][1]}: {first['msg'].partition(',')[0].lower()}"
