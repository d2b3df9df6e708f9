"""Rows of the outbox in bulk, made by the database itself, of the shape that `Store.add` writes.

Keys are drawn at random, the same ones in every run; a row's slot is the one that the store would give it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from zlib import crc32

from sqlalchemy import BigInteger, Column, Integer, MetaData, SmallInteger, String, Table, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from cqrs.schema import tables

TOPIC = "orders"
KEYS = 10_000
PAYLOAD = 500
SLOTS = 16
DEAD = 20
"""How many dead letters stand in the parked table, so that the look at parked keys is a real one."""
UUID = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
HEADERS = (
    '{"ce_specversion":"1.0","ce_source":"benchmarks","ce_time":"2026-11-25T16:00:00.123456+00:00",'
    '"content-type":"application/json","correlation_id":"' + UUID + '",'
    '"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","tenant":"north","causation_id":"',
    '"}',
)
"""Eight headers, around the row's own id."""
BODY = ('{"order_id":"', '","customer":"', '","note":"')
CHUNK = 20_000

_metadata = MetaData()
# The numbers of rows and their keys, drawn once; filling joins them.
_keys = Table(
    "bench_key",
    _metadata,
    Column("topic", String(50), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("message_key", String(50), nullable=False),
    Column("slot", SmallInteger, nullable=False),
)
_rows = Table(
    "bench_row",
    _metadata,
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, nullable=False),
)


def slot_of(topic: str, key: str) -> int:
    """Return a row's slot, as `Store.slot_of` does."""
    return crc32(f"{topic}\0{key}".encode()) % SLOTS


def key_of(number: int) -> str:
    return f"customer-{number:05}"


def drawn_keys(number: int, keys: int = KEYS) -> list[str]:
    """Return the keys of so many rows, drawn as `prepare` draws them."""
    drawn = random.Random(1)
    return [key_of(drawn.randrange(keys)) for _ in range(number)]


def body_of(number: int, key: str) -> bytes:
    """Return the body of a row, as `Outbox.fill` makes it."""
    return f'{BODY[0]}order-{number:09}{BODY[1]}{key}{BODY[2]}{filler()}"}}'.encode()


def filler() -> str:
    """Return what makes a body of `PAYLOAD` bytes."""
    return "x" * (PAYLOAD - sum(map(len, BODY)) - len("order-000000000") - len(key_of(0)) - len('"}'))


class Outbox:
    """The tables of one prefix on one server, to be filled and looked at by hand."""

    def __init__(self, engine: AsyncEngine, prefix: str = "cqrs_") -> None:
        self.engine = engine
        self.prefix = prefix
        self.table = f"{prefix}outbox"
        self._postgresql = engine.dialect.name == "postgresql"

    async def fill(self, number: int, *, topic: str = TOPIC, first: int = 1) -> None:
        """Commit so many rows in one transaction, with fresh statistics where they can be had in it."""
        async with self.engine.begin() as connection:
            await connection.execute(
                text(self._insert()),
                {"topic": topic, "first": first, "last": first + number - 1, "note": f'{BODY[2]}{filler()}"}}'},
            )
            if self._postgresql:
                await connection.execute(text(f"ANALYZE {self.table}"))

    def _insert(self) -> str:
        if self._postgresql:
            row_id, padded = "gen_random_uuid()::text", "lpad(r.n::text, 9, '0')"
            body = f"convert_to('{BODY[0]}order-' || {padded} || '{BODY[1]}' || k.message_key || :note, 'UTF8')"
            headers, now = f"'{HEADERS[0]}' || r.event_id || '{HEADERS[1]}'", "now()"
        else:
            row_id, padded = "uuid()", "lpad(r.n, 9, '0')"
            body = f"concat('{BODY[0]}order-', {padded}, '{BODY[1]}', k.message_key, :note)"
            headers, now = f"concat('{HEADERS[0]}', r.event_id, '{HEADERS[1]}')", "utc_timestamp(6)"
        # A colon before a name would be a parameter.
        headers, body = headers.replace('":"', '"\\:"'), body.replace('":"', '"\\:"')
        return (
            f"INSERT INTO {self.table} "
            "(event_id, destination, topic, message_key, type, headers, payload, slot, created_at) "
            f"SELECT r.event_id, 'broker', k.topic, k.message_key, 'OrderPlaced', {headers}, {body}, k.slot, {now} "
            f"FROM (SELECT n, number, {row_id} AS event_id FROM bench_row WHERE n BETWEEN :first AND :last) r "
            "JOIN bench_key k ON k.number = r.number AND k.topic = :topic ORDER BY r.n"
        )

    async def empty(self) -> None:
        """Leave nothing of what was there, dead rows neither."""
        async with self.engine.begin() as connection:
            await connection.execute(text(f"TRUNCATE TABLE {self.table}"))

    async def count(self) -> int:
        """Return how many rows are left."""
        async with self.engine.connect() as connection:
            return await connection.scalar(text(f"SELECT count(*) FROM {self.table}")) or 0

    async def last_id(self) -> int:
        """Return the id of the newest row."""
        async with self.engine.connect() as connection:
            return await connection.scalar(text(f"SELECT max(id) FROM {self.table}")) or 0

    async def has_rows_above(self, number: int) -> bool:
        """Whether rows with a higher id are left; along the index, so that it costs a round next to nothing."""
        slots = ", ".join(map(str, range(SLOTS)))
        query = text(f"SELECT EXISTS (SELECT 1 FROM {self.table} WHERE slot IN ({slots}) AND id > :number)")
        async with self.engine.connect() as connection:
            return bool(await connection.scalar(query, {"number": number}))

    async def park_dead_letters(self) -> None:
        """Put some dead letters of other keys where failing rows wait."""
        parked = tables(MetaData(), self.prefix).parked
        dead = [
            {
                "event_id": f"dead-{number}",
                "destination": "broker",
                "topic": TOPIC,
                "message_key": f"dead-{number}",
                "type": "OrderPlaced",
                "headers": UUID.join(HEADERS),
                "payload": b"{}",
                "slot": slot_of(TOPIC, f"dead-{number}"),
                "state": "dead",
                "attempts": 10,
            }
            for number in range(DEAD)
        ]
        now = text("now()") if self._postgresql else text("utc_timestamp(6)")
        async with self.engine.begin() as connection:
            await connection.execute(insert(parked).values(created_at=now), dead)


async def prepare(engine: AsyncEngine, number: int, *, keys: int = KEYS, topics: Sequence[str] = (TOPIC,)) -> None:
    """Draw the keys of so many rows."""
    drawn = random.Random(1)
    async with engine.begin() as connection:
        await connection.run_sync(_metadata.drop_all)
        await connection.run_sync(_metadata.create_all)
        for topic in topics:
            named = [(each, key_of(each)) for each in range(keys)]
            await connection.execute(
                insert(_keys),
                [{"topic": topic, "number": n, "message_key": key, "slot": slot_of(topic, key)} for n, key in named],
            )
        for first in range(1, number + 1, CHUNK):
            numbers = range(first, min(first + CHUNK, number + 1))
            await connection.execute(insert(_rows), [{"n": n, "number": drawn.randrange(keys)} for n in numbers])
        if engine.dialect.name == "postgresql":
            await connection.execute(text("ANALYZE bench_key, bench_row"))
