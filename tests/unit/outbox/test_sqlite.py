import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cqrs.outbox import sqlite
from tests.unit.outbox.support import run_sql

Engines = tuple[AsyncEngine, AsyncEngine]


@pytest.fixture
async def engines(database: str) -> AsyncIterator[Engines]:
    writers, readers = sqlite.connect(make_url(database))
    yield writers, readers
    await writers.dispose()
    await readers.dispose()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite+aiosqlite://", True),
        ("sqlite+aiosqlite:///:memory:", True),
        ("sqlite+aiosqlite:///file::memory:?cache=shared&uri=true", True),
        ("sqlite+aiosqlite:///file:shop?mode=memory&uri=true", True),
        ("sqlite+aiosqlite:///app.db", False),
        ("sqlite+aiosqlite:///memory.db", False),
        ("sqlite+aiosqlite:///file:app.db?mode=rwc&uri=true", False),
    ],
)
def test_databases_in_memory_are_known(url: str, expected: bool):
    assert sqlite.is_in_memory(make_url(url)) is expected


async def test_a_database_has_a_write_ahead_log(engines: Engines):
    for engine in engines:
        async with engine.connect() as connection:
            assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"


async def test_a_locked_database_is_waited_for_ten_seconds(engines: Engines):
    for engine in engines:
        async with engine.connect() as connection:
            assert await connection.scalar(text("PRAGMA busy_timeout")) == 10_000


