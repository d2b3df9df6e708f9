"""The order lines of a CSV file, unjudged: whether a line can be ordered is for the shop to say."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ["order_id", "customer", "sku", "quantity"]


class UnreadableFile(Exception):
    """The file as a whole is no list of order lines."""


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    """As an editor counts, from 1; the header is the first."""
    cells: dict[str, str]


def read_lines(path: Path) -> list[Line]:
    """Return the order lines of a file. Raises `UnreadableFile` when it is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restkey="surplus")
            check_header(path, rows.fieldnames or [])
            lines = [Line(rows.line_num, without_missing(row)) for row in rows]
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(f"{path} is no CSV file in UTF-8: {error}") from error
    if not lines:
        raise UnreadableFile(f"{path} has a header, but no order lines")
    return lines


def check_header(path: Path, found: Sequence[str]) -> None:
    if not found:
        raise UnreadableFile(f"{path} is empty; its first line should be: {','.join(COLUMNS)}")
    if sorted(found) != sorted(COLUMNS):
        raise UnreadableFile(f"{path} begins with: {','.join(found)}; its first line should be: {','.join(COLUMNS)}")


def without_missing(row: Mapping[str, str | None]) -> dict[str, str]:
    """Leave out the columns that a short line does not have."""
    return {column: cell for column, cell in row.items() if cell is not None}
