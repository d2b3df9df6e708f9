"""`carrier="log"` with a real PostgreSQL, Debezium and Kafka, on the files of `examples/debezium` as they are."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pydantic
import pytest
import sqlalchemy as sa
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from sqlalchemy.engine import Connection

import cqrs
from cqrs.brokers.kafka import Kafka
from cqrs.codec import received_headers
from cqrs.outbox.store import Store
from tests.connect import EXAMPLE, ROOT, Connect
from tests.servers import scratch_database, server
from tests.unit.outbox.support import storage_of, until

pytestmark = [pytest.mark.services, pytest.mark.slow]

PARTITIONS = 3
OWN = {"ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "content-type"}
"""The headers that are the same from the relay and from Debezium; the others come folded into one from Debezium."""


class Ordered(cqrs.Event):
    order: str
    number: int = 0


class Noted(cqrs.Event):
    text: str


class Reserved(cqrs.Event):
    order: str


class Shipment(pydantic.BaseModel):
    street: str


class Order(cqrs.Command[None]):
    order: str
    topic: str


@dataclass(frozen=True)
class World:
    """A database whose log Debezium reads, and the worker that does; topics and slot are of this run alone."""

    url: str
    name: str
    slot: str
    kafka: str
    connect: Connect

    def topic(self, purpose: str) -> str:
        return f"{self.name}-{purpose}"

    def app(self, topic: str = "unused", **wishes: Any) -> cqrs.Mediator:
        registry = cqrs.Registry()
        registry.integration_event(topic=topic, key="order")(Ordered)
        registry.integration_event(topic=topic, name="замечено ☃")(Noted)

        @registry.command_handler
        async def order(command: Order, context: cqrs.Context) -> None:
            context.emit(Ordered(order=command.order))
            context.emit(Noted(text='Grüße, 世界 😀 "\\ \n'))
            payload = Shipment(street="Straße 1")
            context.emit(cqrs.NotificationEvent[Shipment](payload=payload, topic=command.topic, key=command.order))
            context.emit(Reserved(order=command.order))

        if "reserve" in wishes:
            registry.event_handler(name="reserve", durable=True)(wishes.pop("reserve"))
        wishes = {"database": self.url, "carrier": "log", **wishes}
        return cqrs.bootstrap(registry=registry, name=self.name, **wishes)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        place = sa.make_url(self.url).set(drivername="postgresql")
        connection = await asyncpg.connect(place.render_as_string(hide_password=False))
        try:
            yield connection
        finally:
            await connection.close()

    async def make_topic(self, purpose: str) -> str:
        topic = self.topic(purpose)
        async with admin(self.kafka) as client:
            await client.create_topics([NewTopic(topic, PARTITIONS, 1)])
        return topic

    async def read(self, topic: str, count: int, seconds: float = 60.0) -> list[ConsumerRecord]:
        """Return what a topic holds once it is so many messages with different ids, and it stays at that."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka, auto_offset_reset="earliest")
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            consumer.assign(partitions)
            found: list[ConsumerRecord] = []
            async with asyncio.timeout(seconds):
                while len({header(message, "ce_id") for message in found}) < count:
                    for messages in (await consumer.getmany(timeout_ms=200)).values():
                        found += messages
            for messages in (await consumer.getmany(timeout_ms=1000)).values():
                found += messages
            return found
        finally:
            await consumer.stop()

    async def find(self, topic: str, key: str, seconds: float = 60.0) -> ConsumerRecord:
        """Return the message with a key, of a topic that may not be there yet."""
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=self.kafka, auto_offset_reset="earliest", metadata_max_age_ms=500
        )
        await consumer.start()
        try:
            async with asyncio.timeout(seconds):
                while (message := await consumer.getone()).key != key.encode():
                    pass
                return message
        finally:
            await consumer.stop()


