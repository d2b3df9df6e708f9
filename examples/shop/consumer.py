"""Takes the shop's events back from the broker: each customer's in order, acknowledged after the commit, and once.

A stand-in until the toolkit consumes by itself. Killed between a commit and its acknowledgement, it is given the event
again; the inbox knows its id, and nothing happens twice.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from examples.shop.messages import TOPIC, OrderPlaced

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

    import cqrs

NAME = f"shop.{TOPIC}"
"""Of the queue on RabbitMQ, and of the consumer group on Kafka."""
PARTITIONS = 6


class Consumer(Protocol):
    async def skip(self) -> None:
        """Leave out what was published up to now."""
        ...

    async def take(self, shop: cqrs.Mediator) -> None:
        """Take event after event, until it is cancelled."""
        ...

    async def has_more(self) -> bool:
        """Whether something was published that has not been taken."""
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


def connect(broker: str, group: str = NAME) -> AbstractAsyncContextManager[Consumer]:
    return on_kafka(broker, group) if broker.startswith("kafka") else on_rabbitmq(broker)


async def take(shop: cqrs.Mediator, body: bytes, event_id: str) -> None:
    event = OrderPlaced.model_validate_json(body)
    await shop.send(event.model_copy(update={"event_id": event_id}))


# Kafka


@asynccontextmanager
async def on_kafka(broker: str, group: str) -> AsyncGenerator[Consumer]:
    from aiokafka import AIOKafkaConsumer

    servers = urlsplit(broker).netloc
    await create_topic(servers)
    async with AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=servers,
        group_id=group,
        group_instance_id=NAME
        if group == NAME
        else None,  # the next worker takes the place of a killed one at once, and not after its time-out
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    ) as consumer:
        yield KafkaConsumer(consumer)


async def create_topic(servers: str) -> None:
    """Create the topic; one that is there already stays as it is."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic
    from aiokafka.errors import KafkaConnectionError

    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    try:
        await admin.start()
        brokers = (await admin.describe_cluster())["brokers"]
        await admin.create_topics([NewTopic(TOPIC, PARTITIONS, min(len(brokers), 3))])
    except KafkaConnectionError:
        raise ConnectionError(f"Kafka at {servers} is out of reach") from None
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

    async def has_more(self) -> bool:
        ends = await self._consumer.end_offsets(self._consumer.assignment())
        return any([(await self._consumer.committed(partition) or 0) < end for partition, end in ends.items()])


# RabbitMQ


@asynccontextmanager
async def on_rabbitmq(broker: str) -> AsyncGenerator[Consumer]:
    import aio_pika

    async with await aio_pika.connect(broker) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        exchange = await channel.declare_exchange(TOPIC, "topic", durable=True)
        queue = await channel.declare_queue(
            NAME, durable=True, arguments={"x-queue-type": "quorum", "x-single-active-consumer": True}
        )
        await queue.bind(exchange, "#")
        consumer = RabbitConsumer(queue)
        connection.close_callbacks.add(consumer.end)
        yield consumer


class RabbitConsumer:
    def __init__(self, queue: AbstractQueue) -> None:
        self._queue = queue
        self._here: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()

    async def skip(self) -> None:
        await self._queue.purge()

    async def take(self, shop: cqrs.Mediator) -> None:
        await self._queue.consume(self._here.put)
        while message := await self._here.get():
            assert message.message_id is not None  # noqa: S101 - the publisher writes it
            await take(shop, message.body, message.message_id)
            await message.ack()
            self._here.task_done()
        raise ConnectionError("RabbitMQ has closed the connection")

    async def has_more(self) -> bool:
        queue = await self._queue.channel.declare_queue(NAME, passive=True)
        await self._here.join()
        return bool(queue.declaration_result.message_count)

    def end(self, *_: object) -> None:
        """Have no more to take: the connection is closed."""
        self._here.put_nowait(None)
