"""python-cqrs in an environment of its own, whose process takes part in our rounds through a pipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import Runner

PINNED = "python-cqrs==5.3.0"
SHARED = ("aiosqlite", "dependency-injector", "sqlalchemy")
"""What both use, in the version that we run with."""
SCRIPT = Path(__file__).with_name("python_cqrs.py")


class Unavailable(Exception):
    """The peer cannot be measured here; the text says why."""


class Peer:
    """The running peer."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process = process
        self._errors = errors
        self.versions = self._answer()

    def runner(self, case: str, who: str) -> Runner:
        """Return a contestant of the peer's process: `peer`, or `peer_dict`, the dict mediator beside it."""

        async def run(calls: int) -> float:
            return self._ask({"case": case, "who": who, "calls": calls})

        return run

    def _ask(self, request: dict[str, Any]) -> Any:
        with suppress(BrokenPipeError):  # it has ended; there is no answer either, which says why
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable("python-cqrs ended early: " + _last_line(self._errors.read_text()))
        return json.loads(line)


@contextmanager
def running(folder: Path) -> Iterator[Peer]:
    """Install python-cqrs where that has not been done, and run it. Raises `Unavailable`."""
    python = _environment()
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    errors = folder / "peer.log"
    with (
        errors.open("w") as log,
        subprocess.Popen(
            [python, SCRIPT, folder / "peer.db"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=surroundings,
            cwd=folder,
        ) as process,
    ):
        yield Peer(process, errors)


def _environment() -> Path:
    """Return the Python of the peer's environment, made at its first use and kept."""
    wanted = [PINNED, *(f"{name}=={version(name)}" for name in SHARED), "greenlet"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cqrs-toolkit"
    folder = cache / f"{PINNED.replace('==', '-')}-python{sys.version_info.major}.{sys.version_info.minor}"
    installed, python = folder / "installed.txt", folder / "bin" / "python"
    if installed.is_file() and installed.read_text().split() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if uv:
        _run(uv, "venv", "--python", sys.executable, folder)
        _run(uv, "pip", "install", "--python", python, *wanted)
    else:
        _run(sys.executable, "-m", "venv", folder)
        _run(python, "-m", "pip", "install", *wanted)
    installed.write_text("\n".join(wanted))
    return python


def _run(*command: str | Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{PINNED} could not be installed: {error}") from error
    if done.returncode:
        raise Unavailable(f"{PINNED} could not be installed: {_last_line(done.stderr)}")


def _last_line(errors: str) -> str:
    return (errors.strip().splitlines() or ["no reason given"])[-1]
