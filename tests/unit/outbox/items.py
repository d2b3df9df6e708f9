"""What handlers do in tests of transactions: they write items, and tell of it."""

import asyncio
from typing import Any

from sqlalchemy import text

import cqrs
from tests.unit.outbox.support import run_sql


class Start(cqrs.Command[Any]):
    pass


class Inner(cqrs.Command[Any]):
    pass


class Look(cqrs.Query[Any]):
    pass


class Noted(cqrs.Event):
    name: str = ""


class Happened(cqrs.Event):
    order: str = "o1"
    detail: Any = None


INSERT = text("INSERT INTO items (name) VALUES ('tea')")
SAVED = "SELECT count(*) FROM cqrs_outbox"
ITEMS = "SELECT name FROM items ORDER BY rowid"


async def with_items(database: str) -> str:
    """Return the database with a table to write to."""
    await run_sql(database, "CREATE TABLE items (name TEXT UNIQUE)")
    return database


def with_happened(registry: cqrs.Registry) -> cqrs.Registry:
    """Return a registry in which `Happened` is published and somebody waits for it."""
    registry.integration_event(topic="orders", key="order")(Happened)

    @registry.event_handler(name="receive")
    async def receive(event: Happened) -> None: ...

    return registry


def make(registry: cqrs.Registry, database: Any, **wishes: Any) -> cqrs.Mediator:
    """Return an application whose relay takes nothing, so that what is saved stays to be looked at."""
    return cqrs.bootstrap(registry=registry, database=database, **{"name": "shop", "relay": False, **wishes})


async def cancel_at_every_moment(app: cqrs.Mediator, message: Any) -> None:
    """Send a message sixty times, and cancel it each time a step later."""
    for moment in range(60):
        task = asyncio.create_task(app.send(message))
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
