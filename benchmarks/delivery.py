"""Local delivery on SQLite: our relay against the same statements by hand.

Every contestant finds the same rows in the same tables, saved by the toolkit in one command before the clock runs, and
has emptied the outbox when it stops. Per message: BEGIN IMMEDIATE, the inbox row, the row that the handler writes,
COMMIT, synced to the disk; per batch: one SELECT and one DELETE. Ours also leases slots, looks at parked keys and asks
the inbox what it holds already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import aiosqlite
from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker

import cqrs
from benchmarks.contestants import engine_by_hand
from benchmarks.timing import Race, quiet_memory

BATCH = 500
KEYS = 100
FILLER = "x" * 420
"""Makes a body of about 500 bytes."""
EFFECT = "INSERT INTO receipt (order_id) VALUES (:order_id)"
INBOX = (
    "INSERT OR IGNORE INTO cqrs_inbox (handler, message_id, handled_at) "
    "VALUES (:handler, :message_id, strftime('%Y-%m-%d %H:%M:%f', 'now'))"
)
SELECT = f"SELECT * FROM cqrs_outbox ORDER BY id LIMIT {BATCH}"
DELETE = "DELETE FROM cqrs_outbox WHERE id IN"
HANDLER = "benchmarks:by_hand"

effect = text(EFFECT)


class OrderPlaced(cqrs.Event):
    order_id: str
    customer: str
    note: str


class PlaceOrders(cqrs.Command[None]):
    number: int


async def place_orders(command: PlaceOrders, context: cqrs.Context) -> None:
    for number in range(command.number):
        context.emit(OrderPlaced(order_id=f"order-{number}", customer=f"customer-{number % KEYS}", note=FILLER))


@dataclass(slots=True)
class Receipts:
    """How many were written of those that are expected."""

    missing: int = 0
    complete: asyncio.Event | None = None

    def count(self) -> None:
        self.missing -= 1
        if self.missing <= 0 and self.complete is not None:
            self.complete.set()


async def by_session(event: OrderPlaced, session: AsyncSession, receipts: Receipts) -> None:
    """Write a row as most handlers do."""
    await session.execute(effect, {"order_id": event.order_id})
    receipts.count()


async def by_driver(event: OrderPlaced, connection: AsyncConnection, receipts: Receipts) -> None:
    """Write a row with the statement that stands in the loop by hand."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    await driver.execute(EFFECT, {"order_id": event.order_id})
    receipts.count()


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was found, with what it was measured on."""

    race: Race
    messages: int
    body: int
    synchronous: int
    journal: str


Contestant = Callable[[int], Awaitable[float]]
"""Delivers so many messages, saved beforehand, and returns the nanoseconds of each."""


async def measure(folder: Path, *, messages: int, rounds: int) -> Delivery:
    """Let all deliver the same number of messages in turn, so many times."""
    async with AsyncExitStack() as stack:
        ours, app = await _ours(stack, folder / "ours.db", by_session)
        ours_by_driver, _ = await _ours(stack, folder / "ours-by-driver.db", by_driver)
        contestants = {
            "ours": ours,
            "ours by driver": ours_by_driver,
            "driver": await _through_driver(stack, folder / "driver.db"),
            "session": await _through_session(stack, folder / "session.db"),
        }
        for contestant in contestants.values():
            await contestant(BATCH // 5)
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        order = list(contestants)
        with quiet_memory() as tidy:
            for _ in range(rounds):
                for name in order:
                    taken[name].append(await contestants[name](messages))
                    tidy()
                order.append(order.pop(0))
        synchronous, journal = await app.send(Look())
    body = OrderPlaced(order_id="order-100", customer="customer-10", note=FILLER).model_dump_json()
    return Delivery(Race(taken), messages, len(body), synchronous, journal)


class Look(cqrs.Command[tuple[int, str]]):
    """Asks what the application's own connections are set to."""


async def look(command: Look, session: AsyncSession) -> tuple[int, str]:
    del command
    synchronous = await session.scalar(text("PRAGMA synchronous"))
    return synchronous, await session.scalar(text("PRAGMA journal_mode"))


