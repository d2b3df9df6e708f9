"""Runs the demo as a user would, and looks into the database that it leaves."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[2]
ORDERS = ROOT / "examples" / "shop" / "orders.csv"
HEADER = "order_id,customer,sku,quantity"
TIMEOUT = 600.0


def run_demo(*arguments: object, **servers: str) -> subprocess.CompletedProcess[str]:
    """Run it with these variables: DATABASE_URL, BROKER_URL and SHOP_TOPIC."""
    return run("examples.shop", *arguments, **servers)


def run(module: str, *arguments: object, **servers: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    none = dict.fromkeys(("DATABASE_URL", "BROKER_URL"), "")
    environment = {**os.environ, "PYTHONWARNINGS": "error", **none, **servers}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def rows(database: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()
