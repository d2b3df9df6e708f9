"""From a command to its events' handlers, with everything that can be wrong on the way."""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pydantic
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine

import cqrs
from tests.unit.outbox.support import relay_all, run_sql, storage_of, until

AT_ONCE = cqrs.Retry(attempts=3, first=0.0)


class Start(cqrs.Command[None]):
    quantity: int = 0


class Happened(cqrs.Event):
    order: str = "o1"
    number: int = 0


class Noted(cqrs.Event):
    number: int = 0


@pytest.fixture
def database(each_database: str) -> str:
    return each_database


@pytest.fixture
def registry(registry: cqrs.Registry) -> cqrs.Registry:
    registry.integration_event(topic="orders", key="order")(Happened)
    return registry


def make(registry: cqrs.Registry, database: Any, **wishes: Any) -> cqrs.Mediator:
    return cqrs.bootstrap(
        registry=registry, database=database, **{"name": "shop", "retry": AT_ONCE, "migrate": True, **wishes}
    )


async def save_two(app: cqrs.Mediator, *orders: str) -> None:
    """Save two events of each order."""
    for order in orders:
        await app.emit(Happened(order=order, number=1))
        await app.emit(Happened(order=order, number=2))


def blob(database: str, content: str) -> str:
    """Return bytes as the database writes them."""
    digits = content.encode().hex()
    return f"'\\x{digits}'" if database.startswith("postgresql") else f"X'{digits}'"


def spoiled(database: str, column: str) -> str:
    return blob(database, "no JSON") if column == "payload" else "'no JSON'"


def note(registry: cqrs.Registry, **options: Any) -> list[tuple[str, int]]:
    """Return what a handler of `Happened` sees."""
    seen: list[tuple[str, int]] = []

    @registry.event_handler(name="receive", **options)
    async def receive(event: Happened) -> None:
        seen.append((event.order, event.number))

    return seen


# Deliveries


