"""The ceilings: what the raw clients reach when nothing else is done, in batches of the relay's size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter_ns

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.ours import Contestant
from benchmarks.rows import Outbox
from benchmarks.servers import asyncpg_connection

COLUMNS = "id, slot, event_id, destination, topic, message_key, type, headers, payload"
"""What the relay reads of a row."""


@asynccontextmanager
async def postgresql(engine: AsyncEngine, url: str, number: int, batch: int) -> AsyncIterator[Contestant]:
    """One reader by asyncpg: an ordered select above the last id, and a delete by the primary key, which is the id.

    Neither slots, locks, transactions nor anybody's publish; a commit does not wait for the disk, as the relay's.
    """
    outbox = Outbox(engine, "raw_")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE raw_outbox (LIKE cqrs_outbox INCLUDING DEFAULTS, PRIMARY KEY (id))"))
    connection = await asyncpg_connection(url)
    await connection.execute("SET synchronous_commit = off")
    select = await connection.prepare(f"SELECT {COLUMNS} FROM raw_outbox WHERE id > $1 ORDER BY id LIMIT {batch}")
    delete = await connection.prepare("DELETE FROM raw_outbox WHERE id = ANY($1::bigint[])")

    async def drain() -> float:
        await outbox.empty()
        await outbox.fill(number)
        began, last = perf_counter_ns(), 0
        while rows := await select.fetch(last):
            last = rows[-1][0]
            await delete.fetch([row[0] for row in rows])
        return (perf_counter_ns() - began) / number

    try:
        yield drain
    finally:
        await connection.close()
