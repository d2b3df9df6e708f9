"""Peers in environments of their own, whose processes take part in our rounds through a pipe."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import Runner

HERE = Path(__file__).parent


class Unavailable(Exception):
    """The peer cannot be measured here; the text says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is installed for a peer, and what it runs. `shared` is what both use, in the version that we run with."""

    pinned: str
    script: Path
    shared: Sequence[str]
    others: Sequence[str] = ("greenlet",)

    @property
    def name(self) -> str:
        return self.pinned.partition("==")[0]


PYTHON_CQRS = Kind("python-cqrs==5.3.0", HERE / "python_cqrs.py", ("aiosqlite", "dependency-injector", "sqlalchemy"))
PYTHON_CQRS_OUTBOX = Kind(
    "python-cqrs==5.3.0",
    HERE / "peers" / "outbox_python_cqrs.py",
    ("asyncpg", "pydantic", "sqlalchemy"),
    ("greenlet", "uvloop"),
)
PYTHON_CQRS_INBOX = Kind(
    "python-cqrs==5.3.0",
    HERE / "peers" / "inbox_python_cqrs.py",
    ("asyncpg", "dependency-injector", "pydantic", "sqlalchemy"),
    ("greenlet", "uvloop"),
)
FASTSTREAM_OUTBOX = Kind(
    "faststream-outbox==0.19.0",
    HERE / "peers" / "outbox_faststream.py",
    ("asyncpg", "pydantic", "sqlalchemy"),
    ("greenlet", "uvloop"),
)


class Peer:
    """The running peer."""

    def __init__(self, kind: Kind, process: subprocess.Popen[str], errors: Path) -> None:
        self._kind = kind
        self._process = process
        self._errors = errors
        self.versions = self._answer()

    def runner(self, case: str, who: str) -> Runner:
        """Return a contestant of the peer's process: `peer`, or `peer_dict`, the dict mediator beside it."""

        async def run(calls: int) -> float:
            return self._ask({"case": case, "who": who, "calls": calls})

        return run

    def drainer(self, rows: int) -> Callable[[], Awaitable[float]]:
        """Return a contestant of a peer with an outbox: it fills and empties it, and tells the nanoseconds a row."""

        async def drain() -> float:
            return await asyncio.to_thread(self._ask, {"rows": rows})

        return drain

    def _ask(self, request: dict[str, Any]) -> Any:
        with suppress(BrokenPipeError):  # it has ended; there is no answer either, which says why
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(f"{self._kind.name} ended early: " + _last_line(self._errors.read_text()))
        return json.loads(line)


@contextmanager
def running(folder: Path, kind: Kind = PYTHON_CQRS, argument: object = None) -> Iterator[Peer]:
    """Install a peer where that has not been done, and run it. Raises `Unavailable`."""
    python = _environment(kind)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    errors = folder / f"{kind.script.stem}.log"
    with (
        errors.open("w") as log,
        subprocess.Popen(
            [python, kind.script, argument or folder / "peer.db"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=surroundings,
            cwd=folder,
        ) as process,
    ):
        yield Peer(kind, process, errors)


def _environment(kind: Kind) -> Path:
    """Return the Python of the peer's environment, made at its first use and kept."""
    wanted = [kind.pinned, *(f"{name}=={version(name)}" for name in kind.shared), *kind.others]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cqrs-toolkit"
    of = f"{kind.pinned.replace('==', '-')}-{kind.script.stem}"
    folder = cache / f"{of}-python{sys.version_info.major}.{sys.version_info.minor}"
    installed, python = folder / "installed.txt", folder / "bin" / "python"
    if installed.is_file() and installed.read_text().split() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if uv:
        _run(kind, uv, "venv", "--python", sys.executable, folder)
        _run(kind, uv, "pip", "install", "--python", python, *wanted)
    else:
        _run(kind, sys.executable, "-m", "venv", folder)
        _run(kind, python, "-m", "pip", "install", *wanted)
    installed.write_text("\n".join(wanted))
    return python


def _run(kind: Kind, *command: str | Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{kind.pinned} could not be installed: {error}") from error
    if done.returncode:
        raise Unavailable(f"{kind.pinned} could not be installed: {_last_line(done.stderr)}")


def _last_line(errors: str) -> str:
    return (errors.strip().splitlines() or ["no reason given"])[-1]
