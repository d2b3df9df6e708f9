import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import cqrs
from cqrs.context import Trace
from tests.unit.outbox.items import (
    INSERT,
    ITEMS,
    SAVED,
    Happened,
    Inner,
    Look,
    Noted,
    Start,
    cancel_at_every_moment,
    make,
    with_happened,
    with_items,
)
from tests.unit.outbox.support import relay_all, run_sql, storage_of


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    name: Mapped[str] = mapped_column(primary_key=True)


MORE = text("INSERT INTO items (name) VALUES ('milk')")


@pytest.fixture
async def database(database: str) -> str:
    return await with_items(database)


@pytest.fixture
def registry(registry: cqrs.Registry) -> cqrs.Registry:
    return with_happened(registry)


# What is committed


async def test_what_is_written_by_the_connection_is_committed_with_what_was_emitted(
    registry: cqrs.Registry, database: str
):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection, context: cqrs.Context) -> Any:
        await connection.execute(INSERT)
        context.emit(Happened())

    async with make(registry, database) as app:
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]
        assert await run_sql(database, SAVED) == [1]


async def test_what_is_written_by_the_connection_is_undone_when_the_handler_raises(
    registry: cqrs.Registry, database: str
):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection, context: cqrs.Context) -> Any:
        await connection.execute(INSERT)
        context.emit(Happened())
        raise ValueError("no")

    async with make(registry, database) as app:
        with pytest.raises(ValueError, match="no"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]


async def test_a_handler_class_may_ask_for_the_connection(registry: cqrs.Registry, database: str):
    @registry.command_handler
    class Starter:
        def __init__(self, connection: AsyncConnection) -> None:
            self.connection = connection

        async def handle(self, command: Start) -> Any:
            await self.connection.execute(INSERT)

    async with make(registry, database) as app:
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]


@pytest.mark.parametrize("first", ["session", "connection"])
async def test_session_and_connection_share_one_transaction(registry: cqrs.Registry, database: str, first: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, connection: AsyncConnection) -> Any:
        uses = {"session": session.execute(INSERT), "connection": connection.execute(MORE)}
        await uses.pop(first)
        await uses.popitem()[1]
        return list(await session.scalars(text(ITEMS))), list(await connection.scalars(text(ITEMS)))

    async with make(registry, database) as app:
        seen = await app.send(Start())
        assert seen == (await run_sql(database, ITEMS),) * 2
        assert len(seen[0]) == 2


@pytest.mark.parametrize("fails", [True, False])
async def test_handlers_of_one_command_share_the_transaction_whatever_they_ask_for(
    registry: cqrs.Registry, database: str, fails: bool
):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection, context: cqrs.Context) -> Any:
        await connection.execute(INSERT)
        await context.send(Inner())
        context.emit(Noted())

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession) -> Any:
        await session.execute(MORE)

    @registry.event_handler
    async def noted(event: Noted, connection: AsyncConnection) -> None:
        assert list(await connection.scalars(text(ITEMS))) == ["tea", "milk"]
        if fails:
            raise ValueError("no")

    async with make(registry, database) as app:
        if fails:
            with pytest.raises(ValueError, match="no"):
                await app.send(Start())
        else:
            await app.send(Start())
        assert await run_sql(database, ITEMS) == ([] if fails else ["tea", "milk"])


@pytest.mark.parametrize("fails", [True, False])
async def test_a_session_may_be_used_first_in_a_savepoint_of_the_connection(
    registry: cqrs.Registry, database: str, fails: bool
):
    @registry.event_handler
    async def noted(event: Noted, session: AsyncSession) -> None:
        await session.execute(INSERT)

    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection, context: cqrs.Context) -> Any:
        with suppress(LookupError):
            async with connection.begin_nested():
                await context.send(Noted())
                if fails:
                    raise LookupError
        await connection.execute(MORE)

    async with make(registry, database) as app:
        await app.send(Start())
        assert await run_sql(database, ITEMS) == (["milk"] if fails else ["tea", "milk"])


async def test_what_a_session_that_joined_the_connection_holds_is_flushed(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection, session: AsyncSession) -> Any:
        session.add(Item(name="coffee"))

    async with make(registry, database) as app:
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["coffee"]


async def test_a_query_commits_nothing_by_the_connection(registry: cqrs.Registry, database: str):
    @registry.query_handler
    async def look(query: Look, connection: AsyncConnection) -> Any:
        return await connection.scalar(text("SELECT count(*) FROM items"))

    async with make(registry, database) as app:
        for _ in range(30):  # more than a pool has
            assert await app.send(Look()) == 0


async def test_local_handlers_of_what_is_emitted_in_ones_own_session_get_its_connection(
    registry: cqrs.Registry, database: str
):
    @registry.event_handler
    async def noted(event: Noted, connection: AsyncConnection) -> None:
        await connection.execute(INSERT)

    engine = create_async_engine(database)
    async with make(registry, database) as app, AsyncSession(engine) as session:
        await app.emit(Noted(), session)
        assert list(await session.scalars(text(ITEMS))) == ["tea"]
        await session.rollback()
        assert await run_sql(database, ITEMS) == []
    await engine.dispose()


# Deliveries


