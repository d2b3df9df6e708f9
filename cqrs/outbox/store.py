"""The only module that speaks SQL about the toolkit's tables."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

from sqlalchemy import (
    MetaData,
    Row,
    String,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)

from cqrs.codec import Envelope, headers_of, headers_text
from cqrs.errors import DecodingError
from cqrs.outbox import sqlite
from cqrs.schema import tables

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

WAITING, DEAD, SCHEDULED = "waiting", "dead", "scheduled"
CHUNK = 400
"""How many values go into one IN list."""
COPIED = ("event_id", "destination", "topic", "message_key", "type", "headers", "payload", "slot", "created_at")


@dataclass(frozen=True, slots=True)
class Claimed:
    """A row that this relay may deliver: from the outbox (`id`), or parked (`seq`, claimed until `token`)."""

    id: int
    slot: int
    envelope: Envelope | None
    fault: DecodingError | None = None
    attempts: int = 0
    lane: tuple[str, str, str | None] = ("", "", None)
    """Its destination, topic and key, also where the rest of it cannot be read."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The first rows of some slots, in order, and how many more were held back behind parked ones of their key."""

    rows: Sequence[Claimed] = ()
    held_back: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a row whose delivery failed: tried again after `wait` seconds, or dead where that is None."""

    row: Claimed
    error: str
    wait: float | None
    blocks: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows have not ended: on their way, held back or waiting for a retry, dead, not yet due."""

    outbox: int
    waiting: int
    dead: int
    scheduled: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What a relay has to do: rows in the outbox now, and the seconds until the first retry is due (None: no retry)."""

    outbox: bool
    due: float | None


class Store:
    """The statements of one set of tables. Every method is one short transaction unless it is given a connection.

    `ahead` shifts the clock by so many seconds, for tests; all other time is the database's.
    """

    def __init__(
        self,
        writers: AsyncEngine,
        readers: AsyncEngine,
        *,
        prefix: str = "cqrs_",
        schema: str | None = None,
        slots: int = 16,
    ) -> None:
        self.writers = sqlite.writing(writers)
        self.readers = sqlite.reading(readers)
        self.tables = tables(MetaData(schema=schema), prefix)
        self.slots = slots
        self.ahead = 0.0
        inbox = self.tables.inbox.fullname
        self._take = f"INSERT OR IGNORE INTO {inbox} (handler, message_id, handled_at) VALUES (?, ?, {sqlite.NOW})"  # noqa: S608 - the name is checked at bootstrap

    def slot_of(self, envelope: Envelope) -> int:
        """Return the slot of a row: a hash of its topic and key; without a key the event's id takes its place."""
        _, topic, key = envelope.lane
        return crc32(f"{topic}\0{key}".encode()) % self.slots

    def now(self, seconds: float = 0.0) -> Any:
        """Return the moment so many seconds from now, as an expression in the database's clock."""
        return sqlite.later(self.ahead + seconds)

    # Saving

    async def add(self, connection: AsyncConnection, envelopes: Sequence[Envelope]) -> None:
        """Insert rows in the connection's transaction, in this order."""
        table = self.tables.outbox
        await connection.execute(insert(table).values(created_at=self.now()), [self._values(e) for e in envelopes])

    def _values(self, envelope: Envelope) -> dict[str, Any]:
        return {
            "event_id": envelope.message_id,
            "destination": envelope.destination,
            "topic": envelope.topic,
            "message_key": envelope.key,
            "type": envelope.type,
            "headers": headers_text(envelope.headers),
            "payload": envelope.payload,
            "slot": self.slot_of(envelope),
        }

    # Claiming

    async def probe(self, destinations: Collection[str]) -> Probe:
        """Say, in one statement, whether there is anything to do for these destinations."""
        outbox, parked = self.tables.outbox, self.tables.parked
        waiting = exists().where(outbox.c.destination.in_(destinations))
        due = select(sqlite.seconds_until(func.min(parked.c.next_attempt_at))).where(
            parked.c.state.in_((WAITING, SCHEDULED)), parked.c.destination.in_(destinations)
        )
        async with self.readers.connect() as connection:
            row: Any = (await connection.execute(select(waiting, due.scalar_subquery()))).one()
        return Probe(bool(row[0]), None if row[1] is None else row[1] - self.ahead)

    async def claim(
        self, owner: str, destinations: Collection[str], *, skipping: Collection[str], limit: int, lease: float
    ) -> Claim | None:
        """Take some slots for `lease` seconds and return their first rows, in order.

        At most half of the free slots that have work are taken, but at least one, so that relays share without knowing
        each other. Rows of parked keys are moved to the end of their key instead. `settle` gives the slots back.
        Returns None when no slot was taken.
        """
        async with self.writers.begin() as connection:
            slots = await self._take_slots(connection, owner, destinations, lease)
            if not slots:
                return None
            rows = await self._read(connection, slots, destinations, limit)
            parked = await self._parked_keys(connection, rows, skipping)
            held = [row.id for row in rows if (row.destination, row.topic, row.message_key) in parked]
            await self._hold_back(connection, held)
        moved = set(held)
        return Claim([_claimed(row.id, row) for row in rows if row.id not in moved], len(moved))

    async def _take_slots(
        self, connection: AsyncConnection, owner: str, destinations: Collection[str], lease: float
    ) -> list[int]:
        slot, outbox = self.tables.slot, self.tables.outbox
        work = exists().where(outbox.c.slot == slot.c.slot, outbox.c.destination.in_(destinations))
        free = or_(slot.c.owner.is_(None), slot.c.owner == owner, slot.c.until < self.now())
        found = list(await connection.scalars(select(slot.c.slot).where(slot.c.slot >= 0, free, work)))
        taken = random.sample(found, (len(found) + 1) // 2)
        if taken:
            until = self.now(lease)
            await connection.execute(update(slot).where(slot.c.slot.in_(taken)).values(owner=owner, until=until))
        return taken

    async def _read(
        self, connection: AsyncConnection, slots: Sequence[int], destinations: Collection[str], limit: int
    ) -> Sequence[Row[Any]]:
        table = self.tables.outbox
        query = select(table).where(table.c.slot.in_(slots), table.c.destination.in_(destinations))
        return (await connection.execute(query.order_by(table.c.id).limit(limit))).all()

    async def _parked_keys(
        self, connection: AsyncConnection, rows: Sequence[Row[Any]], skipping: Collection[str]
    ) -> set[tuple[str, str, str]]:
        table = self.tables.parked
        keys = sorted({row.message_key for row in rows if row.message_key is not None})
        found: set[tuple[str, str, str]] = set()
        for some in _chunks(keys):
            query = select(table.c.destination, table.c.topic, table.c.message_key).distinct()
            query = query.where(table.c.message_key.in_(some), self._holds_back(skipping))
            found.update(tuple(row) for row in await connection.execute(query))
        return found

    def _holds_back(self, skipping: Collection[str]) -> Any:
        """Which parked rows park their key: those that wait, and dead ones where these block."""
        table = self.tables.parked
        return or_(table.c.state == WAITING, and_(table.c.state == DEAD, table.c.destination.not_in(skipping)))

    async def _hold_back(self, connection: AsyncConnection, ids: Sequence[int]) -> None:
        """Move rows behind the parked ones of their key; the end of the one before makes each of them due."""
        outbox, parked = self.tables.outbox, self.tables.parked
        for some in _chunks(ids):
            copied = [outbox.c[name] for name in COPIED]
            rows = select(outbox.c.id, *copied, literal(WAITING), literal(0)).where(outbox.c.id.in_(some))
            columns = ("source_id", *COPIED, "state", "attempts")
            await connection.execute(insert(parked).from_select(columns, rows.order_by(outbox.c.id)))
            await connection.execute(delete(outbox).where(outbox.c.id.in_(some)))

    async def renew(self, owner: str, lease: float) -> None:
        """Hold this relay's slots for `lease` seconds more."""
        slot = self.tables.slot
        async with self.writers.begin() as connection:
            await connection.execute(update(slot).where(slot.c.owner == owner).values(until=self.now(lease)))

    async def settle(self, owner: str, done: Sequence[Claimed], failed: Sequence[Verdict]) -> None:
        """Delete the rows that were delivered, park those that failed, and give the slots back.

        A slot whose lease ran out meanwhile may be another relay's: failures in it are left for that one to find.
        """
        slot, table = self.tables.slot, self.tables.outbox
        async with self.writers.begin() as connection:
            for some in _chunks([row.id for row in done]):
                await connection.execute(delete(table).where(table.c.id.in_(some)))
            if failed:
                own = select(slot.c.slot).where(slot.c.owner == owner, slot.c.until >= self.now())
                slots = set(await connection.scalars(own))
                for verdict in failed:
                    if verdict.row.slot in slots:
                        await self._park(connection, verdict)
            await connection.execute(update(slot).where(slot.c.owner == owner).values(owner=None, until=None))

    async def _park(self, connection: AsyncConnection, verdict: Verdict) -> None:
        outbox, parked = self.tables.outbox, self.tables.parked
        ended = _ending(verdict, self)
        names = ("source_id", *COPIED, *ended)
        row = select(outbox.c.id, *(outbox.c[name] for name in COPIED), *(_as_column(v) for v in ended.values()))
        await connection.execute(insert(parked).from_select(names, row.where(outbox.c.id == verdict.row.id)))
        await connection.execute(delete(outbox).where(outbox.c.id == verdict.row.id))

    # Retrying

    async def claim_due(self, destinations: Collection[str], *, limit: int, lease: float) -> tuple[str, list[Claimed]]:
        """Take the parked rows that are due, each the first of its key, for `lease` seconds; the token settles them."""
        table = self.tables.parked
        async with self.writers.begin() as connection:
            due = select(table).where(
                table.c.state == WAITING, table.c.next_attempt_at <= self.now(), table.c.destination.in_(destinations)
            )
            rows = (await connection.execute(due.order_by(table.c.next_attempt_at).limit(limit))).all()
            token = await self._hold_until(connection, [row.seq for row in rows], lease)
        return token, [_claimed(row.seq, row) for row in rows]

    async def renew_due(self, token: str, rows: Sequence[Claimed], lease: float) -> str:
        """Hold the rows that still carry the token for `lease` seconds more; returns the new token."""
        table = self.tables.parked
        async with self.writers.begin() as connection:
            mine = select(table.c.seq).where(table.c.seq.in_([row.id for row in rows]), _moment(table) == token)
            return await self._hold_until(connection, list(await connection.scalars(mine)), lease)

    async def _hold_until(self, connection: AsyncConnection, seqs: Sequence[int], lease: float) -> str:
        table = self.tables.parked
        token = str(await connection.scalar(select(self.now(lease))))
        for some in _chunks(seqs):
            held = update(table).where(table.c.seq.in_(some)).values(next_attempt_at=literal(token, String()))
            await connection.execute(held)
        return token

    async def settle_due(
        self, token: str, done: Sequence[Claimed], failed: Sequence[Verdict], returned: Sequence[Claimed]
    ) -> None:
        """End retries: delete what was delivered, put off or bury what failed, hand back what was not tried.

        Only rows that still carry the token are touched: any other has been taken over.
        """
        table = self.tables.parked
        async with self.writers.begin() as connection:
            mine = set(await connection.scalars(select(table.c.seq).where(_moment(table) == token)))
            for row in done:
                if row.id in mine:
                    await connection.execute(delete(table).where(table.c.seq == row.id))
                    await self._make_next_due(connection, row.lane)
            for verdict in failed:
                if verdict.row.id in mine:
                    values = _ending(verdict, self)
                    await connection.execute(update(table).where(table.c.seq == verdict.row.id).values(**values))
                    if verdict.wait is None and not verdict.blocks:
                        await self._make_next_due(connection, verdict.row.lane)
            back = [row.id for row in returned if row.id in mine]
            await connection.execute(update(table).where(table.c.seq.in_(back)).values(next_attempt_at=self.now()))

    async def _make_next_due(self, connection: AsyncConnection, lane: tuple[str, str, str | None]) -> None:
        destination, topic, key = lane
        if key is None:
            return
        table = self.tables.parked
        behind = _same_lane(table, destination, topic, key)
        first = select(func.min(table.c.seq)).where(behind, table.c.state == WAITING).scalar_subquery()
        due = update(table).where(table.c.seq == first, table.c.next_attempt_at.is_(None))
        await connection.execute(due.values(next_attempt_at=self.now()))

    async def wake_heads(self, skipping: Collection[str]) -> None:
        """Make due what waits behind nothing: a key whose first row a person removed, or whose policy was changed."""
        table, before = self.tables.parked, self.tables.parked.alias()
        earlier = exists().where(
            before.c.destination == table.c.destination,
            before.c.topic == table.c.topic,
            before.c.message_key == table.c.message_key,
            before.c.seq < table.c.seq,
            or_(before.c.state == WAITING, and_(before.c.state == DEAD, before.c.destination.not_in(skipping))),
        )
        stranded = (table.c.state == WAITING, table.c.next_attempt_at.is_(None))
        async with self.readers.connect() as connection:
            if not await connection.scalar(select(exists().where(*stranded))):
                return
        async with self.writers.begin() as connection:
            await connection.execute(update(table).where(*stranded, ~earlier).values(next_attempt_at=self.now()))

    # The inbox

    async def taken(self, envelopes: Sequence[Envelope]) -> set[tuple[str, str]]:
        """Return the (handler, message id) pairs among these that the inbox holds."""
        table = self.tables.inbox
        found: set[tuple[str, str]] = set()
        async with self.readers.connect() as connection:
            for some in _chunks(sorted({envelope.message_id for envelope in envelopes})):
                rows = await connection.execute(
                    select(table.c.handler, table.c.message_id).where(table.c.message_id.in_(some))
                )
                found.update((row.handler, row.message_id) for row in rows)
        return found

    async def has_taken(self, handler: str, message_id: str) -> bool:
        """Whether the inbox holds this pair."""
        table = self.tables.inbox
        query = exists().where(table.c.handler == handler, table.c.message_id == message_id)
        async with self.readers.connect() as connection:
            return bool(await connection.scalar(select(query)))

    def take(self, connection: Connection, handler: str, message_id: str) -> bool:
        """Write a handler's inbox row; returns whether it was not there yet."""
        return sqlite.execute(connection, self._take, handler, message_id, sqlite.shift(self.ahead)) == 1

    # Looking, replaying, discarding

    async def counts(self) -> Counts:
        """Return how many rows have not ended."""
        outbox, parked = self.tables.outbox, self.tables.parked
        async with self.readers.connect() as connection:
            rows = await connection.scalar(select(func.count()).select_from(outbox))
            states = select(parked.c.state, func.count().label("rows")).group_by(parked.c.state)
            by_state = {row[0]: row[1] for row in await connection.execute(states)}
        return Counts(rows or 0, *(by_state.get(state, 0) for state in (WAITING, DEAD, SCHEDULED)))

    async def parked(self, conditions: Mapping[str, Any], limit: int) -> Sequence[Row[Any]]:
        """Return parked rows by column values, the oldest first."""
        table = self.tables.parked
        query = select(table).where(*(table.c[name] == value for name, value in conditions.items()))
        async with self.readers.connect() as connection:
            return (await connection.execute(query.order_by(table.c.seq).limit(limit))).all()

    async def replay(self, seqs: Sequence[int], skipping: Collection[str]) -> int:
        """Make dead rows wait for a first attempt again; one whose key went on without it joins the key's tail."""
        table = self.tables.parked
        async with self.writers.begin() as connection:
            rows = await self._dead(connection, seqs)
            for row in rows:
                seq = await self._to_tail(connection, row) if row.destination in skipping else row.seq
                due = None if await self._waits_behind(connection, row, seq) else self.now()
                values = {"state": WAITING, "attempts": 0, "next_attempt_at": due}
                await connection.execute(update(table).where(table.c.seq == seq).values(**values))
        return len(rows)

    async def _to_tail(self, connection: AsyncConnection, row: Row[Any]) -> int:
        table = self.tables.parked
        columns = [column.name for column in table.c if column.name != "seq"]
        copy = select(*(table.c[name] for name in columns)).where(table.c.seq == row.seq)
        await connection.execute(insert(table).from_select(columns, copy))
        await connection.execute(delete(table).where(table.c.seq == row.seq))
        return int(await connection.scalar(select(func.max(table.c.seq))) or 0)

    async def _waits_behind(self, connection: AsyncConnection, row: Row[Any], seq: int) -> bool:
        if row.message_key is None:
            return False
        table = self.tables.parked
        lane = _same_lane(table, row.destination, row.topic, row.message_key)
        return bool(await connection.scalar(select(exists().where(lane, table.c.state == WAITING, table.c.seq < seq))))

    async def discard(self, seqs: Sequence[int]) -> int:
        """Delete dead rows for good; what waited behind them goes on."""
        table = self.tables.parked
        async with self.writers.begin() as connection:
            rows = await self._dead(connection, seqs)
            for row in rows:
                await connection.execute(delete(table).where(table.c.seq == row.seq))
                await self._make_next_due(connection, (row.destination, row.topic, row.message_key))
        return len(rows)

    async def _dead(self, connection: AsyncConnection, seqs: Sequence[int]) -> list[Row[Any]]:
        table = self.tables.parked
        found: list[Row[Any]] = []
        for some in _chunks(seqs):
            query = select(table).where(table.c.seq.in_(some), table.c.state == DEAD).order_by(table.c.seq)
            found.extend(await connection.execute(query))
        return found

    async def unended(self, event_ids: Collection[str]) -> list[tuple[str, str, str, str]]:
        """Return (event id, type, destination, state) of every row of these events that has not ended."""
        outbox, parked = self.tables.outbox, self.tables.parked
        found: list[tuple[str, str, str, str]] = []
        async with self.readers.connect() as connection:
            for some in _chunks(sorted(event_ids)):
                here = select(outbox.c.event_id, outbox.c.type, outbox.c.destination, literal(WAITING))
                there = select(parked.c.event_id, parked.c.type, parked.c.destination, parked.c.state)
                both = here.where(outbox.c.event_id.in_(some)).union_all(there.where(parked.c.event_id.in_(some)))
                found.extend((row[0], row[1], row[2], row[3]) for row in await connection.execute(both))
        return found

    async def unserved(self, destinations: Collection[str], age: float = 0.0) -> list[tuple[str, int]]:
        """Return the other destinations that rows older than `age` seconds wait for, with how many."""
        outbox, parked = self.tables.outbox, self.tables.parked
        async with self.readers.connect() as connection:
            found: dict[str, int] = {}
            for table, condition in ((outbox, literal(1) == 1), (parked, parked.c.state != DEAD)):
                other = and_(table.c.destination.not_in(destinations), table.c.created_at <= self.now(-age), condition)
                query = select(table.c.destination, func.count()).where(other).group_by(table.c.destination)
                for destination, rows in await connection.execute(query):
                    found[destination] = found.get(destination, 0) + rows
        return sorted(found.items())

    # Retention

    async def forget(
        self, *, inbox: float, dead: float | None, skipping: Collection[str] = (), limit: int = 1000
    ) -> int:
        """Delete inbox rows, and with `dead` dead letters, older than so many seconds: at most `limit` of each.

        A dead letter that blocks its key is kept: it holds back what must not overtake it.
        """
        table, parked = self.tables.inbox, self.tables.parked
        old = select(table.c.handler, table.c.message_id).where(table.c.handled_at < self.now(-inbox)).limit(limit)
        async with self.readers.connect() as connection:
            keys = [tuple(row) for row in await connection.execute(old)]
            letters: list[int] = []
            if dead is not None:
                blocks_nothing = or_(parked.c.message_key.is_(None), parked.c.destination.in_(skipping))
                stale = (parked.c.state == DEAD, parked.c.created_at < self.now(-dead), blocks_nothing)
                letters = list(await connection.scalars(select(parked.c.seq).where(*stale).limit(limit)))
        if keys or letters:
            async with self.writers.begin() as connection:
                for some in _chunks(keys):
                    await connection.execute(delete(table).where(tuple_(table.c.handler, table.c.message_id).in_(some)))
                for seqs in _chunks(letters):
                    await connection.execute(delete(parked).where(parked.c.seq.in_(seqs)))
        return len(keys) + len(letters)

    # Settings

    async def settings(self) -> dict[str, str]:
        """Return what this database records of itself."""
        table = self.tables.settings
        async with self.readers.connect() as connection:
            return {row.name: row.value for row in await connection.execute(select(table))}

    async def record(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """Record settings that are not there yet, and the slots; returns all settings as they stand."""
        table, slot = self.tables.settings, self.tables.slot
        async with self.writers.begin() as connection:
            found = {row.name: row.value for row in await connection.execute(select(table))}
            missing = [{"name": name, "value": value} for name, value in wanted.items() if name not in found]
            if missing:
                await connection.execute(insert(table), missing)
            if int(found.get("slots", self.slots)) == self.slots:
                present = set(await connection.scalars(select(slot.c.slot)))
                absent = [{"slot": number} for number in range(self.slots) if number not in present]
                if absent:
                    await connection.execute(insert(slot), absent)
        return {**wanted, **found}


def _claimed(number: int, row: Row[Any]) -> Claimed:
    attempts = getattr(row, "attempts", 0)
    lane = (row.destination, row.topic, row.message_key)
    try:
        headers = headers_of(row.headers)
    except DecodingError as fault:
        return Claimed(number, row.slot, None, fault, attempts, lane)
    envelope = Envelope(
        row.event_id, row.destination, row.topic, row.message_key, row.type, headers, row.payload, attempts + 1
    )
    return Claimed(number, row.slot, envelope, None, attempts, lane)


def _ending(verdict: Verdict, store: Store) -> dict[str, Any]:
    return {
        "state": DEAD if verdict.wait is None else WAITING,
        "attempts": verdict.row.attempts + 1,
        "next_attempt_at": None if verdict.wait is None else store.now(verdict.wait),
        "error": verdict.error,
    }


def _same_lane(table: Any, destination: str, topic: str, key: str) -> Any:
    return and_(table.c.destination == destination, table.c.topic == topic, table.c.message_key == key)


def _moment(table: Any) -> Any:
    """Return when a row is due as the text that the database keeps: what was written is what a settle must find."""
    return type_coerce(table.c.next_attempt_at, String())


def _as_column(value: Any) -> Any:
    return value if hasattr(value, "compile") else literal(value)


def _chunks(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]
