import asyncio
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

import cqrs
from cqrs.outbox import database
from tests.unit.support import problems

EXAMPLE = 'database="sqlite+aiosqlite:///app.db"'


class Ask(cqrs.Command[object]):
    pass


def test_a_sessionmaker_without_an_engine_is_refused(registry: cqrs.Registry):
    assert problems(registry=registry, database=async_sessionmaker()) == [
        "The async_sessionmaker has no engine. Make it with async_sessionmaker(engine)."
    ]


@pytest.mark.parametrize("option", [{"autobegin": False}, {"twophase": True}])
def test_a_sessionmaker_whose_sessions_nobody_would_begin_or_prepare_is_refused(
    registry: cqrs.Registry, option: dict[str, Any]
):
    [(name, value)] = option.items()
    engine = create_async_engine("sqlite+aiosqlite:///app.db")
    assert problems(registry=registry, database=async_sessionmaker(engine, **option)) == [
        f"The async_sessionmaker has {name}={value}, with which no command can run. Leave it out."
    ]


def test_a_text_that_is_no_url_is_refused_without_showing_it(registry: cqrs.Registry):
    assert problems(registry=registry, database="app.db?password=secret") == [
        f"The database is no URL that SQLAlchemy can read. Write for example {EXAMPLE}."
    ]


def test_an_unknown_kind_of_database_is_refused_without_its_password(registry: cqrs.Registry):
    (problem,) = problems(registry=registry, database="mssql+aioodbc://me:secret@db/shop")
    assert problem.startswith("The database mssql+aioodbc://me:***@db/shop is none that the toolkit stores on. Use")


def test_a_driver_that_is_not_installed_is_refused_with_what_brings_it(
    registry: cqrs.Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database, "find_spec", lambda _: None)
    assert problems(registry=registry, database="postgresql+asyncpg://me:secret@db/shop") == [
        (
            "The database postgresql+asyncpg://me:***@db/shop needs asyncpg, which is not installed. "
            "Run pip install 'cqrs-toolkit[postgres]'."
        )
    ]


def test_a_url_that_names_no_driver_is_told_of_the_one_that_an_extra_brings(
    registry: cqrs.Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database, "find_spec", lambda _: None)
    (problem,) = problems(registry=registry, database="postgresql://me:secret@db/shop")
    assert problem.endswith("driver: postgresql+asyncpg://user:password@host/name.")


@pytest.mark.parametrize(
    ("given", "kind"), [(create_engine("sqlite:///app.db"), "Engine"), (sessionmaker(), "sessionmaker"), (7, "int")]
)
def test_what_is_no_database_is_refused_by_its_type(registry: cqrs.Registry, given: Any, kind: str):
    assert problems(registry=registry, database=given) == [
        (
            f"The database is of the type {kind}. "
            "Pass a URL, an AsyncEngine (create_async_engine) or an async_sessionmaker."
        )
    ]


@pytest.mark.parametrize(("url", "driver"), [("sqlite:///app.db", "pysqlite"), ("sqlite+pysqlite:///a.db", "pysqlite")])
def test_a_driver_that_is_not_async_is_refused(registry: cqrs.Registry, url: str, driver: str):
    assert problems(registry=registry, database=url) == [
        f"The database {url} has the driver '{driver}', which is not async. Name the async driver: sqlite+aiosqlite:///app.db."
    ]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true",
        "sqlite+aiosqlite:///file:shop?mode=memory&uri=true",
    ],
)
def test_a_database_in_memory_is_refused(registry: cqrs.Registry, url: str):
    (problem,) = problems(registry=registry, database=url)
    assert problem.startswith("The database sqlite+aiosqlite://")
    assert problem.endswith(
        "is in memory, where sessions would share one connection and undo each other's work. "
        f"Use a file: {EXAMPLE}; in tests a temporary one."
    )


async def test_an_engine_in_memory_is_refused_too(registry: cqrs.Registry):
    engine = create_async_engine("sqlite+aiosqlite:///:memory:")
    (problem,) = problems(registry=registry, database=engine)
    assert "is in memory" in problem
    await engine.dispose()


def test_a_schema_on_sqlite_is_refused(registry: cqrs.Registry, database: str):
    assert problems(registry=registry, database=database, schema="shop") == [
        "schema= has no meaning on SQLite. Use prefix= to keep applications apart."
    ]


async def test_an_engine_of_ones_own_stays_open(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def handler(command: Ask, session: AsyncSession) -> object:
        return session.bind is not None

    engine = create_async_engine(database)
    async with cqrs.bootstrap(registry=registry, database=engine, name="shop") as app:
        assert await app.send(Ask()) is True
    async with engine.connect() as connection:
        assert connection.closed is False
    await engine.dispose()


async def test_a_sessionmakers_options_and_class_are_kept(registry: cqrs.Registry, database: str):
    class MySession(AsyncSession):
        pass

    @registry.command_handler
    async def handler(command: Ask, session: AsyncSession) -> object:
        return type(session) is MySession, session.autoflush, session.info["mine"]

    engine = create_async_engine(database)
    sessions = async_sessionmaker(engine, class_=MySession, autoflush=False, info={"mine": 1})
    async with cqrs.bootstrap(registry=registry, database=sessions, name="shop") as app:
        assert await app.send(Ask()) == (True, False, 1)
    await engine.dispose()


async def test_a_server_that_says_nothing_is_out_of_reach(registry: cqrs.Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    held: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        app = cqrs.bootstrap(
            registry=registry, name="shop", database=f"mysql+asyncmy://me:secret@127.0.0.1:{port}/shop"
        )
        with pytest.raises(cqrs.DatabaseUnreachable, match="cannot be connected to: no answer in time"):
            await app.__aenter__()
        for writer in held:
            writer.close()
