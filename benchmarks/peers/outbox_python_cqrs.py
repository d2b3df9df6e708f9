"""The outbox of python-cqrs, run in an environment of its own because it shares our import name.

Started by `benchmarks/peer.py` with the URL of a database of its own. Reads a request a line, {"rows"}, fills its
outbox by its own repository, and answers with the nanoseconds that its producer took for each of them.

Tuned: batches of 1,000 and one commit a batch instead of 100; no log; its loop without the pause of its examples.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from importlib.metadata import version
from time import perf_counter_ns

import pydantic
import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import cqrs
from cqrs.mapping.outbox import OutboxedEventMap
from cqrs.message_brokers.producer import EventProducer
from cqrs.message_brokers.protocol import MessageBroker
from cqrs.outbox.sqlalchemy import Base, SqlAlchemyOutboxedEventRepository

BATCH = 1000
FILLER = "x" * 420


class Order(pydantic.BaseModel):
    order_id: str
    customer: str
    note: str


class OrderPlaced(cqrs.PydanticNotificationEvent[Order]):
    pass


class Nothing(MessageBroker):
    async def send_message(self, message):
        self.last = message


async def serve(url):
    """Answer requests until there are no more."""
    logging.getLogger("cqrs").setLevel(logging.ERROR)
    OutboxedEventMap.register("OrderPlaced", OrderPlaced)
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine)
    print(json.dumps({name: version(name) for name in ("python-cqrs", "sqlalchemy")}), flush=True)
    for line in sys.stdin:
        rows = json.loads(line)["rows"]
        await fill(sessions, rows)
        began = perf_counter_ns()
        await drain(sessions)
        print(json.dumps((perf_counter_ns() - began) / rows), flush=True)
    await engine.dispose()


async def fill(sessions, rows):
    """Save so many events."""
    async with sessions() as session:
        await session.execute(text("TRUNCATE outbox"))
        repository = SqlAlchemyOutboxedEventRepository(session)
        for number in range(rows):
            order = Order(order_id=f"order-{number:09}", customer=f"customer-{number % 10_000:05}", note=FILLER)
            repository.add(OrderPlaced(event_name="OrderPlaced", topic="orders", payload=order))
        await repository.commit()


async def drain(sessions):
    """Produce until nothing is left."""
    async with sessions() as session:
        repository = SqlAlchemyOutboxedEventRepository(session)
        producer = EventProducer(Nothing(), repository)
        async for events in producer.event_batch_generator(BATCH):
            if not events:
                return
            for event in events:
                await producer.send_message(event)
            await repository.commit()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