@asynccontextmanager
async def admin(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def header(message: ConsumerRecord, name: str) -> str:
    [value] = [value for found, value in message.headers if found == name]
    return value.decode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    kafka = server("KAFKA_URL").removeprefix("kafka://")
    with asyncio.Runner() as runner:
        scratch = scratch_database(server("POSTGRES_LOGICAL_URL"))
        url = runner.run(scratch.__aenter__())
        name = f"dbz-{uuid.uuid4().hex[:12]}"
        slot = name.replace("-", "_")
        folder = tmp_path_factory.mktemp("connect")
        connect = Connect(folder, kafka=kafka, database=url_of(slot, url), slot=slot, application=name)
        world = World(url, name, slot, kafka, connect)
        try:
            runner.run(prepare(world))
            yield world
        finally:
            connect.stop()
            runner.run(clean_up(world))
            runner.run(scratch.__aexit__(None, None, None))


def url_of(role: str, url: str) -> str:
    """Where a role that may do no more than it needs logs in."""
    return sa.make_url(url).set(username=role, password="secret").render_as_string(hide_password=False)


async def prepare(world: World) -> None:
    async with cqrs.bootstrap(registry=cqrs.Registry(), name=world.name, database=world.url, migrate=True):
        pass
    # The slot's name is one of the whole server.
    statements = (EXAMPLE / "publication.sql").read_text().replace("slot('cqrs_outbox'", f"slot('{world.slot}'")
    async with world.connection() as connection:
        for statement in statements.strip().removesuffix(";").split(";"):
            await connection.execute(statement)
        await connection.execute(f"CREATE ROLE {world.slot} LOGIN REPLICATION PASSWORD 'secret'")
        await connection.execute(f"GRANT SELECT ON cqrs_outbox TO {world.slot}")


async def clean_up(world: World) -> None:
    async with world.connection() as connection:
        drop = f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{world.slot}'"

        async def dropped() -> bool:
            with suppress(asyncpg.ObjectInUseError):  # its reader was killed, and the server has not noticed yet
                await connection.execute(drop)
                return True
            return False

        await until(dropped, 30.0)
        await connection.execute(f"DROP OWNED BY {world.slot}")
        await connection.execute(f"DROP ROLE {world.slot}")
    async with admin(world.kafka) as client:
        await client.delete_topics([topic for topic in await client.list_topics() if world.name in topic])


@pytest.fixture
async def running(world: World) -> World:
    """The same, and the worker runs."""
    if not world.connect.runs:
        await asyncio.to_thread(world.connect.start)
    return world


class Spied:
    """Notes what a store is given to save."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.envelopes: list[cqrs.Envelope] = []
        add = Store.add

        def spy(
            store: Store, connection: Connection, envelopes: Sequence[cqrs.Envelope], *, last: bool = False
        ) -> None:
            self.envelopes += envelopes
            add(store, connection, envelopes, last=last)

        monkeypatch.setattr(Store, "add", spy)

    @property
    def to_broker(self) -> list[cqrs.Envelope]:
        return [envelope for envelope in self.envelopes if envelope.destination == "broker"]


async def relayed(world: World, envelopes: Sequence[cqrs.Envelope], topic: str) -> list[ConsumerRecord]:
    """Let a relay publish the same envelopes to another topic, from another database; returns what it sent."""
    async with scratch_database(server("POSTGRES_URL")) as url:
        broker = Kafka(world.kafka)
        async with world.app(database=url, carrier="relay", broker=broker, migrate=True) as app:
            store = storage_of(app).store
            async with store.writers.begin() as connection:
                await connection.run_sync(store.add, [envelope._replace(topic=topic) for envelope in envelopes])
            storage_of(app).relay.wake()
            return await world.read(topic, len(envelopes))


async def test_messages_are_those_of_the_relay(running: World, monkeypatch: pytest.MonkeyPatch):
    topic = await running.make_topic("log")
    reserved: list[str] = []

    async def reserve(event: Reserved) -> None:
        reserved.append(event.order)

    async with running.app(topic, reserve=reserve) as app:
        spied = Spied(monkeypatch)
        for order in ("o1", "заказ ☃", "o3"):
            await app.send(Order(order=order, topic=topic))
        await app.drain()
    monkeypatch.undo()
    envelopes = {envelope.message_id: envelope for envelope in spied.to_broker}
    assert len(envelopes) == 9
    assert sorted(reserved) == ["o1", "o3", "заказ ☃"]

    logged = {header(message, "ce_id"): message for message in await running.read(topic, 9)}
    other = await running.make_topic("relay")
    published = {header(message, "ce_id"): message for message in await relayed(running, spied.to_broker, other)}
    assert logged.keys() == published.keys() == envelopes.keys()
    for id_, envelope in envelopes.items():
        message, twin = logged[id_], published[id_]
        assert message.key == twin.key == (envelope.key.encode() if envelope.key is not None else None)
        assert message.value == twin.value == envelope.payload
        if envelope.key is not None:
            assert message.partition == twin.partition
        own = [found for found in twin.headers if found[0] in OWN]
        assert sorted(found for found in message.headers if found[0] != "headers") == sorted(own)
        assert len([name for name, _ in message.headers if name == "headers"]) == 1
        assert len(own) == len(OWN)
        assert received_headers(message.headers) == received_headers(twin.headers) == envelope.wire_headers


async def test_the_log_alone_has_rows_for_the_broker(running: World):
    topic = await running.make_topic("rows")
    seen: set[int] = set()

    async def look(connection: asyncpg.Connection, done: asyncio.Event) -> None:
        while not done.is_set():
            seen.add(await connection.fetchval("SELECT count(*) FROM cqrs_outbox"))

    done = asyncio.Event()
    async with running.app(topic) as app, running.connection() as connection:
        looking = asyncio.create_task(look(connection, done))
        for number in range(20):
            await app.send(Order(order=f"o{number}", topic=topic))
        done.set()
        await looking
        assert await connection.fetchval("SELECT count(*) FROM cqrs_parked") == 0
    assert seen == {0}
    assert len(await running.read(topic, 60)) == 60


async def test_rows_of_handlers_and_what_is_parked_stay_the_relays(running: World):
    topic = await running.make_topic("handlers")
    failures = 2
    reserved: list[str] = []

    async def reserve(event: Reserved) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise ValueError("no stock")
        reserved.append(event.order)

    retry = cqrs.Retry(attempts=5, first=0.3)
    async with running.app(topic, reserve=reserve, retry=retry) as app, running.connection() as connection:
        await app.send(Order(order="o1", topic=topic))
        await until(lambda: connection.fetchval("SELECT count(*) = 1 FROM cqrs_parked WHERE state = 'waiting'"))
        await app.drain()
        assert reserved == ["o1"]
        assert await connection.fetchval("SELECT count(*) FROM cqrs_parked") == 0
    assert {header(message, "ce_type") for message in await running.read(topic, 3)} == {
        "Ordered",
        "замечено ☃",
        "Shipment",
    }


async def test_a_parked_key_of_a_handler_drains_in_order(running: World):
    topic = await running.make_topic("parked")
    refusing = True
    reserved: list[str] = []

    async def reserve(event: Reserved) -> None:
        if refusing:
            raise ValueError("no stock")
        reserved.append(event.order)

    def saved(order: str) -> cqrs.Envelope:
        body = Reserved(order=order).model_dump_json().encode()
        headers = '{"correlation_id":"c"}'
        return cqrs.Envelope(str(uuid.uuid4()), "reserve", topic, "k", "Reserved", headers, body)

    retry = cqrs.Retry(attempts=100, first=0.1, longest=0.1)
    async with running.app(topic, reserve=reserve, retry=retry) as app, running.connection() as connection:
        store = storage_of(app).store
        async with store.writers.begin() as begun:
            await begun.run_sync(store.add, [saved("o1"), saved("o2")])
        storage_of(app).relay.wake()
        await until(lambda: connection.fetchval("SELECT count(*) = 2 FROM cqrs_parked WHERE state = 'waiting'"))
        async with store.writers.begin() as begun:
            await begun.run_sync(store.add, [saved("o3")])
        refusing = False
        storage_of(app).relay.wake()
        await until(lambda: reserved == ["o1", "o2", "o3"])
        await app.emit(Ordered(order="o4"))
    assert [message.key for message in await running.read(topic, 1)] == [b"o4"]


async def test_what_is_rolled_back_never_was(running: World):
    topic = await running.make_topic("rollback")
    async with running.app(topic) as app:
        storage = storage_of(app)
        async with storage.store.writers.connect() as connection:
            row = cqrs.Envelope(str(uuid.uuid4()), "broker", topic, "o1", "Ordered", "{}", b"{}")
            await connection.run_sync(storage.store.add, [row])
            await connection.rollback()
        await app.emit(Ordered(order="o2"))
    assert [message.key for message in await running.read(topic, 1)] == [b"o2"]


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_nothing_is_lost_and_order_is_kept_over_a_restart(running: World, how: str):
    topic = await running.make_topic(how)
    async with running.app(topic) as app:

        async def emit(first: int, last: int) -> None:
            for number in range(first, last):
                await app.emit(Ordered(order=f"o{number % 3}", number=number))

        emitting = asyncio.create_task(emit(0, 150))
        await running.read(topic, 1)
        await asyncio.to_thread(getattr(running.connect, how))
        await emitting
        await emit(150, 200)
        await asyncio.to_thread(running.connect.start)
        await emit(200, 250)
    messages = await running.read(topic, 250)
    by_key: dict[str, list[int]] = {}
    for message in messages:
        event = Ordered.model_validate_json(message.value)
        numbers = by_key.setdefault(event.order, [])
        if event.number not in numbers:
            numbers.append(event.number)
    assert by_key == {f"o{key}": list(range(key, 250, 3)) for key in range(3)}


async def test_the_slot_moves_on_while_only_other_tables_change(running: World):
    async with running.connection() as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS other (number int)")
        await connection.execute("INSERT INTO other SELECT generate_series(1, 1000)")
        now = await connection.fetchval("SELECT pg_current_wal_lsn()::text")
        passed = "SELECT confirmed_flush_lsn >= '{}' FROM pg_replication_slots WHERE slot_name = '{}'"
        await until(lambda: connection.fetchval(passed.format(now, running.slot)), 60.0)


async def test_the_example_runs_and_waits_for_its_connector(tmp_path: Path):
    kafka = server("KAFKA_URL").removeprefix("kafka://")
    async with scratch_database(server("POSTGRES_LOGICAL_URL")) as url:
        name, slot = "debezium-example", f"dbz_{uuid.uuid4().hex[:12]}"
        connect = Connect(tmp_path, kafka=kafka, database=url_of(slot, url), slot=slot, application=name)
        world = World(url, name, slot, kafka, connect)
        await prepare(world)
        try:
            command = [sys.executable, "-W", "error", "-m", "examples.debezium.app", url, "tea", "2"]
            run = partial(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
            done = await asyncio.to_thread(run)
            assert done.returncode == 0, done.stderr
            order, reserved = done.stdout.splitlines()
            assert reserved == "2 of tea reserved"
            await asyncio.to_thread(connect.start)
            message = await world.find("example-orders", order.removeprefix("order "))
            assert header(message, "ce_source") == name
        finally:
            await asyncio.to_thread(connect.stop)
            await clean_up(world)
            async with admin(kafka) as client:
                await client.delete_topics(["example-orders"])
