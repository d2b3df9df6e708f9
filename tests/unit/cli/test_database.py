import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from tests.unit.cli.support import run, run_json, shop
from tests.unit.conftest import WritePackage


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CQRS_DATABASE_URL", raising=False)


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(url.removeprefix("sqlite+aiosqlite:///"))) as connection, connection:
        return connection.execute(statement).fetchall()


def tables(url: str) -> set[str]:
    return {str(name) for (name,) in execute(url, "SELECT name FROM sqlite_master WHERE type = 'table'")}


OWN = 'prefix="own_"'


# upgrade


def test_upgrade_makes_the_tables_and_then_nothing(database: str):
    assert run("db", "upgrade", "--url", database).stdout == "The tables have number 1 now; before, there were none.\n"
    assert tables(database) >= {"cqrs_outbox", "cqrs_settings"}
    assert run("db", "upgrade", "--url", database).stdout == "The tables have number 1 already.\n"
    assert run_json("db", "upgrade", "--url", database) == {"before": 1, "number": 1}


def test_upgrade_makes_the_tables_of_an_application_under_its_prefix(package: WritePackage, database: str):
    run("db", "upgrade", f"{package(shop(database, OWN))}.main:app")
    assert tables(database) >= {"own_outbox", "own_settings"}


def test_the_url_may_be_in_the_environment(database: str):
    run("db", "upgrade", env={"CQRS_DATABASE_URL": database})
    assert "cqrs_outbox" in tables(database)


def test_tables_of_a_newer_version_are_left_alone(database: str):
    run("db", "upgrade", "--url", database)
    execute(database, "UPDATE cqrs_settings SET value = '99' WHERE name = 'schema'")
    error = run("db", "upgrade", "--url", database, code=1).stderr
    assert error == "Error: The tables have number 99, and this version knows 1: upgrade cqrs-toolkit.\n"


def test_without_a_database_the_usage_is_wrong():
    assert "Say which database: MODULE:APP, or --url." in run("db", "upgrade", code=2).stderr


@pytest.mark.parametrize("option", [["--schema", "messaging"], ["--prefix", "own_"]])
def test_a_schema_or_prefix_beside_an_application_is_wrong_usage(
    package: WritePackage, database: str, option: list[str]
):
    done = run("db", "check", f"{package(shop(database, OWN))}.main:app", *option, code=2)
    assert f"Error: {option[0]} go with --url alone: MODULE:APP has its own." in done.stderr


def test_a_database_that_is_away_ends_with_4():
    error = run("db", "check", "--url", "postgresql+asyncpg://shop:secret@127.0.0.1:1/shop", code=4).stderr
    assert error.startswith("Error: postgresql+asyncpg://shop:***@127.0.0.1:1/shop cannot be connected to: ")


def test_a_url_that_cannot_be_read_ends_with_1():
    assert "no URL that SQLAlchemy can read" in run("db", "check", "--url", "nonsense", code=1).stderr


# check


def test_check_is_content_with_tables_as_they_should_be(database: str):
    run("db", "upgrade", "--url", database)
    assert run("db", "check", "--url", database).stdout == "The tables have number 1 and are as they should be.\n"
    assert run_json("db", "check", "--url", database) == {"number": 1, "wanted": 1, "differences": []}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("DROP TABLE cqrs_inbox", "add table cqrs_inbox"),
        ("ALTER TABLE cqrs_parked DROP COLUMN error", "add column cqrs_parked.error"),
        ("ALTER TABLE cqrs_parked ADD COLUMN colour TEXT", "remove column cqrs_parked.colour"),
        ("DROP INDEX cqrs_parked_due", "add index cqrs_parked_due"),
    ],
)
def test_check_lists_what_live_tables_differ_in(database: str, change: str, difference: str):
    run("db", "upgrade", "--url", database)
    execute(database, change)
    assert difference in run_json("db", "check", "--url", database, code=1)["differences"]
    assert f"- {difference}\n" in run("db", "check", "--url", database, code=1).stdout


def test_check_leaves_other_tables_alone(database: str):
    run("db", "upgrade", "--url", database)
    execute(database, "CREATE TABLE articles (sku TEXT)")
    run("db", "check", "--url", database)


def test_check_says_that_there_are_no_tables(database: str):
    assert run("db", "check", "--url", database, code=1).stdout.startswith(
        "The tables have no number, and this version needs 1.\n- add"
    )


# sql


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite"])
def test_sql_prints_what_creates_the_tables(dialect: str):
    text = run("db", "sql", "--dialect", dialect).stdout
    assert "CREATE TABLE cqrs_outbox" in text
    assert "VALUES ('schema', '1');" in text


def test_sql_takes_dialect_and_prefix_from_the_application(package: WritePackage, database: str):
    target = f"{package(shop(database, OWN))}.main:app"
    text = run("db", "sql", target).stdout
    assert "CREATE TABLE own_outbox" in text
    assert "AUTOINCREMENT" in text


# revision


@pytest.fixture
def project(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Alembic project, as `alembic init` makes it, in the current folder."""
    monkeypatch.chdir(tmp_path)
    config = Config("alembic.ini", stdout=(tmp_path / "log").open("w"))
    with config.stdout:
        command.init(config, "migrations")
    settings = tmp_path / "alembic.ini"
    url = database.replace("+aiosqlite", "")
    settings.write_text(settings.read_text().replace("driver://user:pass@localhost/dbname", url))
    return tmp_path


def written(project: Path) -> str:
    (file,) = (project / "migrations" / "versions").glob("*.py")
    return file.read_text()


def test_revision_writes_one_that_makes_the_tables(project: Path, database: str):
    assert run("db", "revision").stdout.startswith(f"Wrote {project / 'migrations' / 'versions'}")
    assert "    cqrs.migrations.upgrade(op, to=1)\n" in written(project)
    assert "    cqrs.migrations.downgrade(op, to=0)\n" in written(project)
    # In a process of its own: the project's env.py configures logging.
    subprocess.run([sys.executable, "-m", "alembic", "upgrade", "head"], check=True, capture_output=True)
    assert "cqrs_outbox" in tables(database)


def test_revision_writes_nothing_where_the_project_has_one(project: Path):
    run("db", "revision")
    assert run("db", "revision").stdout == "The revisions of alembic.ini bring the tables to number 1 already.\n"
    written(project)


def test_revision_writes_the_prefix_of_the_application(project: Path, package: WritePackage, database: str):
    run("db", "revision", f"{package(shop(database, OWN))}.main:app")
    assert "cqrs.migrations.upgrade(op, to=1, prefix='own_')" in written(project)


def test_revision_wants_an_alembic_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    error = run("db", "revision", code=1).stderr
    assert error == (
        "Error: There is no alembic.ini: run this in your Alembic project, or begin one with `alembic init`.\n"
    )
