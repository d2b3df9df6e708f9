"""The demo on files of one's own: bad lines are counted, bad files are refused in a sentence."""

import re
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from examples.shop.demo.audit import Audit, audit
from examples.shop.lines import Line, read_lines
from examples.shop.tables import create
from tests.examples.shop import HEADER, ORDERS, rows, run_demo


def test_a_file_in_which_every_line_is_bad_ends_cleanly(tmp_path):
    orders, database = tmp_path / "orders.csv", tmp_path / "shop.db"
    bad = [
        "A-1,ada,unheard-of,1",
        "A-2,ada,mug,-1",
        "A-3,ada,mug,one",
        "A-4",
        ",ada,mug,1",
        "A-5,ada,mug,1,2",
        "A-6,a\0,mug,1",
    ]
    orders.write_text("\n".join([HEADER, *bad, ""]))
    ended = run_demo(orders, "--database", database, "--kills", 1)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"Orders placed +0\b", ended.stdout)
    assert re.search(r"Lines refused +7\b", ended.stdout)
    assert [line for (line,) in rows(database, "SELECT line FROM refused_lines")] == [2, 3, 4, 5, 6, 7, 8]


def test_over_http_the_story_is_the_same(tmp_path):
    orders = tmp_path / "orders.csv"
    orders.write_text("".join(ORDERS.read_text().splitlines(keepends=True)[:41]))
    ended, told = (run_demo(orders, *way, "--kills", 1) for way in (["--http"], []))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "The server was killed after" in ended.stdout
    table = "The shop, whose worker was killed once"
    assert ended.stdout.partition(table)[2] == told.stdout.partition(table)[2] != ""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (HEADER.encode(), "no order lines"),
        (b"id,amount\n1,2\n", f"its first line should be: {HEADER}"),
        (b"\xff\xfe\x00", "no CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_list_of_orders_is_refused_in_a_sentence(tmp_path, content, complaint):
    orders = tmp_path / "orders.csv"
    if content is not None:
        orders.write_bytes(content)
    ended = run_demo(orders)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_database_that_is_there_already_is_left_alone(tmp_path):
    database = tmp_path / "shop.db"
    database.write_bytes(b"mine")
    ended = run_demo("--database", database)
    assert ended.returncode == 2
    assert "is there already" in ended.stderr
    assert database.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("servers", "complaint"),
    [
        ({"DATABASE_URL": "postgresql+asyncpg://user:secret@127.0.0.1:1/shop"}, "Connect call failed"),
        ({"DATABASE_URL": "mysql+asyncmy://user:secret@127.0.0.1:1/shop"}, "Can't connect"),
        ({"DATABASE_URL": "mysql://user:secret@127.0.0.1/shop"}, "not async"),
        ({"DATABASE_URL": "secret"}, "no URL that SQLAlchemy can read"),
        ({"BROKER_URL": "kafka://127.0.0.1:1"}, "Kafka at 127.0.0.1:1 is out of reach"),
        ({"BROKER_URL": "amqp://user:secret@127.0.0.1:1"}, "Connect call failed"),
        ({"BROKER_URL": "redis://user:secret@127.0.0.1"}, "none that a broker has"),
    ],
)
def test_servers_that_cannot_be_used_are_refused_in_a_sentence(servers, complaint):
    ended = run_demo(**servers)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr


@pytest.mark.parametrize("table", ["customers", "orders", "cqrs_outbox"])
def test_a_database_that_others_use_is_left_alone(tmp_path, table):
    database = tmp_path / "shop.db"
    spoil(database, f"CREATE TABLE {table} (name TEXT)")
    ended = run_demo(DATABASE_URL=f"sqlite+aiosqlite:///{database}")
    assert ended.returncode == 2
    assert f"the database is in use ({table})" in ended.stderr
    assert rows(database, "SELECT name FROM sqlite_master") == [(table,)]


def test_lines_are_numbered_as_an_editor_counts_them(tmp_path):
    path = tmp_path / "orders.csv"
    path.write_bytes(b"\xef\xbb\xbfsku,quantity,order_id,customer\r\nmug,2,A-1,ada\r\n\r\nmug\r\n")
    first = {"sku": "mug", "quantity": "2", "order_id": "A-1", "customer": "ada"}
    assert read_lines(path) == [Line(2, first), Line(4, {"sku": "mug"})]


def test_the_shipped_file_has_enough_lines():
    assert len(read_lines(ORDERS)) >= 500


@pytest.fixture
async def database(tmp_path: Path) -> Path:
    """What a worker could leave of one order in three lines, with the two tables of the toolkit that are looked at."""
    path = tmp_path / "shop.db"
    await create(f"sqlite+aiosqlite:///{path}")
    spoil(path, "CREATE TABLE cqrs_outbox (id INTEGER)")
    spoil(path, "CREATE TABLE cqrs_parked (id INTEGER)")
    spoil(path, "INSERT INTO orders VALUES ('A-1', 2, 'ada', 'mug', 2, 2900), ('A-2', 3, 'ada', 'mug', 1, 1450)")
    spoil(path, "UPDATE articles SET available = initial - 3 WHERE sku = 'mug'")
    spoil(path, "INSERT INTO movements VALUES (1, 'A-1', 'mug', 2), (2, 'A-2', 'mug', 1)")
    spoil(path, "INSERT INTO receipts VALUES (1, 'A-1', 'ada', ''), (2, 'A-2', 'ada', '')")
    spoil(path, "INSERT INTO refused_lines VALUES (4, 'unknown sku')")
    return path


def spoil(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


async def count(path: Path) -> Audit:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    try:
        return await audit(engine, 3)
    finally:
        await engine.dispose()


async def test_the_audit_finds_nothing_where_all_is_well(database):
    found = await count(database)
    assert found.is_clean
    assert (found.orders, found.receipts, found.refused) == (2, 2, {"unknown sku": 1})


@pytest.mark.parametrize(
    ("statement", "lost", "twice", "wrong"),
    [
        ("DELETE FROM refused_lines", {"lines neither placed nor refused": 1}, {}, {}),
        ("DELETE FROM receipts WHERE number = 1", {"orders without a receipt": 1}, {}, {}),
        ("DELETE FROM movements WHERE number = 1", {"orders without a movement": 1}, {}, {}),
        ("INSERT INTO cqrs_parked VALUES (1)", {}, {}, {"events not delivered": 1}),
        ("INSERT INTO receipts VALUES (3, 'A-2', 'ada', '')", {}, {"receipts sent twice": 1}, {}),
        ("INSERT INTO movements VALUES (3, 'A-1', 'mug', 2)", {}, {"movements noted twice": 1}, {}),
        (
            "UPDATE refused_lines SET line = 2",
            {"lines neither placed nor refused": 1},
            {"lines placed and refused": 1},
            {},
        ),
        ("UPDATE articles SET available = 0 WHERE sku = 'mug'", {}, {}, {"articles with a wrong stock": 1}),
        ("UPDATE receipts SET number = 9 WHERE number = 1", {}, {}, {"receipts before those of earlier orders": 1}),
    ],
)
async def test_the_audit_finds_what_is_lost_twice_or_wrong(database, statement, lost, twice, wrong):
    spoil(database, statement)
    found = await count(database)
    assert not found.is_clean
    assert (found.lost, found.twice, found.wrong) == (lost, twice, wrong)
