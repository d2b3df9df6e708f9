"""What is consumed from Kafka in a second: handlers that write a row, each message once, against loops by hand."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import Any
from uuid import uuid4
from zlib import crc32

import pydantic
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

import cqrs
from benchmarks import peer, raw, servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line, ratio
from benchmarks.ours import Contestant, alternate
from benchmarks.relay import rates
from benchmarks.rows import PAYLOAD, body_of, drawn_keys
from cqrs.cli.serving import spare_collector
from cqrs.consuming import Consumer
from cqrs.reading import Received

KEYS = 1_000
LANES = 16
GROUP = 50
BATCH = 500
EFFECT = "INSERT INTO effect (order_id, customer) VALUES ({}, {})"
CREATE = "CREATE TABLE effect (id BIGSERIAL PRIMARY KEY, order_id VARCHAR(50), customer VARCHAR(50))"
OURS = text(EFFECT.format(":order_id", ":customer"))


class Order(pydantic.BaseModel):
    """What is in a message, for those who read it by hand."""

    order_id: str
    customer: str
    note: str


Write = Callable[[Any, Any], Awaitable[None]]


async def by_session(event: Any, session: AsyncSession) -> None:
    """Write a row as most handlers do."""
    await session.execute(OURS, {"order_id": event.order_id, "customer": event.customer})


async def by_driver(event: Any, connection: AsyncConnection) -> None:
    """Write a row with the statement that stands in the loop by hand."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    await driver.execute(EFFECT.format("$1", "$2"), event.order_id, event.customer)


async def consuming(effort: Effort) -> list[Line]:
    """A transaction a message, groups of 50, and the same by hand with as many lanes."""
    number = effort.rows // 10
    async with AsyncExitStack() as stack:
        topic = await stack.enter_async_context(_filled_topic(number))
        url = await stack.enter_async_context(servers.scratch(servers.POSTGRESQL))
        await _create(url)
        contestants: dict[str, Contestant] = {
            "by hand": lambda: _by_hand(url, topic, number),
            "driver": lambda: _ours(url, topic, number, by_driver, group=1),
            "driver grouped": lambda: _ours(url, topic, number, by_driver, group=GROUP),
            "session": lambda: _ours(url, topic, number, by_session, group=1),
            "session grouped": lambda: _ours(url, topic, number, by_session, group=GROUP),
        }
        taken = await alternate(contestants, effort.rounds)
    conditions = f"{number:,} messages of {PAYLOAD} bytes, {KEYS:,} keys, {raw.PARTITIONS} partitions, {LANES} lanes"

    def line(name: str, what: str, bar: float, base: str, ours: str) -> Line:
        measured, spread = ratio(taken[base], taken[ours])
        return Line(
            name=name,
            what=what,
            bar=Bar(bar),
            measured=measured,
            spread=spread,
            rates=rates(taken, {ours: ours, base: base}),
            conditions=conditions,
        )

    lines = []
    for how, writing in (("driver", "asyncpg's statement"), ("session", "a session")):
        what = f"Kafka → handler with inbox by {writing}, a transaction a message, against aiokafka and asyncpg"
        lines += [
            line(f"consuming-kafka-{how}", what, 0.6, "by hand", how),
            line(
                f"consuming-kafka-{how}-grouped",
                f"the same in groups of {GROUP}, against a transaction a message",
                2.0,
                how,
                f"{how} grouped",
            ),
        ]
    return lines


async def beside_python_cqrs(effort: Effort) -> list[Line]:
    """One by one and grouped from Kafka, against the inbox of python-cqrs without one."""
    number = effort.rows // 10
    async with AsyncExitStack() as stack:
        topic = await stack.enter_async_context(_filled_topic(number))
        url, theirs = [await stack.enter_async_context(servers.scratch(servers.POSTGRESQL)) for _ in range(2)]
        await _create(url)
        folder = Path(stack.enter_context(TemporaryDirectory()))
        beside = stack.enter_context(peer.running(folder, peer.PYTHON_CQRS_INBOX, theirs))
        contestants: dict[str, Contestant] = {
            "peer": beside.drainer(effort.peers),
            "ours": lambda: _ours(url, topic, number, by_session, group=1),
            "driver": lambda: _ours(url, topic, number, by_driver, group=1),
            "grouped": lambda: _ours(url, topic, number, by_session, group=GROUP),
            "driver-grouped": lambda: _ours(url, topic, number, by_driver, group=GROUP),
        }
        taken = await alternate(contestants, effort.few_rounds)
    titles = {
        "ours": "one by one",
        "driver": "one by one by asyncpg's statement",
        "grouped": f"in groups of {GROUP}",
        "driver-grouped": f"in groups of {GROUP} by asyncpg's statement",
    }
    lines = []
    for who, title in titles.items():
        found, spread = ratio(taken["peer"], taken[who])
        lines.append(
            Line(
                name=f"consuming-python-cqrs-{who}",
                what=f"Kafka → handler with inbox on PostgreSQL {title}, against python-cqrs 5.3.0's inbox",
                bar=Bar(10.0),
                measured=found,
                spread=spread,
                rates=rates(taken, {who: "ours", "peer": "python-cqrs"}),
                conditions=f"theirs: {effort.peers:,} messages from memory, batches of 500 and 100, no log, no pause",
            )
        )
    return lines


