"""What a conductor asks of a broker: topics of a run, a topic that refuses for a while, and all that was delivered."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import aiormq
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from pydantic_core import from_json

from cqrs.integrations.from_rabbitmq import IN_ORDER
from tests.faults.application import NARROW, WIDE, Setting
from tests.faults.checker import Mark

PARTITIONS = 4
QUIET = 2.0
"""Seconds without a message after which a log is at its end."""


class Broker(Protocol):
    """One kind of broker; `refusals` are the ways in which its narrow topic can refuse."""

    refusals: tuple[str, ...]

    async def create(self) -> None:
        """Make the topics of this run."""
        ...

    async def refuse(self, how: str) -> None:
        """Let the narrow topic refuse what it is given."""
        ...

    async def accept(self) -> None:
        """Let it take everything again."""
        ...

    async def delivered(self) -> list[Mark]:
        """Return all that was delivered, in the order in which it stands there, copies included."""
        ...

    async def remove(self) -> None:
        """Delete the topics of this run."""
        ...


def broker_of(setting: Setting) -> Broker:
    kinds: dict[str, type[OnKafka | OnRabbitMQ]] = {"kafka": OnKafka, "amqp": OnRabbitMQ}
    return kinds[setting.broker.partition(":")[0]](setting) if setting.broker else Locally(setting)


def queue(setting: Setting, name: str) -> str:
    """Return the name of the application's queue of a topic."""
    return f"{setting.run}.{setting.but(consumes=True).topic(name)}"


def _mark(body: bytes) -> Mark:
    return Mark(**from_json(body)["payload"])


class OnKafka:
    """A topic refuses by its configuration: messages are too large, or there are too few replicas in sync."""

    refusals = ("too large", "not enough replicas")

    def __init__(self, setting: Setting) -> None:
        self._server = setting.broker.removeprefix("kafka://")
        self._topics = [setting.topic(name) for name in (WIDE, NARROW)]

    async def create(self) -> None:
        async with self._admin() as admin:
            await admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in self._topics])

    async def refuse(self, how: str) -> None:
        await self._configure({"too large": {"max.message.bytes": "100"}}.get(how, {"min.insync.replicas": "2"}))

    async def accept(self) -> None:
        await self._configure({"max.message.bytes": "1048588", "min.insync.replicas": "1"})

    async def _configure(self, configs: dict[str, str]) -> None:
        async with self._admin() as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self._topics[1], configs)])

    async def delivered(self) -> list[Mark]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._server, enable_auto_commit=False)
        await consumer.start()
        try:
            places = [TopicPartition(topic, number) for topic in self._topics for number in range(PARTITIONS)]
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            for place in places:
                consumer.seek(place, 0)
            found: list[Mark] = []
            while any([await consumer.position(place) < ends[place] for place in places]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [_mark(record.value) for record in records]
        finally:
            await consumer.stop()
        return found

    async def remove(self) -> None:
        async with self._admin() as admin:
            await admin.delete_topics(self._topics)

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._server)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


class OnRabbitMQ:
    """Behind the topic's exchange a second one, from which a queue for the application and one for us have copies.

    Ours is a log that is read in the end only. It is no stream: after RabbitMQ 3.10 has started again, it confirms what
    it did not write to a stream whose leader is not up yet (seen: 271 of 3,237, all of them in the queue beside it).

    The narrow topic refuses by what the first exchange leads to: nowhere, or into a queue that is full. That is one
    binding, so a message has either all its copies or none.
    """

    refusals = ("full", "unroutable")

    def __init__(self, setting: Setting) -> None:
        self._url = setting.broker
        self._setting = setting
        self._names = [setting.topic(name) for name in (WIDE, NARROW)]
        self._plug = f"{self._names[1]}.plug"

    async def create(self) -> None:
        full = {"x-max-length": 0, "x-overflow": "reject-publish"}
        async with self._channel() as channel:
            for name, topic in zip((WIDE, NARROW), self._names, strict=True):
                own = queue(self._setting, name)
                await channel.exchange_declare(topic, exchange_type="topic", durable=True)
                await channel.exchange_declare(f"{topic}.out", exchange_type="topic", durable=True)
                quorum = {"x-queue-type": "quorum"}
                await channel.queue_declare(own, durable=True, arguments=quorum | IN_ORDER)
                await channel.queue_declare(f"{topic}.log", durable=True, arguments=quorum)
                for target in (own, f"{topic}.log"):
                    await channel.queue_bind(target, f"{topic}.out", "#")
                await channel.exchange_bind(destination=f"{topic}.out", source=topic, routing_key="#")
            await channel.queue_declare(self._plug, durable=True, arguments=full)

    async def refuse(self, how: str) -> None:
        topic = self._names[1]
        async with self._channel() as channel:
            await channel.exchange_unbind(destination=f"{topic}.out", source=topic, routing_key="#")
            if how == "full":
                await channel.queue_bind(self._plug, topic, "#")

    async def accept(self) -> None:
        topic = self._names[1]
        async with self._channel() as channel:
            await channel.queue_unbind(self._plug, topic, "#")
            await channel.exchange_bind(destination=f"{topic}.out", source=topic, routing_key="#")

    async def delivered(self) -> list[Mark]:
        return [mark for topic in self._names for mark in await self._logged(f"{topic}.log")]

    async def _logged(self, log: str) -> list[Mark]:
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        found: list[Mark] = []
        async with self._channel() as channel:
            await channel.basic_qos(prefetch_count=1000)
            await channel.basic_consume(log, arrived.put)
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(QUIET):
                        message = await arrived.get()
                    await channel.basic_ack(message.delivery_tag)
                    found.append(_mark(message.body))
        return found

    async def remove(self) -> None:
        async with self._channel() as channel:
            for name, topic in zip((WIDE, NARROW), self._names, strict=True):
                await channel.queue_delete(queue(self._setting, name))
                await channel.queue_delete(f"{topic}.log")
                await channel.exchange_delete(f"{topic}.out")
                await channel.exchange_delete(topic)
            await channel.queue_delete(self._plug)

    @contextlib.asynccontextmanager
    async def _channel(self) -> AsyncIterator[Any]:
        async with aiormq.connect(self._url) as connection:
            yield await connection.channel()


class Locally:
    """No broker: handlers refuse while a file is there, and what they were given stands in a journal."""

    refusals = ("raises",)

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    async def create(self) -> None:
        await asyncio.to_thread(self._setting.journal.touch)

    async def refuse(self, how: str) -> None:
        await asyncio.to_thread(self._setting.refuses.touch)

    async def accept(self) -> None:
        await asyncio.to_thread(self._setting.refuses.unlink, missing_ok=True)

    async def delivered(self) -> list[Mark]:
        text = await asyncio.to_thread(Path.read_text, self._setting.journal)
        return [
            Mark(line[:-1].split(" ")[0], int(line.split(" ")[1]), line.split(" ")[2]) for line in text.splitlines()
        ]

    async def remove(self) -> None:
        """Leave the folder to the conductor."""
