"""A statement compiled for the driver once: to compile one costs as much as to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Dialect, Insert
    from sqlalchemy.engine import Connection

COUNTED = {"preserve_rowcount": True}
"""Lets a statement tell how many rows it touched, also where SQLAlchemy would forget it."""


class Prepared:
    """The text of a statement, and its parameters as the driver wants them. `ahead` is the clock it was made with."""

    def __init__(self, statement: Insert, dialect: Dialect, ahead: float) -> None:
        compiled: Any = statement.compile(dialect=dialect)
        self.ahead = ahead
        self.statement = str(compiled)
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}
        self._order = compiled.positiontup

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """Return what the driver wants: in places, or by name."""
        named = {**self._fixed, **values}
        return named if self._order is None else tuple(map(named.__getitem__, self._order))


def run_for_each(connection: Connection, statement: str, rows: Sequence[Any]) -> None:
    """Run a compiled statement for each of these parameters: for one of them that is not an `executemany`."""
    connection.exec_driver_sql(statement, rows if len(rows) > 1 else rows[0])
