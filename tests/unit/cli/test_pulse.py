"""The live line, on a terminal that a test reads."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cqrs.cli.pulse import Totals
from tests.unit.cli.support import shop
from tests.unit.cli.test_running import environment
from tests.unit.conftest import WritePackage

pty = pytest.importorskip("pty")  # not on Windows
COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_rates_are_what_was_done_since_the_look_before():
    assert Totals(30, 5).rates(Totals(10, 5), 2.0) == "10 delivered/s, 0 consumed/s"


def read_until(terminal: int, text: str) -> str:
    """Return what a terminal shows, without its colours, up to a text or to its end; give up after a while."""
    seen, end = "", time.monotonic() + 30
    while text not in seen and select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
        try:
            seen += COLOUR.sub("", os.read(terminal, 4096).decode(errors="replace"))
        except OSError:  # Linux's way to say that nobody writes any more
            break
    return seen


def terminal_pair() -> tuple[int, int]:
    """Return both ends of a terminal; a chroot may have none to give."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminal can be had: {error}")


def test_on_a_terminal_a_line_tells_rates_and_backlog(package: WritePackage, database: str, tmp_path: Path):
    target = f"{package(shop(database))}.main:app"
    ours, theirs = terminal_pair()
    command = [sys.executable, "-m", "cqrs", "run", target]
    surroundings = environment() | {"COLUMNS": "120", "TERM": "xterm"}
    with subprocess.Popen(command, cwd=tmp_path, env=surroundings, stdin=theirs, stderr=theirs) as process:
        os.close(theirs)
        line = "0 delivered/s, 0 consumed/s; 0 in the outbox, 0 waiting, 0 dead"
        seen = read_until(ours, line)
        process.send_signal(signal.SIGTERM)
        rest = read_until(ours, "\0")
    os.close(ours)
    assert line in seen
    assert "'shop' relays as process" in seen
    assert "'shop' has stopped." in rest
    assert process.returncode == 0
