"""The harness: an application opened for a test, made again from its blueprint on a temporary file, without servers."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cqrs.composition import compose
from cqrs.errors import MisuseError
from cqrs.mediator import Mediator
from cqrs.testing.acting import Harness, storage_of
from cqrs.testing.files import temporary
from cqrs.testing.loop import Loop
from cqrs.testing.overrides import overridden
from cqrs.testing.story import Story
from cqrs.testing.substitute import standing_in

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

    from cqrs.checks import Wishes


@asynccontextmanager
async def harness(
    app: Mediator,
    *,
    overrides: Mapping[type | str, object] | None = None,
    tables: MetaData | None = None,
    database: str | AsyncEngine | async_sessionmaker[AsyncSession] | None = None,
    timeout: float = 10.0,
    limit: int = 1000,
) -> AsyncGenerator[Harness]:
    """Open an application for a test: on a temporary SQLite file, without its broker, and without waiting for retries.

    Everything else is the application's own: handlers, middlewares, retries, names. What it publishes comes back to
    its own handlers, in order per key, and is kept in `published`. `overrides` are objects in place of what the
    container provides, by type or by a provider's name. `tables` are created in the file. `database` is an empty
    database of your own instead of the file. `timeout` (seconds) and `limit` (attempts of handlers) bound each call.

    Meanwhile `app` itself stands for the application under test, so that code which holds it works, too.
    """
    given: Any = app
    if not isinstance(given, Mediator):
        raise MisuseError(f"harness takes an application that cqrs.bootstrap returned, and got {given!r}.")
    blueprint = app.blueprint
    if blueprint is None or app.is_open:
        raise MisuseError(
            f"Application '{app.name}' is open already. The harness opens it by itself: leave `async with app` first."
        )
    story, loop = Story(), Loop()
    async with AsyncExitStack() as stack:
        container = stack.enter_context(overridden(blueprint.container, overrides or {}))
        if database is None and blueprint.wishes.database is not None:
            database = await stack.enter_async_context(temporary(blueprint.wishes))
        made = compose(
            replace(
                blueprint,
                wishes=_wishes(blueprint.wishes, database, loop),
                found=story.listening(blueprint.found),
                container=container,
                middlewares=(*blueprint.middlewares, story.transaction),
            )
        )
        made.heard = story.emitted
        storage = storage_of(made)
        t = Harness(made, story, timeout=timeout, limit=limit)
        if storage is not None:
            loop.app, loop.storage = made, storage
            made.intake = None  # the loop hands back by itself
            storage.committed = story.committed
            storage.drain = partial(_drain, t, storage.drain)  # type: ignore[method-assign]  # nobody else relays
        async with made:
            if storage is not None and tables is not None:
                async with storage.store.writers.begin() as connection:
                    await connection.run_sync(tables.create_all)
            with standing_in(app, made):
                yield t


async def _drain(t: Harness, drain: Callable[[float], Awaitable[None]], timeout: float) -> None:
    await t.settle()
    await drain(timeout)


def _wishes(wishes: Wishes, database: Any, loop: Loop) -> Wishes:
    """Return what the application was asked for, without what belongs to its servers."""
    if wishes.database is None:
        return wishes
    return replace(
        wishes,
        database=database,
        broker=loop if wishes.publishes else None,
        relay=False,
        carrier="relay",
        listen_url=None,
        schema=None,
        migrate=True,
    )
