"""What has not ended, read for people: how much of it there is for whom, and row by row. It changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, literal, null, select

from cqrs.codec import FOLDED, headers_of
from cqrs.errors import DecodingError
from cqrs.outbox.rows import COPIED, DEAD, SCHEDULED, WAITING
from cqrs.outbox.verdicts import cause_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Row, Select, Table

    from cqrs.outbox.rows import Unended
    from cqrs.outbox.store import Store

READY = "ready"
"""The state of what no failure holds back: relays take it as soon as they can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How many rows have not ended for one destination, and since when the oldest of them is saved."""

    destination: str
    ready: int
    waiting: int
    dead: int
    scheduled: int
    oldest: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A row that has not ended. `seq` numbers the parked ones; the others are on their way and have none."""

    seq: int | None
    state: str
    event_id: str
    destination: str
    topic: str
    key: str | None
    type: str
    headers: Mapping[str, str]
    payload: bytes
    attempts: int
    next_attempt_at: datetime | None
    error: str | None
    created_at: datetime


class Survey:
    """The statements over both tables of rows."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def backlog(self) -> list[Backlog]:
        """Return what has not ended, by destination."""
        outbox, parked = self._store.tables.outbox, self._store.tables.parked
        ready = select(outbox.c.destination, literal(READY), func.count(), func.min(outbox.c.created_at))
        others = select(parked.c.destination, parked.c.state, func.count(), func.min(parked.c.created_at))
        async with self._store.readers.connect() as connection:
            rows: list[Sequence[Any]] = list(await connection.execute(ready.group_by(outbox.c.destination)))
            rows += await connection.execute(others.group_by(parked.c.destination, parked.c.state))
        return [_backlog(name, [row for row in rows if row[0] == name]) for name in sorted({row[0] for row in rows})]

    async def find(self, conditions: Mapping[str, Any], limit: int) -> list[Saved]:
        """Return rows by column values, parked ones first, of each table the oldest first and at most so many."""
        outbox, parked = self._store.tables.outbox, self._store.tables.parked
        state = conditions.get("state", READY)
        shared = {name: value for name, value in conditions.items() if name != "state"}
        queries = []
        if state != READY or "state" not in conditions:
            queries.append(_where(select(parked), parked, conditions).order_by(parked.c.seq))
        if state == READY and "seq" not in conditions:
            columns = (*(null().label(name) for name in _OF_PARKED), *(outbox.c[name] for name in COPIED))
            queries.append(_where(select(*columns), outbox, shared).order_by(outbox.c.id))
        async with self._store.readers.connect() as connection:
            return [_saved(row) for query in queries for row in await connection.execute(query.limit(limit))]


_OF_PARKED = ("seq", "state", "attempts", "next_attempt_at", "error")


def _where(query: Select[Any], table: Table, conditions: Mapping[str, Any]) -> Select[Any]:
    return query.where(*(table.c[name] == value for name, value in conditions.items()))


def _backlog(destination: str, rows: Sequence[Sequence[Any]]) -> Backlog:
    counts = {row[1]: row[2] for row in rows}
    return Backlog(
        destination=destination,
        ready=counts.get(READY, 0),
        waiting=counts.get(WAITING, 0),
        dead=counts.get(DEAD, 0),
        scheduled=counts.get(SCHEDULED, 0),
        oldest=min(in_utc(row[3]) for row in rows),
    )


def _saved(row: Row[Any]) -> Saved:
    return Saved(
        seq=row.seq,
        state=row.state or READY,
        event_id=row.event_id,
        destination=row.destination,
        topic=row.topic,
        key=row.message_key,
        type=row.type,
        headers=_headers(row.headers),
        payload=row.payload,
        attempts=row.attempts or 0,
        next_attempt_at=None if row.next_attempt_at is None else in_utc(row.next_attempt_at),
        error=row.error,
        created_at=in_utc(row.created_at),
    )


def _headers(text: str) -> Mapping[str, str]:
    """Return saved headers; as one where somebody edited them into nonsense."""
    try:
        return headers_of(text)
    except DecodingError:
        return {FOLDED: text}


def in_utc(moment: datetime) -> datetime:
    """Return a time of the database's, which has a zone there or is in UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def describe(rows: Sequence[Unended]) -> list[str]:
    """Return a line for each row, with the error that it was parked for."""
    return [f"- {row.type} {row.event_id} to {row.destination}: {row.state}{_reason(row.error)}" for row in rows]


def _reason(error: str | None) -> str:
    return f" ({cause_of(error)})" if error else ""
