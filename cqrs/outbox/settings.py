"""What a database records of itself: the settings that may not change, and the rows of its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cqrs.outbox.store import Store


async def record(store: Store, wanted: Mapping[str, str]) -> dict[str, str]:
    """Record settings that are not there yet, and the slots; returns all settings as they stand."""
    try:
        return await _record(store, wanted)
    except IntegrityError:
        # Another process started at the same moment; now its settings are there.
        return await _record(store, wanted)


async def _record(store: Store, wanted: Mapping[str, str]) -> dict[str, str]:
    table, slot = store.tables.settings, store.tables.slot
    async with store.short.begin() as connection:
        found = {row.name: row.value for row in await connection.execute(select(table))}
        missing = [{"name": name, "value": value} for name, value in wanted.items() if name not in found]
        if missing:
            await connection.execute(insert(table), missing)
        if int(found.get("slots", store.slots)) == store.slots:
            present = set(await connection.scalars(select(slot.c.slot)))
            absent = [{"slot": number} for number in store.dialect.slots(store) if number not in present]
            if absent:
                await connection.execute(insert(slot), absent)
    return {**wanted, **found}
