"""The demo on servers tells the story that it tells on one file; what it publishes is there for everyone to read."""

import asyncio
import json
import os
import shutil
import subprocess
import sys

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from examples.shop.demo.broker import PARTITIONS
from tests.examples.shop import ORDERS, ROOT, kafka, run_demo, shop_on

pytestmark = pytest.mark.services

LINES = 60


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """The first lines of the shipped file."""
    path = tmp_path_factory.mktemp("shop") / "orders.csv"
    path.write_text("".join(ORDERS.read_text().splitlines(keepends=True)[: LINES + 1]))
    return path


@pytest.fixture(scope="module")
def told(orders):
    """The story on one file, without any server."""
    ended = run_demo(orders, "--kills", 1)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return story(ended.stdout)


def story(output: str) -> str:
    """Return the table and the last line."""
    return output[output.index("The shop, whose worker was killed") :]


@pytest.mark.parametrize(
    ("database", "broker"),
    [
        ("POSTGRES_URL", "KAFKA_URL"),
        ("POSTGRES_URL", "RABBITMQ_URL"),
        ("MYSQL_URL", "KAFKA_URL"),
        ("POSTGRES_URL", None),
    ],
)
async def test_the_story_on_servers_is_that_of_one_file_each_time(orders, told, database, broker):
    assert "killed once" in told
    async with shop_on(database, broker) as place:
        for _ in range(2):
            ended = run_demo(orders, "--kills", 1, **place)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert story(ended.stdout) == told


@pytest.mark.parametrize("broker", ["KAFKA_URL", "RABBITMQ_URL"])
async def test_the_story_over_http_with_a_process_that_consumes_is_the_same(orders, told, broker):
    async with shop_on("POSTGRES_URL", broker) as place:
        ended = run_demo(orders, "--http", "--kills", 1, **place)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Server and receiver were killed" in ended.stdout
        assert story(ended.stdout) == told


@pytest.fixture
async def published(orders):
    """A shop on Kafka that has done its work."""
    async with shop_on("POSTGRES_URL", "KAFKA_URL") as place:
        ended = run_demo(orders, "--kills", 0, **place)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        yield place


async def test_a_plain_consumer_reads_key_cloudevents_headers_and_json(published):
    placed = await select(published, "SELECT customer, order_id, sku, quantity, total FROM orders ORDER BY line")
    seen = []
    for message in await read_kafka(published["SHOP_TOPIC"]):
        headers = {name: value.decode() for name, value in message.headers}
        body = json.loads(message.value)
        assert headers.keys() >= {"ce_id", "ce_time", "correlation_id", "causation_id"}
        assert (headers["ce_specversion"], headers["ce_type"], headers["ce_source"]) == ("1.0", "OrderPlaced", "shop")
        assert headers["content-type"] == "application/json"
        assert message.key.decode() == body["customer"]
        assert body.keys() == {"order_id", "customer", "sku", "quantity", "total"}
        seen.append(tuple(body[name] for name in ("customer", "order_id", "sku", "quantity", "total")))
    # Each customer's in the order in which they were placed; those of several are in several partitions.
    assert sorted(seen, key=lambda order: order[0]) == sorted(placed, key=lambda order: order[0])


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
async def test_kcat_reads_the_same(published):
    messages = read_with_kcat(published["SHOP_TOPIC"])
    placed = dict(await select(published, "SELECT order_id, customer FROM orders"))
    assert len(messages) == len(placed)
    for message in messages:
        body = json.loads(message["payload"])
        headers = dict(zip(message["headers"][::2], message["headers"][1::2], strict=True))
        assert message["key"] == body["customer"] == placed.pop(body["order_id"])
        assert (headers["ce_type"], headers["ce_source"]) == ("OrderPlaced", "shop")


def read_with_kcat(topic: str) -> list[dict]:
    command = ["kcat", "-b", kafka(), "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-J"]
    read = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in read.stdout.splitlines()]


async def test_what_kafka_delivers_once_more_changes_nothing(published):
    before = await select(published, "SELECT * FROM receipts ORDER BY number")
    topic = published["SHOP_TOPIC"]
    assert len(before) == len(await read_kafka(topic))
    async with group(topic) as consumer:
        await consumer.seek_to_beginning()
        await consumer.commit()
    command = [sys.executable, "-m", "examples.shop.receiver"]
    receiver = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=os.environ | published)
    try:
        await until_taken(topic)
    finally:
        receiver.terminate()
        await receiver.wait()
    assert receiver.returncode == 0
    assert await select(published, "SELECT * FROM receipts ORDER BY number") == before


def group(topic: str) -> AIOKafkaConsumer:
    """A member of the shop's consumer group."""
    return AIOKafkaConsumer(topic, bootstrap_servers=kafka(), group_id="shop", enable_auto_commit=False)


async def until_taken(topic: str) -> None:
    """Wait until the group has acknowledged all that is in the topic."""
    async with asyncio.timeout(60), AIOKafkaConsumer(bootstrap_servers=kafka(), group_id="shop") as looking:
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        looking.assign(places)
        ends = await looking.end_offsets(places)
        while any([(await looking.committed(place) or 0) < end for place, end in ends.items()]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def read_kafka(topic: str) -> list:
    """Return all that is in a topic, each partition in its order."""
    async with AIOKafkaConsumer(topic, bootstrap_servers=kafka(), auto_offset_reset="earliest") as consumer:
        ends = await consumer.end_offsets(consumer.assignment())
        found = []
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for messages in (await consumer.getmany(timeout_ms=200)).values():
                found += messages
        return found


async def select(place: dict[str, str], query: str) -> list[tuple]:
    engine = create_async_engine(place["DATABASE_URL"])
    try:
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]
    finally:
        await engine.dispose()
