"""What a relay delivers in a second, beside the raw client in the same run."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks import raw, servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line, rate, ratio
from benchmarks.ours import Contestant, Ours, Publisher, alternate, running
from benchmarks.rows import KEYS, PAYLOAD, TOPIC, prepare

FEW_KEYS = 100


def conditions(rows: int, pace: str, *more: str, keys: int = KEYS) -> str:
    """Return the conditions that every line prints."""
    return ", ".join([f"{rows:,} rows of {PAYLOAD} bytes and 8 headers", f"{keys:,} keys", pace, *more])


def rates(taken: Mapping[str, Sequence[float]], titles: Mapping[str, str]) -> dict[str, str]:
    """Return the median rate of each contestant."""
    return {title: rate(1e9 / median(taken[who])) for who, title in titles.items()}


@asynccontextmanager
async def database(
    variable: str, rows: int, *, keys: int = KEYS, topic: str = TOPIC
) -> AsyncIterator[tuple[AsyncEngine, str]]:
    """Give an empty database on a server, with so many rows prepared."""
    async with servers.scratch(variable) as url:
        engine = create_async_engine(url)
        try:
            await prepare(engine, rows, keys=keys, topics=(topic,))
            yield engine, url
        finally:
            await engine.dispose()


def drains(ours: Ours, number: int, topic: str = TOPIC) -> Contestant:
    """Return our contestant: fill the outbox, and let the relay empty it."""
    return lambda: ours.drain(number, topic=topic)


async def to_nothing(effort: Effort) -> list[Line]:
    """PostgreSQL to a publisher that does nothing, against one raw reader."""
    number = effort.rows
    async with AsyncExitStack() as stack:
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, number))
        ours = await stack.enter_async_context(running(engine, Publisher(), url=url))
        ceiling = await stack.enter_async_context(raw.postgresql(engine, url, number, ours.batch))
        taken = await alternate({"raw": ceiling, "ours": drains(ours, number)}, effort.rounds)
    found, spread = ratio(taken["raw"], taken["ours"])
    return [
        Line(
            name="relay-postgresql-nothing",
            what="PostgreSQL → nothing, one process, order kept, against asyncpg alone",
            bar=Bar(0.6, aim=0.85),
            measured=found,
            spread=spread,
            rates=rates(taken, {"ours": "ours", "raw": "asyncpg"}),
            conditions=conditions(number, ours.pace),
        )
    ]


async def to_kafka(effort: Effort) -> list[Line]:
    """PostgreSQL to Kafka, against futures of aiokafka whose messages stand ready in memory."""
    from cqrs.brokers.kafka import Kafka

    number = effort.rows // 2
    async with AsyncExitStack() as stack:
        topic = await stack.enter_async_context(raw.kafka_topic())
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, number, topic=topic))
        ours = await stack.enter_async_context(running(engine, Publisher(Kafka(servers.kafka_servers())), url=url))
        ceiling = await stack.enter_async_context(raw.kafka(topic, number, KEYS, ours.batch))
        taken = await alternate({"raw": ceiling, "ours": drains(ours, number, topic)}, effort.rounds)
    found, spread = ratio(taken["raw"], taken["ours"])
    return [
        Line(
            name="relay-postgresql-kafka",
            what="PostgreSQL → Kafka, keyed, acks=all, idempotent, against aiokafka futures alone",
            bar=Bar(1.2, aim=1.5),
            measured=found,
            spread=spread,
            rates=rates(taken, {"ours": "ours", "raw": "aiokafka"}),
            conditions=conditions(number, ours.pace, f"{raw.PARTITIONS} partitions"),
        )
    ]


async def mariadb_to_kafka(effort: Effort) -> list[Line]:
    """MariaDB to Kafka, against PostgreSQL to Kafka."""
    from cqrs.brokers.kafka import Kafka

    number = effort.rows // 2
    paces = []
    contestants: dict[str, Contestant] = {}
    async with AsyncExitStack() as stack:
        topic = await stack.enter_async_context(raw.kafka_topic())
        for who, variable in (("postgresql", servers.POSTGRESQL), ("mariadb", servers.MYSQL)):
            engine, url = await stack.enter_async_context(database(variable, number, topic=topic))
            ours = await stack.enter_async_context(running(engine, Publisher(Kafka(servers.kafka_servers())), url=url))
            contestants[who] = drains(ours, number, topic)
            paces.append(f"{ours.pace} ({who})")
        taken = await alternate(contestants, effort.rounds)
    found, spread = ratio(taken["postgresql"], taken["mariadb"])
    return [
        Line(
            name="relay-mariadb-kafka",
            what="MariaDB → Kafka, against PostgreSQL → Kafka",
            bar=Bar(0.8),
            measured=found,
            spread=spread,
            rates=rates(taken, {"mariadb": "MariaDB", "postgresql": "PostgreSQL"}),
            conditions=conditions(number, *paces, f"{raw.PARTITIONS} partitions"),
        )
    ]


async def to_rabbitmq(effort: Effort) -> list[Line]:
    """PostgreSQL to RabbitMQ with many keys and with few, against aio-pika with 1,000 confirmations in flight."""
    few = "PostgreSQL → RabbitMQ, the same with 100 keys"
    many = "PostgreSQL → RabbitMQ, confirms, mandatory, persistent, in rounds, against aio-pika"
    return [
        await _to_rabbitmq(effort, "relay-postgresql-rabbitmq", many, Bar(0.9, aim=1.5), KEYS),
        await _to_rabbitmq(effort, "relay-postgresql-rabbitmq-100-keys", few, Bar(0.7), FEW_KEYS),
    ]


async def _to_rabbitmq(effort: Effort, name: str, what: str, bar: Bar, keys: int) -> Line:
    from cqrs.brokers.rabbitmq import RabbitMQ

    number = effort.rows // 5
    exchange = f"benchmarks-{uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(raw.rabbitmq_queue(exchange))
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, number, keys=keys, topic=exchange))
        publisher = Publisher(RabbitMQ(os.environ[servers.RABBITMQ]))
        ours = await stack.enter_async_context(running(engine, publisher, url=url))
        ceiling = await stack.enter_async_context(raw.rabbitmq(exchange, number, keys))
        drain = drains(ours, number, exchange)

        def emptied(contestant: Contestant) -> Contestant:
            async def run() -> float:
                await queue.purge()
                return await contestant()

            return run

        taken = await alternate({"raw": emptied(ceiling), "ours": emptied(drain)}, effort.rounds)
    found, spread = ratio(taken["raw"], taken["ours"])
    return Line(
        name=name,
        what=what,
        bar=bar,
        measured=found,
        spread=spread,
        rates=rates(taken, {"ours": "ours", "raw": "aio-pika"}),
        conditions=conditions(number, ours.pace, f"aio-pika {raw.IN_FLIGHT:,} confirms in flight", keys=keys),
    )


JOBS = [
    Job("relay-postgresql-nothing", "PostgreSQL → nothing", to_nothing, (servers.POSTGRESQL,)),
    Job("relay-postgresql-kafka", "PostgreSQL → Kafka", to_kafka, (servers.POSTGRESQL, servers.KAFKA)),
    Job("relay-postgresql-rabbitmq", "PostgreSQL → RabbitMQ", to_rabbitmq, (servers.POSTGRESQL, servers.RABBITMQ)),
    Job("relay-mariadb-kafka", "MariaDB → Kafka", mariadb_to_kafka, (servers.MYSQL, servers.POSTGRESQL, servers.KAFKA)),
]
