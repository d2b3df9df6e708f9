"""What one event adds to a transaction of one statement."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from time import perf_counter_ns
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

import cqrs
from benchmarks import report, servers
from benchmarks.effort import Effort
from benchmarks.latency import Nowhere
from benchmarks.lines import Bar, Job, Line, ratio, typical
from benchmarks.ours import OrderPlaced, alternate, application, migrate, registry
from benchmarks.relay import database
from benchmarks.rows import PAYLOAD, filler, key_of

CREATE = "CREATE TABLE business (id BIGINT PRIMARY KEY, note VARCHAR(500) NOT NULL)"
INSERT = text("INSERT INTO business (id, note) VALUES (:id, :note)")


class Write(cqrs.Command[None]):
    number: int


class WriteAndTell(cqrs.Command[None]):
    number: int


@registry.command_handler
async def write(command: Write, session: AsyncSession) -> None:
    await session.execute(INSERT, {"id": command.number, "note": filler()})


@registry.command_handler
async def write_and_tell(command: WriteAndTell, session: AsyncSession, context: cqrs.Context) -> None:
    await session.execute(INSERT, {"id": command.number, "note": filler()})
    context.emit(OrderPlaced(order_id=f"order-{command.number:09}", customer=key_of(command.number), note=filler()))


async def cost(effort: Effort, name: str, title: str, variable: str, bar: float) -> list[Line]:
    """Send commands one by one that write a row, with and without an event, and write it by hand."""
    async with AsyncExitStack() as stack:
        engine, url = await stack.enter_async_context(database(variable, 1))
        await migrate(engine)
        async with engine.begin() as connection:
            await connection.execute(text(CREATE))
        app = await stack.enter_async_context(application(url, Nowhere(), relay=False))
        sessions = async_sessionmaker(engine, expire_on_commit=False)
        next_number = iter(range(10**9)).__next__

        async def by_hand(number: int) -> None:
            async with sessions.begin() as session:
                await session.execute(INSERT, {"id": number, "note": filler()})

        async def without(number: int) -> None:
            await app.send(Write(number=number))

        async def event(number: int) -> None:
            await app.send(WriteAndTell(number=number))

        async def some(send: Any) -> float:
            began = perf_counter_ns()
            for _ in range(effort.inserts):
                await send(next_number())
            return (perf_counter_ns() - began) / effort.inserts

        ways = {"event": event, "without": without, "by_hand": by_hand}
        taken = await alternate({who: partial(some, send) for who, send in ways.items()}, effort.rounds)
    found, spread = ratio(taken["event"], taken["without"])
    shown = {"event": "with", "without": "without", "by_hand": "without, by hand"}
    return [
        Line(
            name=name,
            what=f"one event added to a transaction of one statement, {title}",
            bar=Bar(bar, most=True),
            measured=found,
            spread=spread,
            rates={each: report.time(typical(taken[who])[0]) for who, each in shown.items()},
            conditions=f"{effort.inserts} commands a round, one by one, payload {PAYLOAD} bytes, every commit synced",
        )
    ]


JOBS = [
    Job(
        "insert-postgresql",
        "one event added to a transaction, PostgreSQL",
        partial(cost, name="insert-postgresql", title="PostgreSQL", variable=servers.POSTGRESQL, bar=1.3),
        (servers.POSTGRESQL,),
    ),
    Job(
        "insert-mariadb",
        "one event added to a transaction, MariaDB",
        partial(cost, name="insert-mariadb", title="MariaDB", variable=servers.MYSQL, bar=1.8),
        (servers.MYSQL,),
    ),
]
