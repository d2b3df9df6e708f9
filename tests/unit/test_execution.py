import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs


class Start(cqrs.Command[Any]):
    depth: int = 0


class Inner(cqrs.Command[Any]):
    depth: int = 0


class Look(cqrs.Query[Any]):
    pass


class One(cqrs.Event):
    name: str = ""


class Two(cqrs.Event):
    name: str = ""


class Ping(cqrs.Event):
    pass


class Pong(cqrs.Event):
    pass


# Local events


async def test_handlers_of_a_local_event_run_after_the_emitting_handler(registry: cqrs.Registry):
    log = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())
        log.append("command")
        return "reply"

    @registry.event_handler
    async def first(event: One) -> None:
        log.append("first")

    @registry.event_handler
    async def second(event: One) -> None:
        log.append("second")

    assert await cqrs.bootstrap(registry=registry).send(Start()) == "reply"
    assert log == ["command", "first", "second"]


async def test_local_events_are_handled_breadth_first(registry: cqrs.Registry):
    log = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One(name="a"))
        context.emit(One(name="b"))

    @registry.event_handler
    async def one(event: One, context: cqrs.Context) -> None:
        log.append(event.name)
        context.emit(Two(name=f"{event.name}1"))
        context.emit(Two(name=f"{event.name}2"))

    @registry.event_handler
    async def two(event: Two) -> None:
        log.append(event.name)

    await cqrs.bootstrap(registry=registry).send(Start())
    assert log == ["a", "b", "a1", "a2", "b1", "b2"]


async def test_handlers_get_the_very_event_that_was_emitted(registry: cqrs.Registry):
    emitted, seen = One(name="a"), []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(emitted)

    @registry.event_handler
    async def one(event: One) -> None:
        seen.append(event)

    await cqrs.bootstrap(registry=registry).send(Start())
    assert seen[0] is emitted


async def test_an_event_that_nobody_handles_is_no_error(registry: cqrs.Registry):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())
        return "reply"

    assert await cqrs.bootstrap(registry=registry).send(Start()) == "reply"


async def test_a_failing_handler_of_a_local_event_fails_the_command(registry: cqrs.Registry):
    error, log = ValueError("no stock"), []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())

    @registry.event_handler
    async def failing(event: One) -> None:
        raise error

    @registry.event_handler
    async def next_one(event: One) -> None:
        log.append("ran")

    with pytest.raises(ValueError, match="no stock") as caught:
        await cqrs.bootstrap(registry=registry).send(Start())
    assert caught.value is error
    assert log == []


async def test_events_of_a_command_that_failed_are_not_handled(registry: cqrs.Registry):
    log = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())
        raise ValueError("no")

    @registry.event_handler
    async def one(event: One) -> None:
        log.append("ran")

    app = cqrs.bootstrap(registry=registry)
    with pytest.raises(ValueError, match="no"):
        await app.send(Start())
    assert log == []


async def test_local_handlers_share_the_commands_transaction(registry: cqrs.Registry, database: str):
    sessions = []

    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        sessions.append(session)
        context.emit(One())

    @registry.event_handler
    async def one(event: One, session: AsyncSession) -> None:
        sessions.append(session)

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        await app.send(Start())
    assert sessions[0] is sessions[1]


async def test_a_cycle_of_events_ends_with_an_error_that_shows_the_chain(registry: cqrs.Registry):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(Ping())

    @registry.event_handler
    async def ping(event: Ping, context: cqrs.Context) -> None:
        context.emit(Pong())

    @registry.event_handler
    async def pong(event: Pong, context: cqrs.Context) -> None:
        context.emit(Ping())

    with pytest.raises(cqrs.EventCycle) as caught:
        await cqrs.bootstrap(registry=registry).send(Start())
    chain = caught.value.chain
    assert chain[:4] == (Start, Ping, Pong, Ping)
    last = " -> ".join(kind.__name__ for kind in chain[-8:])
    assert last.count("Ping -> Pong") >= 3
    assert str(caught.value) == (
        f"{len(chain)} messages caused each other without end: ... -> {last}. "
        "Break the cycle, or make one of the handlers durable so that it runs in a transaction of its own."
    )


async def test_a_command_that_sends_itself_without_end_is_stopped(registry: cqrs.Registry):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        await context.send(Start(depth=command.depth + 1))

    with pytest.raises(cqrs.EventCycle, match="Start -> Start"):
        await cqrs.bootstrap(registry=registry).send(Start())


async def test_a_long_chain_that_ends_is_no_cycle(registry: cqrs.Registry):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        return await context.send(Start(depth=command.depth + 1)) if command.depth < 50 else command.depth

    assert await cqrs.bootstrap(registry=registry).send(Start()) == 50


async def test_many_events_beside_each_other_are_no_cycle(registry: cqrs.Registry):
    seen = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        for number in range(500):
            context.emit(One(name=str(number)))

    @registry.event_handler
    async def one(event: One) -> None:
        seen.append(int(event.name))

    await cqrs.bootstrap(registry=registry).send(Start())
    assert seen == list(range(500))


