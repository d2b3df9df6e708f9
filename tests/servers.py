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
    name = f"cqrs_scratch_{uuid.uuid4().hex[:16]}"
    scratch = {"postgresql": _on_postgresql, "mysql": _on_mysql}[place.get_backend_name()]
    async with scratch(place, name):
        yield place.set(database=name).render_as_string(hide_password=False)


@contextlib.asynccontextmanager
async def _on_postgresql(place: sa.URL, name: str) -> AsyncIterator[None]:
    async def run(statement: str) -> None:
        # A statement without arguments is not prepared: PgBouncer passes it on as well.
        connection = await asyncpg.connect(**_login(place), database=place.database)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    await run(f"CREATE DATABASE {name}")
    try:
        yield
    finally:
        await run(f"DROP DATABASE {name} WITH (FORCE)")


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


def _login(place: sa.URL) -> dict[str, str | int | None]:
    return {"host": place.host, "port": place.port, "user": place.username, "password": place.password}
