"""The lines of the table of bars: what was measured, what is asked for, and under which conditions.

Nobody else knows how a line looks in a terminal, in JSON or in Markdown.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from benchmarks import report

HEADS = ("line", "what", "bar", "measured", "half of the rounds", "rates", "conditions", "")


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach: at least, or with `most` at most, so many of its unit."""

    limit: float
    unit: str = "x"
    most: bool = False
    aim: float | None = None

    def __str__(self) -> str:
        text = f"{'≤' if self.most else '≥'} {shown(self.limit, self.unit)}"
        return text if self.aim is None else f"{text} (aim {self.aim:g})"

    def verdict(self, found: float) -> str:
        """Say whether a figure reaches it."""
        return "met" if (found <= self.limit if self.most else found >= self.limit) else "MISSED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table. `missing` says why it was not measured."""

    name: str
    what: str
    bar: Bar | None = None
    measured: float | None = None
    spread: tuple[float, float] | None = None
    rates: Mapping[str, str] = field(default_factory=dict)
    conditions: str = ""
    missing: str = ""

    @property
    def unit(self) -> str:
        return self.bar.unit if self.bar else "x"

    @property
    def verdict(self) -> str:
        return self.bar.verdict(self.measured) if self.bar and self.measured is not None else ""

    @property
    def cells(self) -> list[str]:
        """Return what stands under `HEADS`."""
        if self.measured is None:
            found, spread = f"not measured: {self.missing}", ""
        else:
            found = shown(self.measured, self.unit)
            spread = " .. ".join(shown(each, self.unit) for each in self.spread) if self.spread else ""
        rates = ", ".join(f"{who} {rate}" for who, rate in self.rates.items())
        return [self.name, self.what, str(self.bar or ""), found, spread, rates, self.conditions, self.verdict]

    @property
    def figures(self) -> dict[str, Any]:
        """Return what JSON is to hold."""
        return {
            "name": self.name,
            "what": self.what,
            "bar": str(self.bar or ""),
            "measured": self.measured,
            "unit": self.unit,
            "spread": self.spread,
            "rates": dict(self.rates),
            "conditions": self.conditions,
            "missing": self.missing,
            "verdict": self.verdict,
            "cells": self.cells,
        }


Measure = Callable[[Any], Awaitable[list[Line]]]
"""Measures one or more lines with so much effort."""


@dataclass(frozen=True, slots=True)
class Job:
    """What `--only` selects: a name, in short what it measures, and the variables that name its servers."""

    name: str
    what: str
    measure: Measure
    needs: Sequence[str] = ()
    is_quick: bool = True


def shown(figure: float, unit: str) -> str:
    """Return a figure with its unit."""
    digits = f"{figure:.2f}" if unit in ("x", "s", "ms") else f"{figure:,.3g}" if figure < 1000 else f"{figure:,.0f}"
    return f"{digits} {unit}".rstrip()


def rate(per_second: float) -> str:
    """Return a rate; its last digits would only be noise."""
    return f"{per_second:,.0f}/s"


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the median of the rounds' ratios, and their quartiles: half of the rounds lie between."""
    return typical([one / other for one, other in zip(above, below, strict=True)])


def typical(found: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the median, and the quartiles."""
    if len(found) < 2:
        return found[0], (found[0], found[0])
    low, _, high = quantiles(found, n=4, method="inclusive")
    return median(found), (low, high)


def text(lines: Sequence[Line]) -> str:
    """Return the lines for a terminal: what is long below, what is compared in columns."""
    measured = [line for line in lines if line.measured is not None]
    parts = []
    if measured:
        rows = []
        for line in measured:
            _, what, bar, found, spread, *_, verdict = line.cells
            rows.append([what, bar, found, spread, verdict])
        parts.append(report.table(["what", "bar", "measured", "half of the rounds", "met?"], rows))
        parts.append("\n".join(f"{line.what}\n    {_note(line)}" for line in measured))
    missing = [f"{line.what}: not measured: {line.missing}" for line in lines if line.measured is None]
    return "\n\n".join([*parts, *(["\n".join(missing)] if missing else [])])


def _note(line: Line) -> str:
    rates = ", ".join(f"{who} {each}" for who, each in line.rates.items())
    return "; ".join(filter(None, [rates, line.conditions]))


def markdown(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return the lines of a JSON file as a Markdown table."""
    heads = ["what", "bar", "measured", "half of the rounds", "rates", "conditions", "met?"]
    rows = [heads, ["---"] * len(heads)]
    for each in figures:
        _, what, bar, found, spread, rates, conditions, verdict = each["cells"]
        rows.append([what, bar, found, spread, rates, conditions, verdict])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