# Concurrent handlers


async def test_concurrent_handlers_run_side_by_side(registry: cqrs.Registry):
    here, there = asyncio.Event(), asyncio.Event()

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())

    @registry.event_handler(concurrent=True)
    async def first(event: One) -> None:
        here.set()
        await there.wait()

    @registry.event_handler(concurrent=True)
    async def second(event: One) -> None:
        there.set()
        await here.wait()

    async with asyncio.timeout(10):
        await cqrs.bootstrap(registry=registry).send(Start())
    assert here.is_set()
    assert there.is_set()


async def test_the_command_waits_for_concurrent_handlers(registry: cqrs.Registry):
    log = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())

    @registry.event_handler(concurrent=True)
    async def slow(event: One) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        log.append("slow")

    await cqrs.bootstrap(registry=registry).send(Start())
    assert log == ["slow"]


async def test_a_concurrent_handler_may_not_use_the_session(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())

    @registry.event_handler(concurrent=True, name="stock.count")
    async def count(event: One, session: AsyncSession) -> None: ...

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        with pytest.raises(cqrs.MisuseError) as caught:
            await app.send(Start())
    assert str(caught.value).startswith("stock.count (")
    assert str(caught.value).endswith(
        ") is concurrent, so it may not use the session: a session serves one task. "
        "Remove concurrent=True, or leave the database to another handler."
    )


async def test_what_a_concurrent_handler_sends_may_not_use_the_session_either(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())

    @registry.event_handler(concurrent=True)
    async def count(event: One, context: cqrs.Context) -> None:
        await context.send(Inner())

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession) -> Any: ...

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        with pytest.raises(cqrs.MisuseError, match="is concurrent, so it may not use the session"):
            await app.send(Start())


async def test_events_of_concurrent_handlers_are_handled(registry: cqrs.Registry):
    seen = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())

    @registry.event_handler(concurrent=True)
    async def first(event: One, context: cqrs.Context) -> None:
        context.emit(Two(name="first"))

    @registry.event_handler(concurrent=True)
    async def second(event: One, context: cqrs.Context) -> None:
        context.emit(Two(name="second"))

    @registry.event_handler
    async def two(event: Two) -> None:
        seen.append(event.name)

    await cqrs.bootstrap(registry=registry).send(Start())
    assert sorted(seen) == ["first", "second"]


async def test_the_exception_of_one_concurrent_handler_arrives_as_it_is(registry: cqrs.Registry):
    error = ValueError("no")

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())

    @registry.event_handler(concurrent=True)
    async def failing(event: One) -> None:
        raise error

    @registry.event_handler(concurrent=True)
    async def fine(event: One) -> None: ...

    with pytest.raises(ValueError, match="no") as caught:
        await cqrs.bootstrap(registry=registry).send(Start())
    assert caught.value is error


async def test_exceptions_of_several_concurrent_handlers_arrive_together(registry: cqrs.Registry):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One())

    @registry.event_handler(concurrent=True)
    async def first(event: One) -> None:
        raise ValueError("first")

    @registry.event_handler(concurrent=True)
    async def second(event: One) -> None:
        raise KeyError("second")

    with pytest.raises(ExceptionGroup) as caught:
        await cqrs.bootstrap(registry=registry).send(Start())
    assert caught.group_contains(ValueError)
    assert caught.group_contains(KeyError)


# Nested sends


@pytest.mark.parametrize("through", ["context", "app"])
async def test_a_nested_send_joins_the_transaction(registry: cqrs.Registry, database: str, through: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context, app: cqrs.Mediator) -> Any:
        nested = await (context if through == "context" else app).send(Inner())
        return nested is session

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession) -> Any:
        return session

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        assert await app.send(Start()) is True


async def create_table(database: str) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(database)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE items (name TEXT)"))
    await engine.dispose()


async def items(database: str) -> list[str]:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(database)
    async with engine.connect() as connection:
        rows = (await connection.execute(text("SELECT name FROM items ORDER BY name"))).scalars().all()
    await engine.dispose()
    return list(rows)


async def test_what_a_handler_that_asks_for_nothing_sent_is_undone_with_it(registry: cqrs.Registry, database: str):
    await create_table(database)
    cell: list[cqrs.Mediator] = []

    @registry.command_handler
    async def start(command: Start) -> Any:
        await cell[0].send(Inner())
        raise ValueError("afterwards")

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession) -> Any:
        await session.execute(text("INSERT INTO items VALUES ('inner')"))

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        cell.append(app)
        with pytest.raises(ValueError, match="afterwards"):
            await app.send(Start())
        assert await items(database) == []


async def test_what_a_handler_that_asks_for_nothing_sent_is_saved_with_it(registry: cqrs.Registry, database: str):
    await create_table(database)
    cell: list[cqrs.Mediator] = []

    @registry.command_handler
    async def start(command: Start) -> Any:
        await cell[0].send(Inner())

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession) -> Any:
        await session.execute(text("INSERT INTO items VALUES ('inner')"))

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        cell.append(app)
        await app.send(Start())
        assert await items(database) == ["inner"]


