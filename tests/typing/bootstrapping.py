"""Both spellings of bootstrap, and what may be given to it."""

from collections.abc import Sequence
from typing import Any, assert_type

from dependency_injector import containers, providers
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

import cqrs
from cqrs.bootstrap import bootstrap
from cqrs.context import Call


class Orders:
    pass


class Container(containers.DeclarativeContainer):
    orders = providers.Factory(Orders)
    session = providers.Callable(cqrs.current_session)


class Broker:
    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, envelopes: Sequence[cqrs.Envelope]) -> Sequence[cqrs.Fate | cqrs.Failed]:
        return [cqrs.Fate.DELIVERED for _ in envelopes]


async def timed(message: Any, context: cqrs.Context, call_next: Call) -> Any:
    return await call_next(message, context)


def every_spelling_makes_a_mediator() -> None:
    assert_type(cqrs.bootstrap(), cqrs.Mediator)
    assert_type(cqrs.bootstrap.bootstrap(), cqrs.Mediator)
    assert_type(bootstrap(), cqrs.Mediator)


def what_may_be_given(engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
    cqrs.bootstrap("shop")
    cqrs.bootstrap(["shop", cqrs.Registry()], exclude=("shop.tests",))
    cqrs.bootstrap(scan=cqrs.Registry(), registry=cqrs.Registry(), name="shop")
    cqrs.bootstrap(scan="shop", container=Container(), database="sqlite+aiosqlite:///shop.db")
    cqrs.bootstrap(container={Orders: Orders}, database=engine)
    cqrs.bootstrap(database=sessions, broker=Broker(), relay=False)
    cqrs.bootstrap(broker="kafka://localhost:9092")
    cqrs.bootstrap(middlewares=[timed], retry=cqrs.Retry(attempts=3), on_dead="skip", slots=32)
    cqrs.bootstrap(retry={ConnectionError: cqrs.Retry(attempts=None)}, migrate=True, prefix="shop_")


def what_may_not(engine: AsyncEngine) -> None:
    cqrs.bootstrap("shop", "depot")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cqrs.bootstrap(on_dead="forget")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cqrs.bootstrap(databse="sqlite+aiosqlite:///shop.db")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cqrs.bootstrap.bootstrap(on_dead="forget")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def the_session_of_a_repository() -> None:
    assert_type(cqrs.current_session(), AsyncSession)


def both_mediators_are_the_one(app: cqrs.Mediator) -> None:
    requests: cqrs.RequestMediator = app
    events: cqrs.EventMediator = app
    assert_type(requests, cqrs.Mediator)
    assert_type(events, cqrs.Mediator)


def what_is_wrong(error: cqrs.ConfigurationError) -> None:
    assert_type(error.problems, tuple[cqrs.Problem, ...])
