"""What the demo shows: live bars on a terminal, plain lines elsewhere, and the table at the end."""

import time
from typing import Protocol, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.shop.demo import audit


class Screen(Protocol):
    def show(self, progress: audit.Progress) -> None: ...
    def say(self, text: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...


def make_screen(console: Console, lines: int) -> Screen:
    return Bars(console, lines) if console.is_terminal else PlainLines(lines)


class Bars:
    """Two bars that grow in place."""

    def __init__(self, console: Console, lines: int) -> None:
        name, bar, numbers = TextColumn("{task.description}"), BarColumn(bar_width=40), MofNCompleteColumn()
        self._live = Progress(name, bar, numbers, TimeElapsedColumn(), console=console)
        self._lines = self._live.add_task("Order lines", total=lines)
        self._receipts = self._live.add_task("Receipts", total=None)

    def show(self, progress: audit.Progress) -> None:
        self._live.update(self._lines, completed=progress.lines)
        self._live.update(self._receipts, completed=progress.receipts, total=progress.orders)

    def say(self, text: str) -> None:
        self._live.console.print(text, style="yellow", highlight=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._live.stop()


class PlainLines:
    """A line a second, while there is something new; for logs and pipes."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._shown = audit.Progress(0, 0, 0)
        self._next = 0.0

    def show(self, progress: audit.Progress) -> None:
        if progress != self._shown and time.monotonic() >= self._next:
            self._shown, self._next = progress, time.monotonic() + 1.0
            self.say(f"{progress.lines} of {self._lines} lines, {progress.orders} orders, {progress.receipts} receipts")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        return None


def make_table(found: audit.Audit, killed: int) -> Table:
    table = Table("", "Count", box=box.SIMPLE, title=f"The shop, whose worker was killed {times(killed)}")
    table.columns[1].justify = "right"
    table.add_row("Lines read", str(found.lines))
    table.add_row("Orders placed", str(found.orders))
    add_sum(table, "Lines refused", found.refused)
    table.add_row("Receipts sent", str(found.receipts))
    add_sum(table, "Duplicates", found.twice)
    add_sum(table, "Lost", found.lost)
    if found.wrong:
        add_sum(table, "Wrong", found.wrong)
    return table


def add_sum(table: Table, name: str, parts: dict[str, int]) -> None:
    table.add_row(name, str(sum(parts.values())))
    for part, number in parts.items():
        table.add_row(f"  {part}", str(number), style="dim")


def times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
