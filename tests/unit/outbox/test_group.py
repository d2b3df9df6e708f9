from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from cqrs.outbox.transaction import AlreadyTaken
from tests.unit.outbox.support import run_sql, storage_of


class Counted(cqrs.Event):
    number: int


class Echoed(cqrs.Event):
    number: int


class Count(cqrs.Command[None]):
    numbers: list[int]


class Scene:
    """An application whose handler takes groups, notes each call with its transaction, and writes a row."""

    def __init__(self, registry: cqrs.Registry, database: str, *, group: int = 50, fails: tuple[int, ...] = ()) -> None:
        self.calls: list[int] = []
        self.transactions: list[Any] = []
        self.database = database
        counted = registry.integration_event(topic="counts")(Counted)

        @registry.command_handler
        async def count(command: Count, context: cqrs.Context) -> None:
            for number in command.numbers:
                context.emit(counted(number=number))

        @registry.event_handler(name="note", group=group, retry=cqrs.Retry(attempts=1))
        async def note(event: Counted, session: AsyncSession, context: cqrs.Context) -> None:
            self.calls.append(event.number)
            connection = await session.connection()
            self.transactions.append(connection.sync_connection.connection.dbapi_connection)
            await session.execute(text("insert into noted (number) values (:n)"), {"n": event.number})
            context.emit(Echoed(number=event.number))
            if event.number in fails:
                raise ValueError(f"{event.number} fails")

        @registry.event_handler(name="echo", durable=True)
        async def echo(event: Echoed, session: AsyncSession) -> None:
            await session.execute(text("insert into echoes (number) values (:n)"), {"n": event.number})

        self.app = cqrs.bootstrap(registry=registry, name="scene", database=database)

    async def run(self, *numbers: int) -> None:
        await run_sql(
            self.database,
            "create table noted (id integer primary key, number integer)",
            "create table echoes (id integer primary key, number integer)",
        )
        async with self.app:
            await self.app.send(Count(numbers=list(numbers)))
            try:
                await self.app.drain()
            except cqrs.DrainTimeout:
                return

    async def noted(self, table: str = "noted") -> list[int]:
        return await run_sql(self.database, f"select number from {table} order by number")


async def test_messages_of_a_group_take_effect_once_each(registry: cqrs.Registry, database: str):
    scene = Scene(registry, database)
    await scene.run(*range(120))
    assert await scene.noted() == list(range(120))
    assert sorted(scene.calls) == list(range(120))


async def test_what_a_group_emits_is_delivered(registry: cqrs.Registry, database: str):
    scene = Scene(registry, database)
    await scene.run(*range(10))
    assert await scene.noted("echoes") == list(range(10))


async def test_one_that_fails_takes_nothing_of_its_group_with_it(registry: cqrs.Registry, database: str):
    scene = Scene(registry, database, fails=(3,))
    await scene.run(*range(8))
    assert await scene.noted() == [0, 1, 2, 4, 5, 6, 7]
    assert await scene.noted("echoes") == [0, 1, 2, 4, 5, 6, 7]


async def test_every_message_of_a_group_has_its_inbox_row(registry: cqrs.Registry, database: str):
    scene = Scene(registry, database)
    await scene.run(*range(8))
    assert await run_sql(database, "select count(*) from cqrs_inbox where handler = 'note'") == [8]


async def test_a_handler_takes_no_groups_unless_it_asks_for_them(registry: cqrs.Registry, database: str):
    scene = Scene(registry, database, group=1, fails=(3,))
    await scene.run(*range(8))
    assert sorted(scene.calls) == list(range(8))


@pytest.mark.parametrize("group", [0, -1, 1001, "50", True, 2.5])
def test_a_group_that_is_no_number_of_messages_is_refused(registry: cqrs.Registry, group: Any):
    @registry.event_handler(group=group)
    async def handler(event: Echoed) -> None: ...

    with pytest.raises(cqrs.ConfigurationError, match="Pass a number of messages from 1 to 1000"):
        cqrs.bootstrap(registry=registry)


async def test_the_messages_of_a_group_share_a_transaction(registry: cqrs.Registry, database: str):
    app = Scene(registry, database).app
    [handler] = [handler for plan in app.plans.values() for handler in plan.handlers if handler.name == "note"]
    plan = app.plan_of(Counted)
    await run_sql(database, "create table noted (id integer primary key, number integer)")
    async with app:
        with pytest.raises(ZeroDivisionError):
            await fail_after(
                app.group(handler, ["m1"]),
                lambda group: app.deliver(handler, plan, Counted(number=1), trace("m1"), group.unit),
            )
        assert not await storage_of(app).has_taken(handler, "m1")
        async with app.group(handler, ["m1", "m2"]) as group:
            await app.deliver(handler, plan, Counted(number=1), trace("m1"), group.unit)
            await app.deliver(handler, plan, Counted(number=2), trace("m2"), group.unit)
        for ids in (["m2", "m3"], ["m4", "m4"]):
            with pytest.raises(AlreadyTaken):
                await app.group(handler, ids).__aenter__()
    assert await run_sql(database, "select number from noted order by number") == [1, 2]


async def fail_after(group: Any, deliver: Callable[[Any], Awaitable[None]]) -> None:
    async with group as entered:
        await deliver(entered)
        raise ZeroDivisionError


def trace(message_id: str) -> Any:
    from cqrs.context import Trace

    return Trace(message_id, message_id)
