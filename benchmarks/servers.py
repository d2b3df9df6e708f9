"""Databases of our own on the servers that variables name, dropped in the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

POSTGRESQL, MYSQL, KAFKA, RABBITMQ = "POSTGRES_URL", "MYSQL_URL", "KAFKA_URL", "RABBITMQ_URL"


def missing(variables: Sequence[str]) -> str:
    """Say which variables are not set; nothing when all are."""
    unset = [name for name in variables if not os.environ.get(name)]
    return f"{' and '.join(unset)} {'are' if len(unset) > 1 else 'is'} not set" if unset else ""


def kafka_servers() -> str:
    """Return host and port of Kafka."""
    return os.environ[KAFKA].removeprefix("kafka://")


@asynccontextmanager
async def scratch(variable: str) -> AsyncIterator[str]:
    """Give the URL of a new, empty database; it is dropped, whoever is connected to it."""
    url = make_url(os.environ[variable])
    name = f"benchmarks_{uuid4().hex[:12]}"
    postgresql = url.get_backend_name() == "postgresql"
    await _run(url, f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        await _run(url, f"DROP DATABASE {name}" + (" WITH (FORCE)" if postgresql else ""))


async def _run(url: URL, statement: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


async def asyncpg_connection(url: str) -> Any:
    """Return the driver's own connection."""
    import asyncpg

    place = make_url(url)
    return await asyncpg.connect(
        host=place.host, port=place.port, user=place.username, password=place.password, database=place.database
    )
