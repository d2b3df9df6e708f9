"""The tables as queries see them, beside what the revisions create in each kind of database."""

import re
import subprocess
import sys
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

import cqrs
from cqrs import migrations, schema

DIALECTS: dict[str, sa.Dialect] = {
    "sqlite": sqlite.dialect(),
    "postgresql": postgresql.dialect(),
    "mysql": mysql.dialect(),
}
NAMES = ("outbox", "parked", "inbox", "slot", "settings")
LARGEST_KEY_OF_INNODB = 3072
LARGEST_CHARACTER = 4

on_every_dialect = pytest.mark.parametrize("dialect", DIALECTS)
of_every_table = pytest.mark.parametrize("name", NAMES)


class Operations:
    """Stands for Alembic's operations: keeps the tables and indexes that a revision creates."""

    as_sql = True

    def __init__(self, dialect: str) -> None:
        self.dialect = DIALECTS[dialect]
        self.created = sa.MetaData()

    def get_context(self) -> "Operations":
        return self

    def create_table(self, name: str, *parts: Any, **options: Any) -> None:
        sa.Table(name, self.created, *parts, **options)

    def create_index(self, name: str, table: str, columns: list[str], *, schema: str | None) -> None:
        created = self.created.tables[table if schema is None else f"{schema}.{table}"]
        sa.Index(name, *(created.c[column] for column in columns))

    def inline_literal(self, value: str) -> str:
        return value

    def execute(self, statement: Any) -> None: ...


def created(dialect: str) -> sa.MetaData:
    """Return what the revisions create."""
    operations = Operations(dialect)
    migrations.upgrade(operations, to=schema.VERSION, since=0)
    return operations.created


def type_of(column: sa.Column[Any], dialect: str) -> str:
    """Return a column's type in DDL, without what makes no difference to autogenerate or to a query."""
    text = column.type.compile(DIALECTS[dialect])
    return text.replace(" CHARACTER SET utf8mb4", "").replace("DATETIME(6)", "DATETIME")


def created_columns(table: sa.Table) -> list[sa.Column[Any]]:
    """Return a created table's columns without the transaction id, which PostgreSQL alone has."""
    return [column for column in table.columns if column.name != "tx"]


@on_every_dialect
@of_every_table
def test_the_columns_have_the_types_that_the_revisions_create(name: str, dialect: str):
    described = cqrs.metadata.tables[f"cqrs_{name}"]
    live = created(dialect).tables[f"cqrs_{name}"]
    assert [(column.name, type_of(column, dialect)) for column in described.columns] == [
        (column.name, type_of(column, dialect)) for column in created_columns(live)
    ]


@on_every_dialect
@of_every_table
def test_no_column_has_a_default_that_a_comparison_of_defaults_would_find(name: str, dialect: str):
    for table in (cqrs.metadata.tables[f"cqrs_{name}"], created(dialect).tables[f"cqrs_{name}"]):
        defaults = [column.name for column in table.columns if isinstance(column.server_default, sa.DefaultClause)]
        assert [column for column in defaults if column != "tx"] == []


@on_every_dialect
@of_every_table
def test_the_columns_may_be_null_where_the_revisions_let_them(name: str, dialect: str):
    described = cqrs.metadata.tables[f"cqrs_{name}"]
    live = created(dialect).tables[f"cqrs_{name}"]
    assert {column.name: column.nullable for column in described.columns} == {
        column.name: column.nullable for column in created_columns(live)
    }


@on_every_dialect
def test_the_revisions_create_these_tables_and_no_other(dialect: str):
    assert created(dialect).tables.keys() == cqrs.metadata.tables.keys() == {f"cqrs_{name}" for name in NAMES}


@on_every_dialect
@pytest.mark.parametrize("name", ["parked", "inbox", "slot", "settings"])
def test_the_keys_and_indexes_are_those_that_the_revisions_create(name: str, dialect: str):
    def keys(table: sa.Table) -> set[tuple[Any, ...]]:
        indexes = {(index.name, *index.columns.keys()) for index in table.indexes}
        return indexes | {("primary key", *table.primary_key.columns.keys())}

    assert keys(cqrs.metadata.tables[f"cqrs_{name}"]) == keys(created(dialect).tables[f"cqrs_{name}"])


