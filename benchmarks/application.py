"""What needs no server: sends, their function calls, local delivery on SQLite, imports and bootstrap."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import calls, contestants, delivery, peer, report, startup
from benchmarks.lines import Bar, Line, rate
from benchmarks.timing import race

CALLS_BAR, IMPORT_BAR, DELIVERY_BAR, BOOTSTRAP_BAR = 6, 1.5, 2.0, 0.5
DELIVERIES = (
    ("delivery", "ours", "driver", "through a session, against the same statements by aiosqlite alone", DELIVERY_BAR),
    ("delivery-driver", "ours by driver", "driver", "by aiosqlite's statement, against the same", DELIVERY_BAR),
    ("delivery-session", "ours", "session", "through a session, against a session by hand", None),
)
"""What is compared: ours with by hand."""
IMPORTS = {"cqrs": "import cqrs", "pydantic": "import pydantic", "model": "from pydantic import BaseModel"}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: rounds of each kind, and the messages of a delivery."""

    rounds: int
    transactions: int
    deliveries: int
    messages: int
    starts: int
    with_peer: bool


FULL = Effort(rounds=200, transactions=40, deliveries=15, messages=500, starts=11, with_peer=True)
QUICK = Effort(rounds=30, transactions=10, deliveries=3, messages=100, starts=2, with_peer=False)

Part = Callable[[Path, Effort, dict[str, Any]], list[Line]]
"""Prints tables of its own, notes its figures, and returns what stands in the table of bars."""


def measure(names: list[str], effort: Effort, figures: dict[str, Any]) -> list[Line]:
    """Measure some of the parts."""
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        for name in names:
            lines += PARTS[name](Path(scratch), effort, figures)
    return lines


def send(folder: Path, effort: Effort, figures: dict[str, Any]) -> list[Line]:
    """Measure sends and count their function calls."""
    asyncio.run(_send(folder, effort, figures))
    return []


async def _send(folder: Path, effort: Effort, figures: dict[str, Any]) -> None:
    with ExitStack() as stack:
        beside = None
        if effort.with_peer:
            try:
                beside = stack.enter_context(peer.running(folder))
                figures["peer"] = beside.versions
            except peer.Unavailable as error:
                without_peer(error, figures)
        async with contestants.cases(folder) as cases:
            await sends(cases, beside, effort, figures)
            await function_calls(cases, figures)


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


def deliver(folder: Path, effort: Effort, figures: dict[str, Any]) -> list[Line]:
    """Measure local delivery."""
    return asyncio.run(_deliver(folder, effort, figures))


async def _deliver(folder: Path, effort: Effort, figures: dict[str, Any]) -> list[Line]:
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
    lines = []
    conditions = (
        f"{found.messages} messages of {found.body} bytes, {delivery.KEYS} keys, batch {delivery.BATCH}, "
        "every commit synced"
    )
    for name, ours, who, title, bar in DELIVERIES:
        ratio, (low, high) = found.race.ratio(ours, who), found.race.spread(ours, who)
        figures["delivery"] |= {f"{ours} to {who}": ratio, f"{ours} to {who} quartiles": (low, high)}
        cells = [report.time(found.race.typical(ours)), report.time(found.race.typical(who)), report.times(ratio)]
        half = f"{report.times(low)} .. {report.times(high)}"
        rows.append([title, *cells, half, report.times(bar), report.verdict(ratio, bar)])
        lines.append(
            Line(
                name=name,
                what=f"SQLite → local handlers with inbox, {title}",
                bar=Bar(1 / bar) if bar else None,
                measured=found.race.ratio(who, ours),
                spread=found.race.spread(who, ours),
                rates={side: rate(1e9 / found.race.typical(each)) for side, each in (("ours", ours), ("by hand", who))},
                conditions=conditions,
            )
        )
    heads = ["local delivery, a message", "ours", "by hand", "ratio", "half of the rounds", "bar", "met?"]
    print("\n" + report.table(heads, rows))
    print(
        f"{conditions}; an inbox row and a row of the handler each\n"
        f"ours runs with journal_mode={found.journal} and synchronous={found.synchronous} (2 is FULL)"
    )
    return lines


def imports(folder: Path, effort: Effort, figures: dict[str, Any]) -> list[Line]:
    """Measure imports, in processes of their own."""
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
    return []


def bootstraps(folder: Path, effort: Effort, figures: dict[str, Any]) -> list[Line]:
    """Measure bootstrap, in processes of its own."""
    _progress("bootstrap")
    booted = startup.measure_bootstrap(folder, rounds=max(1, effort.starts // 2))
    figures["bootstrap"] = {kind: asdict(each) for kind, each in booted.items()}
    rows = []
    for kind, title in (("alone", "handlers alone"), ("wired", "with container, database and published events")):
        took = booted[kind]
        cells = [report.time(took.imports * 1e9), report.time(took.bootstrap * 1e9), f"{BOOTSTRAP_BAR} s"]
        rows.append([title, *cells, report.verdict(took.bootstrap, BOOTSTRAP_BAR)])
    print("\n" + report.table(["1,000 handlers in 200 modules", "their import", "bootstrap", "bar", "met?"], rows))
    return []


def _progress(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


PARTS: dict[str, Part] = {"send": send, "delivery": deliver, "import": imports, "bootstrap": bootstraps}
