"""The relay of faststream-outbox, run in an environment of its own so that neither's versions decide the other's.

Started by `benchmarks/peer.py` with the URL of a database of its own. Reads a request a line, {"rows"}, fills its
table, and answers with the nanoseconds that its subscriber, which does nothing, took for each of them.

Tuned: what it claims at once, its workers and how many rows it deletes at once are the best of those that were tried.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from importlib.metadata import version
from time import perf_counter_ns

import uvloop
from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import create_async_engine

FETCH, WORKERS, FLUSH = 1000, 2, 500
FILLER = "x" * 420
FILL = """
INSERT INTO outbox (queue, payload, headers)
SELECT 'orders', convert_to('{"order_id":"order-' || lpad(n::text, 9, '0') || '","note":"' || :note || '"}', 'UTF8'),
    jsonb_build_object('content-type', 'application/json', 'correlation_id', gen_random_uuid()::text)
FROM generate_series(1, :rows) n
""".replace('":"', '"\\:"')


async def serve(url):
    """Answer requests until there are no more."""
    logging.disable(logging.WARNING)
    metadata = MetaData()
    table = make_outbox_table(metadata)
    engine = create_async_engine(url, pool_size=WORKERS + 5)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    broker = OutboxBroker(engine, outbox_table=table, apply_types=False, logger=None)
    left, complete = 0, asyncio.Event()

    @broker.subscriber(
        "orders",
        max_workers=WORKERS,
        fetch_batch_size=FETCH,
        terminal_flush_batch_size=FLUSH,
        min_fetch_interval=0.001,
        max_fetch_interval=0.01,
    )
    async def nothing(_body):
        nonlocal left
        left -= 1
        if left <= 0:
            complete.set()

    async with broker:
        await broker.start()
        print(json.dumps({name: version(name) for name in ("faststream-outbox", "faststream")}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            rows = json.loads(line)["rows"]
            left = rows
            complete.clear()
            async with engine.begin() as connection:
                await connection.execute(text("TRUNCATE outbox"))
            async with engine.begin() as connection:
                await connection.execute(text(FILL), {"rows": rows, "note": FILLER})
            began = perf_counter_ns()
            await complete.wait()
            while await count(engine):  # noqa: ASYNC110 - nobody tells of the last delete
                await asyncio.sleep(0.001)
            print(json.dumps((perf_counter_ns() - began) / rows), flush=True)
    await engine.dispose()


async def count(engine):
    async with engine.connect() as connection:
        return await connection.scalar(text("SELECT count(*) FROM outbox"))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
