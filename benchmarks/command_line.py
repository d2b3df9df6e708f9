"""What the command line takes beyond what the user has anyway: starting Python, and importing his own modules."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line, typical
from benchmarks.startup import MODULES, ROOT, generate

MAIN = """
import cqrs

app = cqrs.bootstrap(scan="generated", exclude=["generated.main"], name="generated")
"""
IMPORTS = f"import importlib\nfor n in range({MODULES}): importlib.import_module(f'generated.module_{{n}}')"


async def starts(effort: Effort) -> list[Line]:
    """Measure `--help` and `list`, each in turns with what it is compared to."""
    return await asyncio.to_thread(_starts, max(2, effort.few_rounds * 2))


def _starts(rounds: int) -> list[Line]:
    with tempfile.TemporaryDirectory() as name:
        folder = generate(Path(name) / "user", wired=False)
        (folder / "generated" / "main.py").write_text(MAIN)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(Path(name) / "compiled")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        commands = {
            "python": ["-c", "pass"],
            "help": ["-m", "cqrs", "--help"],
            "imports": ["-c", IMPORTS],
            "list": ["-m", "cqrs", "list", "generated.main:app"],
        }
        took = _in_turns(commands, folder, environment, rounds)
    return [
        _line(
            "cli-help", "`cqrs --help` beyond starting Python", Bar(150, "ms", most=True), took["help"], took["python"]
        ),
        _line(
            "cli-list",
            "`cqrs list` on 1,000 handlers beyond the user's imports",
            Bar(400, "ms", most=True),
            took["list"],
            took["imports"],
        ),
    ]


def _in_turns(
    commands: Mapping[str, Sequence[str]], folder: Path, environment: Mapping[str, str], rounds: int
) -> dict[str, list[float]]:
    """Return milliseconds; the first round only compiles and fills caches."""
    took: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, arguments in commands.items():
            seconds = _processor_seconds([sys.executable, *arguments], folder, environment)
            if number:
                took[name].append(seconds * 1000)
    return took


def _processor_seconds(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> float:
    """Return what a program computes: on a quiet machine as long as it takes, and on a busy one not much more."""
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime


def _line(name: str, what: str, bar: Bar, ours: Sequence[float], theirs: Sequence[float]) -> Line:
    measured, spread = typical([one - other for one, other in zip(ours, theirs, strict=True)])
    whole = {"whole": f"{typical(ours)[0]:.0f} ms", "without": f"{typical(theirs)[0]:.0f} ms"}
    conditions = f"{len(ours)} starts each, in turns; processor time; modules compiled"
    return Line(name=name, what=what, bar=bar, measured=measured, spread=spread, rates=whole, conditions=conditions)


JOBS = [Job("cli", "what starting the command line takes", starts)]
