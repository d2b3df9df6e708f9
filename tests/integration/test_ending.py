"""The end of a command: what it emitted is inserted with its COMMIT, by the drivers that can, or not at all."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import cqrs
from tests.servers import empty_database, server
from tests.unit.outbox.support import run_sql, storage_of

SAVED = "SELECT type FROM cqrs_outbox ORDER BY id"


class Write(cqrs.Command[None]):
    name: str
    writes: bool = True
    events: int = 1


class Written(cqrs.Event):
    name: str
    note: str = ""


@pytest.fixture
def database(each_database: str) -> str:
    return each_database


@pytest.fixture
async def app(registry: cqrs.Registry, database: str) -> AsyncIterator[cqrs.Mediator]:
    registry.integration_event(topic="names", key="name")(Written)

    @registry.command_handler
    async def write(command: Write, session: AsyncSession, context: cqrs.Context) -> None:
        if command.writes:
            await session.execute(text("INSERT INTO names (name) VALUES (:name)"), {"name": command.name})
        for _ in range(command.events):
            context.emit(Written(name=command.name, note="it's \\ $1 żółć 🐘"))

    @registry.event_handler(name="hear")
    async def hear(event: Written) -> None: ...

    await run_sql(database, "CREATE TABLE names (name VARCHAR(40))")
    async with cqrs.bootstrap(registry=registry, name="shop", database=database, migrate=True, relay=False) as app:
        yield app


@pytest.mark.parametrize("events", [1, 4, 5, 300])
@pytest.mark.parametrize("writes", [True, False], ids=["writing", "only emitting"])
async def test_what_was_emitted_is_saved(app: cqrs.Mediator, database: str, events: int, writes: bool):
    await app.send(Write(name="Żofia's \\ 🐘", writes=writes, events=events))
    assert await run_sql(database, SAVED) == ["Written"] * events
    assert await run_sql(database, "SELECT DISTINCT message_key FROM cqrs_outbox") == ["Żofia's \\ 🐘"]


@pytest.mark.parametrize(
    "key", ["it's", "\\", "\\'", "two\nlines", "$1 :name %s ?", "'); DROP TABLE names; --", "\x7f", "\xa0."]
)
async def test_a_key_may_have_any_characters(app: cqrs.Mediator, database: str, key: str):
    await app.send(Write(name=key))
    assert await run_sql(database, "SELECT message_key FROM cqrs_outbox") == [key]


async def test_what_was_emitted_is_what_handlers_get(registry: cqrs.Registry, app: cqrs.Mediator):
    await app.send(Write(name="tea"))
    (row,) = await app.outbox.find()
    assert Written.model_validate_json(row.payload) == Written(name="tea", note="it's \\ $1 żółć 🐘")


@pytest.mark.parametrize("events", [1, 5])
async def test_a_command_whose_events_cannot_be_saved_has_failed(app: cqrs.Mediator, database: str, events: int):
    await run_sql(database, "ALTER TABLE cqrs_outbox RENAME TO away")
    with pytest.raises(DBAPIError, match="cqrs_outbox"):
        await app.send(Write(name="tea", events=events))
    await run_sql(database, "ALTER TABLE away RENAME TO cqrs_outbox")
    for _ in range(30):  # more than a pool has connections
        await app.send(Write(name="milk"))
    assert await run_sql(database, "SELECT DISTINCT name FROM names") == ["milk"]
    assert await run_sql(database, SAVED) == ["Written"] * 30


async def test_what_a_commit_that_was_refused_would_have_saved_is_saved_by_no_other(app: cqrs.Mediator, database: str):
    refusing = True

    def refuse(_session: Any) -> None:
        if refusing:
            raise RuntimeError("no")

    watched = storage_of(app)._writing.kw["sync_session_class"]
    event.listen(watched, "before_commit", refuse)
    with pytest.raises(RuntimeError, match="no"):
        await app.send(Write(name="tea"))
    refusing = False
    for _ in range(30):
        await app.send(Write(name="milk", events=0))
    assert await run_sql(database, SAVED) == []
    assert await run_sql(database, "SELECT DISTINCT name FROM names") == ["milk"]


async def test_an_event_is_saved_in_the_same_transaction_whatever_its_size(app: cqrs.Mediator, database: str):
    await app.emit(Written(name="tea", note="x" * 200_000))
    assert await run_sql(database, SAVED) == ["Written"]


def enforce_foreign_keys(connection: Any, _record: Any) -> None:
    connection.cursor().execute("PRAGMA foreign_keys=ON")


@pytest.mark.parametrize("own", [False, True], ids=["a URL", "an engine"])
async def test_the_application_goes_on_after_sqlite_has_refused_a_commit(
    registry: cqrs.Registry, tmp_path: Path, own: bool
):
    url = f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
    await run_sql(
        url,
        "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
        "CREATE TABLE names (name TEXT, parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
    )

    @registry.command_handler
    async def write(command: Write, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO names (name, parent) VALUES (:name, 1)"), {"name": command.name})

    engine = create_async_engine(url)
    app = cqrs.bootstrap(registry=registry, name="shop", database=engine if own else url, migrate=True, relay=False)
    event.listen(storage_of(app).store.writers.sync_engine, "connect", enforce_foreign_keys)
    async with app:
        with pytest.raises(DBAPIError, match="FOREIGN KEY"):
            await app.send(Write(name="tea"))
        await run_sql(url, "INSERT INTO parents VALUES (1)")
        await app.send(Write(name="milk"))
    assert await run_sql(url, "SELECT name FROM names") == ["milk"]
    await engine.dispose()


@pytest.mark.services
async def test_on_postgresql_a_command_that_emits_makes_no_trip_more(registry: cqrs.Registry):
    statements: list[str] = []
    async with empty_database(server("POSTGRES_URL")) as database:
        await run_sql(database, "CREATE TABLE names (name VARCHAR(40))")
        registry.integration_event(topic="names", key="name")(Written)

        @registry.event_handler(name="hear")
        async def hear(event: Written) -> None: ...

        @registry.command_handler
        async def write(command: Write, session: AsyncSession, context: cqrs.Context) -> None:
            await session.execute(text("INSERT INTO names (name) VALUES (:name)"), {"name": command.name})
            context.emit(Written(name=command.name))
            driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
            driver.add_query_logger(lambda query: statements.append(query.query))

        async with cqrs.bootstrap(registry=registry, name="shop", database=database, migrate=True, relay=False) as app:
            await app.send(Write(name="tea"))  # prepares
            statements.clear()
            await app.send(Write(name="milk"))
        rows = await run_sql(database, SAVED)
    (end, *_) = [statement for statement in statements if "COMMIT;" in statement]
    assert end.startswith("EXECUTE cqrs_0(")
    assert not any("cqrs_outbox" in statement for statement in statements)
    assert rows == ["Written", "Written"]
