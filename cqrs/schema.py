"""The toolkit's tables, as queries and Alembic's autogenerate see them; revisions in `migrations/` create them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
)

from cqrs.codec import HANDLER_LIMIT, TOPIC_LIMIT

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

VERSION = 1
"""The number of the newest revision: the schema that this version of the toolkit needs."""

MYSQL = ("mysql", "mariadb")
BINARY = "utf8mb4_bin"


def text_type(length: int) -> String:
    """Return a text that compares byte by byte; MySQL's default collation takes 'a' for 'A'."""
    return String(length).with_variant(String(length, collation=BINARY), *MYSQL)


class _OfMySQL(TypeDecorator[Any]):
    """One of MySQL's own types, whose module, which loads all of its drivers, is imported on MySQL only."""

    impl = Text
    cache_ok = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type of that name."""
        from sqlalchemy.dialects import mysql

        options = {} if self.name.endswith("BLOB") else {"charset": "utf8mb4", "collation": BINARY}
        return dialect.type_descriptor(getattr(mysql, self.name)(**options))


def long_text_type() -> Text:
    """Return a text of any length; MySQL's plain TEXT would end at 64 KiB."""
    return Text().with_variant(_OfMySQL("LONGTEXT"), *MYSQL)


def bytes_type() -> LargeBinary:
    """Return a body's type; MySQL's plain BLOB would end at 64 KiB."""
    return LargeBinary().with_variant(_OfMySQL("LONGBLOB"), *MYSQL)


def time_type() -> DateTime:
    """Return a point in time."""
    return DateTime(timezone=True)


def number_type() -> BigInteger:
    """Return an identity's type; SQLite numbers rows by INTEGER alone."""
    return BigInteger().with_variant(Integer(), "sqlite")


@dataclass(frozen=True, slots=True)
class Tables:
    """The five tables under one prefix."""

    outbox: Table
    parked: Table
    inbox: Table
    slot: Table
    settings: Table


def tables(metadata: MetaData, prefix: str = "cqrs_") -> Tables:
    """Return the tables of a prefix, added to the metadata (whose schema they take)."""
    return Tables(
        Table(
            f"{prefix}outbox",
            metadata,
            Column("id", number_type(), primary_key=True, autoincrement=True),
            *_event_columns(),
            Index(f"{prefix}outbox_slot", "slot", "id").ddl_if(dialect="sqlite"),
            sqlite_autoincrement=True,
        ),
        Table(
            f"{prefix}parked",
            metadata,
            Column("seq", number_type(), primary_key=True, autoincrement=True),
            Column("source_id", BigInteger()),
            *_event_columns(),
            Column("state", String(16), nullable=False),
            Column("attempts", Integer(), nullable=False),
            Column("next_attempt_at", time_type()),
            Column("error", long_text_type()),
            Index(f"{prefix}parked_key", "destination", "topic", "message_key", "seq"),
            Index(f"{prefix}parked_due", "state", "next_attempt_at"),
            sqlite_autoincrement=True,
        ),
        Table(
            f"{prefix}inbox",
            metadata,
            Column("handler", text_type(HANDLER_LIMIT), primary_key=True),
            Column("message_id", text_type(255), primary_key=True),
            Column("handled_at", time_type(), nullable=False),
            Index(f"{prefix}inbox_handled_at", "handled_at"),
        ),
        Table(
            f"{prefix}slot",
            metadata,
            Column("slot", SmallInteger(), primary_key=True, autoincrement=False),
            Column("owner", String(64)),
            Column("until", time_type()),
        ),
        Table(
            f"{prefix}settings",
            metadata,
            Column("name", text_type(64), primary_key=True),
            Column("value", text_type(255), nullable=False),
        ),
    )


def _event_columns() -> list[Column[object]]:
    return [
        Column("event_id", text_type(255), nullable=False),
        Column("destination", text_type(HANDLER_LIMIT), nullable=False),
        Column("topic", text_type(TOPIC_LIMIT), nullable=False),
        Column("message_key", text_type(255)),
        Column("type", text_type(255), nullable=False),
        Column("headers", long_text_type(), nullable=False),
        Column("payload", bytes_type(), nullable=False),
        Column("slot", SmallInteger(), nullable=False),
        Column("created_at", time_type(), nullable=False),
    ]


metadata = MetaData()
tables(metadata)