def _application(
    file: Path, receipts: Receipts, send_receipt: Callable[..., Awaitable[None]], *, relay: bool
) -> cqrs.Mediator:
    registry = cqrs.Registry()
    registry.integration_event(topic="orders", key="customer")(OrderPlaced)
    registry.command_handler(place_orders)
    registry.command_handler(look)
    registry.event_handler(send_receipt)
    url = f"sqlite+aiosqlite:///{file}"
    return cqrs.bootstrap(
        registry=registry, container={Receipts: lambda: receipts}, database=url, relay=relay, name="benchmarks"
    )


async def _ours(
    stack: AsyncExitStack, file: Path, send_receipt: Callable[..., Awaitable[None]]
) -> tuple[Contestant, cqrs.Mediator]:
    receipts = Receipts()
    app = await stack.enter_async_context(_application(file, receipts, send_receipt, relay=True))
    await _create_receipts(file)

    async def deliver(messages: int) -> float:
        receipts.missing, receipts.complete = messages, asyncio.Event()
        await app.send(PlaceOrders(number=messages))  # one COMMIT saves them all, and wakes the relay
        began = perf_counter_ns()
        await receipts.complete.wait()
        while (await app.outbox.counts()).outbox:  # noqa: ASYNC110 - nothing public tells that the last batch is settled
            await asyncio.sleep(0.001)
        return (perf_counter_ns() - began) / messages

    return deliver, app


async def _create_receipts(file: Path) -> None:
    async with aiosqlite.connect(file) as database:
        await database.execute("CREATE TABLE receipt (id INTEGER PRIMARY KEY, order_id TEXT NOT NULL)")
        await database.commit()


async def _saver(stack: AsyncExitStack, file: Path) -> Callable[[int], Awaitable[None]]:
    """Return what fills the tables of a contestant by hand: our application without its relay."""
    app = await stack.enter_async_context(_application(file, Receipts(), by_session, relay=False))
    await _create_receipts(file)

    async def save(messages: int) -> None:
        await app.send(PlaceOrders(number=messages))

    return save


async def _through_driver(stack: AsyncExitStack, file: Path) -> Contestant:
    save = await _saver(stack, file)
    database = await stack.enter_async_context(aiosqlite.connect(file, isolation_level=None))
    database.row_factory = aiosqlite.Row
    await database.execute("PRAGMA journal_mode=WAL")
    await database.execute("PRAGMA synchronous=FULL")

    async def deliver(messages: int) -> float:
        await save(messages)
        began = perf_counter_ns()
        while rows := list(await database.execute_fetchall(SELECT)):
            for row in rows:
                event = OrderPlaced.model_validate_json(row["payload"])
                await database.execute("BEGIN IMMEDIATE")
                await database.execute(INBOX, {"handler": HANDLER, "message_id": row["event_id"]})
                await database.execute(EFFECT, {"order_id": event.order_id})
                await database.execute("COMMIT")
            marks = ", ".join("?" * len(rows))
            await database.execute(f"{DELETE} ({marks})", [row["id"] for row in rows])
        return (perf_counter_ns() - began) / messages

    return deliver


async def _through_session(stack: AsyncExitStack, file: Path) -> Contestant:
    save = await _saver(stack, file)
    engine = engine_by_hand(file)
    stack.push_async_callback(engine.dispose)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    select, inbox = text(SELECT), text(INBOX)
    delete = text(f"{DELETE} :ids").bindparams(bindparam("ids", expanding=True))

    async def deliver(messages: int) -> float:
        await save(messages)
        began = perf_counter_ns()
        while True:
            async with sessions() as session:
                rows = (await session.execute(select)).all()
            if not rows:
                return (perf_counter_ns() - began) / messages
            for row in rows:
                event = OrderPlaced.model_validate_json(row.payload)
                async with sessions.begin() as session:
                    await session.execute(inbox, {"handler": HANDLER, "message_id": row.event_id})
                    await session.execute(effect, {"order_id": event.order_id})
            async with sessions.begin() as session:
                await session.execute(delete, {"ids": [row.id for row in rows]})

    return deliver
