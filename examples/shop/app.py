"""The shop, put together."""

import os
from typing import Any

from sqlalchemy.exc import IntegrityError

import cqrs
from examples.shop.container import Container


def make_shop(database: str, broker: str | None = None) -> cqrs.Mediator:
    """Return the shop over these servers, by their URLs. Without a broker it delivers its events itself."""
    return cqrs.bootstrap(
        scan="examples.shop",
        exclude=["examples.shop.api", "examples.shop.demo"],
        name="shop",
        container=Container(),
        database=database,
        broker=broker,
        middlewares=[once_more],
        migrate=True,
        # Seconds, after which the next worker takes over what a killed one was about to deliver; a broker is given
        # most of them to answer.
        lease=1.0 if broker is None else 5.0,
        retry=cqrs.Retry(attempts=4, first=0.5),
    )


def shop() -> cqrs.Mediator:
    """Return the shop over the servers that the environment names; for `cqrs ... examples.shop.app:shop --factory`."""
    return make_shop(
        os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///shop.db"), os.environ.get("BROKER_URL") or None
    )


async def once_more(message: Any, context: cqrs.Context, call_next: cqrs.Call) -> Any:
    """Handle again what lost against another of its kind: two orders of one id at the same moment, say.

    The second attempt finds what the other one has left, and answers by it.
    """
    try:
        return await call_next(message, context)
    except IntegrityError:
        return await call_next(message, context)
