"""The tables, and the words for what was and what was not reached."""

from __future__ import annotations

from collections.abc import Sequence


def time(nanoseconds: float) -> str:
    """Return a duration with three digits and its unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"


def times(ratio: float | None) -> str:
    """Return a ratio; one below a half as a fraction of one."""
    if ratio is None:
        return ""
    return f"{ratio:.2f} x" if ratio >= 0.5 else f"1/{1 / ratio:.1f}"


def verdict(found: float | None, bar: float | None) -> str:
    """Say whether a figure is at most its bar."""
    if found is None or bar is None:
        return ""
    return "met" if found <= bar else "MISSED"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under their heads: words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
