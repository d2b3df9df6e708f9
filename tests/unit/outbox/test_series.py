from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

import cqrs
from cqrs.context import Trace
from cqrs.outbox.series import Series
from tests.unit.outbox.items import Noted, make
from tests.unit.outbox.support import run_sql, storage_of

Do = Callable[[AsyncConnection], Awaitable[None]]


async def nothing(connection: AsyncConnection) -> None: ...


async def fail(connection: AsyncConnection) -> None:
    raise ZeroDivisionError


async def lose(connection: AsyncConnection) -> None:
    await connection.invalidate()


async def change(connection: AsyncConnection) -> None:
    await connection.execution_options(logging_token="mine")


async def nest(connection: AsyncConnection) -> None:
    await connection.begin_nested()


class Scene:
    """An application with a handler of each kind, which tell of the connections that they had."""

    def __init__(self, registry: cqrs.Registry, database: str) -> None:
        self.do: Do = nothing
        self.had: list[Any] = []

        @registry.event_handler(name="by connection")
        async def by_connection(event: Noted, connection: AsyncConnection) -> None:
            await connection.execute(text("SELECT 1"))
            self.had.append(connection.sync_connection)
            await self.do(connection)

        @registry.event_handler(name="by session")
        async def by_session(event: Noted, session: AsyncSession) -> None:
            self.had.append(self.lent)

        self.app = make(registry, database)

    @property
    def lent(self) -> int:
        """How many connections the pool has lent."""
        pool: Any = storage_of(self.app).store.writers.sync_engine.pool
        return int(pool.checkedout())

    @asynccontextmanager
    async def series(self) -> AsyncGenerator[Series]:
        async with self.app, self.app.series() as series:
            yield series

    async def deliver(self, series: Series, message_id: str, name: str = "by connection", do: Do = nothing) -> None:
        self.do = do
        plan = self.app.plan_of(Noted)
        [handler] = [handler for handler in plan.handlers if handler.name == name]
        begin = partial(series.unit, handler, message_id)
        await self.app.deliver(handler, plan, Noted(), Trace(message_id, message_id), begin)


@pytest.fixture
def scene(registry: cqrs.Registry, database: str) -> Scene:
    return Scene(registry, database)


async def test_deliveries_of_handlers_that_ask_for_the_connection_have_the_same_one(scene: Scene):
    async with scene.series() as series:
        for number in range(3):
            await scene.deliver(series, f"m{number}")
    assert len(scene.had) == 3
    assert len(set(scene.had)) == 1


async def test_each_of_them_has_a_transaction_of_its_own(scene: Scene, database: str):
    async with scene.series() as series:
        await scene.deliver(series, "m1")
        with pytest.raises(ZeroDivisionError):
            await scene.deliver(series, "m2", do=fail)
        assert await run_sql(database, "SELECT message_id FROM cqrs_inbox") == ["m1"]
        await scene.deliver(series, "m2")
    assert await run_sql(database, "SELECT message_id FROM cqrs_inbox ORDER BY 1") == ["m1", "m2"]


async def test_another_handler_does_not_wait_for_the_database_with_a_connection_in_hand(scene: Scene):
    async with scene.series() as series:
        await scene.deliver(series, "m1")
        assert scene.lent == 1
        await scene.deliver(series, "m1", "by session")
    assert scene.had[1] == 0


async def test_the_connection_is_given_back_in_the_end(scene: Scene):
    async with scene.app:
        async with scene.app.series() as series:
            await scene.deliver(series, "m1")
        assert scene.lent == 0


@pytest.mark.parametrize("do", [change, fail, lose])
async def test_a_connection_that_is_no_longer_as_it_came_is_not_kept(scene: Scene, do: Do):
    async with scene.series() as series:
        try:
            await scene.deliver(series, "m1", do=do)
        except Exception:  # noqa: BLE001 - what is lost cannot be committed either
            assert do is not change
        assert scene.lent == 0
        await scene.deliver(series, "m2")
    assert len(set(scene.had)) == 2


async def test_a_savepoint_that_was_left_open_is_not_in_the_way_of_the_next_delivery(scene: Scene, database: str):
    async with scene.series() as series:
        await scene.deliver(series, "m1", do=nest)
        await scene.deliver(series, "m2", do=nest)
    assert await run_sql(database, "SELECT count(*) FROM cqrs_inbox") == [2]
