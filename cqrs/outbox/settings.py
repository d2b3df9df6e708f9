"""What a database records of itself: the settings that may not change, and the rows of its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from cqrs.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cqrs.outbox.store import Store


async def agree(store: Store, wanted: Mapping[str, str]) -> None:
    """Record settings; raises `SchemaError` where the tables are another application's, or have other slots."""
    found = await record(store, wanted)
    theirs, ours = found["application"], wanted["application"]
    if theirs != ours:
        raise SchemaError(
            f"These tables belong to the application '{theirs}', and this one is '{ours}'. "
            f"If it is the same application, pass name='{theirs}' to bootstrap; "
            "otherwise give it tables of its own: prefix='...', or on a server schema='...'."
        )
    if found["slots"] != wanted["slots"]:
        raise SchemaError(
            f"The outbox was begun with {found['slots']} slots, and this application has {wanted['slots']}. "
            f"Pass slots={found['slots']} to bootstrap, or empty the outbox and its slot table before a change."
        )


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
