"""From what the user gave as `database=` to engines and sessions, with everything that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from cqrs.errors import Problem
from cqrs.outbox import sqlite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import URL

EXAMPLE = 'database="sqlite+aiosqlite:///app.db"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Where an application's tables are, and how its sessions are made."""

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
        database = bind
    url = database.url if isinstance(database, AsyncEngine) else _url(database, problems)
    if url is None or not _is_usable(url, schema, problems):
        return None
    writers, readers = (database, database) if isinstance(database, AsyncEngine) else sqlite.connect(url)
    return Database(
        writers=writers,
        readers=readers,
        owned=not isinstance(database, AsyncEngine),
        sessions=options,
        session_class=session_class,
        prefix=prefix,
        schema=schema,
        migrate=migrate,
    )


def _url(text: str, problems: list[Problem]) -> URL | None:
    try:
        return make_url(text)
    except ArgumentError:
        # The text itself is not shown: it may hold a password.
        problems.append(Problem("The database is no URL that SQLAlchemy can read", f"Write for example {EXAMPLE}."))
        return None


def _is_usable(url: URL, schema: str | None, problems: list[Problem]) -> bool:
    shown = url.render_as_string(hide_password=True).replace("%3A", ":")
    known = len(problems)
    if url.get_backend_name() != "sqlite":
        problems.append(
            Problem(f"The database {shown} is not SQLite, all that this version stores on", f"Use {EXAMPLE}.")
        )
    elif url.get_driver_name() != "aiosqlite":
        cure = f"Name the async driver: {EXAMPLE}."
        problems.append(
            Problem(f"The database {shown} has the driver '{url.get_driver_name()}', which is not async", cure)
        )
    elif sqlite.is_in_memory(url):
        cure = f"Use a file: {EXAMPLE}; in tests a temporary one."
        what = (
            f"The database {shown} is in memory, where sessions would share one connection and undo each other's work"
        )
        problems.append(Problem(what, cure))
    elif schema is not None:
        problems.append(Problem("schema= has no meaning on SQLite", "Use prefix= to keep applications apart."))
    return len(problems) == known
