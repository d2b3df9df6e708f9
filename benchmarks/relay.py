"""What a relay delivers in a second, beside the raw client in the same run."""

from __future__ import annotations

from contextlib import AsyncExitStack
from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks import raw, servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line, rate, ratio
from benchmarks.ours import Publisher, alternate, running
from benchmarks.rows import KEYS, PAYLOAD, prepare


def conditions(rows: int, pace: str, keys: int = KEYS, more: str = "") -> str:
    """Return the conditions that every line prints."""
    return f"{rows:,} rows, payload {PAYLOAD} bytes, 8 headers, {keys:,} keys, {pace}" + (f", {more}" if more else "")


def rates(taken: Mapping[str, Sequence[float]], titles: Mapping[str, str]) -> dict[str, str]:
    """Return the median rate of each contestant."""
    from statistics import median

    return {titles[who]: rate(1e9 / median(found)) for who, found in taken.items()}


async def to_nothing(effort: Effort) -> list[Line]:
    """PostgreSQL to a publisher that does nothing, against one raw reader."""
    number = effort.rows
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(servers.scratch(servers.POSTGRESQL))
        engine = create_async_engine(url)
        stack.push_async_callback(engine.dispose)
        await prepare(engine, number)
        ours = await stack.enter_async_context(running(engine, Publisher(), url=url))
        batch = ours.app.storage.relay._pace.batch
        ceiling = await stack.enter_async_context(raw.postgresql(engine, url, number, batch))
        taken = await alternate({"raw": ceiling, "ours": lambda: ours.drain(number)}, effort.rounds)
        found, spread = ratio(taken["raw"], taken["ours"])
        return [
            Line(
                name="relay-postgresql-nothing",
                what="PostgreSQL → nothing, one process, against asyncpg alone",
                bar=Bar(0.6, aim=0.85),
                measured=found,
                spread=spread,
                rates=rates(taken, {"ours": "ours", "raw": "asyncpg"}),
                conditions=conditions(number, ours.pace),
            )
        ]


JOBS = [Job("relay-postgresql-nothing", to_nothing, (servers.POSTGRESQL,))]
