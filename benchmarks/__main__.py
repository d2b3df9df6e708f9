"""`python -m benchmarks`: measures, prints tables, and writes every figure as JSON.

Missing a bar is said, never an error: a shared machine decides too much of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import calls, contestants, delivery, peer, report, startup
from benchmarks.timing import race

DEFAULT = Path("build/bench.json")
CALLS_BAR, IMPORT_BAR, DELIVERY_BAR, BOOTSTRAP_BAR = 6, 1.5, 2.0, 0.5
IMPORTS = {"cqrs": "import cqrs", "pydantic": "import pydantic", "model": "from pydantic import BaseModel"}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: rounds of each kind, and the messages of a delivery."""

    rounds: int
    transactions: int
    deliveries: int
    messages: int
    starts: int


FULL = Effort(rounds=200, transactions=40, deliveries=15, messages=500, starts=11)
QUICK = Effort(rounds=30, transactions=10, deliveries=3, messages=100, starts=2)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the toolkit.")
    parser.add_argument("--quick", action="store_true", help="a short look, without python-cqrs")
    parser.add_argument("--json", type=Path, default=DEFAULT, help=f"where the figures go (default: {DEFAULT})")
    options = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(), "quick": options.quick}
    print("{python}, {system}, {processors} processors".format_map(figures["machine"]))
    effort = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        folder = Path(scratch)
        asyncio.run(measure(folder, effort, figures, with_peer=not options.quick))
        start(folder, effort, figures)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\nEvery figure: {options.json}")


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    packages = ("cqrs-toolkit", "aiosqlite", "dependency-injector", "pydantic", "sqlalchemy")
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


async def measure(folder: Path, effort: Effort, figures: dict[str, Any], *, with_peer: bool) -> None:
    """Measure what runs in an event loop: sends, their function calls, and delivery."""
    with ExitStack() as stack:
        beside = None
        if with_peer:
            try:
                beside = stack.enter_context(peer.running(folder))
                figures["peer"] = beside.versions
            except peer.Unavailable as error:
                without_peer(error, figures)
        async with contestants.cases(folder) as cases:
            await sends(cases, beside, effort, figures)
            await function_calls(cases, figures)
    await deliveries(folder, effort, figures)


def without_peer(error: peer.Unavailable, figures: dict[str, Any]) -> None:
    """Say that the peer is missing, and why; the rest goes on."""
    figures["peer"] = {"unavailable": str(error)}
    print(f"\nWithout python-cqrs: {error}")


async def sends(
    cases: list[contestants.Case], beside: peer.Peer | None, effort: Effort, figures: dict[str, Any]
) -> None:
    """Measure `send`, each way beside the others."""
    rows = []
    for case in cases:
        _progress(case.title)
        slow = case.name == "write"
        timing = {"rounds": effort.transactions if slow else effort.rounds, "sample": 0.01 if slow else 0.001}
        try:
            theirs = {who: beside.runner(case.name, who) for who in ("peer", "peer_dict")} if beside else {}
            found = await race(case.runners | theirs, **timing)
        except peer.Unavailable as error:
            beside = without_peer(error, figures)
            found = await race(case.runners, **timing)
        figure = {
            "nanoseconds": {who: found.typical(who) for who in found.rounds},
            "to_direct": found.ratio("ours", "direct"),
            "to_dict": found.ratio("ours", "dict"),
            "to_dict_quartiles": found.spread("ours", "dict"),
            "bar": case.bar,
        }
        if beside is not None:
            figure |= {
                "peer_to_dict": found.ratio("peer", "peer_dict"),
                "to_peer": found.ratio("ours", "peer"),
                "to_peer_quartiles": found.spread("ours", "peer"),
                "peer_bar": case.peer_bar,
            }
        figures.setdefault("send", {})[case.name] = figure
        rows.append(_send_row(case.title, figure))
    heads = ["send", "direct", "dict", "ours", "/direct", "/dict", "bar", "met?"]
    print("\n" + report.table([*heads, "python-cqrs", "its /dict", "ours/its", "bar", "met?"], rows))
    print("its /dict: python-cqrs against the dict mediator of its own process; it knows no command beside a database")


def _send_row(title: str, figure: dict[str, Any]) -> list[str]:
    took = figure["nanoseconds"]
    row = [title, *(report.time(took[who]) for who in ("direct", "dict", "ours"))]
    row += [report.times(figure["to_direct"]), report.times(figure["to_dict"]), report.times(figure["bar"])]
    row.append(report.verdict(figure["to_dict"], figure["bar"]))
    if "peer" not in took:
        return [*row, "", "", "", "", ""]
    row += [report.time(took["peer"]), report.times(figure["peer_to_dict"]), report.times(figure["to_peer"])]
    return [*row, report.times(figure["peer_bar"]), report.verdict(figure["to_peer"], figure["peer_bar"])]


