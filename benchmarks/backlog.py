"""What stands in a relay's way: a long backlog, a transaction that stays open, rows of a topic out of reach."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks import servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line, ratio
from benchmarks.ours import Publisher, alternate, running
from benchmarks.relay import conditions, database, rates
from benchmarks.rows import KEYS, TOPIC, prepare

DEAD_TOPIC = "gone"


async def with_backlog(effort: Effort) -> list[Line]:
    """Deliver the first rows of a long backlog, against an outbox that holds no others."""
    number = effort.rows
    rounds = effort.few_rounds
    async with AsyncExitStack() as stack:
        total = effort.backlog + number * (rounds + 1)
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, total))
        alone = await stack.enter_async_context(running(engine, Publisher(), url=url, prefix="alone_"))
        behind = await stack.enter_async_context(running(engine, Publisher(), url=url))
        behind.publisher.is_open = False
        await behind.outbox.fill(total)
        contestants = {"alone": lambda: alone.refilled_part(number, afresh=True), "behind": lambda: behind.part(number)}
        taken = await alternate(contestants, rounds)
    found, spread = ratio(taken["alone"], taken["behind"])
    return [
        Line(
            name="relay-backlog",
            what=f"rate with a backlog of {effort.backlog:,} rows, against the rate without",
            bar=Bar(0.9),
            measured=found,
            spread=spread,
            rates=rates(taken, {"behind": "with", "alone": "without"}),
            conditions=conditions(number, behind.pace, "to nothing"),
        )
    ]


async def beside_transactions(effort: Effort) -> list[Line]:
    """Deliver the rows behind many others while another transaction has been open from before the first."""
    number, passed = effort.rows, effort.passed
    async with AsyncExitStack() as stack:
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, passed + number))
        other = create_async_engine(url)
        stack.push_async_callback(other.dispose)
        ours = await stack.enter_async_context(running(engine, Publisher(), url=url))

        async def behind(kind: str) -> float:
            await ours.outbox.empty()
            async with _open_transaction(other, kind):
                ours.publisher.expect(passed)
                await ours.outbox.fill(passed)
                await ours.delivered(passed)
                ours.publisher.expect(number)
                await ours.outbox.fill(number, first=passed + 1)
                return await ours.delivered(number)

        kinds = ("none", "read", "wrote")
        taken = await alternate({kind: partial(behind, kind) for kind in kinds}, effort.few_rounds)
    lines = []
    for kind, title in (("read", "has only read (REPEATABLE READ)"), ("wrote", "has written")):
        found, spread = ratio(taken["none"], taken[kind])
        lines.append(
            Line(
                name=f"relay-beside-transaction-that-{kind}",
                what=f"rate after {passed:,} rows beside an open transaction that {title}, against the rate without it",
                bar=Bar(0.75),
                measured=found,
                spread=spread,
                rates=rates(taken, {kind: "beside it", "none": "without"}),
                conditions=conditions(number, ours.pace, "to nothing"),
            )
        )
    return lines


@asynccontextmanager
async def _open_transaction(engine: AsyncEngine, kind: str) -> AsyncIterator[None]:
    """Keep a transaction open that holds a snapshot, a transaction id, or does not exist."""
    if kind == "none":
        yield
        return
    level = "REPEATABLE READ" if kind == "read" else "READ COMMITTED"
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level=level)
        await connection.execute(
            text("SELECT count(*) FROM bench_key" if kind == "read" else "SELECT pg_current_xact_id()")
        )
        yield
        await connection.rollback()


async def behind_dead_topic(effort: Effort) -> list[Line]:
    """Deliver a topic's rows behind those of another one that is out of reach."""
    number, dead = effort.rows, effort.backlog
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(servers.scratch(servers.POSTGRESQL))
        engine = create_async_engine(url)
        stack.push_async_callback(engine.dispose)
        await prepare(engine, max(dead, number), topics=(TOPIC, DEAD_TOPIC))
        alone = await stack.enter_async_context(running(engine, Publisher(), url=url, prefix="alone_"))
        publisher = Publisher(dead_topic=DEAD_TOPIC)
        behind = await stack.enter_async_context(running(engine, publisher, url=url))
        await behind.outbox.fill(dead, topic=DEAD_TOPIC)
        taken = await alternate(
            {
                "alone": lambda: alone.refilled_part(number, afresh=True),
                "behind": lambda: behind.refilled_part(number, afresh=False),
            },
            effort.few_rounds,
        )
    found, spread = ratio(taken["alone"], taken["behind"])
    return [
        Line(
            name="relay-dead-topic",
            what=f"rate with {dead:,} rows of a topic out of reach in front, against the rate without",
            bar=Bar(0.8),
            measured=found,
            spread=spread,
            rates=rates(taken, {"behind": "with", "alone": "without"}),
            conditions=conditions(number, behind.pace, "to nothing", keys=KEYS),
        )
    ]


JOBS = [
    Job("relay-backlog", "a long backlog", with_backlog, (servers.POSTGRESQL,)),
    Job("relay-beside-transaction", "beside a transaction that stays open", beside_transactions, (servers.POSTGRESQL,)),
    Job("relay-dead-topic", "behind the rows of a topic out of reach", behind_dead_topic, (servers.POSTGRESQL,)),
]