@pytest.mark.parametrize(
    ("dialect", "key"), [("sqlite", ["id"]), ("postgresql", ["slot", "id"]), ("mysql", ["slot", "id"])]
)
def test_the_outbox_is_keyed_as_it_is_read_where_the_database_can(dialect: str, key: list[str]):
    assert created(dialect).tables["cqrs_outbox"].primary_key.columns.keys() == key


@on_every_dialect
def test_the_outbox_can_be_read_by_slot_and_id_everywhere(dialect: str):
    outbox = created(dialect).tables["cqrs_outbox"]
    keys = [outbox.primary_key.columns.keys(), *(index.columns.keys() for index in outbox.indexes)]
    assert ["slot", "id"] in keys


@pytest.mark.parametrize("dialect", ["sqlite", "mysql"])
def test_only_postgresql_has_a_transaction_id(dialect: str):
    assert "tx" not in created(dialect).tables["cqrs_outbox"].columns


def test_the_metadata_knows_no_transaction_id():
    assert "tx" not in cqrs.metadata.tables["cqrs_outbox"].columns


@of_every_table
def test_every_key_fits_into_the_largest_one_of_mysql(name: str):
    table = created("mysql").tables[f"cqrs_{name}"]
    for key in [table.primary_key, *table.indexes]:
        assert sum(map(size, key.columns)) <= LARGEST_KEY_OF_INNODB


def size(column: sa.Column[Any]) -> int:
    assert not isinstance(column.type, (sa.Text, sa.LargeBinary)), f"{column} has no length that a key could hold"
    return column.type.length * LARGEST_CHARACTER if isinstance(column.type, sa.String) else 8


def test_the_limits_are_the_lengths_of_the_columns():
    outbox = cqrs.metadata.tables["cqrs_outbox"]
    assert outbox.c.topic.type.length == schema.TOPIC_LIMIT
    assert outbox.c.destination.type.length == schema.HANDLER_LIMIT
    assert cqrs.metadata.tables["cqrs_inbox"].c.handler.type.length == schema.HANDLER_LIMIT


def test_on_mysql_texts_compare_byte_by_byte():
    assert schema.text_type(40).compile(DIALECTS["mysql"]) == "VARCHAR(40) COLLATE utf8mb4_bin"
    assert schema.long_text_type().compile(DIALECTS["mysql"]) == "LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_elsewhere_texts_need_no_collation(dialect: str):
    assert schema.text_type(40).compile(DIALECTS[dialect]) == "VARCHAR(40)"
    assert schema.long_text_type().compile(DIALECTS[dialect]) == "TEXT"


@pytest.mark.parametrize(("dialect", "bytes_"), [("sqlite", "BLOB"), ("postgresql", "BYTEA"), ("mysql", "LONGBLOB")])
def test_bodies_may_have_any_length(dialect: str, bytes_: str):
    assert schema.bytes_type().compile(DIALECTS[dialect]) == bytes_


def test_mariadb_takes_the_types_of_mysql():
    mariadb = sa.make_url("mariadb+asyncmy://").get_dialect()()
    for table in cqrs.metadata.tables.values():
        for column in table.columns:
            assert column.type.compile(mariadb) == column.type.compile(DIALECTS["mysql"])


def test_a_prefix_names_every_table_and_index():
    metadata = sa.MetaData()
    schema.tables(metadata, "shop_")
    assert metadata.tables.keys() == {f"shop_{name}" for name in NAMES}
    assert all(str(index.name).startswith("shop_") for table in metadata.tables.values() for index in table.indexes)


def test_the_tables_take_the_schema_of_their_metadata():
    metadata = sa.MetaData(schema="messaging")
    schema.tables(metadata)
    assert metadata.tables.keys() == {f"messaging.cqrs_{name}" for name in NAMES}


def test_the_number_is_that_of_the_newest_revision():
    newest = max((migrations.scripts() / "versions").glob("cqrs_*.py"))
    assert re.match(r"cqrs_(\d{4})_", newest.name)[1] == f"{schema.VERSION:04d}"


def test_the_tables_load_none_of_mysqls_drivers():
    program = "import sys, cqrs.schema; sys.exit('sqlalchemy.dialects.mysql' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
