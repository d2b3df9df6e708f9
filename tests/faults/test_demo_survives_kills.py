"""The demo's worker is killed with SIGKILL at any moment: nothing is lost, and nothing happens twice.

A few kills in every run of the tests; `KILLS=50 make test ARGS="tests/faults -s"` is the long loop.
"""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.examples.shop import ORDERS, rows, run_demo, shop_on

KILLS = int(os.environ.get("KILLS", "5"))
WITHIN = 2.0
"""Seconds of a worker's start, or of its first work, in which it is killed."""


def orders_of_the_file(refused: set[int]) -> dict[str, int]:
    """Read without the shop: the quantity of every order in a line that was not refused."""
    with ORDERS.open(newline="") as file:
        reader = csv.reader(file)
        next(reader)
        return {cells[0]: int(cells[3]) for cells in reader if reader.line_num not in refused}


def assert_nothing_lost_and_nothing_twice(database: Path) -> None:
    orders = dict(rows(database, "SELECT order_id, quantity FROM orders"))
    refused = {line for (line,) in rows(database, "SELECT line FROM refused_lines")}
    assert (len(orders), len(refused)) == (500, 40)
    assert orders == orders_of_the_file(refused)
    for table in ("receipts", "movements"):
        assert Counter(order for (order,) in rows(database, f"SELECT order_id FROM {table}")) == Counter(orders.keys())
    assert rows(database, "SELECT sum(initial - available) FROM articles") == [(sum(orders.values()),)]
    assert rows(database, "SELECT count(*) FROM cqrs_outbox") == [(0,)]
    assert rows(database, "SELECT count(*) FROM cqrs_parked") == [(0,)]


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing_and_repeat_nothing(tmp_path):
    killed = run = 0
    while killed < KILLS:
        run += 1
        database = tmp_path / f"{run}.db"
        ended = run_demo("--database", database, "--kills", KILLS - killed, "--within", WITHIN)
        print(ended.stdout)  # noqa: T201 - the long loop shows what it did
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert_nothing_lost_and_nothing_twice(database)
        killed += ended.stdout.count("was killed after")


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.parametrize(("database", "broker"), [("POSTGRES_URL", "KAFKA_URL"), ("MYSQL_URL", "RABBITMQ_URL")])
async def test_kills_on_servers_lose_nothing_and_repeat_nothing(database, broker):
    killed = 0
    async with shop_on(database, broker) as place:
        while killed < KILLS:
            ended = run_demo("--kills", KILLS - killed, "--within", WITHIN, **place)
            print(ended.stdout)  # noqa: T201 - the long loop shows what it did
            assert ended.returncode == 0, ended.stdout + ended.stderr
            killed += ended.stdout.count("was killed after")
