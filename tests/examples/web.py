"""Runs applications as a user would: a server of its own, asked over HTTP."""

import asyncio
import os
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx

from tests.examples.shop import ROOT

PATIENCE, LOOK = 60.0, 0.05


@asynccontextmanager
async def serving(*arguments: str, cwd: Path = ROOT, log: Path, **environment: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `uvicorn ARGUMENTS`, from the moment when it answers."""
    with socket.socket() as reserved:
        # Bound without listening, the port is nobody else's, and uvicorn may still have it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", *arguments, "--port", str(port), "--no-access-log"]
        with log.open("ab") as output:
            where = {"cwd": cwd, "env": os.environ | environment, "stdout": output, "stderr": output}
            server = await asyncio.create_subprocess_exec(*command, **where)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
                await answer(client, server, log)
                yield client
        finally:
            with suppress(ProcessLookupError):
                server.terminate()
            await server.wait()


async def answer(client: httpx.AsyncClient, server: Process, log: Path) -> None:
    """Ask until it answers, whatever it may be."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            await client.get("/livez")
        except httpx.TransportError:
            assert server.returncode is None, tail(log)
            assert time.monotonic() < end, tail(log)
            await asyncio.sleep(LOOK)
        else:
            return


def tail(log: Path) -> str:
    return log.read_text()[-2000:]
