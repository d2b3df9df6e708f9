"""The inbox of python-cqrs, run in an environment of its own because it shares our import name.

Started by `benchmarks/peer.py` with the URL of a database of its own. Reads a request a line, {"rows"}, and answers
with the nanoseconds that it took for each of so many messages: into its inbox, as its subscribers do, and through its
processor.

In its favour: the messages are in memory already, batches are of 500 and 100, no log, and no pause between batches.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextvars import ContextVar
from importlib.metadata import version
from time import perf_counter_ns
from uuid import uuid4

import pydantic
import uvloop
from dependency_injector import containers, providers
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import cqrs
from cqrs.bootstrap.events import setup_mediator
from cqrs.container.dependency_injector import DependencyInjectorCQRSContainer
from cqrs.inbox.map import InboxMessageMap
from cqrs.inbox.processor import InboxProcessor
from cqrs.inbox.sqlalchemy import Base, SqlAlchemyInboxRepository

RECEIVED, BATCH = 500, 100
FILLER = "x" * 420
EFFECT = text("INSERT INTO effect (order_id, customer) VALUES (:order_id, :customer)")
CREATE = text("CREATE TABLE effect (id BIGSERIAL PRIMARY KEY, order_id VARCHAR(50), customer VARCHAR(50))")

session_of = ContextVar("session_of")


class Order(pydantic.BaseModel):
    order_id: str
    customer: str
    note: str


class OrderPlaced(cqrs.PydanticNotificationEvent[Order]):
    pass


class WriteHandler(cqrs.EventHandler[OrderPlaced]):
    async def handle(self, event):
        order = event.payload
        await session_of.get().execute(EFFECT, {"order_id": order.order_id, "customer": order.customer})


class Container(containers.DeclarativeContainer):
    handler = providers.Factory(WriteHandler)


async def serve(url):
    """Answer requests until there are no more."""
    logging.getLogger("cqrs").setLevel(logging.CRITICAL)
    names = InboxMessageMap()
    names.register("OrderPlaced", OrderPlaced)
    adapter = DependencyInjectorCQRSContainer()
    adapter.attach_external_container(Container())
    mediator = setup_mediator(adapter, [], lambda events: events.bind(OrderPlaced, WriteHandler))
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(CREATE)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    print(json.dumps({name: version(name) for name in ("python-cqrs", "sqlalchemy")}), flush=True)
    for line in sys.stdin:
        rows = json.loads(line)["rows"]
        messages = [message(number) for number in range(rows)]
        async with engine.begin() as connection:
            await connection.execute(text("TRUNCATE inbox, effect"))
        began = perf_counter_ns()
        await receive(sessions, names, messages)
        await process(sessions, names, mediator)
        taken = (perf_counter_ns() - began) / rows
        async with engine.connect() as connection:
            written = (await connection.execute(text("SELECT count(*) FROM effect"))).scalar_one()
        assert written == rows, f"{written} effects of {rows} messages"
        print(json.dumps(taken), flush=True)
    await engine.dispose()


def message(number):
    order = Order(order_id=f"order-{number:09}", customer=f"customer-{number % 1000:05}", note=FILLER)
    return str(uuid4()), OrderPlaced(event_name="OrderPlaced", topic="orders", payload=order)


async def receive(sessions, names, messages):
    for first in range(0, len(messages), RECEIVED):
        async with sessions() as session:
            await SqlAlchemyInboxRepository(session, message_map=names).add(messages[first : first + RECEIVED])
            await session.commit()


async def process(sessions, names, mediator):
    while True:
        async with sessions() as session:
            session_of.set(session)
            repository = SqlAlchemyInboxRepository(session, message_map=names)
            processor = InboxProcessor(repository, names, event_mediator=mediator)
            rows = await repository.get_many(batch_size=BATCH)
            if not rows:
                return
            for row in rows:
                await processor.process(row)
            await session.commit()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
