"""The Alembic environment of the toolkit's own tables.

The database is the connection that a caller hands over, or `-x url=...`, or `CQRS_DATABASE_URL`.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from alembic import context
from sqlalchemy import BigInteger, create_engine, make_url
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.ext.asyncio import create_async_engine

from cqrs import migrations

# Known by name, so that reading the tables back does not warn of a type that SQLAlchemy has not heard of.
ischema_names.setdefault("xid8", BigInteger)

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection


def database() -> URL:
    """Return the URL of the database to migrate."""
    url = context.get_x_argument(as_dictionary=True).get("url") or os.environ.get("CQRS_DATABASE_URL")
    if not url:
        raise SystemExit(
            "No database given. Use `alembic -x url=sqlite+aiosqlite:///app.db ...` or set CQRS_DATABASE_URL."
        )
    return make_url(url)


def run(connection: Connection) -> None:
    """Migrate over a connection."""
    context.configure(
        connection=connection,
        target_metadata=migrations.metadata,
        include_object=migrations.include_object,
        version_table=migrations.VERSION_TABLE,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_async(url: URL) -> None:
    """Migrate through an async driver."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


def main() -> None:
    """Migrate the way that Alembic was called."""
    connection = context.config.attributes.get("connection")
    if context.is_offline_mode():
        context.configure(url=database(), version_table=migrations.VERSION_TABLE, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
    elif connection is not None:
        run(connection)
    elif database().get_dialect().is_async:
        asyncio.run(run_async(database()))
    else:
        engine = create_engine(database())
        with engine.begin() as opened:
            run(opened)
        engine.dispose()


main()
