"""A handler that catches what ended its transaction on the server must not look as if it had succeeded."""

from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

import cqrs
from tests.servers import empty_database, server
from tests.unit.outbox.support import run_sql

pytestmark = pytest.mark.services

EFFECTS = "select id from effects order by id"
DEADLOCK = "signal sqlstate '40001' set mysql_errno = 1213, message_text = 'deadlock'"
DUPLICATE = "insert into effects (id) values ('there')"
ENDING = {"POSTGRES_URL": DUPLICATE, "MYSQL_URL": DEADLOCK}


@pytest.fixture(params=ENDING)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    """A database, and a statement that ends a transaction on it."""
    async with empty_database(server(request.param)) as database:
        await run_sql(database, "create table effects (id varchar(40) primary key)", DUPLICATE)
        yield database, ENDING[request.param]


class Order(cqrs.Command[None]):
    pass


class Effects(cqrs.Query[list[str]]):
    pass


async def test_a_command_whose_transaction_is_gone_has_failed(registry: cqrs.Registry, place: tuple[str, str]):
    database, ending = place

    @registry.command_handler
    async def order(command: Order, session: AsyncSession) -> None:
        await session.execute(text("insert into effects (id) values ('new')"))
        with suppress(DBAPIError):
            await session.execute(text(ending))

    async with cqrs.bootstrap(registry=registry, name="shop", database=database, migrate=True) as app:
        with pytest.raises(cqrs.TransactionMisuse, match="the database had ended the whole transaction"):
            await app.send(Order())
    assert await run_sql(database, EFFECTS) == ["there"]


async def test_what_failed_in_a_savepoint_is_no_harm(registry: cqrs.Registry, place: tuple[str, str]):
    @registry.command_handler
    async def order(command: Order, session: AsyncSession) -> None:
        await session.execute(text("insert into effects (id) values ('new')"))
        with suppress(DBAPIError):
            async with session.begin_nested():
                await session.execute(text(DUPLICATE))

    async with cqrs.bootstrap(registry=registry, name="shop", database=place[0], migrate=True) as app:
        await app.send(Order())
    assert await run_sql(place[0], EFFECTS) == ["new", "there"]


@pytest.fixture(params=["ours", "postgresql+asyncpg", "postgresql+psycopg"])
async def postgresql(request: pytest.FixtureRequest) -> AsyncIterator[str | AsyncEngine]:
    """A database on PostgreSQL: its URL, or an engine of the user's."""
    async with empty_database(server("POSTGRES_URL")) as database:
        await run_sql(database, "create table effects (id varchar(40) primary key)", DUPLICATE)
        if request.param == "ours":
            yield database
            return
        engine = create_async_engine(make_url(database).set(drivername=request.param))
        yield engine
        await engine.dispose()


@pytest.mark.parametrize("in_savepoint", [False, True])
async def test_an_error_of_the_driver_itself_that_was_caught_has_failed_unless_in_a_savepoint(
    registry: cqrs.Registry, postgresql: str | AsyncEngine, in_savepoint: bool
):
    @registry.command_handler
    async def order(command: Order, connection: AsyncConnection) -> None:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute("insert into effects (id) values ('new')")
        with suppress(Exception):
            async with connection.begin_nested() if in_savepoint else nullcontext():
                await driver.execute(DUPLICATE)

    @registry.query_handler
    async def effects(query: Effects, connection: AsyncConnection) -> list[str]:
        return list(await connection.scalars(text(EFFECTS)))

    async with cqrs.bootstrap(registry=registry, name="shop", database=postgresql, migrate=True) as app:
        if in_savepoint:
            await app.send(Order())
        else:
            with pytest.raises(cqrs.TransactionMisuse, match="the database had ended the whole transaction"):
                await app.send(Order())
        assert await app.send(Effects()) == (["new", "there"] if in_savepoint else ["there"])


@pytest.mark.parametrize("postgresql", ["ours", "postgresql+asyncpg"], indirect=True)  # psycopg begins anew
@pytest.mark.parametrize("statement", ["ROLLBACK", "COMMIT"])
async def test_an_end_by_a_statement_saves_none_of_the_events(
    registry: cqrs.Registry, postgresql: str | AsyncEngine, statement: str
):
    @registry.integration_event(topic="orders")
    class Ordered(cqrs.Event):
        pass

    @registry.event_handler
    async def bill(event: Ordered) -> None: ...

    @registry.command_handler
    async def order(command: Order, session: AsyncSession, context: cqrs.Context) -> None:
        context.emit(Ordered())
        await session.execute(text("SELECT 1"))
        await session.execute(text(statement))

    async with cqrs.bootstrap(registry=registry, name="shop", database=postgresql, migrate=True) as app:
        with pytest.raises(cqrs.TransactionMisuse, match="past its session or connection"):
            await app.send(Order())
        assert (await app.outbox.counts()).outbox == 0


@pytest.mark.parametrize("group", [1, 10])
async def test_a_delivery_whose_transaction_is_gone_is_parked_and_others_go_on(
    registry: cqrs.Registry, place: tuple[str, str], group: int
):
    database, ending = place

    @registry.integration_event(topic="orders", key="order")
    class OrderPlaced(cqrs.Event):
        order: str

    class PlaceAll(cqrs.Command[None]):
        orders: list[str]

    @registry.command_handler
    async def place_all(command: PlaceAll, context: cqrs.Context) -> None:
        for order in command.orders:
            context.emit(OrderPlaced(order=order))

    @registry.event_handler(group=group, retry=cqrs.Retry(attempts=1))
    async def bill(event: OrderPlaced, session: AsyncSession) -> None:
        await session.execute(text("insert into effects (id) values (:id)"), {"id": event.order})
        if event.order == "b":
            with suppress(DBAPIError):
                await session.execute(text(ending))

    async with cqrs.bootstrap(registry=registry, name="shop", database=database, migrate=True) as app:
        await app.send(PlaceAll(orders=["a", "b", "c", "d"]))
        with pytest.raises(cqrs.DrainTimeout):
            await app.drain()
        [letter] = await app.outbox.dead()
    assert letter.key == "b"
    assert await run_sql(database, EFFECTS) == ["a", "c", "d", "there"]
