"""The doors to the schema on SQLite, a user's own Alembic project, and the DDL of every database, without a server."""

import asyncio
import io
import re
import sqlite3
import subprocess
import sys
import textwrap
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine

import cqrs
from cqrs import migrations, schema

ROOT = Path(__file__).parents[2]
NAMES = ("outbox", "parked", "inbox", "slot", "settings")
TABLES = {f"cqrs_{name}" for name in NAMES}

Door = Callable[[Path], None]


class PlaceOrder(cqrs.Command[None]):
    pass


def alembic(run: Callable[..., Any], *arguments: Any, url: str | None = None, **options: Any) -> str:
    """Run one of Alembic's commands with the checkout's alembic.ini, and return what it prints."""
    printed = io.StringIO()
    wishes = Namespace(x=[] if url is None else [f"url={url}"])
    config = Config(str(ROOT / "alembic.ini"), output_buffer=printed, stdout=printed, cmd_opts=wishes)
    run(config, *arguments, **options)
    return printed.getvalue()


@contextmanager
def connected(path: Path | str) -> Iterator[sa.Connection]:
    """Begin a transaction on a SQLite file."""
    engine = sa.create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def operations(connection: sa.Connection) -> Operations:
    return Operations(MigrationContext.configure(connection))


def tables(path: Path) -> set[str]:
    with connected(path) as connection:
        return set(sa.inspect(connection).get_table_names())


def ddl(path: Path) -> dict[str, str]:
    """Return the file's own text of every table and index of the toolkit, without the spacing."""
    with connected(path) as connection:
        found = connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE sql LIKE 'CREATE %'"))
        return {
            name: re.sub(r"\s+", "", sql)
            for name, sql in found
            if name.startswith("cqrs_") and name != migrations.VERSION_TABLE
        }


def differences(connection: sa.Connection, described: sa.MetaData, **options: Any) -> list[Any]:
    """Return what Alembic's autogenerate would do to make the database what is described."""
    return compare_metadata(MigrationContext.configure(connection, opts=options), described)


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with connected(path) as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


# The doors


def by_alembic(path: Path) -> None:
    alembic(command.upgrade, "head", url=f"sqlite+aiosqlite:///{path}")


def by_alembic_with_a_driver_that_is_not_async(path: Path) -> None:
    alembic(command.upgrade, "head", url=f"sqlite:///{path}")