async def _create(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text(CREATE))
        await connection.execute(text("CREATE TABLE by_hand (message_id VARCHAR(255) PRIMARY KEY)"))
    await engine.dispose()


@asynccontextmanager
async def _filled_topic(number: int) -> AsyncIterator[str]:
    from aiokafka import AIOKafkaProducer

    async with raw.kafka_topic() as topic:
        producer = AIOKafkaProducer(bootstrap_servers=servers.kafka_servers(), acks="all", linger_ms=5)
        await producer.start()
        try:
            futures = []
            for n, key in enumerate(drawn_keys(number, KEYS), 1):
                headers = [(name, value.encode()) for name, value in {**raw.WIRE, "ce_id": f"event-{n}"}.items()]
                futures.append(await producer.send(topic, body_of(n, key), key=key.encode(), headers=headers))
            await asyncio.gather(*futures)
        finally:
            await producer.stop()
        yield topic


class Watch:
    """Measures from the first message until so many have ended."""

    def __init__(self, number: int) -> None:
        self._number = self._left = number
        self._began = 0
        self.ended = asyncio.Event()

    def begin(self) -> None:
        self._began = self._began or perf_counter_ns()

    def end(self, number: int) -> None:
        self._left -= number
        if self._left <= 0:
            self._taken = (perf_counter_ns() - self._began) / self._number
            self.ended.set()

    async def taken(self) -> float:
        """Return the nanoseconds a message."""
        async with asyncio.timeout(300):
            await self.ended.wait()
        return self._taken


async def _ours(url: str, topic: str, number: int, write: Write, *, group: int) -> float:
    """Consume all of a topic in a consumer group of our own, with tables of our own."""
    watch = Watch(number)
    app = application(url, topic, write, group=group)
    async with app, app.consuming():
        assert app.consumer is not None
        _watch(app.consumer, watch)
        with frozen():
            return await watch.taken()


def application(url: str, topic: str, write: Write, *, group: int) -> cqrs.Mediator:
    """Return an application whose handler writes so."""
    registry = cqrs.Registry()

    @registry.integration_event(topic=topic, key="customer", name="OrderPlaced")
    class OrderPlaced(cqrs.Event):
        order_id: str
        customer: str
        note: str

    write.__annotations__["event"] = OrderPlaced
    registry.event_handler(group=group)(write)
    name = f"benchmarks-{uuid4().hex[:8]}"
    return cqrs.bootstrap(
        registry=registry,
        name=name,
        database=url,
        broker=f"kafka://{servers.kafka_servers()}",
        relay=False,
        migrate=True,
        prefix=f"{name.replace('-', '_')}_",
    )


@contextmanager
def frozen() -> Iterator[None]:
    """Spare the garbage collector, as `cqrs run` does."""
    before = gc.get_threshold()
    spare_collector()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def _watch(consumer: Consumer, watch: Watch) -> None:
    take = consumer.take

    async def watched(received: Sequence[Received]) -> bool:
        watch.begin()
        ended = await take(received)
        watch.end(len(received))
        return ended

    consumer.take = watched


async def _by_hand(url: str, topic: str, number: int) -> float:
    """What a careful person writes with the drivers alone: lanes by key, an inbox row in each transaction."""
    import asyncpg
    from aiokafka import AIOKafkaConsumer

    place = make_url(url)
    pool = await asyncpg.create_pool(
        host=place.host,
        port=place.port,
        user=place.username,
        password=place.password,
        database=place.database,
        min_size=LANES,
        max_size=LANES,
    )
    await pool.execute("TRUNCATE by_hand")
    watch = Watch(number)
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers.kafka_servers(),
        group_id=f"by-hand-{uuid4().hex[:8]}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        with frozen():
            await _consume_by_hand(consumer, pool, watch)
        return await watch.taken()
    finally:
        await consumer.stop()
        await pool.close()


async def _consume_by_hand(consumer: Any, pool: Any, watch: Watch) -> None:
    while not watch.ended.is_set():
        found = await consumer.getmany(timeout_ms=200, max_records=BATCH)
        records = [record for some in found.values() for record in some]
        if records:
            watch.begin()
            await _take_by_hand(pool, records)
            await consumer.commit()
            watch.end(len(records))


async def _take_by_hand(pool: Any, records: Sequence[Any]) -> None:
    lanes: dict[int, list[Any]] = {}
    for record in records:
        lanes.setdefault(crc32(record.key) % LANES, []).append(record)

    async def take(lane: Sequence[Any]) -> None:
        async with pool.acquire() as connection:
            for record in lane:
                message_id = dict(record.headers)["ce_id"].decode()
                order = Order.model_validate_json(record.value)
                async with connection.transaction():
                    inbox = "INSERT INTO by_hand VALUES ($1) ON CONFLICT DO NOTHING"
                    if await connection.execute(inbox, message_id) == "INSERT 0 1":
                        await connection.execute(EFFECT.format("$1", "$2"), order.order_id, order.customer)

    await asyncio.gather(*map(take, lanes.values()))


JOBS = [
    Job("consuming-kafka", "Kafka → handler", consuming, (servers.POSTGRESQL, servers.KAFKA)),
    Job(
        "consuming-python-cqrs",
        "Kafka → handler, against python-cqrs",
        beside_python_cqrs,
        (servers.POSTGRESQL, servers.KAFKA),
        is_quick=False,
    ),
]