async def function_calls(cases: list[contestants.Case], figures: dict[str, Any]) -> None:
    """Count the function calls of a plain send."""
    plain = next(case for case in cases if case.name == "plain")
    rows = []
    for who, call in plain.calls.items():
        counted = await calls.count(call, plain.message)
        figures.setdefault("function_calls", {})[who] = {**asdict(counted), "together": counted.together}
        bar = CALLS_BAR if who == "ours" else None
        cells = [len(counted.python), len(counted.c), counted.together, bar or ""]
        rows.append([f"plain command, {who}", *map(str, cells), report.verdict(counted.together, bar)])
    print("\n" + report.table(["function calls", "Python", "C", "together", "bar", "met?"], rows))


async def deliveries(folder: Path, effort: Effort, figures: dict[str, Any]) -> None:
    """Measure local delivery."""
    _progress("delivery")
    (folder / "delivery").mkdir()
    found = await delivery.measure(folder / "delivery", messages=effort.messages, rounds=effort.deliveries)
    rows = []
    figures["delivery"] = {
        "messages": found.messages,
        "body": found.body,
        "keys": delivery.KEYS,
        "batch": delivery.BATCH,
        "journal": found.journal,
        "synchronous": found.synchronous,
        "nanoseconds": {who: found.race.typical(who) for who in found.race.rounds},
        "bar": DELIVERY_BAR,
    }
    for who, title, bar in (
        ("driver", "aiosqlite by hand", DELIVERY_BAR),
        ("session", "SQLAlchemy AsyncSession by hand", None),
    ):
        ratio = found.race.ratio("ours", who)
        low, high = found.race.spread("ours", who)
        figures["delivery"] |= {f"to_{who}": ratio, f"to_{who}_quartiles": (low, high)}
        cells = [report.time(found.race.typical("ours")), report.time(found.race.typical(who)), report.times(ratio)]
        half = f"{report.times(low)} .. {report.times(high)}"
        rows.append([f"against {title}", *cells, half, report.times(bar), report.verdict(ratio, bar)])
    heads = ["local delivery, a message", "ours", "by hand", "ratio", "half of the rounds", "bar", "met?"]
    print("\n" + report.table(heads, rows))
    print(
        f"{found.messages} messages of {found.body} bytes, {delivery.KEYS} keys, batches of {delivery.BATCH}; "
        "an inbox row and a row of the handler each, every commit synced\n"
        f"ours runs with journal_mode={found.journal} and synchronous={found.synchronous} (2 is FULL)"
    )


def start(folder: Path, effort: Effort, figures: dict[str, Any]) -> None:
    """Measure imports and bootstrap, in processes of their own."""
    _progress("import")
    found = startup.measure_imports(list(IMPORTS.values()), folder, rounds=effort.starts)
    figures["import"] = {who: asdict(found[statement]) for who, statement in IMPORTS.items()}
    ours = found[IMPORTS["cqrs"]]
    rows = []
    for who in ("pydantic", "model"):
        beside, bar = found[IMPORTS[who]], IMPORT_BAR if who == "pydantic" else None
        for what, ratio, shown in (
            ("time", ours.seconds / beside.seconds, [report.time(each.seconds * 1e9) for each in (ours, beside)]),
            ("modules", ours.modules / beside.modules, [f"{each.modules:.0f}" for each in (ours, beside)]),
            ("memory", ours.memory / beside.memory, [f"{each.memory / 2**20:.1f} MiB" for each in (ours, beside)]),
        ):
            limit = None if what == "memory" else bar
            cells = [*shown, report.times(ratio), report.times(limit), report.verdict(ratio, limit)]
            rows.append([f"{what}, beside {IMPORTS[who]}", *cells])
    print("\n" + report.table(["import cqrs", "ours", "beside", "ratio", "bar", "met?"], rows))
    _progress("bootstrap")
    booted = startup.measure_bootstrap(folder, rounds=max(1, effort.starts // 2))
    figures["bootstrap"] = {kind: asdict(each) for kind, each in booted.items()}
    rows = []
    for kind, title in (("alone", "handlers alone"), ("wired", "with container, database and published events")):
        took = booted[kind]
        cells = [report.time(took.imports * 1e9), report.time(took.bootstrap * 1e9), f"{BOOTSTRAP_BAR} s"]
        rows.append([title, *cells, report.verdict(took.bootstrap, BOOTSTRAP_BAR)])
    print("\n" + report.table(["1,000 handlers in 200 modules", "their import", "bootstrap", "bar", "met?"], rows))


def _progress(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
