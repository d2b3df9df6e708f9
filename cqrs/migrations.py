"""The doors to the schema: Alembic's own environment, a revision of the user's, and a call.

Imported in a user's Alembic project, so it needs nothing of an application. The revisions are in `migrations/`, which
ships inside the package and stands beside it in a checkout.
"""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations

from cqrs.errors import SchemaError
from cqrs.schema import VERSION, metadata, tables

if TYPE_CHECKING:
    from types import ModuleType

    from sqlalchemy.engine import Connection

__all__ = [
    "VERSION",
    "VERSION_TABLE",
    "differences",
    "downgrade",
    "include_object",
    "metadata",
    "migrate",
    "scripts",
    "sql",
    "upgrade",
]

VERSION_TABLE = "cqrs_alembic_version"


def upgrade(
    op: Any, *, to: int = VERSION, since: int | None = None, prefix: str = "cqrs_", schema: str | None = None
) -> None:
    """Bring the tables from the number `since` (by default the one before `to`) to `to`, with Alembic's operations.

    For a revision of the user's own: `cqrs.migrations.upgrade(op, to=1)`. It also writes the number into
    `cqrs_settings`, which the check at start reads; works with `--sql`. Raises `ValueError` for a number that this
    version does not have.
    """
    numbers = range((to - 1 if since is None else since) + 1, to + 1)
    for revision in [_revision(number) for number in numbers]:
        revision.upgrade(op, prefix, schema)


def downgrade(
    op: Any, *, to: int = 0, since: int | None = None, prefix: str = "cqrs_", schema: str | None = None
) -> None:
    """Undo `upgrade` from the number `since` (by default the one after `to`) down to `to`."""
    numbers = range(to + 1 if since is None else since, to, -1)
    for revision in [_revision(number) for number in numbers]:
        revision.downgrade(op, prefix, schema)


def include_object(found: Any, name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:  # noqa: FBT001 - Alembic's hook
    """Leave out of a user's autogenerate what only one kind of database has, and the toolkit's own version table.

    For `context.configure(include_object=...)`; needed on PostgreSQL and MySQL, and beside the version table.
    """
    if kind == "table":
        return name != VERSION_TABLE
    table = getattr(found, "table", None)
    if table is None or not {"event_id", "destination", "message_key", "slot"} <= set(table.c.keys()):
        return True
    return name not in ("tx", f"{table.name}_slot", f"{table.name}_id")


def scripts() -> Path:
    """Return the folder of the Alembic environment: inside the installed package, or beside it in a checkout."""
    shipped = Path(__file__).with_suffix("")
    return shipped if shipped.is_dir() else Path(__file__).parent.parent / "migrations"


def migrate(connection: Connection, *, prefix: str = "cqrs_", schema: str | None = None) -> None:
    """Create or upgrade the tables within the connection's transaction, as `alembic upgrade head` does.

    Under another prefix or schema than the default no Alembic version table is kept: the number in the settings is it.
    Raises `SchemaError` where the schema does not exist.
    """
    if prefix == "cqrs_" and schema is None:
        config = Config()
        config.set_main_option("script_location", str(scripts()))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return
    if schema is not None and not sa.inspect(connection).has_schema(schema):
        raise SchemaError(f"There is no schema '{schema}'. Make it, as a user who may: CREATE SCHEMA {schema}.")
    since = recorded_number(connection, prefix, schema)
    if since < VERSION:
        operations = Operations(MigrationContext.configure(connection))
        upgrade(operations, to=VERSION, since=since, prefix=prefix, schema=schema)


def sql(dialect: str, *, prefix: str = "cqrs_", schema: str | None = None) -> str:
    """Return the statements that create the tables on a kind of database, as SQLAlchemy names it."""
    written = StringIO()
    options = {"as_sql": True, "output_buffer": written, "literal_binds": True}
    operations = Operations(MigrationContext.configure(dialect_name=dialect, opts=options))
    upgrade(operations, since=0, prefix=prefix, schema=schema)
    return written.getvalue()


def differences(connection: Connection, *, prefix: str = "cqrs_", schema: str | None = None) -> list[str]:
    """Return what the live tables lack, or have too much of, a line each, beside what this version needs."""
    from sqlalchemy.dialects.postgresql.base import ischema_names

    wanted = sa.MetaData(schema=schema)
    tables(wanted, prefix)
    names = {table.name for table in wanted.tables.values()}
    # Known by name, so that reading the tables back does not warn of a type that SQLAlchemy has not heard of.
    ischema_names.setdefault("xid8", sa.BIGINT)

    def is_ours(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name == schema
        return (name if kind == "table" else parents["table_name"]) in names

    options = {
        "include_name": is_ours,
        "include_object": include_object,
        "include_schemas": schema is not None,
        "target_metadata": wanted,
    }
    found = compare_metadata(MigrationContext.configure(connection, opts=options), wanted)
    return sorted(_told(each) for group in found for each in (group if isinstance(group, list) else [group]))


def _told(difference: tuple[Any, ...]) -> str:
    """Return a sentence for one of Alembic's differences: what would have to be done, and to what."""
    done, *what = difference
    names = [getattr(each, "name", each) for each in what if isinstance(getattr(each, "name", each), str)]
    return f"{done.replace('_', ' ')} {'.'.join(names)}"


def write_number(op: Any, number: int, prefix: str, schema: str | None) -> None:
    """Record the schema's number; every revision ends with it."""
    settings = _settings(prefix, schema)
    op.execute(settings.delete().where(settings.c.name == op.inline_literal("schema")))
    op.execute(settings.insert().values(name=op.inline_literal("schema"), value=op.inline_literal(str(number))))


def is_recorded(op: Any, number: int, prefix: str, schema: str | None) -> bool:
    """Whether the database says that it has this number already; with `--sql` nobody can know."""
    context = op.get_context()
    return not context.as_sql and recorded_number(context.connection, prefix, schema) >= number


def recorded_number(connection: Connection, prefix: str = "cqrs_", schema: str | None = None) -> int:
    """Return the number that the database's settings record; 0 where there are no tables."""
    if not sa.inspect(connection).has_table(f"{prefix}settings", schema=schema):
        return 0
    settings = _settings(prefix, schema)
    value = connection.execute(sa.select(settings.c.value).where(settings.c.name == "schema")).scalar()
    return int(value or 0)


def _settings(prefix: str, schema: str | None) -> sa.TableClause:
    return sa.table(f"{prefix}settings", sa.column("name", sa.String), sa.column("value", sa.String), schema=schema)


def _revision(number: int) -> ModuleType:
    found = sorted((scripts() / "versions").glob(f"cqrs_{number:04d}_*.py"))
    if not found:
        raise ValueError(f"There is no schema number {number}; this version of cqrs-toolkit has 1 to {VERSION}.")
    spec = spec_from_file_location(found[0].stem, found[0])
    assert spec is not None  # noqa: S101 - a .py file always has one
    assert spec.loader is not None  # noqa: S101 - as above
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