def by_alembic_with_the_url_of_the_environment(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CQRS_DATABASE_URL", f"sqlite+aiosqlite:///{path}")
        alembic(command.upgrade, "head")


def by_the_printed_sql(path: Path) -> None:
    script = alembic(command.upgrade, "head", url="sqlite://", sql=True)
    database = sqlite3.connect(path)
    database.executescript(script)
    database.close()


def by_migrate(path: Path) -> None:
    with connected(path) as connection:
        migrations.migrate(connection)


def by_migrate_over_an_async_driver(path: Path) -> None:
    async def migrate() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        async with engine.begin() as connection:
            await connection.run_sync(migrations.migrate)
        await engine.dispose()

    asyncio.run(migrate())


def by_upgrade(path: Path) -> None:
    with connected(path) as connection:
        migrations.upgrade(operations(connection), to=1)


def by_a_start(path: Path, **wishes: Any) -> None:
    registry = cqrs.Registry()

    @registry.command_handler
    async def handler(command: PlaceOrder) -> None: ...

    async def start() -> None:
        url = f"sqlite+aiosqlite:///{path}"
        async with cqrs.bootstrap(registry=registry, name="shop", database=url, **wishes):
            pass

    asyncio.run(start())


DOORS: list[Door] = [
    by_alembic,
    by_alembic_with_a_driver_that_is_not_async,
    by_alembic_with_the_url_of_the_environment,
    by_the_printed_sql,
    by_migrate,
    by_migrate_over_an_async_driver,
    by_upgrade,
    by_a_start,
]
through_every_door = pytest.mark.parametrize("enter", DOORS, ids=lambda door: door.__name__)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@through_every_door
def test_autogenerate_finds_no_difference_to_the_metadata(enter: Door, path: Path):
    enter(path)
    with connected(path) as connection:
        assert differences(connection, cqrs.metadata, include_object=migrations.include_object) == []


@through_every_door
def test_the_live_columns_keys_and_indexes_are_those_of_the_metadata(enter: Door, path: Path):
    enter(path)
    with connected(path) as connection:
        live = sa.inspect(connection)
        assert set(live.get_table_names()) - {migrations.VERSION_TABLE} == set(cqrs.metadata.tables)
        for table in cqrs.metadata.tables.values():
            assert live_columns(live, table.name) == described_columns(table, connection.dialect)
            assert live.get_pk_constraint(table.name)["constrained_columns"] == list(table.primary_key.columns.keys())
            assert live_indexes(live, table.name) == {
                (index.name, tuple(index.columns.keys()), bool(index.unique)) for index in table.indexes
            }
            assert live.get_unique_constraints(table.name) == []
            assert live.get_foreign_keys(table.name) == []
            assert live.get_check_constraints(table.name) == []


def live_columns(live: sa.Inspector, table: str) -> list[tuple[str, str, bool]]:
    return [(column["name"], str(column["type"]), column["nullable"]) for column in live.get_columns(table)]


def described_columns(table: sa.Table, dialect: sa.Dialect) -> list[tuple[str, str, bool]]:
    return [(column.name, column.type.compile(dialect), bool(column.nullable)) for column in table.columns]


def live_indexes(live: sa.Inspector, table: str) -> set[tuple[Any, ...]]:
    return {(index["name"], tuple(index["column_names"]), bool(index["unique"])) for index in live.get_indexes(table)}


@through_every_door
def test_every_door_makes_the_same_tables(enter: Door, path: Path, tmp_path: Path):
    enter(path)
    by_upgrade(tmp_path / "other.db")
    assert ddl(path) == ddl(tmp_path / "other.db")


@through_every_door
def test_every_door_records_the_number(enter: Door, path: Path):
    enter(path)
    assert rows(path, "SELECT value FROM cqrs_settings WHERE name = 'schema'") == [("1",)]
    with connected(path) as connection:
        assert migrations.recorded_number(connection) == migrations.VERSION == 1


@through_every_door
def test_an_application_starts_behind_every_door(enter: Door, path: Path):
    enter(path)
    before = ddl(path)
    by_a_start(path)
    assert ddl(path) == before


@through_every_door
def test_migrating_what_another_door_has_migrated_is_harmless(enter: Door, path: Path):
    enter(path)
    before = ddl(path)
    by_migrate(path)
    assert ddl(path) == before
    assert rows(path, "SELECT count(*) FROM cqrs_settings WHERE name = 'schema'") == [(1,)]


@pytest.mark.parametrize("enter", [by_alembic, by_migrate, by_a_start], ids=lambda door: door.__name__)
def test_entering_twice_keeps_what_is_in_the_tables(enter: Door, path: Path):
    enter(path)
    with connected(path) as connection:
        connection.execute(sa.text("INSERT INTO cqrs_inbox VALUES ('shop:send_receipt', '1', '2026-01-01 00:00:00')"))
    before = ddl(path)
    enter(path)
    assert ddl(path) == before
    assert rows(path, "SELECT handler, message_id FROM cqrs_inbox") == [("shop:send_receipt", "1")]


@through_every_door
def test_a_revision_of_the_users_leaves_alone_what_another_door_has_made(enter: Door, path: Path):
    enter(path)
    before = ddl(path)
    by_upgrade(path)
    assert ddl(path) == before


def test_migrate_true_starts_on_what_a_revision_of_the_users_has_made(path: Path):
    by_upgrade(path)
    by_a_start(path, migrate=True)
    assert rows(path, "SELECT value FROM cqrs_settings WHERE name = 'schema'") == [("1",)]


def test_a_database_without_the_tables_has_number_0(path: Path):
    with connected(path) as connection:
        assert migrations.recorded_number(connection) == 0


def test_tables_of_others_are_left_alone(path: Path):
    with connected(path) as connection:
        connection.execute(sa.text("CREATE TABLE orders (id INTEGER PRIMARY KEY)"))
        migrations.migrate(connection)
    alembic(command.downgrade, "base", url=f"sqlite:///{path}")
    assert "orders" in tables(path)


def test_the_version_of_the_users_own_project_is_left_alone(path: Path):
    with connected(path) as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('shop_0007')"))
        migrations.migrate(connection)
    assert rows(path, "SELECT version_num FROM alembic_version") == [("shop_0007",)]
    assert rows(path, "SELECT version_num FROM cqrs_alembic_version") == [("cqrs_0001",)]


# Going back


@through_every_door
def test_downgrade_of_what_a_door_has_made_leaves_no_table(enter: Door, path: Path):
    enter(path)
    with connected(path) as connection:
        migrations.downgrade(operations(connection), to=0)
    assert tables(path) <= {migrations.VERSION_TABLE}


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "sqlite"])
def test_alembic_downgrade_base_removes_every_table(driver: str, path: Path):
    by_alembic(path)
    alembic(command.downgrade, "base", url=f"{driver}:///{path}")
    assert tables(path) == {migrations.VERSION_TABLE}
    assert rows(path, "SELECT * FROM cqrs_alembic_version") == []


