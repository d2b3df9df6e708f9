"""FastAPI routes that send a command, against the same route that calls the handler, asked by wrk."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median

from benchmarks.effort import LOOP, Effort
from benchmarks.lines import Bar, Job, Line, rate, ratio

ROUTES = {
    "sent": ("a FastAPI route that awaits app.send", "direct"),
    "exposed": ("a route made by router(app, expose(...))", "direct"),
    "depends": ("a FastAPI route with Depends(get_mediator)", "direct-depends"),
}
"""What is measured, and what beside: the same route that calls the handler, which it has by a Depends, too."""
CONNECTIONS, SECONDS, LEAST = 8, 4, 1


async def routes(effort: Effort) -> list[Line]:
    """Measure every way to send in a route."""
    if shutil.which("wrk") is None:
        return [Line(name="web", what=how, missing="wrk is not installed") for how, _ in ROUTES.values()]
    seconds = SECONDS if effort.rounds > 2 else LEAST
    async with serving() as url:
        found: dict[str, list[float]] = {name: [] for name in ("direct", "direct-depends", *ROUTES)}
        order = list(found)
        for number in range(effort.rounds + 1):
            for name in order:
                served = await asked(f"{url}/{name}", seconds)
                if number:  # the first round only warms up
                    found[name].append(served)
            order.append(order.pop(0))
    return [line(name, found, seconds) for name in ROUTES]


def line(name: str, found: Mapping[str, list[float]], seconds: int) -> Line:
    how, other = ROUTES[name]
    typical, spread = ratio(found[other], found[name])
    rates = {"ours": rate(median(found[name])), "the handler": rate(median(found[other]))}
    return Line(
        name=f"web-{name}",
        what=f"{how}, against the same that calls the handler: time a request",
        bar=Bar(1.15, most=True),
        measured=typical,
        spread=spread,
        rates=rates,
        conditions=f"one uvicorn process, {LOOP}, wrk with {CONNECTIONS} connections, {seconds} s a round",
    )


async def asked(url: str, seconds: int) -> float:
    """Return how many requests a second were answered, all of them by 200."""
    script = Path(__file__).with_name("web.lua")
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url]
    wrk = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output = (await wrk.communicate())[0].decode()
    if wrk.returncode or "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"wrk did not get its answers: {output}")
    found = re.search(r"Requests/sec:\s*([\d.]+)", output)
    if found is None:
        raise RuntimeError(f"wrk says nothing: {output}")
    return float(found[1])


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Serve the routes in a process of their own."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        command = ["-m", "uvicorn", "benchmarks.web_routes:api", "--port", str(port), "--log-level", "warning"]
        server = await asyncio.create_subprocess_exec(sys.executable, *command, "--no-access-log")
        try:
            await answered(port)
            yield f"http://127.0.0.1:{port}"
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
