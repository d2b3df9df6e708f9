"""Outbox, parked keys, inbox, slots and settings.

Released revisions are never edited; a change is a new one.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op as current_op
from sqlalchemy.dialects import mysql

from cqrs.migrations import is_recorded, write_number

revision = "cqrs_0001"
down_revision = None
branch_labels = None
depends_on = None

MYSQL = ("mysql", "mariadb")


class XID8(sa.types.UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in DDL."""
        return "xid8"


def text(length: int) -> Any:
    """Text that compares byte by byte but for spaces at its end; MySQL's default collation takes 'a' for 'A'."""
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), *MYSQL)


def long_text() -> Any:
    """Text of any length; MySQL's plain TEXT would end at 64 KiB."""
    return sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), *MYSQL)


def body() -> Any:
    """Bytes of any length."""
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), *MYSQL)


def time() -> Any:
    """A point in time."""
    return sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), *MYSQL)


def number() -> Any:
    """An identity; SQLite numbers rows by INTEGER alone."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def event_columns() -> list[sa.Column[Any]]:
    """Return the columns of a saved event."""
    return [
        sa.Column("event_id", text(255), nullable=False),
        sa.Column("destination", text(191), nullable=False),
        sa.Column("topic", text(249), nullable=False),
        sa.Column("message_key", text(255)),
        sa.Column("type", text(255), nullable=False),
        sa.Column("headers", long_text(), nullable=False),
        sa.Column("payload", body(), nullable=False),
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("created_at", time(), nullable=False),
    ]


def upgrade(op: Any = current_op, prefix: str = "cqrs_", schema: str | None = None) -> None:
    """Create the tables, unless they were created through another door."""
    if is_recorded(op, 1, prefix, schema):
        return
    dialect = op.get_context().dialect.name
    create_outbox(op, dialect, f"{prefix}outbox", schema)
    op.create_table(
        f"{prefix}parked",
        sa.Column("seq", number(), primary_key=True, autoincrement=True),
        sa.Column("source_id", sa.BigInteger()),
        *event_columns(),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", time()),
        sa.Column("error", long_text()),
        schema=schema,
        sqlite_autoincrement=True,
    )
    index(op, f"{prefix}parked", "key", ["destination", "topic", "message_key", "seq"], schema)
    index(op, f"{prefix}parked", "due", ["state", "next_attempt_at"], schema)
    op.create_table(
        f"{prefix}inbox",
        sa.Column("handler", text(191), primary_key=True),
        sa.Column("message_id", text(255), primary_key=True),
        sa.Column("handled_at", time(), nullable=False),
        schema=schema,
        sqlite_with_rowid=False,
    )
    index(op, f"{prefix}inbox", "handled_at", ["handled_at"], schema)
    op.create_table(
        f"{prefix}slot",
        sa.Column("slot", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("until", time()),
        schema=schema,
    )
    op.create_table(
        f"{prefix}settings",
        sa.Column("name", text(64), primary_key=True),
        sa.Column("value", text(255), nullable=False),
        schema=schema,
    )
    write_number(op, 1, prefix, schema)


def create_outbox(op: Any, dialect: str, name: str, schema: str | None) -> None:
    """Create the outbox: read by slot in id order, so clustered that way where the database can."""
    columns = event_columns()
    if dialect == "sqlite":
        # AUTOINCREMENT: without it ids start again when the table is empty.
        identity = sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True)
        op.create_table(name, identity, *columns, schema=schema, sqlite_autoincrement=True)
        index(op, name, "slot", ["slot", "id"], schema)
    elif dialect in MYSQL:
        identity = sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False)
        # An AUTO_INCREMENT column has to come first in some key of the same statement.
        keys = (sa.PrimaryKeyConstraint("slot", "id"), sa.UniqueConstraint("id", name=f"{name}_id"))
        op.create_table(name, identity, *columns, *keys, schema=schema)
    else:
        # Before `id`, so that a transaction owns its xid before it draws its first id.
        transaction = sa.Column("tx", XID8(), nullable=False, server_default=sa.text("pg_current_xact_id()"))
        identity = sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False)
        op.create_table(name, transaction, identity, *columns, sa.PrimaryKeyConstraint("slot", "id"), schema=schema)


def index(op: Any, table: str, name: str, columns: list[str], schema: str | None) -> None:
    """Create an index named after its table."""
    op.create_index(f"{table}_{name}", table, columns, schema=schema)


def downgrade(op: Any = current_op, prefix: str = "cqrs_", schema: str | None = None) -> None:
    """Drop the tables, with everything in them."""
    for name in ("settings", "slot", "inbox", "parked", "outbox"):
        op.drop_table(f"{prefix}{name}", schema=schema)