async def test_a_urls_own_options_are_kept(tmp_path: Path):
    writers, readers = sqlite.connect(make_url(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}?timeout=3"))
    async with writers.connect() as connection:
        assert await connection.scalar(text("PRAGMA busy_timeout")) == 3000
    await writers.dispose()
    await readers.dispose()


@pytest.fixture
async def other(database: str) -> AsyncIterator[AsyncConnection]:
    """Somebody else, who does not wait for the lock."""
    engine = create_async_engine(database, connect_args={"timeout": 0.0})
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


async def test_a_writing_transaction_holds_the_lock_from_its_first_statement_on(
    engines: Engines, other: AsyncConnection
):
    async with sqlite.SQLite().writing(engines[0]).begin() as connection:
        await connection.scalar(text("SELECT 1"))
        with pytest.raises(OperationalError, match="database is locked"):
            await other.execute(text("BEGIN IMMEDIATE"))


async def test_a_transaction_can_take_the_lock_without_a_statement(engines: Engines, other: AsyncConnection):
    async with sqlite.SQLite().writing(engines[0]).begin() as connection:
        await connection.run_sync(sqlite.SQLite().begin)
        with pytest.raises(OperationalError, match="database is locked"):
            await other.execute(text("BEGIN IMMEDIATE"))


async def passes(turns: int) -> None:
    """Let other tasks go on so many times."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def traced(connection: AsyncConnection) -> list[str]:
    """Return what SQLite will have been told over a connection."""
    statements: list[str] = []
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    await driver.set_trace_callback(statements.append)
    return statements


async def test_a_transaction_begins_with_its_first_statement_and_ends_once(engines: Engines):
    writing = sqlite.SQLite().writing(engines[0])
    async with writing.connect() as connection:
        statements = await traced(connection)
        async with connection.begin():
            await connection.execute(text("CREATE TABLE items (name TEXT)"))
    assert statements == ["BEGIN IMMEDIATE", "CREATE TABLE items (name TEXT)", "COMMIT"]


async def test_a_transaction_without_a_statement_tells_sqlite_nothing(engines: Engines):
    async with sqlite.SQLite().writing(engines[0]).connect() as connection:
        statements = await traced(connection)
        async with connection.begin():
            pass
    assert statements == []


async def test_a_transaction_that_begins_for_somebody_who_was_cancelled_is_rolled_back(
    engines: Engines, other: AsyncConnection
):
    writing = sqlite.SQLite().writing(engines[0])
    async with writing.connect():  # the file has its log now
        await other.execute(text("BEGIN IMMEDIATE"))

    async def write() -> None:
        async with writing.begin() as connection:
            begun.set()
            await connection.run_sync(sqlite.SQLite().begin)

    begun = asyncio.Event()
    task = asyncio.create_task(write())
    await begun.wait()
    await passes(10)  # it waits for the lock now
    task.cancel()
    await passes(10)  # what the task does about it waits for the thread now
    await other.rollback()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with writing.begin() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1


async def test_a_reading_transaction_takes_no_lock(engines: Engines, database: str):
    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with sqlite.SQLite().reading(engines[1]).begin() as connection:
        await connection.scalar(text("SELECT count(*) FROM items"))
        assert await run_sql(database, "INSERT INTO items VALUES ('tea')", "SELECT name FROM items") == ["tea"]


async def test_a_reading_transaction_sees_one_snapshot(engines: Engines, database: str):
    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with sqlite.SQLite().reading(engines[1]).begin() as connection:
        before = await connection.scalar(text("SELECT count(*) FROM items"))
        await run_sql(database, "INSERT INTO items VALUES ('tea')")
        assert await connection.scalar(text("SELECT count(*) FROM items")) == before == 0


async def test_writers_wait_in_line(engines: Engines, database: str):
    await run_sql(database, "CREATE TABLE items (number INTEGER)", "INSERT INTO items VALUES (0)")
    writing = sqlite.SQLite().writing(engines[0])

    async def count() -> None:
        async with writing.begin() as connection:
            number = await connection.scalar(text("SELECT number FROM items"))
            await connection.execute(text("UPDATE items SET number = :number"), {"number": number + 1})

    await asyncio.gather(*(count() for _ in range(20)))
    assert await run_sql(database, "SELECT number FROM items") == [20]


async def test_other_users_of_an_engine_are_left_alone(database: str):
    engine = create_async_engine(database)
    sqlite.SQLite().writing(engine)
    async with engine.begin() as one, engine.begin() as two:
        assert await one.scalar(text("SELECT 1")) == await two.scalar(text("SELECT 1")) == 1
    await engine.dispose()


async def test_a_transaction_that_raised_is_rolled_back(engines: Engines, database: str):
    await run_sql(database, "CREATE TABLE items (name TEXT)")

    async def fail() -> None:
        async with sqlite.SQLite().writing(engines[0]).begin() as connection:
            await connection.execute(text("INSERT INTO items VALUES ('tea')"))
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await fail()
    assert await run_sql(database, "SELECT name FROM items") == []


async def test_a_connection_that_was_left_without_an_end_comes_back_without_a_transaction(engines: Engines):
    writing = sqlite.SQLite().writing(engines[0])
    async with writing.connect() as connection:
        await connection.execute(text("CREATE TABLE items (name TEXT)"))
    async with writing.begin() as connection:
        tables = await connection.scalars(text("SELECT name FROM sqlite_schema"))
        assert list(tables) == []


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, "+0.000"), (1.5, "+1.500"), (-900.0, "-900.000")])
def test_a_distance_in_time_is_written_as_sqlite_reads_it(seconds: float, expected: str):
    assert sqlite.shift(seconds) == f"{expected} seconds"


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 30.0, 86_400.0])
async def test_the_seconds_until_a_moment_are_those_that_it_is_away(engines: Engines, seconds: float):
    async with sqlite.SQLite().reading(engines[1]).connect() as connection:
        found = await connection.scalar(select(sqlite.SQLite().seconds_until(sqlite.SQLite().later(seconds))))
    assert found == pytest.approx(seconds, abs=0.01)


async def test_later_moments_are_greater_as_text(engines: Engines):
    async with sqlite.SQLite().reading(engines[1]).connect() as connection:
        query = select(*(sqlite.SQLite().later(seconds) for seconds in (-(10**8), -1, -0.001, 0.0, 0.001, 1, 10**8)))
        moments = list((await connection.execute(query)).one())
    assert moments == sorted(moments)
    assert len(set(moments)) == 7


async def test_an_error_of_the_driver_is_one_of_sqlalchemy(engines: Engines):
    async with sqlite.SQLite().writing(engines[0]).begin() as connection:
        with pytest.raises(OperationalError, match="no such table"):
            await connection.run_sync(sqlite.execute, "INSERT INTO missing VALUES (?)", 1)


async def test_a_statement_tells_how_many_rows_it_touched(engines: Engines, database: str):
    await run_sql(database, "CREATE TABLE items (name TEXT PRIMARY KEY)")
    insert = "INSERT OR IGNORE INTO items VALUES (?)"
    async with sqlite.SQLite().writing(engines[0]).begin() as connection:
        assert await connection.run_sync(sqlite.execute, insert, "tea") == 1
        assert await connection.run_sync(sqlite.execute, insert, "tea") == 0