async def test_deliveries_in_a_row_by_the_connection_have_a_transaction_each(registry: cqrs.Registry, database: str):
    failed: list[int] = []

    @registry.event_handler(name="receive")
    async def receive(happened: Happened, connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO noted VALUES (:number)"), {"number": happened.number})
        if happened.number not in failed:
            failed.append(happened.number)
            raise ZeroDivisionError

    await run_sql(database, "DROP TABLE IF EXISTS noted", "CREATE TABLE noted (number INTEGER)")
    async with make(registry, database, relay=False) as app:
        for number in range(6):
            await app.emit(Happened(order=f"o{number % 3}", number=number))
        await relay_all(app)
        assert await run_sql(database, "SELECT number FROM noted ORDER BY number") == list(range(6))
        assert await run_sql(database, "SELECT count(*) FROM cqrs_inbox") == [6]


# Messages


async def test_wrong_types_raise_pydantics_own_error_before_any_transaction(registry: cqrs.Registry, database: str):
    note(registry)
    sessions: list[Any] = []

    class CountedSession(AsyncSession):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            sessions.append(self)

    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> None: ...

    engine = create_async_engine(database)
    async with make(registry, async_sessionmaker(engine, class_=CountedSession), relay=False) as app:
        wrong: Any = "many"
        with pytest.raises(pydantic.ValidationError, match="quantity"):
            await app.send(Start(quantity=wrong))
        assert sessions == []
    await engine.dispose()


# Bodies and headers that somebody edited


@pytest.mark.parametrize("body", ["no JSON", '{"order": "o1", "number": "many"}', "[]", ""])
async def test_a_body_that_cannot_be_read_back_is_dead_with_the_reason(
    registry: cqrs.Registry, database: str, body: str
):
    seen = note(registry)
    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        await run_sql(database, f"UPDATE cqrs_outbox SET payload = {blob(database, body)}")
        await relay_all(app)
        (letter,) = await app.outbox.dead()
    assert seen == []
    assert letter.attempts == 1
    assert "DecodingError: The body cannot be read back as Happened" in letter.error


@pytest.mark.parametrize("column", ["payload", "headers"])
async def test_what_cannot_be_read_back_holds_back_its_key_alone(registry: cqrs.Registry, database: str, column: str):
    seen = note(registry)
    async with make(registry, database, relay=False, slots=1) as app:
        await save_two(app, "o1", "o2")
        await run_sql(database, f"UPDATE cqrs_outbox SET {column} = {spoiled(database, column)} WHERE id = 1")
        await relay_all(app)
        assert seen == [("o2", 1), ("o2", 2)]
        counts = await app.outbox.counts()
        assert (counts.outbox, counts.waiting, counts.dead) == (0, 1, 1)


@pytest.mark.parametrize("column", ["payload", "headers"])
async def test_what_cannot_be_read_back_lets_its_key_go_on_where_that_was_chosen(
    registry: cqrs.Registry, database: str, column: str
):
    seen = note(registry, on_dead="skip")
    async with make(registry, database, relay=False, slots=1) as app:
        await save_two(app, "o1")
        await run_sql(database, f"UPDATE cqrs_outbox SET {column} = {spoiled(database, column)} WHERE id = 1")
        await relay_all(app)
        counts = await app.outbox.counts()
        assert (seen, counts.waiting, counts.dead) == ([("o1", 2)], 0, 1)


async def test_what_waits_in_parked_with_a_spoiled_body_is_dead_in_its_turn(registry: cqrs.Registry, database: str):
    failing, seen = True, []

    @registry.event_handler(name="receive", retry=cqrs.Retry(attempts=5, first=100.0, jitter=0.0))
    async def receive(event: Happened) -> None:
        if failing:
            raise ValueError("no")
        seen.append(event.number)

    async with make(registry, database, relay=False) as app:
        await save_two(app, "o1")
        await relay_all(app)
        await run_sql(database, f"UPDATE cqrs_parked SET payload = {blob(database, 'no JSON')} WHERE seq = 2")
        failing = False
        storage_of(app).store.ahead += 101
        await relay_all(app)
        counts = await app.outbox.counts()
        assert (seen, counts.waiting, counts.dead) == ([1], 0, 1)


async def test_what_waits_in_parked_with_spoiled_headers_lets_its_key_go_on_where_that_was_chosen(
    registry: cqrs.Registry, database: str
):
    failing, seen = True, []

    @registry.event_handler(name="receive", on_dead="skip", retry=cqrs.Retry(attempts=5, first=100.0, jitter=0.0))
    async def receive(event: Happened) -> None:
        if failing:
            raise ValueError("no")
        seen.append(event.number)

    async with make(registry, database, relay=False) as app:
        await save_two(app, "o1")
        await relay_all(app)
        await run_sql(database, "UPDATE cqrs_parked SET headers = 'no JSON' WHERE seq = 1")
        failing = False
        storage_of(app).store.ahead += 101
        await relay_all(app)
        counts = await app.outbox.counts()
        assert (seen, counts.waiting, counts.dead) == ([2], 0, 1)


async def test_an_event_that_the_handler_no_longer_takes_is_dead_with_the_reason(
    registry: cqrs.Registry, database: str
):
    note(registry)
    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        await run_sql(database, "UPDATE cqrs_outbox SET type = 'Renamed'")
        await relay_all(app)
        (letter,) = await app.outbox.dead()
    assert "receive does not handle events named 'Renamed'" in letter.error


# Failing and hanging handlers


async def test_a_handler_is_tried_again_until_it_succeeds(registry: cqrs.Registry, database: str):
    attempts = []

    @registry.event_handler(name="receive")
    async def receive(event: Happened, context: cqrs.Context) -> None:
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise ValueError("not yet")

    async with make(registry, database) as app:
        await app.emit(Happened())
        await app.drain()
    assert attempts == [1, 2, 3]


async def test_a_handler_that_fails_at_its_last_attempt_leaves_a_dead_letter(registry: cqrs.Registry, database: str):
    attempts = []

    @registry.event_handler(name="receive")
    async def receive(event: Happened, context: cqrs.Context) -> None:
        attempts.append(context.attempt)
        raise ValueError("never")

    async with make(registry, database) as app:
        await app.emit(Happened())
        with pytest.raises(cqrs.DrainTimeout):
            await app.drain()
        (letter,) = await app.outbox.dead()
    assert attempts == [1, 2, 3]
    assert letter.attempts == 3
    assert letter.error.endswith("ValueError: never\n")


async def test_a_handler_that_hangs_has_failed_after_its_timeout(registry: cqrs.Registry, database: str):
    attempts = []

    @registry.event_handler(name="receive", timeout=0.05, retry=cqrs.Retry(attempts=2, first=0.0))
    async def receive(event: Happened, context: cqrs.Context, session: AsyncSession) -> None:
        attempts.append(context.attempt)
        await session.execute(text("INSERT INTO items VALUES ('tea')"))
        await asyncio.Event().wait()

    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with make(registry, database) as app:
        await app.emit(Happened())
        with pytest.raises(cqrs.DrainTimeout):
            await app.drain()
        (letter,) = await app.outbox.dead()
        assert await run_sql(database, "SELECT count(*) FROM items") == [0]
    assert (attempts, letter.attempts) == ([1, 2], 2)
    assert "TimeoutError" in letter.error


async def test_a_handler_that_is_cancelled_from_within_has_failed(registry: cqrs.Registry, database: str):
    @registry.event_handler(name="receive", retry=cqrs.Retry(attempts=1))
    async def receive(event: Happened) -> None:
        raise asyncio.CancelledError

    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        await relay_all(app)
        assert (await app.outbox.counts()).dead == 1


async def test_events_of_a_key_keep_their_order_through_retries(registry: cqrs.Registry, database: str):
    seen: list[tuple[str, int]] = []

    @registry.event_handler(name="receive", retry=cqrs.Retry(attempts=None, first=0.0))
    async def receive(event: Happened, context: cqrs.Context) -> None:
        if context.attempt <= event.number % 4:
            raise ValueError("not yet")
        seen.append((event.order, event.number))

    async with make(registry, database) as app:
        for number in range(12):
            for order in ("o1", "o2", "o3"):
                await app.emit(Happened(order=order, number=number))
        await app.drain()
    for order in ("o1", "o2", "o3"):
        assert [number for found, number in seen if found == order] == list(range(12))


async def test_a_failing_key_does_not_hold_up_others(registry: cqrs.Registry, database: str):
    seen = []

    @registry.event_handler(name="receive", retry=cqrs.Retry(attempts=None, first=1000.0))
    async def receive(event: Happened) -> None:
        if event.order == "o1":
            raise ValueError("not yet")
        seen.append((event.order, event.number))

    async with make(registry, database) as app:
        await save_two(app, "o1", "o2")
        await until(lambda: seen == [("o2", 1), ("o2", 2)])


async def test_each_handler_of_an_event_has_retries_and_an_end_of_its_own(registry: cqrs.Registry, database: str):
    seen = []

    @registry.event_handler(name="good")
    async def good(event: Happened) -> None:
        seen.append(event.number)

    @registry.event_handler(name="bad")
    async def bad(event: Happened) -> None:
        raise ValueError("no")

    async with make(registry, database, relay=False) as app:
        await save_two(app, "o1")
        await relay_all(app)
        assert seen == [1, 2]
        assert [letter.destination for letter in await app.outbox.dead()] == ["bad"]


async def test_a_policy_may_give_up_at_once_on_one_kind_of_error(registry: cqrs.Registry, database: str):
    @registry.event_handler(name="receive", retry={ValueError: cqrs.Retry(attempts=1)})
    async def receive(event: Happened) -> None:
        raise UnicodeError("no")

    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        await relay_all(app)
        (letter,) = await app.outbox.dead()
    assert letter.attempts == 1


async def test_a_durable_handler_of_a_local_event_runs_in_the_background(registry: cqrs.Registry, database: str):
    note(registry)
    seen = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> None:
        context.emit(Noted(number=1))

    @registry.event_handler(durable=True)
    async def reindex(event: Noted) -> None:
        seen.append(event.number)

    async with make(registry, database, relay=False) as app:
        await app.send(Start())
        assert seen == []
        await relay_all(app)
        assert seen == [1]


# Once in effect


async def effects(database: str) -> int:
    (count,) = await run_sql(database, "SELECT count(*) FROM items")
    return int(count)


async def test_a_delivery_that_was_not_settled_takes_effect_once(registry: cqrs.Registry, database: str):
    @registry.event_handler(name="receive")
    async def receive(event: Happened, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO items VALUES ('tea')"))

    def lost(*_: Any) -> None:
        raise ConnectionError("gone")

    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        relay = storage_of(app).relay
        with patch.object(relay, "_sort", lost), pytest.raises(ConnectionError):
            await relay.relay_outbox()
        await relay._outbox[0].close()
        storage_of(app).store.ahead += 60.0
        await relay_all(app)
        assert await effects(database) == 1
        assert (await app.outbox.counts()).outbox == 0


async def test_a_failed_attempt_leaves_neither_effects_nor_an_inbox_row(registry: cqrs.Registry, database: str):
    @registry.event_handler(name="receive")
    async def receive(event: Happened, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO items VALUES ('tea')"))
        raise ValueError("no")

    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        await relay_all(app)
        assert await effects(database) == 0
        assert await run_sql(database, "SELECT count(*) FROM cqrs_inbox") == [0]


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_handler_may_begin_with_a_savepoint(registry: cqrs.Registry, database: str, keeps: bool):
    @registry.event_handler
    async def receive(event: Happened, session: AsyncSession) -> None:
        with suppress(LookupError):
            async with session.begin_nested():
                await session.execute(text("INSERT INTO cqrs_settings (name, value) VALUES ('within', 'x')"))
                if not keeps:
                    raise LookupError
        await session.execute(text("INSERT INTO cqrs_settings (name, value) VALUES ('after', 'x')"))

    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        await relay_all(app)
        assert (await app.outbox.counts()).outbox == 0
    effects = await run_sql(database, "SELECT name FROM cqrs_settings WHERE value = 'x' ORDER BY name")
    assert effects == (["after", "within"] if keeps else ["after"])
    assert await run_sql(database, "SELECT count(*) FROM cqrs_inbox") == [1]


@pytest.mark.parametrize("uses_the_session", [True, False])
async def test_a_delivered_event_has_an_inbox_row_of_its_handler(
    registry: cqrs.Registry, database: str, uses_the_session: bool
):
    @registry.event_handler(name="receive")
    async def receive(event: Happened, session: AsyncSession) -> None:
        if uses_the_session:
            await session.execute(text("SELECT 1"))

    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        (event_id,) = await run_sql(database, "SELECT event_id FROM cqrs_outbox")
        await relay_all(app)
        assert await run_sql(database, "SELECT handler, message_id FROM cqrs_inbox") == [("receive", event_id)]


async def test_a_middleware_that_repeats_a_delivery_keeps_the_inbox_row(registry: cqrs.Registry, database: str):
    attempts = []

    async def twice(message: Any, context: cqrs.Context, call_next: Any) -> Any:
        try:
            return await call_next(message, context)
        except ValueError:
            return await call_next(message, context)

    @registry.event_handler(name="receive")
    async def receive(event: Happened, session: AsyncSession, context: cqrs.Context) -> None:
        await session.execute(text("INSERT INTO items VALUES ('tea')"))
        context.emit(Noted(number=1))
        attempts.append(context.attempt)
        if len(attempts) == 1:
            raise ValueError("no")

    @registry.event_handler(name="reindex", durable=True)
    async def reindex(event: Noted) -> None: ...

    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with make(registry, database, relay=False, middlewares=[twice]) as app:
        await app.emit(Happened())
        await storage_of(app).relay.relay_outbox()
        assert await effects(database) == 1
        assert await run_sql(database, "SELECT handler FROM cqrs_inbox") == ["receive"]
        assert await run_sql(database, "SELECT type FROM cqrs_outbox") == ["Noted"]
    assert attempts == [1, 1]


async def test_a_middleware_that_repeats_what_succeeded_takes_effect_once(registry: cqrs.Registry, database: str):
    async def twice(message: Any, context: cqrs.Context, call_next: Any) -> Any:
        await call_next(message, context)
        return await call_next(message, context)

    @registry.event_handler(name="receive")
    async def receive(event: Happened, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO items VALUES ('tea')"))

    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with make(registry, database, relay=False, middlewares=[twice]) as app:
        await app.emit(Happened())
        await relay_all(app)
        counts = await app.outbox.counts()
        assert (await effects(database), counts.outbox, counts.waiting) == (1, 0, 0)


async def test_events_of_a_delivery_that_was_taken_before_are_not_saved_again(registry: cqrs.Registry, database: str):
    @registry.event_handler(name="receive")
    async def receive(event: Happened, context: cqrs.Context) -> None:
        context.emit(Noted())

    @registry.event_handler(name="reindex", durable=True)
    async def reindex(event: Noted) -> None: ...

    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        (event_id,) = await run_sql(database, "SELECT event_id FROM cqrs_outbox")
        store = storage_of(app).store
        nobody = storage_of(app)._publishers[0]
        async with store.writers.begin() as connection:
            await connection.run_sync(store.inbox.take, "receive", [event_id])

        async def none_taken(envelopes: Any) -> set[tuple[str, str]]:
            # As it is when another process takes the message after this one has looked.
            return set()

        nobody._taken = none_taken
        await relay_all(app)
        assert await run_sql(database, "SELECT count(*) FROM cqrs_outbox") == [0]
        assert await run_sql(database, "SELECT handler FROM cqrs_inbox") == ["receive"]


# A handler's misuse counts as a failure


async def test_a_delivery_whose_handler_commits_has_failed(registry: cqrs.Registry, database: str):
    @registry.event_handler(name="receive", retry=cqrs.Retry(attempts=1))
    async def receive(event: Happened, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO items VALUES ('tea')"))
        await session.commit()

    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        await relay_all(app)
        (letter,) = await app.outbox.dead()
        assert "TransactionMisuse" in letter.error
        assert await effects(database) == 0


async def test_a_handler_may_send_commands_in_its_transaction(registry: cqrs.Registry, database: str):
    @registry.event_handler(name="receive", retry=cqrs.Retry(attempts=1))
    async def receive(event: Happened, context: cqrs.Context) -> None:
        await context.send(Start())
        raise ValueError("no")

    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO items VALUES ('tea')"))

    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with make(registry, database, relay=False) as app:
        await app.emit(Happened())
        await relay_all(app)
        assert await effects(database) == 0


# A database that is locked or full for the relay


async def test_a_lock_that_outlasts_the_relays_patience_costs_no_attempt(
    registry: cqrs.Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    database = f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
    seen = note(registry)
    async with make(registry, database):
        pass  # by its URL, so that the file has a write-ahead log: readers are never locked out
    async with AsyncExitStack() as stack:
        mine = create_async_engine(database, connect_args={"timeout": 0.5})
        other = create_async_engine(database)
        stack.push_async_callback(mine.dispose)
        stack.push_async_callback(other.dispose)
        app = await stack.enter_async_context(make(registry, mine))
        connection = await stack.enter_async_context(other.connect())
        await connection.execute(text("BEGIN IMMEDIATE"))
        await connection.execute(
            text(
                "INSERT INTO cqrs_outbox (event_id, destination, topic, message_key, type, headers, payload, slot, "
                "created_at) VALUES ('e1', 'receive', 'orders', 'o1', 'Happened', '{}', "
                "CAST('{\"number\": 1}' AS BLOB), 0, '2026-01-01 00:00:00.000')"
            )
        )
        storage_of(app).relay.wake()
        await until(lambda: "database is locked" in caplog.text)
        await connection.commit()
        await until(lambda: seen == [("o1", 1)])
        assert await app.outbox.dead() == []


# An app of two


async def test_a_story_keeps_its_correlation_over_deliveries(registry: cqrs.Registry, database: str):
    found = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> None:
        found.append((context.correlation_id, context.causation_id))
        ids.append(context.message_id)
        context.emit(Happened())

    @registry.event_handler(name="receive")
    async def receive(event: Happened, context: cqrs.Context) -> None:
        found.append((context.correlation_id, context.causation_id))
        ids.append(context.message_id)
        context.emit(Noted())

    @registry.event_handler(name="reindex", durable=True)
    async def reindex(event: Noted, context: cqrs.Context) -> None:
        found.append((context.correlation_id, context.causation_id))

    ids: list[str] = []
    async with make(registry, database) as app:
        await app.send(Start())
        await app.drain()
    assert found == [(ids[0], None), (ids[0], ids[0]), (ids[0], ids[1])]