@pytest.mark.parametrize("group", [1, 10])
async def test_a_delivery_by_the_connection_takes_effect_once_beside_its_inbox_row(
    registry: cqrs.Registry, database: str, group: int
):
    @registry.event_handler(name="write", group=group)
    async def write(event: Happened, connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO items (name) VALUES (:name)"), {"name": event.order})

    async with make(registry, database) as app:
        for order in ("o1", "o2", "o3"):
            await app.emit(Happened(order=order))
        await relay_all(app)
        assert sorted(await run_sql(database, ITEMS)) == ["o1", "o2", "o3"]
        assert await run_sql(database, "SELECT count(*) FROM cqrs_inbox WHERE handler = 'write'") == [3]
        assert (await app.outbox.counts()).outbox == 0


async def test_a_handler_that_has_taken_a_message_is_not_called_again(registry: cqrs.Registry, database: str):
    calls = []

    @registry.event_handler(name="write")
    async def write(event: Happened, connection: AsyncConnection) -> None:
        calls.append(event)

    async with make(registry, database) as app:
        await app.emit(Happened())
        (event_id,) = await run_sql(database, "SELECT event_id FROM cqrs_outbox WHERE destination = 'write'")
        await relay_all(app)
        plan = app.plan_of(Happened)
        (handler,) = [handler for handler in plan.handlers if handler.name == "write"]
        async with app.series() as series:
            begin = partial(series.unit, handler, event_id)
            await app.deliver(handler, plan, Happened(), Trace(event_id, event_id), begin)
        assert len(calls) == 1


# What handlers may not do

Misuse = Callable[[AsyncConnection], Awaitable[Any]]


async def leave(connection: AsyncConnection) -> None:
    async with connection:
        pass


@pytest.mark.parametrize(
    ("misuse", "told"),
    [
        (lambda connection: connection.commit(), r"connection\.commit\(\)"),
        (lambda connection: connection.rollback(), r"connection\.rollback\(\)"),
        (lambda connection: connection.close(), "closed its connection"),
        (leave, "closed its connection"),
    ],
)
@pytest.mark.parametrize("catches", [True, False])
async def test_a_handler_may_not_end_the_transaction(
    registry: cqrs.Registry, database: str, misuse: Misuse, told: str, catches: bool
):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await connection.execute(INSERT)
        try:
            await misuse(connection)
        except cqrs.TransactionMisuse:
            if not catches:
                raise

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse, match=told):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]


async def test_an_end_past_the_connection_saves_none_of_the_events(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await connection.execute(INSERT)
        await connection.run_sync(Connection.commit)

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse, match="past its session or connection"):
            await app.send(Start())
        assert await run_sql(database, SAVED) == [0]


@pytest.mark.parametrize("statement", ["ROLLBACK", "COMMIT"])
@pytest.mark.parametrize("goes_on", [True, False])
async def test_an_end_by_a_statement_saves_none_of_the_events(
    registry: cqrs.Registry, database: str, statement: str, goes_on: bool
):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await session.execute(INSERT)
        await session.execute(text(statement))
        if goes_on:
            await session.execute(text("SELECT 1"))

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse, match="past its session or connection"):
            await app.send(Start())
        assert await run_sql(database, SAVED) == [0]


async def test_a_handler_may_undo_a_part_in_a_savepoint(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection) -> Any:
        await connection.execute(INSERT)
        with suppress(IntegrityError):
            async with connection.begin_nested():
                await connection.execute(MORE)
                await connection.execute(INSERT)

    async with make(registry, database) as app:
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]


async def test_another_task_may_not_use_the_connection(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection) -> Any:
        await asyncio.gather(connection.execute(INSERT), connection.execute(MORE))

    async with make(registry, database) as app:
        with pytest.raises(cqrs.ForeignTask, match="gather"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []


async def test_a_concurrent_handler_has_no_connection(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(Noted())

    @registry.event_handler(concurrent=True)
    async def noted(event: Noted, connection: AsyncConnection) -> None: ...

    async with make(registry, database) as app:
        with pytest.raises(cqrs.MisuseError, match="may not use the connection"):
            await app.send(Start())


async def test_a_connection_that_was_kept_is_closed_when_its_command_has_ended(registry: cqrs.Registry, database: str):
    kept: list[AsyncConnection] = []

    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection) -> Any:
        kept.append(connection)

    async with make(registry, database) as app:
        await app.send(Start())
        with pytest.raises(ResourceClosedError):
            await kept[0].execute(INSERT)


async def test_a_session_that_chooses_its_engine_itself_cannot_join_the_connection(
    registry: cqrs.Registry, database: str
):
    engine = create_async_engine(database)

    class RoutingSession(Session):
        def get_bind(self, *arguments: Any, **options: Any) -> Any:
            return engine.sync_engine

    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection, context: cqrs.Context) -> Any:
        await context.send(Inner())

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession) -> Any:
        await session.scalar(text("SELECT 1"))

    sessions = async_sessionmaker(engine, sync_session_class=RoutingSession)
    async with make(registry, sessions) as app:
        with pytest.raises(cqrs.TransactionMisuse, match=r"get_bind\(\)"):
            await app.send(Start())
    await engine.dispose()


def test_without_a_database_the_way_out_is_told(registry: cqrs.Registry):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection) -> Any: ...

    with pytest.raises(cqrs.ConfigurationError, match="database"):
        cqrs.bootstrap(registry=registry, name="shop")


async def test_the_application_goes_on_at_whatever_moment_commands_are_cancelled(
    registry: cqrs.Registry, database: str
):
    @registry.command_handler
    async def start(command: Start, connection: AsyncConnection, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await connection.execute(text("INSERT OR REPLACE INTO items (name) VALUES ('tea')"))

    async with make(registry, database) as app:
        await cancel_at_every_moment(app, Start())
        for _ in range(30):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]
        assert storage_of(app).store.writers.pool.status().endswith("Current Checked out connections: 0")
