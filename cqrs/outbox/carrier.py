"""How the processes of an application agree on what carries the broker's rows: relays, or the database's log.

Two carriers at once would lose the order of a key. So while it runs, a process of a database whose log could carry them
says in the settings what it writes for, and another carrier is taken only while no process of the former one runs and
none of its rows wait.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import Integer, String, cast, delete, extract, func, insert, literal, select, text, update

from cqrs.codec import BROKER
from cqrs.errors import SchemaError
from cqrs.outbox.rows import DEAD

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.outbox.store import Store

log = logging.getLogger(__name__)

RELAY, LOG = "relay", "log"
PROCESS = "process "
GONE = 180.0
"""Seconds without a sign of life after which a process counts as gone; it gives one a minute."""

_READERS = """
SELECT current_setting('wal_level'),
    EXISTS (
        SELECT 1 FROM pg_publication_tables t JOIN pg_publication p USING (pubname)
        WHERE p.pubinsert AND format('%I.%I', t.schemaname, t.tablename) = (
            SELECT format('%I.%I', n.nspname, c.relname)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(:outbox))),
    EXISTS (
        SELECT 1 FROM pg_replication_slots
        WHERE slot_type = 'logical' AND database = current_database() AND wal_status IS DISTINCT FROM 'lost')
"""


class Carrier:
    """What one process writes for, recorded with when it last showed a sign of life."""

    def __init__(self, store: Store) -> None:
        self.name = LOG if store.logged else RELAY
        self._store = store
        self._settings = store.tables.settings
        self._row = f"{PROCESS}{uuid4().hex}"
        self._recorded = self.name

    async def agree(self) -> None:
        """Say that this process runs. Raises `SchemaError` where others run, or rows wait, that go another way."""
        if not self._store.dialect.carries_log:
            return
        async with self._store.short.begin() as connection:
            if unread := await self._unread(connection):
                raise SchemaError(unread)
            await self._forget(connection)
            recorded = await self._lock(connection)
            if recorded != self.name:
                await self._refuse_two(connection, recorded)
                await self._refuse_waiting(connection, recorded)
                await connection.execute(
                    update(self._settings).where(self._settings.c.name == "carrier").values(value=self.name)
                )
                log.info(
                    "From now on the broker's rows are carried by the %s, no longer by the %s.", self.name, recorded
                )
            await connection.execute(insert(self._settings).values(name=self._row, value=self._sign()))

    async def stay(self) -> None:
        """Show a sign of life."""
        if not self._store.dialect.carries_log:
            return
        async with self._store.short.begin() as connection:
            recorded = await self._lock(connection)
            mine = update(self._settings).where(self._settings.c.name == self._row).values(value=self._sign())
            if (await connection.execute(mine)).rowcount == 0:
                # Frozen for long, or somebody emptied the settings.
                await connection.execute(insert(self._settings).values(name=self._row, value=self._sign()))
            unread = await self._unread(connection)
        if unread:
            log.error("%s", unread)
        if recorded not in (self.name, self._recorded):
            log.error(
                "The carrier was changed to '%s' while this process, which has carrier='%s', gave no sign of life: "
                "events of a key may overtake each other. Restart it with carrier='%s'.",
                recorded,
                self.name,
                recorded,
            )
        self._recorded = recorded

    async def leave(self) -> None:
        """Say that this process runs no longer."""
        if not self._store.dialect.carries_log:
            return
        try:
            async with self._store.short.begin() as connection:
                await connection.execute(delete(self._settings).where(self._settings.c.name == self._row))
        except Exception as error:  # noqa: BLE001 - it counts as gone in three minutes
            log.debug("This process could not be signed off: %s", error)

    async def _lock(self, connection: AsyncConnection) -> str:
        """Return the recorded carrier, which nobody changes until this transaction ends."""
        carrier = select(self._settings.c.value).where(self._settings.c.name == "carrier").with_for_update()
        return str(await connection.scalar(carrier) or self.name)

    async def _unread(self, connection: AsyncConnection) -> str | None:
        """Say why nobody will ever read from the log what this process leaves there."""
        if self.name != LOG:
            return None
        outbox = connection.dialect.identifier_preparer.format_table(self._store.tables.outbox)
        level, published, kept = (await connection.execute(text(_READERS), {"outbox": outbox})).one()
        if level != "logical":
            cure = "Set wal_level = logical and restart it, or pass carrier='relay'."
            return f"carrier='log' needs a log that can be decoded, and the server has wal_level = {level}. {cure}"
        wanted = {f"publication of {outbox}": published, "replication slot in this database": kept}
        if missing := " and no ".join(name for name, there in wanted.items() if not there):
            how = "examples/debezium/publication.sql makes it."
            return f"With carrier='log' events are lost here: there is no {missing}; {how}"
        return None

    async def _forget(self, connection: AsyncConnection) -> None:
        old = (self._settings.c.name.startswith(PROCESS), self._age() > GONE)
        await connection.execute(delete(self._settings).where(*old))

    async def _refuse_two(self, connection: AsyncConnection, recorded: str) -> None:
        others = (self._settings.c.name.startswith(PROCESS), self._settings.c.value.startswith(f"{recorded} "))
        count, seen = (await connection.execute(select(func.count(), func.min(self._age())).where(*others))).one()
        if count:
            raise SchemaError(
                f"Processes of this application that run have carrier='{recorded}', and this one has "
                f"carrier='{self.name}'; {count} of them, last seen {max(0, seen)} s ago. All have to write alike: "
                f"stop them first, or pass carrier='{recorded}'. One that was killed counts as gone after {GONE:g} s."
            )

    async def _refuse_waiting(self, connection: AsyncConnection, recorded: str) -> None:
        outbox, parked = self._store.tables.outbox, self._store.tables.parked
        count = select(func.count())
        waiting = await connection.scalar(count.select_from(outbox).where(outbox.c.destination == BROKER))
        states = select(parked.c.state, func.count()).where(parked.c.destination == BROKER).group_by(parked.c.state)
        held: dict[str, int] = {row[0]: row[1] for row in await connection.execute(states)}
        if not waiting and not held:
            return
        dead = held.get(DEAD, 0)
        cure = f"Run this application with carrier='{recorded}' until they are gone"
        raise SchemaError(
            f"{waiting} rows wait for the broker in the outbox and {sum(held.values())} parked, which carrier="
            f"'{self.name}' would overtake. {cure}"
            + (f"; {dead} are dead: app.outbox.replay() or discard() ends them." if dead else ".")
        )

    def _sign(self) -> ColumnElement[str]:
        return literal(f"{self.name} ").concat(cast(self._seconds(), String))

    def _age(self) -> Any:
        return self._seconds() - cast(func.split_part(self._settings.c.value, " ", 2), Integer)

    def _seconds(self) -> Any:
        return cast(extract("epoch", self._store.now()), Integer)
