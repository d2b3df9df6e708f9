"""Opens what a command works on: an application's outbox without its relay, or just a database."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from cqrs.cli.exits import Failure
from cqrs.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from cqrs.mediator import Mediator
    from cqrs.outbox import Outbox
    from cqrs.outbox.database import Database


def assigned(app: Mediator, *, relay: bool) -> Mediator:
    """Return the application with the relay on or off, whatever it was bootstrapped with."""
    from cqrs.composition import compose
    from cqrs.describe import blueprint_of

    blueprint = blueprint_of(app)
    if blueprint.wishes.database is None:
        raise Failure(f"Application '{app.name}' has no database, so it has no outbox.")
    if blueprint.wishes.relay == relay:
        return app
    return compose(replace(blueprint, wishes=replace(blueprint.wishes, relay=relay)))


@asynccontextmanager
async def outbox_of(app: Mediator) -> AsyncGenerator[Outbox]:
    """Open an application's database, and nothing else of it: nothing is relayed, and no resource is made."""
    app = assigned(app, relay=False)
    assert app.storage is not None  # noqa: S101 - it has a database
    async with app.storage as storage:
        yield storage.outbox


@asynccontextmanager
async def database_of(
    app: Mediator | None, *, url: str | None = None, prefix: str = "cqrs_", schema: str | None = None
) -> AsyncGenerator[Database]:
    """Open the database of an application, or that of a URL."""
    from cqrs.describe import blueprint_of
    from cqrs.outbox.database import connect, reach

    wishes = None if app is None else blueprint_of(app).wishes
    given = url if wishes is None or url is not None else wishes.database
    if given is None:
        raise Failure(f"Application '{app.name if app else ''}' has no database.")
    problems: list[Problem] = []
    if wishes is not None:
        prefix, schema = wishes.prefix, wishes.schema
    database = connect(given, problems, prefix=prefix, schema=schema, migrate=False)
    if database is None:
        raise ConfigurationError(problems)
    try:
        await reach(database)
        yield database
    finally:
        await database.writers.dispose()
        await database.readers.dispose()
