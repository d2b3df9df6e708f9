"""The tables on real servers, each time in a new database."""

import asyncio
import io
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.ext.asyncio import create_async_engine

import cqrs
from cqrs import migrations
from tests.servers import empty_database, server

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
TABLES = set(cqrs.metadata.tables)
XID8_IS_UNKNOWN = "ignore:Did not recognize type 'xid8':sqlalchemy.exc.SAWarning"


def alembic(url: str, run: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Run one of Alembic's commands in the checkout, and return what it prints."""
    printed = io.StringIO()
    config = Config(
        str(ROOT / "alembic.ini"), output_buffer=printed, stdout=printed, cmd_opts=Namespace(x=[f"url={url}"])
    )
    run(config, *arguments, **options)
    return printed.getvalue()


def over(url: str, look: Callable[[sa.Connection], Any]) -> Any:
    """Return what a function finds over a connection."""

    async def connect() -> Any:
        engine = create_async_engine(url)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(look)
        finally:
            await engine.dispose()

    return asyncio.run(connect())


def tables(url: str) -> set[str]:
    return over(url, lambda connection: {name for name in sa.inspect(connection).get_table_names() if "cqrs_" in name})


@pytest.fixture(params=["POSTGRES_URL", "MYSQL_URL"])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with empty_database(server(request.param)) as url:
        yield url


@pytest.fixture
async def postgres_url() -> AsyncIterator[str]:
    async with empty_database(server("POSTGRES_URL")) as url:
        yield url


@pytest.fixture
async def mysql_url() -> AsyncIterator[str]:
    async with empty_database(server("MYSQL_URL")) as url:
        yield url


def by_alembic(url: str) -> None:
    alembic(url, command.upgrade, "head")


def by_migrate(url: str) -> None:
    over(url, migrations.migrate)


def by_upgrade(url: str) -> None:
    over(url, lambda connection: migrations.upgrade(Operations(MigrationContext.configure(connection)), to=1))


def by_the_printed_sql(url: str) -> None:
    script = alembic(url, command.upgrade, "head", sql=True)
    lines = [line for line in script.splitlines() if line and not line.startswith("--")]
    statements = [text.strip() for text in "\n".join(lines).split(";")]

    def run(connection: sa.Connection) -> None:
        for statement in statements:
            if statement not in {"", "BEGIN", "COMMIT"}:
                connection.exec_driver_sql(statement)

    over(url, run)


through_every_door = pytest.mark.parametrize(
    "enter", [by_alembic, by_migrate, by_upgrade, by_the_printed_sql], ids=lambda door: door.__name__
)


@pytest.mark.filterwarnings(XID8_IS_UNKNOWN)
@through_every_door
def test_autogenerate_finds_no_difference_to_the_metadata(enter: Callable[[str], None], url: str):
    enter(url)

    assert over(url, differences) == []


@pytest.mark.filterwarnings(XID8_IS_UNKNOWN)
def test_autogenerate_that_compares_defaults_finds_no_difference_either(url: str):
    by_upgrade(url)
    assert over(url, lambda connection: differences(connection, compare_server_default=True)) == []


def differences(connection: sa.Connection, **options: Any) -> list[Any]:
    options |= {"include_object": migrations.include_object, "include_name": only_the_toolkits}
    return compare_metadata(MigrationContext.configure(connection, opts=options), cqrs.metadata)


def only_the_toolkits(name: str | None, kind: str, parents: Any) -> bool:
    return kind != "table" or str(name).startswith("cqrs_")


@pytest.mark.filterwarnings(XID8_IS_UNKNOWN)
@through_every_door
def test_the_live_columns_and_keys_are_those_of_the_metadata(enter: Callable[[str], None], url: str):
    enter(url)

    def compare(connection: sa.Connection) -> None:
        live = sa.inspect(connection)
        for table in cqrs.metadata.tables.values():
            found = {column["name"]: column["nullable"] for column in live.get_columns(table.name)}
            found.pop("tx", None)
            assert list(found.items()) == [(column.name, column.nullable) for column in table.columns]
            if table.name != "cqrs_outbox":
                key = live.get_pk_constraint(table.name)["constrained_columns"]
                assert key == list(table.primary_key.columns.keys())
                assert {(index["name"], *index["column_names"]) for index in live.get_indexes(table.name)} == {
                    (index.name, *index.columns.keys()) for index in table.indexes
                }

    over(url, compare)


@through_every_door
def test_every_door_records_the_number(enter: Callable[[str], None], url: str):
    enter(url)
    assert over(url, migrations.recorded_number) == migrations.VERSION


@through_every_door
def test_migrating_what_another_door_has_migrated_is_harmless(enter: Callable[[str], None], url: str):
    enter(url)
    by_migrate(url)
    by_upgrade(url)
    assert over(url, migrations.recorded_number) == migrations.VERSION


@pytest.mark.filterwarnings(XID8_IS_UNKNOWN)
def test_alembic_check_finds_nothing_to_do(url: str):
    by_alembic(url)
    assert alembic(url, command.check) == "No new upgrade operations detected.\n"


def test_alembic_check_warns_of_nothing(url: str):
    by_alembic(url)
    alembic(url, command.check)


def test_alembic_downgrade_base_removes_every_table(url: str):
    by_alembic(url)
    assert tables(url) == {*TABLES, migrations.VERSION_TABLE}
    alembic(url, command.downgrade, "base")
    assert tables(url) == {migrations.VERSION_TABLE}


def test_after_a_downgrade_an_upgrade_makes_the_tables_again(url: str):
    by_alembic(url)
    alembic(url, command.downgrade, "base")
    by_alembic(url)
    assert tables(url) == {*TABLES, migrations.VERSION_TABLE}


def test_downgrade_with_the_users_operations_removes_every_table(url: str):
    by_upgrade(url)
    over(url, lambda connection: migrations.downgrade(Operations(MigrationContext.configure(connection)), to=0))
    assert tables(url) == set()


def clock(url: str) -> datetime:
    """Return the server's time as its driver gives times."""
    return over(url, lambda connection: connection.scalar(sa.text("SELECT current_timestamp")))


def event(url: str) -> dict[str, Any]:
    """A row of the outbox, whose body and headers are longer than 64 KiB."""
    return {
        "event_id": "1",
        "destination": "shop:send_receipt",
        "topic": "orders",
        "message_key": "A",
        "type": "shop.OrderPlaced",
        "headers": "h" * 70_000,
        "payload": b"\x00\xff" * 40_000,
        "slot": 3,
        "created_at": clock(url),
    }


def test_the_outbox_gives_back_what_was_put_in(url: str):
    by_alembic(url)
    outbox = cqrs.metadata.tables["cqrs_outbox"]
    row = event(url)

    def put(connection: sa.Connection) -> dict[str, Any]:
        connection.execute(outbox.insert().values(row))
        return dict(connection.execute(sa.select(outbox)).mappings().one())

    found = over(url, put)
    assert found.pop("id") == 1
    assert found == row


def test_a_times_microseconds_are_kept(url: str):
    by_alembic(url)
    inbox = cqrs.metadata.tables["cqrs_inbox"]
    now = clock(url).replace(microsecond=123456)

    def put(connection: sa.Connection) -> Any:
        connection.execute(inbox.insert().values(handler="shop:send_receipt", message_id="1", handled_at=now))
        return connection.scalar(sa.select(inbox.c.handled_at))

    assert over(url, put) == now


@pytest.mark.parametrize("other", ["A", "á", "a-", "\N{FULLWIDTH LATIN SMALL LETTER A}"])
def test_texts_that_differ_in_a_byte_are_different_keys(other: str, url: str):
    by_alembic(url)
    inbox = cqrs.metadata.tables["cqrs_inbox"]
    now = clock(url)

    def put(connection: sa.Connection) -> int:
        for message_id in ("a", other):
            connection.execute(inbox.insert().values(handler="shop", message_id=message_id, handled_at=now))
        return connection.scalar(sa.select(sa.func.count()).where(inbox.c.message_id == "a"))

    assert over(url, put) == 1


def test_postgresql_gives_every_row_its_transaction_before_its_id(postgres_url: str):
    by_alembic(postgres_url)
    outbox = cqrs.metadata.tables["cqrs_outbox"]
    row = event(postgres_url)

    def put(connection: sa.Connection) -> tuple[str, str]:
        connection.execute(outbox.insert().values(row))
        return tuple(connection.execute(sa.text("SELECT tx::text, pg_current_xact_id()::text FROM cqrs_outbox")).one())

    stored, current = over(postgres_url, put)
    assert stored == current
    columns = over(
        postgres_url,
        lambda connection: connection.scalars(
            sa.text(
                "SELECT column_name || ' ' || data_type FROM information_schema.columns "
                "WHERE table_name = 'cqrs_outbox' ORDER BY ordinal_position"
            )
        ).all(),
    )
    assert columns[:2] == ["tx xid8", "id bigint"]


def test_postgresql_keys_the_outbox_by_slot_and_id(postgres_url: str):
    by_alembic(postgres_url)
    key = over(
        postgres_url, lambda connection: sa.inspect(connection).get_pk_constraint("cqrs_outbox")["constrained_columns"]
    )
    assert key == ["slot", "id"]


def test_postgresql_undoes_a_migration_that_is_rolled_back(postgres_url: str):
    def migrate_and_fail(connection: sa.Connection) -> None:
        migrations.migrate(connection)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        over(postgres_url, migrate_and_fail)
    assert tables(postgres_url) == set()


def test_postgresql_keeps_the_tables_in_a_schema_of_their_own(postgres_url: str):
    def enter(connection: sa.Connection) -> tuple[int, set[str]]:
        connection.execute(sa.text("CREATE SCHEMA cqrs_test"))
        migrations.migrate(connection, schema="cqrs_test")
        found = migrations.recorded_number(connection, schema="cqrs_test")
        return found, set(sa.inspect(connection).get_table_names("cqrs_test"))

    assert over(postgres_url, enter) == (1, TABLES)
    assert tables(postgres_url) == set()


def test_mysql_clusters_the_outbox_by_slot_and_numbers_it_by_a_unique_id(mysql_url: str):
    by_alembic(mysql_url)

    def keys(connection: sa.Connection) -> list[tuple[str, str]]:
        found = connection.execute(
            sa.text(
                "SELECT index_name, group_concat(column_name ORDER BY seq_in_index) FROM information_schema.statistics "
                "WHERE table_schema = database() AND table_name = 'cqrs_outbox' GROUP BY index_name ORDER BY index_name"
            )
        )
        return [tuple(row) for row in found]

    assert over(mysql_url, keys) == [("cqrs_outbox_id", "id"), ("PRIMARY", "slot,id")]


def test_mysql_keeps_every_text_that_is_compared_in_utf8mb4_bin(mysql_url: str):
    by_alembic(mysql_url)

    def others(connection: sa.Connection) -> set[str]:
        found = connection.execute(
            sa.text(
                "SELECT concat(table_name, '.', column_name) FROM information_schema.columns "
                "WHERE table_schema = database() AND table_name LIKE 'cqrs\\_%' AND table_name <> :version "
                "AND collation_name IS NOT NULL AND collation_name <> 'utf8mb4_bin'"
            ),
            {"version": migrations.VERSION_TABLE},
        )
        return set(found.scalars())

    assert over(mysql_url, others) <= {"cqrs_parked.state", "cqrs_slot.owner"}
