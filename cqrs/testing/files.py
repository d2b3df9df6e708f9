"""The temporary file of a test: the tables are made once, and copied from then on."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from cqrs import migrations

if TYPE_CHECKING:
    from cqrs.checks import Wishes


@asynccontextmanager
async def temporary(wishes: Wishes) -> AsyncGenerator[str | async_sessionmaker[AsyncSession]]:
    """Provide a new file with the toolkit's tables in place of a database, with the options of the user's sessions."""
    with tempfile.TemporaryDirectory(prefix="cqrs-") as folder:
        file = Path(folder) / "test.db"
        file.write_bytes(_empty(wishes.prefix))
        url = f"sqlite+aiosqlite:///{file}"
        given = wishes.database
        if not isinstance(given, async_sessionmaker):
            yield url
            return
        engine = create_async_engine(url)
        options: dict[str, Any] = {**given.kw, "bind": engine}
        yield async_sessionmaker(class_=given.class_, **options)
        await engine.dispose()


@cache
def _empty(prefix: str) -> bytes:
    """Return a file with the tables, and nothing in them: to migrate takes longer than most tests."""
    with tempfile.TemporaryDirectory(prefix="cqrs-") as folder:
        file = Path(folder) / "empty.db"
        engine = create_engine(f"sqlite:///{file}")
        with engine.begin() as connection:
            migrations.migrate(connection, prefix=prefix)
        engine.dispose()
        return file.read_bytes()
