"""`python -m benchmarks`: measures, prints tables, and writes every figure as JSON.

Missing a bar is said, never an error: a shared machine decides too much of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sqlite3
import sys
import traceback
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks import (
    application,
    backlog,
    beside,
    command_line,
    consuming,
    effort,
    idle,
    insert,
    latency,
    lines,
    memory,
    relay,
    scaling,
    servers,
    takeover,
    web,
)
from benchmarks.lines import Job, Line

DEFAULT = Path("build/bench.json")
JOBS = [
    job
    for module in (
        relay,
        consuming,
        beside,
        scaling,
        backlog,
        insert,
        latency,
        idle,
        memory,
        takeover,
        web,
        command_line,
    )
    for job in module.JOBS
]


def main() -> None:
    """Run from the command line."""
    options = _parser().parse_args()
    if options.list:
        print("\n".join([*application.PARTS, *(job.name for job in JOBS)]))
        return
    known = json.loads(options.json.read_text()) if options.json.is_file() else {}
    if options.markdown:
        print(lines.markdown(known.get("lines", [])))
        return
    logging.getLogger("asyncmy").setLevel(logging.ERROR)  # it tells of every constraint that MySQL names itself
    parts = [name for name in application.PARTS if _is_wanted(name, options.only)]
    jobs = [job for job in JOBS if _is_wanted(job.name, options.only)]
    if not parts and not jobs:
        sys.exit(f"Nothing is named {' or '.join(options.only)}; --list shows all names.")
    figures: dict[str, Any] = {**(known if options.only else {}), "machine": machine(), "quick": options.quick}
    print("{python}, {system}, {processors} processors, load {load}".format_map(figures["machine"]))
    found, failed = measure(parts, jobs, figures, quick=options.quick)
    stamp = {"at": figures["machine"]["at"], "quick": options.quick}
    figures["lines"] = merged(figures.get("lines", []), [{**line.figures, **stamp} for line in found])
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    print("\n" + lines.text(found))
    print(f"\nEvery figure: {options.json}; as Markdown: python -m benchmarks --markdown --json {options.json}")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the toolkit.")
    parser.add_argument("--quick", action="store_true", help="a short look, without the peers")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="what begins like this; repeatable")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--json", type=Path, default=DEFAULT, help=f"where the figures go (default: {DEFAULT})")
    parser.add_argument("--markdown", action="store_true", help="print the lines of that file as Markdown")
    return parser


def _is_wanted(name: str, only: list[str]) -> bool:
    return not only or any(name.startswith(each) for each in only)


def merged(known: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of this run and, of earlier ones, those that it did not measure, in the table's order."""
    measured = [line["name"] for line in found if line["measured"] is not None]
    kept = [line for line in known if line["name"] not in measured and line["measured"] is not None]
    names = [*measured, *(line["name"] for line in kept)]
    missing = [
        line for line in found if line["measured"] is None and not any(name.startswith(line["name"]) for name in names)
    ]
    news = [line for line in found if line["measured"] is not None]
    return sorted([*kept, *news, *missing], key=_place)


def _place(line: dict[str, Any]) -> int:
    order = [*application.PARTS, *(job.name for job in JOBS)]
    matching = [place for place, name in enumerate(order) if line["name"].startswith(name)]
    return matching[0] if matching else len(order)


def measure(parts: list[str], jobs: list[Job], figures: dict[str, Any], *, quick: bool) -> tuple[list[Line], list[str]]:
    """Measure what was asked for; return the lines, and the names of what failed."""
    found = application.measure(parts, application.QUICK if quick else application.FULL, figures)
    failed = []
    for job in jobs:
        reason = servers.missing(job.needs) or ("left out by --quick" if quick and not job.is_quick else "")
        if reason:
            measured = [Line(name=job.name, what=job.what, missing=reason)]
        else:
            _progress(job.name)
            began = monotonic()
            try:
                measured = effort.run(job.measure(effort.QUICK if quick else effort.FULL))
            except Exception as error:  # noqa: BLE001 - the others are measured all the same
                traceback.print_exc()
                failed.append(job.name)
                measured = [Line(name=job.name, what=job.what, missing=f"{type(error).__name__}: {error}")]
            for line in measured:
                shown = line.missing if line.measured is None else lines.shown(line.measured, line.unit)
                _progress(f"    {line.what}: {shown} {line.verdict}")
            _progress(f"    took {monotonic() - began:.0f} s")
        found += measured
    return found, failed


def _progress(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    packages = (
        "cqrs-toolkit",
        "aio-pika",
        "aiokafka",
        "aiosqlite",
        "asyncmy",
        "asyncpg",
        "dependency-injector",
        "fastapi",
        "pydantic",
        "sqlalchemy",
        "uvicorn",
        "uvloop",
    )
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None  # run from a checkout that is not installed


if __name__ == "__main__":
    main()
