"""Pastes into docs/reference/cli.md what each command there prints: `python -m tests.docs.cli_page`.

The page itself says which commands: every line `$ ...` of its `text` blocks runs, in order, in one folder that holds
the shop's database with two dead letters, an event that waits behind one of them, and one that is ready. Ids, times and
places are replaced by fixed ones.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from sqlalchemy import text

from cqrs.composition import compose
from examples.shop.app import make_shop
from examples.shop.messages import PlaceOrder
from examples.shop.tables import create
from tests.unit.outbox.support import storage_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "cli.md"
BLOCK = re.compile(r"^```text\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = {"DATABASE_URL", "BROKER_URL", "SHOP_TOPIC", "CQRS_DATABASE_URL", "PYTHONWARNINGS"}


def paste(page: str, run: Callable[[str], str]) -> str:
    """Return the page with what its commands print now."""

    def pasted(block: re.Match[str]) -> str:
        commands = [line for line in block[1].splitlines() if line.startswith("$ ")]
        shown = "\n\n".join(f"{command}\n{run(command.removeprefix('$ '))}".rstrip() for command in commands)
        return f"```text\n{shown}\n```"

    return BLOCK.sub(pasted, page)


def fresh_page() -> str:
    """Return the page as it should be now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        asyncio.run(fill(f"sqlite+aiosqlite:///{folder / 'shop.db'}"))
        return Cleaner(folder).clean(paste(PAGE.read_text(encoding="utf-8"), lambda command: execute(command, folder)))


async def fill(database: str) -> None:
    """Let two events die because somebody has edited their bodies, one wait behind the first, and one be ready."""
    await create(database)
    blueprint = make_shop(database).blueprint
    assert blueprint is not None
    async with compose(replace(blueprint, wishes=replace(blueprint.wishes, relay=False))) as app:
        storage = storage_of(app)
        for number, customer in enumerate(("ann", "ann", "carl", "bob"), start=1):
            order = PlaceOrder(line=number, order_id=f"o-{number}", customer=customer, sku="honey", quantity=1)
            await app.send(order)
            if number in (1, 3):
                async with storage.store.writers.begin() as connection:
                    await connection.execute(text("UPDATE cqrs_outbox SET payload = :body"), {"body": b"{}"})
            while number < 4 and (await storage.relay.relay_outbox() or await storage.relay.relay_due()):
                pass


def execute(command: str, folder: Path) -> str:
    """Return what a command prints; one that runs until a signal gets it once it works."""
    environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT} | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    with subprocess.Popen(
        f"exec {command}" if command.startswith("cqrs run") else command,
        shell=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if command.startswith("cqrs run") and " as process " in line:
                lines.append("^C\n")
                process.send_signal(signal.SIGINT)
    code = process.returncode
    return "".join(lines) + (f"(ended with exit code {code})\n" if code else "")


class Cleaner:
    """Replaces what is another at every run: each id by a number of its own, times and places by fixed ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids: dict[str, str] = {}

    def clean(self, page: str) -> str:
        """Return a page that is the same at every run."""
        page = page.replace(str(self._folder), "/home/ann/shop").replace(str(ROOT), "/home/ann/shop")
        page = re.sub(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", self._id, page)
        page = re.sub(r"\b20\d\d-\d\d-\d\d([ T])\d\d:\d\d:\d\d[.,]\d+", r"2026-02-03\g<1>04:05:06.789", page)
        page = re.sub(r"\b20\d\d-\d\d-\d\d([ T])\d\d:\d\d:\d\d\b", r"2026-02-03\g<1>04:05:06", page)
        page = re.sub(r"as process \d+", "as process 4711", page)
        page = re.sub(r"waited for [\d.]+ s", "waited for 1.2 s", page)
        page = re.sub(r"versions/[0-9a-f]{12}_", "versions/1a2b3c4d5e6f_", page)
        # Frames of a traceback, as a person and as JSON has them: others edit what they show.
        page = re.sub(r"(Traceback \(most recent call last\):\n)(?: {15}.*\n)+", r"\1" + " " * 15 + "...\n", page)
        page = re.sub(r'(Traceback \(most recent call last\):)(?:\\n  (?:\\[^n]|[^\\"])*)+', r"\1\\n  ...", page)
        return "\n".join(line.rstrip() for line in page.splitlines()) + "\n"

    def _id(self, found: re.Match[str]) -> str:
        known = len(self._ids) + 1
        return self._ids.setdefault(found[0], f"01a21ad6-0000-7000-8000-{known:012d}")


def skeleton(page: str) -> Iterator[str]:
    """Return the lines of a page without what differs by versions, or by an edit of the shop."""
    for line in page.splitlines():
        bare = re.sub(r"\.py:\d+", ".py", line)
        bare = re.sub(r"\b\d+(?:\.\d+)+\w*", "1.0", bare)
        yield re.sub(r"  +", "  ", bare).strip()


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(fresh_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
