"""Takes the shop's events back from the broker: in their order, each once, acknowledged after its commit.

A stand-in until the toolkit consumes by itself. Killed between a commit and its acknowledgement, it is given the event
again; the inbox knows its id, and nothing happens twice.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import cqrs
from examples.shop.messages import TOPIC, OrderPlaced

QUEUE = f"shop.{TOPIC}"
"""The queue's name on RabbitMQ, and the consumer group's on Kafka."""
PARTITIONS = 6
LOOK = 0.05
"""Seconds between two questions whether all has been taken."""


class Consumer(Protocol):
    async def skip(self) -> None:
        """Leave out what was published up to now."""
        ...

    async def take(self, shop: cqrs.Mediator) -> None:
        """Take event after event, until it is cancelled."""
        ...

    async def catch_up(self) -> None:
        """Wait until all that was published up to now has been taken."""
        ...


@asynccontextmanager
async def consuming(shop: cqrs.Mediator, broker: str | None) -> AsyncGenerator[Consumer | None]:
    """Take events while the block runs; a failure ends it. Without a broker there is nothing to take."""
    if broker is None:
        yield None
        return
    async with connect(broker) as consumer, asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(consumer.take(shop))
        yield consumer
        taking.cancel()


def connect(broker: str) -> AbstractAsyncContextManager[Consumer]:
    return on_kafka(broker) if broker.startswith("kafka") else on_rabbitmq(broker)


async def take(shop: cqrs.Mediator, body: bytes, event_id: str) -> None:
    event = OrderPlaced.model_validate_json(body)
    await shop.send(event.model_copy(update={"event_id": event_id}))


@asynccontextmanager
async def on_kafka(broker: str) -> AsyncGenerator[Consumer]:
    from aiokafka import AIOKafkaConsumer

    servers = urlsplit(broker).netloc
    await create_topic(servers)
    async with AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=servers,
        group_id=QUEUE,
        group_instance_id=QUEUE,  # the next worker takes a killed one's place, where it would wait for its time-out
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    ) as consumer:
        yield KafkaConsumer(consumer)


async def create_topic(servers: str) -> None:
    """Create the topic; one that is there already stays as it is."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    try:
        await admin.start()
        brokers = (await admin.describe_cluster())["brokers"]
        await admin.create_topics([NewTopic(TOPIC, PARTITIONS, min(len(brokers), 3))])
    finally:
        await admin.close()


class KafkaConsumer:
    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    async def skip(self) -> None:
        await self._consumer.seek_to_end()
        await self._consumer.commit()

    async def take(self, shop: cqrs.Mediator) -> None:
        async for message in self._consumer:
            await take(shop, message.value, dict(message.headers)["ce_id"].decode())
            await self._consumer.commit()

    async def catch_up(self) -> None:
        ends = await self._consumer.end_offsets(self._consumer.assignment())
        for partition, end in ends.items():
            while await self._consumer.committed(partition) < end:
                await asyncio.sleep(LOOK)


@asynccontextmanager
async def on_rabbitmq(broker: str) -> AsyncGenerator[Consumer]:
    import aio_pika

    async with await aio_pika.connect(broker) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        exchange = await channel.declare_exchange(TOPIC, "topic", durable=True)
        arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
        queue = await channel.declare_queue(QUEUE, durable=True, arguments=arguments)
        await queue.bind(exchange, "#")
        yield RabbitConsumer(queue)


class RabbitConsumer:
    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._messages: asyncio.Queue[Any] = asyncio.Queue()

    async def skip(self) -> None:
        await self._queue.purge()

    async def take(self, shop: cqrs.Mediator) -> None:
        await self._queue.consume(self._messages.put)
        while True:
            message = await self._messages.get()
            await take(shop, message.body, message.message_id)
            await message.ack()
            self._messages.task_done()

    async def catch_up(self) -> None:
        while (await self._queue.channel.declare_queue(QUEUE, passive=True)).declaration_result.message_count:
            await asyncio.sleep(LOOK)
        await self._messages.join()
