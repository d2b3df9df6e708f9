"""What it takes to begin: the import, beside pydantic's, and bootstrap over a large application."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
MODULES = 200

IMPORT = """
import sys, time, resource
def memory():
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
modules, before, began = len(sys.modules), memory(), time.perf_counter()
{statement}
ended = time.perf_counter()
print([ended - began, len(sys.modules) - modules, memory() - before])
"""

BOOTSTRAP = """
import importlib, time
import cqrs
{before}
began = time.perf_counter()
for number in range({modules}):
    importlib.import_module(f"generated.module_{{number}}")
imported = time.perf_counter()
app = cqrs.bootstrap(scan="generated", {options})
ended = time.perf_counter()
print([imported - began, ended - imported])
"""

MODULE = """
import cqrs


class Place{n}(cqrs.Command[int]):
    number: int


class Cancel{n}(cqrs.Command[None]):
    number: int


class Find{n}(cqrs.Query[str]):
    number: int


class Counted{n}(cqrs.Event):
    number: int


class Placed{n}(cqrs.Event):
    number: int


@cqrs.command_handler
async def place(command: Place{n}, context: cqrs.Context{parameter}) -> int:
    return command.number


@cqrs.command_handler
async def cancel(command: Cancel{n}) -> None:
    pass


@cqrs.query_handler
async def find(query: Find{n}{parameter}) -> str:
    return str(query.number)


@cqrs.event_handler
async def count(event: Counted{n}) -> None:
    pass


@cqrs.event_handler
async def tell(event: Placed{n}{parameter}) -> None:
    pass
"""
CONTAINER = """
from dependency_injector import containers, providers

class Clock:
    pass

class Container(containers.DeclarativeContainer):
    clock = providers.Singleton(Clock)
"""
PUBLISHED = '@cqrs.integration_event(topic="orders")\nclass Placed'


@dataclass(frozen=True, slots=True)
class Import:
    """What one import costs beyond the interpreter's own start: seconds, modules, bytes of resident memory."""

    seconds: float
    modules: float
    memory: float


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Seconds for the application's own modules, and for bootstrap over them."""

    imports: float
    bootstrap: float


def measure_imports(statements: Sequence[str], folder: Path, *, rounds: int) -> dict[str, Import]:
    """Run each statement in new processes, in turn; the first round only compiles and fills caches."""
    found: dict[str, list[list[float]]] = {statement: [] for statement in statements}
    for number in range(rounds + 1):
        for statement in statements:
            figures = _run(IMPORT.format(statement=statement), ROOT, compiled=folder / "compiled")
            if number:
                found[statement].append(figures)
    return {statement: Import(*map(median, zip(*figures, strict=True))) for statement, figures in found.items()}


def measure_bootstrap(folder: Path, *, rounds: int) -> dict[str, Bootstrap]:
    """Bootstrap 1,000 handlers in 200 modules: alone, and with a container and a database."""
    with_all = f"from generated.container import Container\n{LIBRARIES}"
    url = f"sqlite+aiosqlite:///{folder / 'bootstrap.db'}"
    kinds = {
        "alone": (generate(folder / "alone", wired=False), "", ""),
        "wired": (generate(folder / "wired", wired=True), with_all, f'container=Container(), database="{url}"'),
    }
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind, (root, before, options) in kinds.items():
            script = BOOTSTRAP.format(before=before, modules=MODULES, options=options)
            figures = _run(script, root, compiled=folder / "compiled")
            if number:
                found[kind].append(figures)
    return {kind: Bootstrap(*map(median, zip(*figures, strict=True))) for kind, figures in found.items()}


LIBRARIES = "import aiosqlite, alembic, sqlalchemy.ext.asyncio, sqlalchemy.orm"
"""Modules of others, which an application with a database has loaded, and which are not bootstrap's work."""


def generate(root: Path, *, wired: bool) -> Path:
    package = root / "generated"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for number in range(MODULES):
        source = MODULE.format(n=number, parameter=", clock: Clock" if wired else "")
        if wired:
            (package / "container.py").write_text(CONTAINER)
            source = source.replace("class Placed", PUBLISHED)
            source = source.replace("import cqrs\n", "import cqrs\nfrom generated.container import Clock\n", 1)
        (package / f"module_{number}.py").write_text(source)
    return root


def _run(script: str, folder: Path, *, compiled: Path) -> list[float]:
    """Run a script and read what it prints; modules come compiled, as in production, whoever installed them."""
    path = os.pathsep.join(filter(None, [str(folder), str(ROOT), os.environ.get("PYTHONPATH")]))
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**surroundings, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(compiled)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)
