"""The ceilings: what the raw clients reach when nothing else is done, in batches of the relay's size."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import perf_counter_ns
from typing import Any
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.ours import Contestant
from benchmarks.rows import HEADERS, UUID, Outbox, body_of, drawn_keys
from benchmarks.servers import RABBITMQ, asyncpg_connection, kafka_servers

COLUMNS = "id, slot, event_id, destination, topic, message_key, type, headers, payload"
"""What the relay reads of a row."""
PARTITIONS = 12
BATCH_BYTES = 2**20
IN_FLIGHT = 1000
WIRE = {"ce_id": UUID, "ce_type": "OrderPlaced", **json.loads(UUID.join(HEADERS))}
"""The headers that the relay sends with a message."""


@asynccontextmanager
async def postgresql(engine: AsyncEngine, url: str, number: int, batch: int) -> AsyncIterator[Contestant]:
    """One reader by asyncpg: an ordered select, and a delete by the primary key, which is the id.

    Neither slots, locks, transactions nor anybody's publish; a commit does not wait for the disk, as the relay's. It
    reads from the beginning each time: above the last id it would lose rows.
    """
    outbox = Outbox(engine, "raw_")
    create = "CREATE TABLE raw_outbox (LIKE cqrs_outbox INCLUDING DEFAULTS, PRIMARY KEY (id))"
    async with engine.begin() as connection:
        await connection.execute(text(create))
    connection = await asyncpg_connection(url)
    await connection.execute("SET synchronous_commit = off")
    select = await connection.prepare(f"SELECT {COLUMNS} FROM raw_outbox ORDER BY id LIMIT {batch}")
    delete = await connection.prepare("DELETE FROM raw_outbox WHERE id = ANY($1::bigint[])")

    async def drain() -> float:
        await outbox.empty()
        await outbox.fill(number)
        began = perf_counter_ns()
        while rows := await select.fetch():
            await delete.fetch([row[0] for row in rows])
        return (perf_counter_ns() - began) / number

    try:
        yield drain
    finally:
        await connection.close()


def _messages(number: int, keys: int) -> list[tuple[str, bytes]]:
    return [(key, body_of(n, key)) for n, key in enumerate(drawn_keys(number, keys), 1)]


def _batches(messages: list[tuple[str, bytes]], size: int) -> Iterator[list[tuple[str, bytes]]]:
    for first in range(0, len(messages), size):
        yield messages[first : first + size]


@asynccontextmanager
async def kafka_topic() -> AsyncIterator[str]:
    """Give a topic of our own."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    name = f"benchmarks-{uuid4().hex[:12]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_servers())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, num_partitions=PARTITIONS, replication_factor=1)])
        yield name
        await admin.delete_topics([name])
    finally:
        await admin.close()


@asynccontextmanager
async def kafka(topic: str, number: int, keys: int, batch: int) -> AsyncIterator[Contestant]:
    """A producer of aiokafka whose futures are awaited a batch at a time; the messages stand ready in memory."""
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(
        bootstrap_servers=kafka_servers(), acks="all", enable_idempotence=True, max_batch_size=BATCH_BYTES
    )
    messages = [(key.encode(), body) for key, body in _messages(number, keys)]
    headers = [(name, value.encode()) for name, value in WIRE.items()]
    await producer.start()

    async def send() -> float:
        began = perf_counter_ns()
        for some in _batches(messages, batch):
            futures = [await producer.send(topic, body, key=key, headers=headers) for key, body in some]
            await asyncio.gather(*futures)
        return (perf_counter_ns() - began) / number

    try:
        yield send
    finally:
        await producer.stop()


@asynccontextmanager
async def rabbitmq_queue(exchange: str) -> AsyncIterator[Any]:
    """Give a durable queue to which everything of an exchange goes."""
    import aio_pika

    connection = await aio_pika.connect(os.environ[RABBITMQ])
    async with connection:
        channel = await connection.channel()
        source = await channel.declare_exchange(exchange, aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(f"{exchange}-all", durable=True)
        await queue.bind(source, "#")
        try:
            yield queue
        finally:
            await queue.delete(if_unused=False, if_empty=False)
            await source.delete(if_unused=False)


@asynccontextmanager
async def rabbitmq(exchange: str, number: int, keys: int) -> AsyncIterator[Contestant]:
    """aio-pika with so many confirmations in flight: mandatory, persistent, as documented."""
    import aio_pika

    connection = await aio_pika.connect(os.environ[RABBITMQ])
    messages = _messages(number, keys)
    async with connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        target = await channel.get_exchange(exchange)
        persistent = aio_pika.DeliveryMode.PERSISTENT

        async def publish(body: bytes) -> None:
            message = aio_pika.Message(body, headers=dict(WIRE), message_id=UUID, delivery_mode=persistent)
            await target.publish(message, "OrderPlaced.00", mandatory=True)

        async def send() -> float:
            began = perf_counter_ns()
            for some in _batches(messages, IN_FLIGHT):
                await asyncio.gather(*(publish(body) for _, body in some))
            return (perf_counter_ns() - began) / number

        yield send
