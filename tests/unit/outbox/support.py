"""What several of the tests of the storage side say in the same words."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import cqrs
from cqrs.outbox.storage import Storage


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0) -> None:
    """Wait for a condition; fail when it has not come true in time."""
    end = monotonic() + seconds
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert monotonic() < end, "what is waited for does not happen"
        await asyncio.sleep(0.001)


async def run_sql(database: str, *statements: str) -> list[Any]:
    """Run statements on a connection of their own; returns the rows of the last one, a single column as it is."""
    engine = create_async_engine(database)
    rows: list[Any] = []
    try:
        async with engine.begin() as connection:
            for statement in statements:
                result = await connection.execute(text(statement))
                rows = [row[0] if len(row) == 1 else tuple(row) for row in result] if result.returns_rows else []
    finally:
        await engine.dispose()
    return rows


def storage_of(app: cqrs.Mediator) -> Storage:
    assert isinstance(app.storage, Storage)
    return app.storage


async def relay_all(app: cqrs.Mediator) -> None:
    """Deliver all that can be delivered now, in an application whose relay does not run by itself."""
    relay = storage_of(app).relay
    while await relay.relay_outbox() or await relay.relay_due():
        pass
