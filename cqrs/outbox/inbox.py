"""Which handler has taken which message: what makes a delivery's effects happen once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, exists, or_, select

from cqrs.codec import fitting_id
from cqrs.outbox.parked import chunks
from cqrs.outbox.rows import DEAD

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from sqlalchemy import Insert
    from sqlalchemy.engine import Connection

    from cqrs.codec import Envelope
    from cqrs.outbox.store import Store


class Inbox:
    """The statements over the inbox rows of one set of tables."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = store.tables.inbox

    def take(self, connection: Connection, handler: str, message_ids: Collection[str]) -> bool:
        """Write a handler's inbox rows, as a transaction's first statement; returns whether none was there yet."""
        ids = sorted({fitting_id(message_id) for message_id in message_ids})
        taking = self._store.prepared(f"take {len(ids)}", lambda: self._taking(len(ids)))
        row = taking.parameters({"handler": handler, **{f"message_id_{n}": ids[n] for n in range(len(ids))}})
        written = self._store.dialect.begin_with(connection, taking.statement, row)
        return len(message_ids) == len(ids) == written

    def _taking(self, number: int) -> Insert:
        row = {"handler": bindparam("handler"), "handled_at": self._store.now()}
        rows = [{**row, "message_id": bindparam(f"message_id_{n}")} for n in range(number)]
        return self._store.dialect.taking(self._table).values(rows)

    async def taken(self, envelopes: Sequence[Envelope]) -> set[tuple[str, str]]:
        """Return the (handler, message id) pairs among these that the inbox holds."""
        table = self._table
        found: set[tuple[str, str]] = set()
        async with self._store.readers.connect() as connection:
            for handler, ids in _by_handler((e.destination, e.message_id) for e in envelopes):
                query = select(table.c.message_id).where(table.c.handler == handler, table.c.message_id.in_(ids))
                found.update((handler, message_id) for message_id in await connection.scalars(query))
        return found

    async def has_taken(self, handler: str, message_id: str) -> bool:
        """Whether the inbox holds this pair."""
        table = self._table
        query = exists().where(table.c.handler == handler, table.c.message_id == fitting_id(message_id))
        async with self._store.readers.connect() as connection:
            return bool(await connection.scalar(select(query)))

    async def forget(
        self, *, inbox: float, dead: float | None, skipping: Collection[str] = (), limit: int = 1000
    ) -> int:
        """Delete inbox rows, and with `dead` dead letters, older than so many seconds: at most `limit` of each.

        A dead letter that blocks its key is kept: it holds back what must not overtake it.
        """
        store = self._store
        table, parked = self._table, store.tables.parked
        old = select(table.c.handler, table.c.message_id).where(table.c.handled_at < store.now(-inbox)).limit(limit)
        async with store.readers.connect() as connection:
            keys = [(row.handler, row.message_id) for row in await connection.execute(old)]
            letters: list[int] = []
            if dead is not None:
                blocks_nothing = or_(parked.c.message_key.is_(None), parked.c.destination.in_(skipping))
                stale = (parked.c.state == DEAD, parked.c.created_at < store.now(-dead), blocks_nothing)
                letters = list(await connection.scalars(select(parked.c.seq).where(*stale).limit(limit)))
        if keys or letters:
            async with store.short.begin() as connection:
                for handler, ids in _by_handler(keys):
                    old_rows = (table.c.handler == handler, table.c.message_id.in_(ids))
                    await connection.execute(delete(table).where(*old_rows))
                for seqs in chunks(letters):
                    await connection.execute(delete(parked).where(parked.c.seq.in_(seqs)))
        return len(keys) + len(letters)


def _by_handler(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the message ids of each handler in parts that fit into one statement, along the primary key."""
    ids: dict[str, list[str]] = {}
    for handler, message_id in pairs:
        ids.setdefault(handler, []).append(message_id)
    for handler in sorted(ids):
        for some in chunks(sorted(ids[handler])):
            yield handler, some