def test_after_a_downgrade_an_upgrade_makes_the_same_tables_again(path: Path):
    by_alembic(path)
    before = ddl(path)
    alembic(command.downgrade, "base", url=f"sqlite:///{path}")
    by_alembic(path)
    assert ddl(path) == before


def test_alembic_check_of_the_checkout_finds_nothing_to_do(path: Path):
    by_alembic(path)
    assert alembic(command.check, url=f"sqlite+aiosqlite:///{path}") == "No new upgrade operations detected.\n"


def test_the_checkout_has_one_head_and_it_carries_the_newest_number():
    script = ScriptDirectory.from_config(Config(str(ROOT / "alembic.ini")))
    assert script.get_heads() == [f"cqrs_{schema.VERSION:04d}"]


def test_alembic_without_a_database_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CQRS_DATABASE_URL", raising=False)
    with pytest.raises(SystemExit) as caught:
        alembic(command.upgrade, "head")
    assert str(caught.value) == (
        "No database given. Use `alembic -x url=sqlite+aiosqlite:///app.db ...` or set CQRS_DATABASE_URL."
    )


def test_the_url_of_the_command_line_goes_before_that_of_the_environment(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CQRS_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    alembic(command.upgrade, "head", url=f"sqlite:///{path}")
    assert tables(path) >= TABLES
    assert not (tmp_path / "other.db").exists()


@pytest.mark.slow
def test_the_program_alembic_upgrades_checks_and_downgrades_in_the_checkout(path: Path):
    def run(*arguments: str) -> str:
        program = [sys.executable, "-W", "error", "-m", "alembic", "-x", f"url=sqlite+aiosqlite:///{path}", *arguments]
        return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    run("upgrade", "head")
    assert tables(path) >= TABLES
    assert run("check") == "No new upgrade operations detected.\n"
    run("downgrade", "base")
    assert tables(path) == {migrations.VERSION_TABLE}


# Numbers


def no_number(number: int) -> str:
    return f"There is no schema number {number}; this version of cqrs-toolkit has 1 to {migrations.VERSION}."


@pytest.mark.parametrize(("to", "since", "missing"), [(2, None, 2), (0, None, 0), (-1, None, -1), (3, 1, 2)])
def test_upgrading_to_a_number_that_does_not_exist_is_refused(path: Path, to: int, since: int | None, missing: int):
    with connected(path) as connection, pytest.raises(ValueError, match=re.escape(no_number(missing))):
        migrations.upgrade(operations(connection), to=to, since=since)
    assert tables(path) == set()


def test_an_unknown_number_is_refused_before_the_known_ones_are_run(path: Path):
    with connected(path) as connection, pytest.raises(ValueError, match=re.escape(no_number(2))):
        migrations.upgrade(operations(connection), to=2, since=0)
    assert tables(path) == set()


@pytest.mark.parametrize(("to", "since", "missing"), [(1, None, 2), (-1, None, 0), (0, 2, 2)])
def test_downgrading_from_a_number_that_does_not_exist_is_refused(path: Path, to: int, since: int | None, missing: int):
    by_upgrade(path)
    with connected(path) as connection, pytest.raises(ValueError, match=re.escape(no_number(missing))):
        migrations.downgrade(operations(connection), to=to, since=since)
    assert tables(path) >= TABLES


def test_upgrading_since_the_number_itself_does_nothing(path: Path):
    with connected(path) as connection:
        migrations.upgrade(operations(connection), to=1, since=1)
    assert tables(path) == set()


def test_writing_a_number_again_keeps_one(path: Path):
    by_upgrade(path)
    with connected(path) as connection:
        migrations.write_number(operations(connection), 7, "cqrs_", None)
        assert migrations.recorded_number(connection) == 7
    assert rows(path, "SELECT value FROM cqrs_settings WHERE name = 'schema'") == [("7",)]


# Another prefix, another schema


def by_upgrade_under_a_prefix(connection: sa.Connection) -> None:
    migrations.upgrade(operations(connection), to=1, prefix="shop_")


def by_migrate_under_a_prefix(connection: sa.Connection) -> None:
    migrations.migrate(connection, prefix="shop_")


under_a_prefix = pytest.mark.parametrize(
    "enter", [by_upgrade_under_a_prefix, by_migrate_under_a_prefix], ids=lambda door: door.__name__
)


@under_a_prefix
def test_under_another_prefix_every_table_and_index_carries_it(enter: Callable[[sa.Connection], None], path: Path):
    with connected(path) as connection:
        enter(connection)
        live = sa.inspect(connection)
        assert set(live.get_table_names()) == {f"shop_{name}" for name in NAMES}
        assert all(index["name"].startswith("shop_") for name in NAMES for index in live.get_indexes(f"shop_{name}"))


@under_a_prefix
def test_under_another_prefix_the_number_is_recorded_there(enter: Callable[[sa.Connection], None], path: Path):
    with connected(path) as connection:
        enter(connection)
        assert migrations.recorded_number(connection, "shop_") == 1
        assert migrations.recorded_number(connection) == 0


@under_a_prefix
def test_under_another_prefix_the_tables_are_those_of_its_metadata(enter: Callable[[sa.Connection], None], path: Path):
    described = sa.MetaData()
    schema.tables(described, "shop_")
    with connected(path) as connection:
        enter(connection)
        assert differences(connection, described) == []


def test_migrating_another_prefix_twice_is_harmless(path: Path):
    with connected(path) as connection:
        migrations.migrate(connection, prefix="shop_")
    with connected(path) as connection:
        migrations.migrate(connection, prefix="shop_")
        assert migrations.recorded_number(connection, "shop_") == 1


def test_two_prefixes_live_in_one_database(path: Path):
    with connected(path) as connection:
        migrations.migrate(connection)
        migrations.migrate(connection, prefix="shop_")
    with connected(path) as connection:
        migrations.downgrade(operations(connection), to=0, prefix="shop_")
    assert tables(path) == {*TABLES, migrations.VERSION_TABLE}


def test_an_application_with_another_prefix_starts_on_what_the_users_revision_has_made(path: Path):
    with connected(path) as connection:
        migrations.upgrade(operations(connection), to=1, prefix="shop_")
    by_a_start(path, prefix="shop_")
    assert tables(path) == {f"shop_{name}" for name in NAMES}


@pytest.mark.parametrize("enter", [migrations.migrate, lambda connection, **wishes: migrations.upgrade(
    operations(connection), to=1, **wishes
)], ids=["migrate", "upgrade"])  # fmt: skip
def test_in_a_schema_of_their_own_the_tables_are_made_recorded_and_removed_there(
    enter: Callable[..., None], tmp_path: Path
):
    with connected(":memory:") as connection:
        connection.exec_driver_sql(f"ATTACH DATABASE '{tmp_path / 'messaging.db'}' AS messaging")
        enter(connection, schema="messaging")
        assert set(sa.inspect(connection).get_table_names("messaging")) == TABLES
        assert sa.inspect(connection).get_table_names() == []
        assert migrations.recorded_number(connection, schema="messaging") == 1
        migrations.downgrade(operations(connection), to=0, schema="messaging")
        assert sa.inspect(connection).get_table_names("messaging") == []


# The DDL of every database, printed without a server


def printed(url: str) -> str:
    return alembic(command.upgrade, "head", url=url, sql=True)


def statement(script: str, start: str) -> list[str]:
    """Return the lines of the statement that starts with a text, without indentation and the commas."""
    found = re.search(rf"^{re.escape(start)}.*?;$", script, re.DOTALL | re.MULTILINE)
    assert found, f"{start!r} is not in\n{script}"
    return [line.strip().rstrip(",;") for line in found[0].splitlines()]


def flat(lines: Sequence[str]) -> str:
    return " ".join(lines)


POSTGRESQL = ["postgresql://", "postgresql+asyncpg://", "postgresql+psycopg://"]
MYSQL = ["mysql://", "mysql+asyncmy://", "mariadb+asyncmy://"]
SQLITE = ["sqlite://", "sqlite+aiosqlite://"]


@pytest.mark.parametrize("url", POSTGRESQL)
def test_on_postgresql_the_transaction_id_is_the_first_column_of_the_outbox(url: str):
    outbox = statement(printed(url), "CREATE TABLE cqrs_outbox")
    assert outbox[1:3] == [
        "tx xid8 DEFAULT pg_current_xact_id() NOT NULL",
        "id BIGSERIAL NOT NULL",
    ]


@pytest.mark.parametrize("url", POSTGRESQL)
def test_on_postgresql_the_outbox_is_keyed_by_slot_and_id(url: str):
    assert "PRIMARY KEY (slot, id)" in statement(printed(url), "CREATE TABLE cqrs_outbox")
    assert "cqrs_outbox_slot" not in printed(url)


@pytest.mark.parametrize("url", POSTGRESQL)
def test_on_postgresql_bodies_are_bytea_and_times_know_their_zone(url: str):
    outbox = statement(printed(url), "CREATE TABLE cqrs_outbox")
    assert "payload BYTEA NOT NULL" in outbox
    assert "created_at TIMESTAMP WITH TIME ZONE NOT NULL" in outbox


def test_on_postgresql_everything_happens_in_one_transaction():
    script = printed("postgresql://").strip()
    assert script.startswith("BEGIN;")
    assert script.endswith("COMMIT;")


@pytest.mark.parametrize("url", MYSQL)
def test_on_mysql_the_outbox_is_clustered_by_slot_and_numbered_by_a_unique_id(url: str):
    outbox = statement(printed(url), "CREATE TABLE cqrs_outbox")
    assert outbox[1] == "id BIGINT NOT NULL AUTO_INCREMENT"
    assert outbox[-3:] == ["PRIMARY KEY (slot, id)", "CONSTRAINT cqrs_outbox_id UNIQUE (id)", ")"]


@pytest.mark.parametrize("url", MYSQL)
def test_on_mysql_every_text_that_is_compared_is_compared_byte_by_byte(url: str):
    script = printed(url)
    for table in ("outbox", "parked", "inbox", "settings"):
        for line in statement(script, f"CREATE TABLE cqrs_{table}"):
            text = re.match(r"(\w+) (VARCHAR|LONGTEXT|TEXT)", line)
            if text and text[1] != "state":
                assert "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin" in line


@pytest.mark.parametrize("url", MYSQL)
def test_on_mysql_bodies_and_headers_may_be_longer_than_64_kib(url: str):
    outbox = statement(printed(url), "CREATE TABLE cqrs_outbox")
    assert "payload LONGBLOB NOT NULL" in outbox
    assert "headers LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL" in outbox


@pytest.mark.parametrize("url", MYSQL)
def test_on_mysql_times_have_microseconds(url: str):
    script = printed(url)
    assert script.count(" DATETIME(6)") == len(re.findall(r" DATETIME\b", script)) > 0


@pytest.mark.parametrize("url", SQLITE)
def test_on_sqlite_an_id_never_comes_again(url: str):
    script = printed(url)
    assert "id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT" in statement(script, "CREATE TABLE cqrs_outbox")
    assert "seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT" in statement(script, "CREATE TABLE cqrs_parked")


@pytest.mark.parametrize("url", SQLITE)
def test_on_sqlite_the_outbox_has_an_index_by_slot_and_the_inbox_is_its_key(url: str):
    script = printed(url)
    assert "CREATE INDEX cqrs_outbox_slot ON cqrs_outbox (slot, id);" in script
    assert flat(statement(script, "CREATE TABLE cqrs_inbox")).endswith(
        "PRIMARY KEY (handler, message_id) ) WITHOUT ROWID"
    )


@pytest.mark.parametrize("url", [*SQLITE, *POSTGRESQL, *MYSQL])
def test_printed_sql_records_the_number_and_the_revision(url: str):
    script = printed(url)
    assert "INSERT INTO cqrs_settings (name, value) VALUES ('schema', '1');" in script
    assert "INSERT INTO cqrs_alembic_version (version_num) VALUES ('cqrs_0001')" in script


@pytest.mark.parametrize("url", [*SQLITE, *POSTGRESQL, *MYSQL])
def test_printed_sql_has_no_parameters_left(url: str):
    assert re.findall(r"%\(|\$\d|[( ]:\w|\?", printed(url)) == []


@pytest.mark.parametrize("url", [*SQLITE, *POSTGRESQL, *MYSQL])
def test_printed_sql_of_a_downgrade_drops_every_table(url: str):
    script = alembic(command.downgrade, "head:base", url=url, sql=True)
    assert {*re.findall(r"DROP TABLE (cqrs_\w+);", script)} - {migrations.VERSION_TABLE} == TABLES


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mysql"])
def test_upgrade_in_a_schema_names_it_in_every_statement(dialect: str):
    script = io.StringIO()
    context = MigrationContext.configure(dialect_name=dialect, opts={"as_sql": True, "output_buffer": script})
    migrations.upgrade(Operations(context), to=1, schema="messaging")
    targets = re.findall(r"(?:TABLE|INTO|FROM) (\S+)", script.getvalue())
    indexes = re.findall(r"CREATE INDEX .*", script.getvalue())
    assert len(targets) == len(NAMES) + 2
    assert all(line.startswith("messaging.cqrs_") for line in targets)
    assert all("messaging.cqrs_" in line for line in indexes)


def test_printing_sql_needs_no_driver_of_the_database():
    program = f"""
        import sys
        from argparse import Namespace
        from alembic import command
        from alembic.config import Config

        for driver in ("asyncpg", "asyncmy", "psycopg", "aiosqlite"):
            sys.modules[driver] = None  # an import of it fails
        for url in ("postgresql+asyncpg://", "mysql+asyncmy://", "sqlite+aiosqlite://"):
            config = Config({str(ROOT / "alembic.ini")!r}, cmd_opts=Namespace(x=["url=" + url]))
            command.upgrade(config, "head", sql=True)
    """
    program = textwrap.dedent(program)
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("CREATE TABLE cqrs_outbox") == 3


# What a user's autogenerate sees


def shown(found: Any, name: str, kind: str) -> bool:
    return migrations.include_object(found, name, kind, True, None)


def test_include_object_hides_the_toolkits_version_table():
    assert not shown(sa.Table(migrations.VERSION_TABLE, sa.MetaData()), migrations.VERSION_TABLE, "table")


@pytest.mark.parametrize("table", cqrs.metadata.tables.values(), ids=lambda table: table.name)
def test_include_object_shows_the_toolkits_tables_and_columns(table: sa.Table):
    assert shown(table, table.name, "table")
    assert all(shown(column, column.name, "column") for column in table.columns)


def test_include_object_hides_what_only_one_kind_of_database_has():
    outbox = schema.tables(sa.MetaData()).outbox
    outbox.append_column(sa.Column("tx", sa.BigInteger()))
    (by_slot,) = outbox.indexes
    unique = sa.UniqueConstraint(outbox.c.id, name="cqrs_outbox_id")
    assert not shown(outbox.c.tx, "tx", "column")
    assert not shown(by_slot, "cqrs_outbox_slot", "index")
    assert not shown(unique, "cqrs_outbox_id", "unique_constraint")


def test_include_object_shows_what_is_the_users():
    orders = sa.Table(
        "orders", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("tx", sa.Integer)
    )
    by_tx = sa.Index("orders_slot", orders.c.tx)
    assert shown(orders, "orders", "table")
    assert shown(orders.c.tx, "tx", "column")
    assert shown(by_tx, by_tx.name, "index")


def test_include_object_shows_a_table_of_the_users_that_is_called_an_outbox_too():
    letters = sa.Table(
        "letters_outbox", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("tx", sa.Integer)
    )
    by_tx = sa.Index("letters_outbox_slot", letters.c.tx)
    assert shown(letters, "letters_outbox", "table")
    assert shown(letters.c.tx, "tx", "column")
    assert shown(by_tx, by_tx.name, "index")


def test_without_include_object_only_the_version_table_is_in_the_way_on_sqlite(path: Path):
    by_alembic(path)
    with connected(path) as connection:
        ((kind, table),) = differences(connection, cqrs.metadata)
    assert (kind, table.name) == ("remove_table", migrations.VERSION_TABLE)


def test_autogenerate_that_compares_defaults_finds_no_difference_either(path: Path):
    by_upgrade(path)
    with connected(path) as connection:
        assert differences(connection, cqrs.metadata, compare_server_default=True) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("DROP INDEX cqrs_parked_due", "add_index"),
        ("ALTER TABLE cqrs_outbox DROP COLUMN event_id", "add_column"),
        ("ALTER TABLE cqrs_outbox ADD COLUMN colour TEXT", "remove_column"),
        ("DROP TABLE cqrs_slot", "add_table"),
    ],
)
def test_a_change_of_the_tables_is_seen_by_the_comparison(change: str, kind: str, path: Path):
    by_upgrade(path)
    with connected(path) as connection:
        connection.execute(sa.text(change))
        found = differences(connection, cqrs.metadata, include_object=migrations.include_object)
    assert [difference[0] for difference in found] == [kind]


