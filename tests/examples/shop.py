"""Runs the demo as a user would, and looks into the database that it leaves."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from uuid import uuid4

import aio_pika
from aiokafka.admin import AIOKafkaAdminClient

from tests.servers import scratch_database, server

ROOT = Path(__file__).parents[2]
ORDERS = ROOT / "examples" / "shop" / "orders.csv"
HEADER = "order_id,customer,sku,quantity"
TIMEOUT = 600.0


def run_demo(*arguments: object, **servers: str) -> subprocess.CompletedProcess[str]:
    """Run it with these variables: DATABASE_URL, BROKER_URL and SHOP_TOPIC."""
    return run("examples.shop", *arguments, **servers)


def run(module: str, *arguments: object, **servers: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    none = dict.fromkeys(("DATABASE_URL", "BROKER_URL"), "")
    environment = {**os.environ, "PYTHONWARNINGS": "error", **none, **servers}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def rows(database: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


@asynccontextmanager
async def shop_on(database: str, broker: str | None) -> AsyncIterator[dict[str, str]]:
    """The variables of a demo on servers, which are given by the names of theirs: what it needs there is its own."""
    topic = f"shop-{uuid4().hex[:12]}"
    async with scratch_database(server(database)) as url:
        if broker is None:
            yield {"DATABASE_URL": url}
            return
        place = {"DATABASE_URL": url, "BROKER_URL": server(broker), "SHOP_TOPIC": topic}
        try:
            yield place
        finally:
            await {"KAFKA_URL": leave_kafka, "RABBITMQ_URL": leave_rabbitmq}[broker](topic)


async def leave_kafka(topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka())
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()


async def leave_rabbitmq(topic: str) -> None:
    async with await aio_pika.connect(server("RABBITMQ_URL")) as connection:
        channel = await connection.channel()
        await channel.queue_delete(f"shop.{topic}")
        await channel.exchange_delete(topic)


def kafka() -> str:
    return server("KAFKA_URL").removeprefix("kafka://")
