"""FastAPI routes that send a command, against the same route that calls the handler, asked by wrk."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from benchmarks.effort import LOOP, Effort
from benchmarks.lines import Bar, Job, Line, rate, ratio

ROUTES = {
    "sent": ("a FastAPI route that awaits app.send", "direct"),
    "exposed": ("a route made by router(app, expose(...))", "direct"),
    "depends": ("a FastAPI route with Depends(get_mediator)", "direct-depends"),
}
"""What is measured, and what beside: the same route that calls the handler, which it has by a Depends, too."""
CONNECTIONS, SECONDS, TURNS = 8, 1, 3
"""Rounds are short, and there are so many for each of the effort's: what else a machine does lasts longer than one."""


@dataclass
class Times:
    """Of each round, the seconds that a request took while the server had no rest, and those of its processor."""

    passed: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)


async def routes(effort: Effort) -> list[Line]:
    """Measure every way to send in a route."""
    if shutil.which("wrk") is None:
        return [Line(name="web", what=how, missing="wrk is not installed") for how, _ in ROUTES.values()]
    async with serving() as server:
        found = {name: Times() for name in ("direct", "direct-depends", *ROUTES)}
        order = list(found)
        for number in range(effort.rounds * TURNS + 1):
            for name in order:
                passed, worked = await server.asked(name)
                if number:  # the first round only warms up
                    found[name].passed.append(passed)
                    found[name].worked.append(worked)
            order.append(order.pop(0))
    return [line(name, found[name], found[ROUTES[name][1]]) for name in ROUTES]


def line(name: str, ours: Times, theirs: Times) -> Line:
    typical, spread = ratio(ours.passed, theirs.passed)
    worked, _ = ratio(ours.worked, theirs.worked)
    return Line(
        name=f"web-{name}",
        what=f"{ROUTES[name][0]}, against the same that calls the handler: time a request",
        bar=Bar(1.15, most=True),
        measured=typical,
        spread=spread,
        rates={
            "ours": rate(1 / median(ours.passed)),
            "the handler": rate(1 / median(theirs.passed)),
            "processor's time": f"{worked:.2f} x",
        },
        conditions=f"one uvicorn process, {LOOP}, wrk with {CONNECTIONS} connections, {SECONDS} s a round",
    )


class Server:
    """A process that serves the routes."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._process = process

    async def asked(self, name: str) -> tuple[float, float]:
        """Return the seconds that a request took, and those of the server's processor; all were answered by 200."""
        script = str(Path(__file__).with_name("web.lua"))
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", script, f"{self._url}/{name}"]
        before = self._worked()
        wrk = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output = (await wrk.communicate())[0].decode()
        worked = self._worked() - before
        found = re.search(r"(\d+) requests in ([\d.]+)s", output)
        if wrk.returncode or found is None or "Non-2xx" in output or "Socket errors" in output:
            raise RuntimeError(f"wrk did not get its answers: {output}")
        requests = int(found[1])
        return float(found[2]) / requests, worked / requests

    def _worked(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    """Serve the routes in a process of their own."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        command = ["-m", "uvicorn", "benchmarks.web_routes:api", "--port", str(port), "--log-level", "warning"]
        server = await asyncio.create_subprocess_exec(sys.executable, *command, "--no-access-log")
        try:
            await answered(port)
            yield Server(port, psutil.Process(server.pid))
        finally:
            with suppress(ProcessLookupError):
                server.terminate()
            await server.wait()


async def answered(port: int) -> None:
    """Wait until somebody listens."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


JOBS = [Job("web", "a FastAPI route through the bus, against one that calls the handler", routes)]
