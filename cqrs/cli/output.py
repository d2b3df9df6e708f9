"""How commands show what they found: tables for people, JSON for programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

takes_json: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)


def show_json(value: Any) -> None:
    """Print a value, and the dataclasses in it, as JSON."""
    import json

    click.echo(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    raise TypeError(f"{type(value).__name__} has no JSON")


def show_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under titles, in columns. By hand: a table of a library's takes a thousand rows a second to draw."""
    cells = [titles, *(["" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    first, *others = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
    click.echo("\n".join([click.style(first, bold=True), *others]))


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, a line each; what has no value is left out."""
    known = [(name, str(value)) for name, value in facts if value is not None and value != ""]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        first, *further = value.splitlines() or [""]
        click.echo(f"{name:<{width}}  {first}")
        for line in further:
            click.echo(f"{'':<{width}}  {line}")


def near(place: str) -> str:
    """Return a file, and its line, as it is found from the current folder."""
    return place.removeprefix(f"{Path.cwd()}{os.sep}")


def count(number: int, thing: str) -> str:
    """Return a number with its noun."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
