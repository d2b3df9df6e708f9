"""What an idle relay asks of its database: every statement is counted on the wire."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from sqlalchemy import make_url

from benchmarks import servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line
from benchmarks.ours import migrate
from benchmarks.relay import database
from benchmarks.rows import Outbox
from benchmarks.worker import workers

SETTLE = 3.0
"""Seconds until a relay that has just begun is idle."""
RUNS = (b"Q"[0], b"E"[0])
"""PostgreSQL's messages that run a statement: a simple query, and an execute."""


class Counting:
    """A proxy that passes everything on, and counts what runs a statement."""

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self.seen: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def statements(self) -> int:
        return sum(self.seen[kind] for kind in RUNS)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        server_reader, server_writer = await asyncio.open_connection(*self._to)
        both = (self._asked(reader, server_writer), _passed(server_reader, writer))
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await asyncio.gather(*both)
        for each in (writer, server_writer):
            each.close()

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = await reader.readexactly(4)  # the first message has a length and no kind
        writer.write(start + await reader.readexactly(int.from_bytes(start) - 4))
        try:
            while True:
                head = await reader.readexactly(5)
                self.seen[head[0]] += 1
                writer.write(head + await reader.readexactly(int.from_bytes(head[1:]) - 4))
        finally:
            writer.close()


async def _passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    finally:
        writer.close()


@asynccontextmanager
async def counting(url: str) -> AsyncIterator[tuple[Counting, str]]:
    """Give the proxy of a database, and its URL through it."""
    place = make_url(url)
    proxy = Counting(place.host or "localhost", place.port or 5432)
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    through = place.set(host="127.0.0.1", port=port).update_query_dict({"ssl": "disable"})
    try:
        yield proxy, through.render_as_string(hide_password=False)
    finally:
        server.close()


async def statements(effort: Effort) -> list[Line]:
    """Count what a whole relay process runs while there is nothing to do."""
    async with AsyncExitStack() as stack:
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, 1))
        await migrate(engine)
        await Outbox(engine).park_dead_letters()
        proxy, through = await stack.enter_async_context(counting(url))
        relays = await stack.enter_async_context(workers(1, lambda *_: None, url=through, at_once=True))
        await asyncio.sleep(SETTLE)
        before = proxy.seen.copy()
        await asyncio.sleep(effort.idle)
        counted = sum((proxy.seen - before)[kind] for kind in RUNS)
        pace = relays[0].shown_pace
    return [
        Line(
            name="idle",
            what="statements of an idle relay, every one counted",
            bar=Bar(1, "/s", most=True),
            measured=counted / effort.idle,
            conditions=f"{counted} in {effort.idle:.0f} s, BEGIN and COMMIT among them, on the wire, {pace}",
        )
    ]


JOBS = [Job("idle", "statements of an idle relay", statements, (servers.POSTGRESQL,))]
