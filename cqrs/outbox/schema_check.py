"""Whether the tables are those that this version needs. Nothing else migrates them for an application that starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect

from cqrs import migrations
from cqrs.errors import SchemaError
from cqrs.outbox.database import shown
from cqrs.schema import VERSION

if TYPE_CHECKING:
    from cqrs.outbox.database import Database
    from cqrs.outbox.store import Store


async def ensure(database: Database, store: Store) -> None:
    """Migrate the tables where that was asked for, or nobody else does: in a SQLite file that has none.

    Raises `SchemaError`, with the command to run, where they are then not those that this version needs.
    """
    async with store.writers.begin() as connection:
        number = await connection.run_sync(migrations.recorded_number, database.prefix, database.schema)
        embedded = number == 0 and connection.dialect.name == "sqlite"
        fresh = embedded and not await connection.run_sync(_has_tables, database.prefix)
        if number < VERSION and (fresh or database.migrate):
            async with store.dialect.migrating(connection):
                await connection.run_sync(_migrate, database)
            return
    _accept(number, database)
    await store.dialect.check(store)


async def check(database: Database, store: Store) -> None:
    """Raise `SchemaError`, with the command to run, if the tables are not those that this version needs."""
    async with store.readers.connect() as connection:
        number = await connection.run_sync(migrations.recorded_number, database.prefix, database.schema)
    _accept(number, database)


def _accept(number: int, database: Database) -> None:
    if number != VERSION:
        raise SchemaError(_advice(number, shown(database.writers.url), database.prefix, database.schema))


def _has_tables(connection: Any, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in inspect(connection).get_table_names())


def _migrate(connection: Any, database: Database) -> None:
    migrations.migrate(connection, prefix=database.prefix, schema=database.schema)


def _advice(number: int, url: str, prefix: str, schema: str | None) -> str:
    if number > VERSION:
        return (
            f"{url} has schema number {number}, and this version of cqrs-toolkit knows {VERSION}: the database was "
            "upgraded for a newer version. Run `pip install --upgrade cqrs-toolkit`."
        )
    found = "no tables of cqrs-toolkit" if number == 0 else f"schema number {number}"
    other = {"prefix": None if prefix == "cqrs_" else prefix, "schema": schema}
    options = "".join(f", {name}={value!r}" for name, value in other.items() if value)
    where = f" ({options[2:]})" if options else ""
    return (
        f"{url}{where} has {found}, and this version needs number {VERSION}. Add "
        f"`cqrs.migrations.upgrade(op, to={VERSION}{options})` to a revision of your Alembic project and run "
        "`alembic upgrade head`; without Alembic, run `cqrs db upgrade MODULE:APP`, or pass migrate=True to bootstrap."
    )
