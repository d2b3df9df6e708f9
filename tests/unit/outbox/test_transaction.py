import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

import cqrs
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
from tests.unit.outbox.support import run_sql, storage_of, until

MakeEngine = Callable[..., AsyncEngine]


@pytest.fixture
async def database(database: str) -> str:
    return await with_items(database)


@pytest.fixture
def registry(registry: cqrs.Registry) -> cqrs.Registry:
    return with_happened(registry)


@pytest.fixture
async def engine(make_engine: MakeEngine) -> AsyncEngine:
    return make_engine()


@pytest.fixture
async def make_engine(database: str) -> AsyncIterator[MakeEngine]:
    """Make engines of the user's own, and dispose of them afterwards."""
    async with AsyncExitStack() as stack:

        def make_engine(**options: Any) -> AsyncEngine:
            engine = create_async_engine(database, **options)
            stack.push_async_callback(engine.dispose)
            return engine

        yield make_engine


# What is committed


async def test_what_a_command_wrote_is_committed_when_its_handler_has_returned(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(INSERT)

    async with make(registry, database) as app:
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]


async def test_what_a_command_wrote_is_undone_when_its_handler_raises(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(INSERT)
        raise ValueError("no")

    async with make(registry, database) as app:
        with pytest.raises(ValueError, match="no"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []


async def test_what_a_command_wrote_is_undone_when_a_local_handler_raises(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(INSERT)
        context.emit(Happened())
        context.emit(Noted())

    @registry.event_handler
    async def noted(event: Noted) -> None:
        raise ValueError("no")

    async with make(registry, database) as app:
        with pytest.raises(ValueError, match="no"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]


async def test_a_command_that_uses_no_session_opens_none(registry: cqrs.Registry, engine: AsyncEngine):
    opened: list[Any] = []

    class CountedSession(AsyncSession):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            opened.append(self)

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any: ...

    async with make(registry, async_sessionmaker(engine, class_=CountedSession)) as app:
        await app.send(Start())
    assert opened == []


async def test_what_fails_at_the_flush_before_commit_undoes_all(registry: cqrs.Registry, database: str):
    await run_sql(database, "INSERT INTO items (name) VALUES ('tea')")

    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await session.execute(INSERT)

    async with make(registry, database) as app:
        with pytest.raises(IntegrityError):
            await app.send(Start())
        assert await run_sql(database, SAVED) == [0]


# Events


async def test_events_are_saved_with_the_command(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(Happened(order="o1"))
        context.emit(Happened(order="o2"))

    async with make(registry, database) as app:
        await app.send(Start())
        saved = await run_sql(database, "SELECT destination, topic, message_key, type FROM cqrs_outbox ORDER BY id")
    assert saved == [("receive", "orders", "o1", "Happened"), ("receive", "orders", "o2", "Happened")]


async def test_events_are_inserted_only_at_commit(registry: cqrs.Registry, database: str):
    counts = []

    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        context.emit(Happened())
        counts.append(await session.scalar(text(SAVED)))

    async with make(registry, database) as app:
        await app.send(Start())
        counts += await run_sql(database, SAVED)
    assert counts == [0, 1]


async def test_events_of_a_command_that_failed_are_not_saved(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(Happened())
        raise ValueError("no")

    async with make(registry, database) as app:
        with pytest.raises(ValueError, match="no"):
            await app.send(Start())
        assert await run_sql(database, SAVED) == [0]


async def test_events_of_local_handlers_and_nested_commands_are_saved_in_their_order(
    registry: cqrs.Registry, database: str
):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(Happened(order="first"))
        context.emit(Noted())
        await context.send(Inner())

    @registry.command_handler
    async def inner(command: Inner, context: cqrs.Context) -> Any:
        context.emit(Happened(order="second"))

    @registry.event_handler
    async def noted(event: Noted, context: cqrs.Context) -> None:
        context.emit(Happened(order="third"))

    async with make(registry, database) as app:
        await app.send(Start())
        keys = await run_sql(database, "SELECT message_key FROM cqrs_outbox ORDER BY id")
    assert keys == ["first", "second", "third"]


async def test_an_event_that_cannot_be_encoded_names_the_field_and_is_not_saved(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(INSERT)
        context.emit(Happened(order="o1"))
        context.emit(Happened(detail=object()))

    async with make(registry, database) as app:
        with pytest.raises(cqrs.EncodingError, match="field 'detail' of Happened"):
            await app.send(Start())
        assert await run_sql(database, SAVED) == [0]
        assert await run_sql(database, ITEMS) == []


async def test_an_encoding_error_that_was_caught_leaves_the_rest_of_the_command(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(INSERT)
        context.emit(Happened(order="o1"))
        with pytest.raises(cqrs.EncodingError):
            context.emit(Happened(detail=object()))

    async with make(registry, database) as app:
        await app.send(Start())
        assert await run_sql(database, "SELECT message_key FROM cqrs_outbox") == ["o1"]
        assert await run_sql(database, ITEMS) == ["tea"]


async def test_a_key_that_cannot_be_used_saves_nothing(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(Happened(order="x" * 256))

    async with make(registry, database) as app:
        with pytest.raises(cqrs.EncodingError, match="256 characters"):
            await app.send(Start())
        assert await run_sql(database, SAVED) == [0]


async def test_events_carry_what_caused_them(registry: cqrs.Registry, database: str):
    ids = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        ids.append(context.message_id)
        context.emit(Happened())

    async with make(registry, database) as app:
        await app.send(Start())
        statement = (
            "SELECT headers ->> 'causation_id', headers ->> 'correlation_id', headers ->> 'ce_source' FROM cqrs_outbox"
        )
        assert await run_sql(database, statement) == [(ids[0], ids[0], "shop")]


async def test_the_relay_is_woken_after_the_commit(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        context.emit(Happened())
        woken.append(awake.is_set())

    woken: list[bool] = []
    async with make(registry, database) as app:
        awake = storage_of(app).relay._awake["outbox"]
        await app.send(Start())
        assert (woken, awake.is_set()) == ([False], True)


async def test_a_command_that_saved_nothing_wakes_nobody(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(INSERT)

    async with make(registry, database) as app:
        await app.send(Start())
        assert not storage_of(app).relay._awake["outbox"].is_set()


# What handlers may not do


Misuse = Callable[[AsyncSession], Awaitable[Any]]


async def roll_back(session: AsyncSession) -> None:
    await session.rollback()


async def close(session: AsyncSession) -> None:
    await session.close()


async def test_a_handler_may_not_commit(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await session.execute(INSERT)
        await session.commit()

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse, match=r"A handler called session\.commit\(\)"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]


async def test_a_handler_may_not_commit_inside_a_savepoint(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(INSERT)
        async with session.begin_nested():
            await session.commit()

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse, match=r"A handler called session\.commit\(\)"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []


async def test_a_handler_that_catches_the_refusal_of_its_commit_saves_nothing(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await session.execute(INSERT)
        with pytest.raises(cqrs.TransactionMisuse):
            await session.commit()

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse, match=r"A handler called session\.commit\(\)"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]


@pytest.mark.parametrize("ending", [roll_back, close])
async def test_a_handler_that_ended_its_transaction_cannot_have_it_committed(
    registry: cqrs.Registry, database: str, ending: Misuse
):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await session.execute(INSERT)
        await ending(session)

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse, match="A handler rolled back or closed its session"):
            await app.send(Start())
        assert await run_sql(database, SAVED) == [0]


@pytest.mark.parametrize("ending", [roll_back, close])
async def test_what_a_handler_writes_after_it_ended_its_transaction_is_not_saved(
    registry: cqrs.Registry, database: str, ending: Misuse
):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(text(ITEMS))
        await ending(session)
        await session.execute(INSERT)

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []


async def test_a_handlers_own_exception_is_worth_more_than_its_misuse(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(INSERT)
        await session.rollback()
        raise ValueError("no")

    async with make(registry, database) as app:
        with pytest.raises(ValueError, match="no"):
            await app.send(Start())


async def test_a_handler_may_undo_a_part_in_a_savepoint(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(INSERT)
        context.emit(Happened())
        try:
            async with session.begin_nested():
                await session.execute(text("INSERT INTO items (name) VALUES ('milk')"))
                await session.execute(INSERT)
        except IntegrityError:
            pass

    async with make(registry, database) as app:
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]
        assert await run_sql(database, SAVED) == [1]


async def test_a_handler_may_keep_a_part_in_a_savepoint(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        async with session.begin_nested():
            await session.execute(INSERT)

    async with make(registry, database) as app:
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]


async def test_a_nested_failure_that_was_caught_dooms_the_command(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(INSERT)
        context.emit(Happened())
        with pytest.raises(ValueError, match="inner"):
            await context.send(Inner())

    @registry.command_handler
    async def inner(command: Inner) -> Any:
        raise ValueError("inner")

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse, match="The nested Inner failed and its exception was caught"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]


async def test_a_nested_failure_that_was_caught_dooms_what_is_written_afterwards(
    registry: cqrs.Registry, database: str
):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context, session: AsyncSession) -> Any:
        with pytest.raises(ValueError, match="inner"):
            await context.send(Inner())
        await session.execute(INSERT)

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession) -> Any:
        raise ValueError("inner")

    async with make(registry, database) as app:
        with pytest.raises(cqrs.TransactionMisuse):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []


async def test_another_task_may_not_use_the_transaction(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(INSERT)

        async def use() -> None:
            await session.execute(text("INSERT INTO items (name) VALUES ('milk')"))

        await asyncio.gather(use(), return_exceptions=False)

    async with make(registry, database) as app:
        with pytest.raises(cqrs.ForeignTask, match="gather"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []


async def test_another_task_may_not_flush_the_transaction(registry: cqrs.Registry, database: str):
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase): ...

    class Item(Base):
        __tablename__ = "items"
        name: Mapped[str] = mapped_column(primary_key=True)

    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        session.add(Item(name="milk"))
        await asyncio.gather(session.flush())

    async with make(registry, database) as app:
        with pytest.raises(cqrs.ForeignTask):
            await app.send(Start())


# A query's session


async def test_a_query_that_rolls_back_is_answered(registry: cqrs.Registry, database: str):
    @registry.query_handler
    async def look(query: Look, session: AsyncSession) -> Any:
        await session.execute(text(ITEMS))
        await session.rollback()
        return "seen"

    async with make(registry, database) as app:
        assert await app.send(Look()) == "seen"


async def test_a_query_does_not_wait_for_a_command(registry: cqrs.Registry, database: str):
    begun, release = asyncio.Event(), asyncio.Event()

    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(INSERT)
        begun.set()
        await release.wait()

    @registry.query_handler
    async def look(query: Look, session: AsyncSession) -> Any:
        return list(await session.scalars(text(ITEMS)))

    async with make(registry, database) as app:
        task = asyncio.create_task(app.send(Start()))
        await begun.wait()
        assert await app.send(Look()) == []
        release.set()
        await task
        assert await app.send(Look()) == ["tea"]


# Cancellation


async def test_a_command_that_is_cancelled_is_rolled_back_and_its_session_closed(
    registry: cqrs.Registry, database: str
):
    begun, sessions = asyncio.Event(), []

    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        sessions.append(session)
        context.emit(Happened())
        await session.execute(INSERT)
        begun.set()
        await asyncio.Event().wait()

    async with make(registry, database) as app:
        task = asyncio.create_task(app.send(Start()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]
        assert not sessions[0].in_transaction()


async def test_the_application_goes_on_after_a_command_was_cancelled_in_a_statement(
    registry: cqrs.Registry, database: str
):
    cancelling = True

    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        if cancelling:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
        await session.execute(INSERT)

    async with make(registry, database) as app:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(app.send(Start()))
        cancelling = False
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]


async def test_a_command_that_is_cancelled_while_it_waits_for_the_lock_leaves_none_behind(
    registry: cqrs.Registry, database: str, make_engine: MakeEngine
):
    begun = asyncio.Event()

    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        begun.set()
        await session.execute(INSERT)

    async with make(registry, database) as app:
        async with make_engine().connect() as connection:
            await connection.execute(text("BEGIN IMMEDIATE"))
            task = asyncio.create_task(app.send(Start()))
            await begun.wait()
            for _ in range(20):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=0)
            await connection.rollback()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asyncio.timeout(10):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]


async def test_a_command_that_only_emits_can_be_cancelled_while_it_waits_for_the_lock(
    registry: cqrs.Registry, database: str, make_engine: MakeEngine
):
    emitted = asyncio.Event()

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(Happened())
        emitted.set()

    async with make(registry, database) as app:
        async with make_engine().connect() as connection:
            await connection.execute(text("BEGIN IMMEDIATE"))
            task = asyncio.create_task(app.send(Start()))
            await emitted.wait()
            for _ in range(20):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=0)
            await connection.rollback()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await run_sql(database, SAVED) == [0]


async def test_the_application_goes_on_at_whatever_moment_commands_are_cancelled(
    registry: cqrs.Registry, database: str
):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await session.execute(text("INSERT OR REPLACE INTO items (name) VALUES ('tea')"))

    async with make(registry, database) as app:
        await cancel_at_every_moment(app, Start())
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]


async def test_the_application_goes_on_at_whatever_moment_queries_are_cancelled(registry: cqrs.Registry, database: str):
    @registry.query_handler
    async def look(query: Look, session: AsyncSession) -> Any:
        return await session.scalar(text("SELECT count(*) FROM items"))

    async with make(registry, database) as app:
        await cancel_at_every_moment(app, Look())
        for _ in range(20):
            assert await app.send(Look()) == 0


class GatedSession(Session):
    """A session whose COMMIT waits until it is let through."""

    def commit(self) -> None:
        self.info["begun"].set()
        await_only(self.info["release"].wait())
        super().commit()


@pytest.mark.parametrize("cancellations", [1, 2])
async def test_a_commit_is_shielded_from_cancellation(registry: cqrs.Registry, engine: AsyncEngine, cancellations: int):
    begun, release = asyncio.Event(), asyncio.Event()

    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(INSERT)
        context.emit(Happened())

    sessions = async_sessionmaker(engine, sync_session_class=GatedSession, info={"begun": begun, "release": release})
    async with make(registry, sessions) as app:
        task = asyncio.create_task(app.send(Start()))
        await begun.wait()
        for _ in range(cancellations):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        ended_before_the_commit = task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ended_before_the_commit
        async with engine.connect() as connection:
            assert list(await connection.scalars(text(ITEMS))) == ["tea"]
            assert await connection.scalar(text(SAVED)) == 1
        assert storage_of(app).relay._awake["outbox"].is_set()


# A connection that is lost


class LosingSession(Session):
    """A session whose connection is lost during COMMIT, before or after the database has done it."""

    def commit(self) -> None:
        if self.info["saves"]:
            super().commit()
        raise DBAPIError("COMMIT", {}, Exception("connection is closed"), connection_invalidated=self.info["lost"])


@pytest.mark.parametrize("saves", [True, False])
async def test_a_connection_lost_during_commit_leaves_it_unknown(
    registry: cqrs.Registry, engine: AsyncEngine, saves: bool
):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(INSERT)
        context.emit(Happened())

    sessions = async_sessionmaker(engine, sync_session_class=LosingSession, info={"saves": saves, "lost": True})
    async with make(registry, sessions) as app:
        with pytest.raises(cqrs.CommitUnknown, match="everything of this command was saved, or nothing") as caught:
            await app.send(Start())
        assert isinstance(caught.value.__cause__, DBAPIError)
        async with engine.connect() as connection:
            assert len(list(await connection.scalars(text(ITEMS)))) == saves
            assert await connection.scalar(text(SAVED)) == saves


async def test_another_error_of_a_commit_arrives_as_it_is(registry: cqrs.Registry, engine: AsyncEngine):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(INSERT)

    sessions = async_sessionmaker(engine, sync_session_class=LosingSession, info={"saves": False, "lost": False})
    async with make(registry, sessions) as app:
        with pytest.raises(DBAPIError):
            await app.send(Start())
        async with engine.connect() as connection:
            assert list(await connection.scalars(text(ITEMS))) == []


# Events emitted outside a handler


async def test_emit_saves_in_a_transaction_of_its_own(registry: cqrs.Registry, database: str):
    async with make(registry, database) as app:
        await app.emit(Happened())
        assert await run_sql(database, SAVED) == [1]
        assert storage_of(app).relay._awake["outbox"].is_set()


async def test_emit_in_ones_own_session_is_in_its_transaction(registry: cqrs.Registry, engine: AsyncEngine):
    async with make(registry, engine) as app, AsyncSession(engine) as session:
        await session.execute(INSERT)
        await app.emit(Happened(), session)
        await session.rollback()
        assert await session.scalar(text(SAVED)) == 0


async def test_emit_in_ones_own_session_commits_nothing(registry: cqrs.Registry, engine: AsyncEngine, database: str):
    async with make(registry, engine) as app, AsyncSession(engine) as session:
        await app.emit(Happened(), session)
        assert await run_sql(database, SAVED) == [0]
        await session.commit()
        assert await run_sql(database, SAVED) == [1]


async def test_emit_in_ones_own_session_wakes_the_relay_only_after_the_commit(
    registry: cqrs.Registry, engine: AsyncEngine
):
    async with make(registry, engine) as app, AsyncSession(engine) as session:
        awake = storage_of(app).relay._awake["outbox"]
        await app.emit(Happened(), session)
        before = awake.is_set()
        await session.commit()
        assert (before, awake.is_set()) == (False, True)


async def test_emit_in_a_savepoint_wakes_the_relay_only_after_the_commit(registry: cqrs.Registry, engine: AsyncEngine):
    async with make(registry, engine) as app, AsyncSession(engine) as session:
        awake = storage_of(app).relay._awake["outbox"]
        async with session.begin():
            async with session.begin_nested():
                await app.emit(Happened(), session)
            before = awake.is_set()
            awake.clear()
        assert (before, awake.is_set()) == (False, True)


async def test_what_was_emitted_in_a_transaction_that_was_rolled_back_wakes_nobody_later(
    registry: cqrs.Registry, engine: AsyncEngine
):
    async with make(registry, engine) as app, AsyncSession(engine) as session:
        await app.emit(Happened(), session)
        await session.rollback()
        await session.execute(INSERT)
        await session.commit()
        assert not storage_of(app).relay._awake["outbox"].is_set()


async def test_several_events_may_be_emitted_in_one_session(registry: cqrs.Registry, engine: AsyncEngine):
    async with make(registry, engine) as app, AsyncSession(engine) as session:
        await app.emit(Happened(order="o1"), session)
        await app.emit(Happened(order="o2"), session)
        await session.commit()
        keys = list(await session.scalars(text("SELECT message_key FROM cqrs_outbox ORDER BY id")))
    assert keys == ["o1", "o2"]


async def test_ones_own_session_stays_open_when_emitting_fails(registry: cqrs.Registry, engine: AsyncEngine):
    async with make(registry, engine) as app, AsyncSession(engine) as session:
        await session.execute(INSERT)
        with pytest.raises(cqrs.EncodingError):
            await app.emit(Happened(detail=object()), session)
        await session.commit()
        assert list(await session.scalars(text(ITEMS))) == ["tea"]
        assert await session.scalar(text(SAVED)) == 0


async def test_ones_own_session_may_be_committed_after_emitting(registry: cqrs.Registry, engine: AsyncEngine):
    async with make(registry, engine) as app, AsyncSession(engine) as session:
        await app.emit(Happened(), session)
        await session.commit()
        await session.execute(INSERT)
        await session.commit()
        assert list(await session.scalars(text(ITEMS))) == ["tea"]


async def test_local_handlers_of_what_is_emitted_in_ones_own_session_use_that(
    registry: cqrs.Registry, engine: AsyncEngine
):
    sessions = []

    @registry.event_handler
    async def noted(event: Noted, session: AsyncSession) -> None:
        sessions.append(session)

    async with make(registry, engine) as app, AsyncSession(engine) as session:
        await app.emit(Noted(), session)
        assert sessions == [session]


# A locked or full database


async def test_a_locked_database_gives_the_caller_the_error_and_nothing_is_half_done(
    registry: cqrs.Registry, database: str, make_engine: MakeEngine
):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        context.emit(Happened())
        await session.execute(INSERT)

    async with make(registry, make_engine(connect_args={"timeout": 0.01})) as app:
        async with make_engine().connect() as connection:
            await connection.execute(text("BEGIN IMMEDIATE"))
            with pytest.raises(OperationalError, match="database is locked"):
                await app.send(Start())
            await connection.rollback()
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]
        await app.send(Start())
        assert await run_sql(database, ITEMS) == ["tea"]


async def test_a_command_that_only_emits_gets_the_error_of_a_locked_database(
    registry: cqrs.Registry, database: str, make_engine: MakeEngine
):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        context.emit(Happened())

    async with make(registry, make_engine(connect_args={"timeout": 0.01})) as app:
        async with make_engine().connect() as connection:
            await connection.execute(text("BEGIN IMMEDIATE"))
            with pytest.raises(OperationalError, match="database is locked"):
                await app.send(Start())
            await connection.rollback()
        assert await run_sql(database, SAVED) == [0]


@pytest.mark.parametrize("big", ["item", "event"])
async def test_a_full_disk_gives_the_caller_the_error_and_nothing_is_half_done(
    registry: cqrs.Registry, database: str, make_engine: MakeEngine, big: str
):
    full = True

    @registry.command_handler
    async def start(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        connection = await session.connection()
        pages = await connection.scalar(text("PRAGMA page_count"))
        await connection.execute(text(f"PRAGMA max_page_count = {pages + 2 if full else 1_000_000}"))
        await session.execute(INSERT)
        if big == "item":
            context.emit(Happened())
            await session.execute(text("INSERT INTO items (name) VALUES (:name)"), {"name": "x" * 100_000})
        else:
            context.emit(Happened(detail="x" * 100_000))

    async with make(registry, make_engine()) as app:
        with pytest.raises(OperationalError, match="database or disk is full"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]
        full = False
        await app.send(Start())
        assert await run_sql(database, SAVED) == [1]


# Tasks


async def test_a_task_left_behind_by_a_handler_gets_an_error_while_it_runs(registry: cqrs.Registry, database: str):
    tasks = []

    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(INSERT)
        tasks.append(asyncio.create_task(app.send(Inner())))
        await until(tasks[0].done)

    @registry.command_handler
    async def inner(command: Inner) -> Any: ...

    async with make(registry, database) as app:
        await app.send(Start())
        with pytest.raises(cqrs.ForeignTask, match="create_task"):
            await tasks[0]
        assert await run_sql(database, ITEMS) == ["tea"]


async def test_a_task_left_behind_starts_anew_after_the_command_has_ended(registry: cqrs.Registry, database: str):
    tasks, ended = [], asyncio.Event()

    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        async def later() -> None:
            await ended.wait()
            await app.send(Inner())

        tasks.append(asyncio.create_task(later()))
        raise ValueError("no")

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(INSERT)
        context.emit(Happened())

    async with make(registry, database) as app:
        with pytest.raises(ValueError, match="no"):
            await app.send(Start())
        ended.set()
        await tasks[0]
        assert await run_sql(database, ITEMS) == ["tea"]
        assert await run_sql(database, SAVED) == [1]


async def test_a_handler_that_asks_for_nothing_takes_what_it_sent_down_with_it(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start) -> Any:
        await app.send(Inner())
        raise ValueError("no")

    @registry.command_handler
    async def inner(command: Inner, session: AsyncSession, context: cqrs.Context) -> Any:
        await session.execute(INSERT)
        context.emit(Happened())

    async with make(registry, database) as app:
        with pytest.raises(ValueError, match="no"):
            await app.send(Start())
        assert await run_sql(database, ITEMS) == []
        assert await run_sql(database, SAVED) == [0]