async def test_a_nested_failure_that_was_caught_cannot_be_committed(registry: cqrs.Registry, database: str):
    await create_table(database)

    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(text("INSERT INTO items VALUES ('outer')"))
        try:
            await context.send(Inner())
        except ValueError:
            return "went on"

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession) -> Any:
        await session.execute(text("INSERT INTO items VALUES ('half')"))
        raise ValueError("no")

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        with pytest.raises(cqrs.TransactionMisuse, match="The nested Inner failed and its exception was caught"):
            await app.send(Start())
        assert await items(database) == []


async def test_a_nested_commands_events_are_handled_before_it_returns(registry: cqrs.Registry):
    log = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(One(name="outer"))
        await context.send(Inner())
        log.append("inner has returned")

    @registry.command_handler
    async def inner(command: Inner, context: cqrs.Context) -> Any:
        context.emit(One(name="inner"))

    @registry.event_handler
    async def one(event: One) -> None:
        log.append(event.name)

    await cqrs.bootstrap(registry=registry).send(Start())
    assert log == ["inner", "inner has returned", "outer"]


async def test_a_nested_sends_reply_is_the_handlers(registry: cqrs.Registry):
    reply = object()

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        return await context.send(Inner())

    @registry.command_handler
    async def inner(command: Inner) -> Any:
        return reply

    assert await cqrs.bootstrap(registry=registry).send(Start()) is reply


async def test_an_event_sent_inside_a_handler_is_handled_at_once(registry: cqrs.Registry):
    log = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        assert await context.send(One(name="now")) is None
        log.append("command")

    @registry.event_handler
    async def one(event: One) -> str:
        log.append(event.name)
        return "ignored"

    await cqrs.bootstrap(registry=registry).send(Start())
    assert log == ["now", "command"]


async def test_a_query_within_a_command_sees_what_it_has_written(registry: cqrs.Registry, database: str):
    await create_table(database)

    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(text("INSERT INTO items VALUES ('mine')"))
        return await context.send(Look())

    @registry.query_handler
    async def look(query: Look, session: AsyncSession) -> Any:
        return (await session.execute(text("SELECT name FROM items"))).scalars().all()

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        assert await app.send(Start()) == ["mine"]


async def test_a_query_that_failed_within_a_command_spoils_nothing(registry: cqrs.Registry, database: str):
    await create_table(database)

    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(text("INSERT INTO items VALUES ('mine')"))
        try:
            await context.send(Look())
        except LookupError:
            return "not found"

    @registry.query_handler
    async def look(query: Look) -> Any:
        raise LookupError("nothing")

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        assert await app.send(Start()) == "not found"
        assert await items(database) == ["mine"]


async def test_what_a_query_writes_is_not_saved(registry: cqrs.Registry, database: str):
    await create_table(database)

    @registry.query_handler
    async def look(query: Look, session: AsyncSession) -> Any:
        await session.execute(text("INSERT INTO items VALUES ('query')"))

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        await app.send(Look())
        assert await items(database) == []


@pytest.mark.parametrize("through", ["context", "app"])
async def test_a_query_may_not_send_a_command(registry: cqrs.Registry, through: str):
    @registry.query_handler
    async def look(query: Look, context: cqrs.Context, app: cqrs.Mediator) -> Any:
        await (context if through == "context" else app).send(Inner())

    @registry.command_handler
    async def inner(command: Inner) -> Any: ...

    with pytest.raises(cqrs.QueryViolation) as caught:
        await cqrs.bootstrap(registry=registry).send(Look())
    assert str(caught.value) == (
        "The command Inner was sent while the query Look was handled. Queries change nothing: make it a command."
    )


async def test_a_query_may_not_deliver_an_event(registry: cqrs.Registry):
    @registry.query_handler
    async def look(query: Look, context: cqrs.Context) -> Any:
        await context.send(One())

    @registry.event_handler
    async def one(event: One) -> None: ...

    with pytest.raises(cqrs.QueryViolation, match="The event One was sent while the query Look was handled"):
        await cqrs.bootstrap(registry=registry).send(Look())


async def test_a_query_within_a_command_may_not_send_a_command(registry: cqrs.Registry):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        return await context.send(Look())

    @registry.query_handler
    async def look(query: Look, context: cqrs.Context) -> Any:
        await context.send(Inner())

    @registry.command_handler
    async def inner(command: Inner) -> Any: ...

    with pytest.raises(cqrs.QueryViolation, match="The command Inner was sent while the query Look was handled"):
        await cqrs.bootstrap(registry=registry).send(Start())


async def test_a_query_may_send_another_query(registry: cqrs.Registry):
    class Glance(cqrs.Query[Any]):
        pass

    @registry.query_handler
    async def look(query: Look, context: cqrs.Context) -> Any:
        return await context.send(Glance())

    @registry.query_handler
    async def glance(query: Glance) -> Any:
        return "seen"

    assert await cqrs.bootstrap(registry=registry).send(Look()) == "seen"