# A user's own Alembic project

ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, create_engine

import cqrs

own_metadata = MetaData()
Table("articles", own_metadata, Column("id", Integer, primary_key=True))

options = {"target_metadata": [own_metadata, cqrs.metadata], "include_object": cqrs.migrations.include_object}
url = context.config.get_main_option("sqlalchemy.url")

if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(url)
    with engine.begin() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()
"""

ARTICLES = """
import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.create_table("articles", sa.Column("id", sa.Integer, primary_key=True))


def downgrade():
    op.drop_table("articles")
"""

MESSAGING = """
from alembic import op

import cqrs

revision = "0002"
down_revision = "0001"


def upgrade():
    cqrs.migrations.upgrade(op, to=1)


def downgrade():
    cqrs.migrations.downgrade(op, to=0)
"""


class Project:
    """An Alembic project of a user's, begun with Alembic's own template."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "shop.db"
        self.versions = folder / "migrations" / "versions"
        self.printed = io.StringIO()
        self.config = Config(str(folder / "alembic.ini"), output_buffer=self.printed, stdout=self.printed)
        command.init(self.config, str(folder / "migrations"))
        self.config.set_main_option("script_location", str(folder / "migrations"))
        self.config.set_main_option("sqlalchemy.url", f"sqlite:///{self.database}")
        (folder / "migrations" / "env.py").write_text(ENV)
        (self.versions / "0001_articles.py").write_text(ARTICLES)
        (self.versions / "0002_messaging.py").write_text(MESSAGING)

    def run(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> str:
        self.printed.seek(0)
        self.printed.truncate()
        run(self.config, *arguments, **options)
        return self.printed.getvalue()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_revision_of_the_users_makes_the_same_tables(project: Project, path: Path):
    project.run(command.upgrade, "head")
    by_alembic(path)
    assert ddl(project.database) == ddl(path)
    assert tables(project.database) >= {"articles", "alembic_version", *TABLES}


def test_a_users_project_keeps_one_head(project: Project):
    project.run(command.upgrade, "head")
    assert ScriptDirectory.from_config(project.config).get_heads() == ["0002"]
    assert rows(project.database, "SELECT version_num FROM alembic_version") == [("0002",)]


def test_a_users_project_gets_no_version_table_of_the_toolkits(project: Project):
    project.run(command.upgrade, "head")
    assert migrations.VERSION_TABLE not in tables(project.database)


def test_autogenerate_in_a_users_project_finds_nothing_to_do(project: Project):
    project.run(command.upgrade, "head")
    assert "No new upgrade operations detected." in project.run(command.check)
    script = command.revision(project.config, message="nothing", autogenerate=True)
    assert script.down_revision == "0002"
    assert re.findall(r"^    (?!#)(\S.*)$", Path(script.path).read_text(), re.MULTILINE).count("pass") == 2
    assert "op." not in re.sub(r"from alembic import op", "", Path(script.path).read_text())


def test_autogenerate_finds_nothing_to_do_where_the_application_was_started_first(project: Project):
    by_a_start(project.database)
    project.run(command.upgrade, "head")
    assert migrations.VERSION_TABLE in tables(project.database)
    assert "No new upgrade operations detected." in project.run(command.check)


def test_autogenerate_still_finds_what_the_user_has_changed(project: Project):
    project.run(command.upgrade, "head")
    with connected(project.database) as connection:
        connection.execute(sa.text("CREATE TABLE leftover (id INTEGER PRIMARY KEY)"))
    script = command.revision(project.config, message="leftover", autogenerate=True)
    body = Path(script.path).read_text()
    assert "op.drop_table('leftover')" in body
    assert "cqrs_" not in body


def test_a_users_downgrade_removes_the_toolkits_tables_and_no_other(project: Project):
    project.run(command.upgrade, "head")
    project.run(command.downgrade, "0001")
    assert {name for name in tables(project.database) if name.startswith("cqrs_")} == set()
    assert "articles" in tables(project.database)
    project.run(command.upgrade, "head")
    assert tables(project.database) >= TABLES


def test_a_users_project_prints_sql(project: Project):
    script = project.run(command.upgrade, "head", sql=True)
    assert "CREATE TABLE cqrs_outbox" in script
    assert "INSERT INTO cqrs_settings (name, value) VALUES ('schema', '1');" in script
    assert not project.database.exists()


def test_an_application_starts_on_the_database_of_a_users_project(project: Project):
    project.run(command.upgrade, "head")
    by_a_start(project.database)
    assert "No new upgrade operations detected." in project.run(command.check)


# Where the scripts are


def test_in_a_checkout_the_scripts_stand_beside_the_package():
    assert migrations.scripts() == ROOT / "migrations"


def test_the_scripts_are_whole():
    folder = migrations.scripts()
    found = {str(file.relative_to(folder)) for kind in ("*.py", "*.mako") for file in folder.rglob(kind)}
    assert found == {"env.py", "script.py.mako", "versions/cqrs_0001_outbox.py"}


def test_every_number_has_one_revision():
    numbers = sorted(
        int(file.name.removeprefix("cqrs_")[:4]) for file in (migrations.scripts() / "versions").glob("*.py")
    )
    assert numbers == list(range(1, migrations.VERSION + 1))


def test_a_revision_made_from_the_template_takes_operations_prefix_and_schema(tmp_path: Path):
    config = Config()
    config.set_main_option("script_location", str(migrations.scripts()))
    config.set_main_option("version_locations", str(tmp_path))
    config.set_main_option("path_separator", "newline")
    script = command.revision(config, message="next", head="base", splice=True, rev_id="cqrs_0002")
    assert script.path.startswith(str(tmp_path))
    with connected(":memory:") as connection:
        script.module.upgrade(operations(connection), "shop_", None)
        script.module.downgrade(operations(connection), "shop_", None)
