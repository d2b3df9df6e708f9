"""The demo, `python -m examples.shop [CSV]`: its worker is killed, yet nothing is lost and nothing happens twice."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from examples.shop.demo.audit import audit
from examples.shop.demo.conductor import IsTime, Job, WorkerFailed, at_random, conduct, evenly
from examples.shop.demo.screen import make_screen, make_table
from examples.shop.lines import COLUMNS, UnreadableFile, read_lines
from examples.shop.tables import ASSORTMENT, create

ORDERS = Path(__file__).with_name("orders.csv")


class Options(argparse.Namespace):
    orders: Path
    database: Path | None
    kills: int
    within: float | None


def main() -> int:
    parser = make_parser()
    options = parser.parse_args(namespace=Options())
    try:
        job = prepare(options)
    except (UnreadableFile, OSError) as error:
        parser.error(str(error))
    try:
        return run(job, moments(options, job.lines))
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
    return parser


def prepare(options: Options) -> Job:
    """Read the file once, to know that it can be read, and make the database."""
    lines = read_lines(options.orders)
    database = options.database or Path(tempfile.mkdtemp(prefix="shop-"), "shop.db")
    if database.exists():
        raise FileExistsError(f"{database} is there already; name a new file")
    if not database.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {database.parent}")
    create(database)
    return Job(database, options.orders, len(lines))


def moments(options: Options, lines: int) -> Iterator[IsTime]:
    if options.within is not None:
        return at_random(options.kills, options.within)
    return evenly(options.kills, lines)


def run(job: Job, kills: Iterator[IsTime]) -> int:
    """Work until all is done, show what there is in the end, and return the exit status."""
    console = Console()
    print(f"{job.lines} order lines from {job.orders}\nDatabase: {job.database}\n", flush=True)
    with make_screen(console, job.lines) as screen:
        killed = conduct(job, kills, screen)
    found = audit(job.database, job.lines)
    console.print(make_table(found, killed), highlight=False)
    print("Nothing was lost, nothing happened twice." if found.is_clean else f"It failed. Look into {job.database}")
    return 0 if found.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
