"""From what the user gave as `database=` to engines and sessions, with everything that is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from cqrs.errors import DatabaseUnreachable, Problem
from cqrs.outbox import sqlite

if TYPE_CHECKING:
    from cqrs.outbox.dialect import Dialect

DRIVERS = ("asyncmy", "asyncpg", "psycopg", "pymysql", "sqlite3")
"""Modules whose errors are a database's."""
EXAMPLE = 'database="sqlite+aiosqlite:///app.db"'
POOL = 20
"""How many connections an engine of the toolkit's own keeps, and as many more for a while."""


PATIENCE = 30.0
"""Seconds that a database has to answer at the start: whatever else listens on its port may say nothing for ever."""
RECYCLED = 1800.0
"""Seconds after which such an engine replaces a connection: servers and what stands between drop idle ones."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of database: an example of its URL, and what brings each of its async drivers."""

    example: str
    drivers: Mapping[str, str]


SQLITE = _Kind("sqlite+aiosqlite:///app.db", {"aiosqlite": "aiosqlite"})
_MYSQL = {"asyncmy": "cqrs-toolkit[mysql]"}
KINDS = {
    "sqlite": SQLITE,
    "postgresql": _Kind(
        "postgresql+asyncpg://user:password@host/name",
        {"asyncpg": "cqrs-toolkit[postgres]", "psycopg": "psycopg[binary]", "psycopg_async": "psycopg[binary]"},
    ),
    "mysql": _Kind("mysql+asyncmy://user:password@host/name", _MYSQL),
    "mariadb": _Kind("mariadb+asyncmy://user:password@host/name", _MYSQL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Where an application's tables are, and how its sessions are made."""

    dialect: Dialect
    writers: AsyncEngine
    readers: AsyncEngine
    owned: bool
    """Whether the engines are the toolkit's to dispose of."""
    sessions: Mapping[str, Any]
    """The options of the user's `async_sessionmaker`."""
    session_class: type[AsyncSession]
    prefix: str
    schema: str | None
    migrate: bool


def connect(
    database: str | AsyncEngine | async_sessionmaker[AsyncSession],
    problems: list[Problem],
    *,
    prefix: str,
    schema: str | None,
    migrate: bool,
) -> Database | None:
    """Return the database behind a URL, an engine or a sessionmaker; None when there are problems with it.

    Nothing is connected yet.
    """
    options: Mapping[str, Any] = {}
    session_class: type[AsyncSession] = AsyncSession
    if isinstance(database, async_sessionmaker):
        options, session_class = database.kw, database.class_
        bind = options.get("bind")
        if not isinstance(bind, AsyncEngine):
            problems.append(Problem("The async_sessionmaker has no engine", "Make it with async_sessionmaker(engine)."))
            return None
        problems.extend(
            Problem(
                f"The async_sessionmaker has {name}={options[name]}, with which no command can run", "Leave it out."
            )
            for name, works in (("autobegin", True), ("twophase", False))
            if options.get(name, works) is not works
        )
        database = bind
    url = database.url if isinstance(database, AsyncEngine) else _url(database, problems)
    if url is None or not _is_usable(url, schema, problems):
        return None
    writers, readers = (database, database) if isinstance(database, AsyncEngine) else _engines(url)
    return Database(
        dialect=dialect_of(writers),
        writers=writers,
        readers=readers,
        owned=not isinstance(database, AsyncEngine),
        sessions=options,
        session_class=session_class,
        prefix=prefix,
        schema=schema,
        migrate=migrate,
    )


async def reach(database: Database) -> None:
    """Raise `DatabaseUnreachable`, which says in plain words why, if the database cannot be reached."""
    try:
        async with asyncio.timeout(PATIENCE), database.readers.connect() as connection:
            await connection.scalar(select(1))  # one that a pool has kept may be dead
    except TimeoutError as error:
        raise DatabaseUnreachable(shown(database.writers.url), TimeoutError("no answer in time")) from error
    except (DBAPIError, OSError) as error:
        raise DatabaseUnreachable(shown(database.writers.url), getattr(error, "orig", None) or error) from error
    except Exception as error:
        # asyncpg raises its own errors past SQLAlchemy while it connects.
        if type(error).__module__.partition(".")[0] not in DRIVERS:
            raise
        raise DatabaseUnreachable(shown(database.writers.url), error) from error


def _url(given: str | URL | Any, problems: list[Problem]) -> URL | None:
    if not isinstance(given, str | URL):
        what = f"The database is of the type {type(given).__qualname__}"
        cure = "Pass a URL, an AsyncEngine (create_async_engine) or an async_sessionmaker."
        problems.append(Problem(what, cure))
        return None
    try:
        return make_url(given)
    except ArgumentError:
        # The text itself is not shown: it may hold a password.
        problems.append(Problem("The database is no URL that SQLAlchemy can read", f"Write for example {EXAMPLE}."))
        return None


def shown(url: URL) -> str:
    """Return a URL without what may be secret: its password, and its query, where drivers take one, too."""
    return url.set(query={}).render_as_string(hide_password=True).replace("%3A", ":")


def _is_usable(url: URL, schema: str | None, problems: list[Problem]) -> bool:
    known = len(problems)
    kind = KINDS.get(url.get_backend_name())
    if kind is None:
        cure = f"Use PostgreSQL, MySQL, MariaDB or SQLite: {', '.join(kind.example for kind in KINDS.values())}."
        problems.append(Problem(f"The database {shown(url)} is none that the toolkit stores on", cure))
    elif url.get_driver_name() not in kind.drivers:
        cure = f"Name the async driver: {kind.example}."
        problems.append(
            Problem(f"The database {shown(url)} has the driver '{url.get_driver_name()}', which is not async", cure)
        )
    elif find_spec(url.get_driver_name()) is None:
        what = f"The database {shown(url)} needs {url.get_driver_name()}, which is not installed"
        other = "" if "+" in url.drivername else f", or name another driver: {kind.example}"
        problems.append(Problem(what, f"Run pip install '{kind.drivers[url.get_driver_name()]}'{other}."))
    elif kind is not SQLITE:
        return len(problems) == known
    elif sqlite.is_in_memory(url):
        cure = f"Use a file: {EXAMPLE}; in tests a temporary one."
        where = f"The database {shown(url)} is in memory"
        what = f"{where}, where sessions would share one connection and undo each other's work"
        problems.append(Problem(what, cure))
    elif schema is not None:
        problems.append(Problem("schema= has no meaning on SQLite", "Use prefix= to keep applications apart."))
    return len(problems) == known


def _engines(url: URL) -> tuple[AsyncEngine, AsyncEngine]:
    """Return an engine for writers and one for readers; on a server they are one."""
    if url.get_backend_name() == "sqlite":
        return sqlite.connect(url)
    engine = create_async_engine(
        url, pool_size=POOL, max_overflow=POOL, pool_recycle=RECYCLED, connect_args=_arguments(url)
    )
    return engine, engine


def _arguments(url: URL) -> dict[str, Any]:
    if url.get_driver_name() != "asyncpg":
        return {}
    from cqrs.outbox.asyncpg_driver import JoinedConnection

    return {"connection_class": JoinedConnection}


def dialect_of(engine: AsyncEngine) -> Dialect:
    """Return what the engine's kind of database does in its own way."""
    match engine.dialect.name:
        case "postgresql":
            from cqrs.outbox.postgresql import PostgreSQL

            return PostgreSQL()
        case "mysql" | "mariadb":
            from cqrs.outbox.mysql import MySQL

            return MySQL()
        case _:
            return sqlite.SQLite()
