"""The servers that tests marked `services` run against, and databases of their own on them."""

import contextlib
import os
import uuid
from collections.abc import AsyncIterator

import asyncmy
import asyncpg
import pytest
import sqlalchemy as sa

REMEDY = "scripts/services up starts it"

_EMPTY = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$
DECLARE made text;
BEGIN
    FOR made IN
        SELECT format('SCHEMA %I CASCADE', nspname) FROM pg_namespace
        WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
        UNION ALL SELECT format('PUBLICATION %I', pubname) FROM pg_publication
    LOOP
        EXECUTE 'DROP ' || made;
    END LOOP;
    CREATE SCHEMA public AUTHORIZATION pg_database_owner;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
    EXECUTE format('ALTER DATABASE %I RESET ALL', current_database());
END $$
"""
"""Makes a database as a new one is: nobody else is connected, and nothing is left of what was made in it."""

_made: list[tuple[sa.URL, str]] = []
_free: dict[str, list[str]] = {}
"""Databases that this process uses again: all of them with their server, and by its URL those that nobody has."""


def server(variable: str) -> str:
    """Return the URL that an environment variable holds; without it the test is skipped, and fails under CI."""
    if url := os.environ.get(variable):
        return url
    reason = f"{variable} is not set: {REMEDY}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@contextlib.asynccontextmanager
async def scratch_database(url: str) -> AsyncIterator[str]:
    """The URL of a new, empty database on the server; in the end it is dropped, whoever is connected to it."""
    place = sa.make_url(url)
    name = _new_name()
    scratch = {"postgresql": _on_postgresql, "mysql": _on_mysql}[place.get_backend_name()]
    async with scratch(place, name):
        yield place.set(database=name).render_as_string(hide_password=False)


@contextlib.asynccontextmanager
async def empty_database(url: str) -> AsyncIterator[str]:
    """The URL of an empty database on the server that is nobody else's meanwhile, though perhaps not new.

    To make one and to drop it takes PostgreSQL longer than most tests: both write all of its files to the disk.
    """
    place = sa.make_url(url)
    if place.get_backend_name() != "postgresql":
        async with scratch_database(url) as scratch:
            yield scratch
        return
    free = _free.setdefault(url, [])
    name = free.pop() if free else await _make(place)
    try:
        yield place.set(database=name).render_as_string(hide_password=False)
    finally:
        await _on(place, _EMPTY, name)
        free.append(name)


async def drop_empty_databases() -> None:
    """Drop all databases that this process has used again."""
    _free.clear()
    while _made:
        place, name = _made.pop()
        await _on(place, f"DROP DATABASE {name} WITH (FORCE)")


async def _make(place: sa.URL) -> str:
    name = _new_name()
    await _on(place, f"CREATE DATABASE {name}")
    _made.append((place, name))
    return name


@contextlib.asynccontextmanager
async def _on_postgresql(place: sa.URL, name: str) -> AsyncIterator[None]:
    await _on(place, f"CREATE DATABASE {name}")
    try:
        yield
    finally:
        await _on(place, f"DROP DATABASE {name} WITH (FORCE)")


async def _on(place: sa.URL, statements: str, database: str | None = None) -> None:
    # What has no arguments is not prepared: PgBouncer passes it on as well.
    connection = await asyncpg.connect(**_login(place), database=database or place.database)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def _on_mysql(place: sa.URL, name: str) -> AsyncIterator[None]:
    async def run(statement: str) -> list[tuple[int]]:
        async with asyncmy.connect(**_login(place), db=place.database) as connection, connection.cursor() as cursor:
            await cursor.execute(statement)
            return await cursor.fetchall()

    await run(f"CREATE DATABASE {name}")
    try:
        yield
    finally:
        # Whoever has a transaction open there would keep the last statement waiting.
        for (connection,) in await run(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"):
            with contextlib.suppress(asyncmy.errors.OperationalError):  # it has gone by itself
                await run(f"KILL {connection}")
        await run(f"DROP DATABASE {name}")


def _new_name() -> str:
    return f"cqrs_scratch_{uuid.uuid4().hex[:16]}"


def _login(place: sa.URL) -> dict[str, str | int | None]:
    return {"host": place.host, "port": place.port, "user": place.username, "password": place.password}
