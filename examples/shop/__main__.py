"""The demo, `python -m examples.shop [CSV]`: its worker is killed, yet nothing is lost and nothing happens twice."""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import cqrs
from examples.shop.app import make_shop
from examples.shop.demo.audit import audit
from examples.shop.demo.broker import skip
from examples.shop.demo.conductor import IsTime, Job, WorkerFailed, at_random, evenly
from examples.shop.demo.conductor import conduct as conduct_worker
from examples.shop.demo.screen import Screen, make_screen, make_table
from examples.shop.lines import COLUMNS, UnreadableFile, read_lines
from examples.shop.tables import ASSORTMENT, Occupied, create

Conduct = Callable[[Job, Iterator[IsTime], AsyncEngine, Screen], Awaitable[int]]

ORDERS = Path(__file__).with_name("orders.csv")


class Options(argparse.Namespace):
    orders: Path
    database: Path | None
    kills: int
    within: float | None
    http: bool


def main() -> int:
    parser = make_parser()
    options = parser.parse_args(namespace=Options())
    try:
        job, conduct = plan(options), conductor(options)
        asyncio.run(prepare(job))
    except (UnreadableFile, Occupied, cqrs.ConfigurationError, ImportError, OSError) as error:
        parser.error(str(error))
    except DBAPIError as error:
        parser.error(f"the database cannot be used: {error.orig}")
    try:
        return asyncio.run(run(job, moments(options, job.lines), conduct))
    except WorkerFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.shop",
        description="Place the orders of a CSV file, and kill the worker that does it on the way.",
        epilog=f"Columns: {', '.join(COLUMNS)}. Articles: {', '.join(ASSORTMENT)}.",
    )
    parser.add_argument(
        "orders", nargs="?", type=Path, default=ORDERS, metavar="CSV", help="default: the one beside this file"
    )
    parser.add_argument("--database", type=Path, metavar="FILE", help="a new SQLite file; default: a temporary one")
    parser.add_argument(
        "--kills", type=int, default=2, metavar="N", help="how often, spread over the lines; default: 2"
    )
    parser.add_argument(
        "--within", type=float, metavar="S", help="kill at any moment within S seconds of a start or of first work"
    )
    parser.add_argument(
        "--http", action="store_true", help="post the lines to a server; with a broker, another process consumes"
    )
    return parser


def conductor(options: Options) -> Conduct:
    if not options.http:
        return conduct_worker
    from examples.shop.demo.service import serve

    return serve


def plan(options: Options) -> Job:
    """Read the file once, to know that it can be read, and say where everything is to be."""
    lines = len(read_lines(options.orders))
    broker = os.environ.get("BROKER_URL") or None
    database = os.environ.get("DATABASE_URL")
    if database and options.database is None:
        return Job(options.orders, lines, database, broker, Path(tempfile.mkdtemp(prefix="shop-"), "shop.log"))
    file = options.database or Path(tempfile.mkdtemp(prefix="shop-"), "shop.db")
    if file.exists():
        raise FileExistsError(f"{file} is there already; name a new file")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent}")
    return Job(options.orders, lines, f"sqlite+aiosqlite:///{file}", broker, file.with_suffix(".log"))


async def prepare(job: Job) -> None:
    """Make the tables, and leave out what the broker may have from earlier runs."""
    make_shop(job.database, job.broker)  # which knows what can be wrong with URLs
    await create(job.database)
    if job.broker is not None:
        await skip(job.broker)


def moments(options: Options, lines: int) -> Iterator[IsTime]:
    if options.within is not None:
        return at_random(options.kills, options.within)
    return evenly(options.kills, lines)


async def run(job: Job, kills: Iterator[IsTime], conduct: Conduct) -> int:
    """Work until all is done, show what there is in the end, and return the exit status."""
    console = Console()
    print(f"{job.lines} order lines from {job.orders}\nDatabase: {shown(job.database)}")
    if job.broker is not None:
        print(f"Broker: {shown(job.broker)}")
    print(flush=True)
    engine = create_async_engine(job.database)
    try:
        with make_screen(console, job.lines) as screen:
            killed = await conduct(job, kills, engine, screen)
        found = await audit(engine, job.lines)
    finally:
        await engine.dispose()
    console.print(make_table(found, killed), highlight=False)
    clean = "Nothing was lost, nothing happened twice."
    print(clean if found.is_clean else f"It failed. Look into {shown(job.database)}")
    return 0 if found.is_clean else 1


def shown(url: str) -> str:
    """Return the place behind a URL without its login; of a file the path alone."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path[1:]


if __name__ == "__main__":
    sys.exit(main())
