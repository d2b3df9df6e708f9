from typing import Optional, Protocol

from dependency_injector import containers, providers
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import cqrs
from tests.unit.support import path, place, problems


class PlaceOrder(cqrs.Command[int]):
    sku: str


class Untyped(cqrs.Command):
    pass


class Orders:
    pass


class Mailer(Protocol):
    def send(self, text: str) -> None: ...


async def test_an_optional_dependency_is_provided_where_it_can_be(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, orders: Optional[Orders] = None) -> int:  # noqa: UP045 - the older spelling is what is tested
        return 0 if orders is None else 1

    assert await cqrs.bootstrap(registry=registry).send(PlaceOrder(sku="tea")) == 0
    assert await cqrs.bootstrap(registry=registry, container={Orders: Orders}).send(PlaceOrder(sku="tea")) == 1


async def test_a_union_with_none_is_optional_too(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, orders: Orders | None = None) -> int:
        return 0 if orders is None else 1

    assert await cqrs.bootstrap(registry=registry, container={Orders: Orders}).send(PlaceOrder(sku="tea")) == 1


async def test_a_parameter_behind_one_that_keeps_its_default_is_still_provided(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, retries: int = 3, orders: Orders | None = None) -> int:
        return retries if orders is not None else 0

    assert await cqrs.bootstrap(registry=registry, container={Orders: Orders}).send(PlaceOrder(sku="tea")) == 3


async def test_a_keyword_only_parameter_is_provided(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, *, orders: Orders, retries: int = 3) -> int:
        return retries if isinstance(orders, Orders) else 0

    assert await cqrs.bootstrap(registry=registry, container={Orders: Orders}).send(PlaceOrder(sku="tea")) == 3


async def test_positional_only_parameters_are_provided(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, orders: Orders, /) -> bool:
        return isinstance(orders, Orders)

    assert await cqrs.bootstrap(registry=registry, container={Orders: Orders}).send(PlaceOrder(sku="tea")) is True


async def test_variadic_parameters_are_left_empty(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, *rest: Orders, **more: Orders) -> int:
        return len(rest) + len(more)

    assert await cqrs.bootstrap(registry=registry).send(PlaceOrder(sku="tea")) == 0


async def test_a_handler_may_ask_for_its_context(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, context: cqrs.Context) -> bool:
        return context.message is command

    assert await cqrs.bootstrap(registry=registry).send(PlaceOrder(sku="tea")) is True


async def test_a_handler_may_ask_for_the_mediator(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Untyped, app: cqrs.Mediator) -> cqrs.Mediator:
        return app

    app = cqrs.bootstrap(registry=registry)
    assert await app.send(Untyped()) is app


async def test_a_handler_may_ask_for_the_session(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def handler(command: PlaceOrder, session: AsyncSession) -> int:
        return 1 if isinstance(session, AsyncSession) else 0

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        assert await app.send(PlaceOrder(sku="tea")) == 1


def test_a_parameter_that_nothing_provides_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, orders: Orders) -> int:
        return 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: nothing provides 'orders' (Orders) ({place(handler)}). "
            "Add a provider of that type to the container, or give the parameter a default."
        )
    ]


def test_every_parameter_that_nothing_provides_is_listed(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, orders: Orders, mailer: Mailer, limit: int) -> int:
        return 1

    found = problems(registry=registry)
    assert [text.partition(" (")[0] for text in found] == [
        f"{path(handler)}: nothing provides '{parameter}'" for parameter in ("limit", "mailer", "orders")
    ]


def test_a_parameter_without_an_annotation_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, orders) -> int:
        return 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: nothing provides 'orders' (not annotated) ({place(handler)}). "
            "Annotate it: with cqrs.Context, AsyncSession, or a type that the container provides."
        )
    ]


def test_a_session_that_is_not_async_is_refused(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def handler(command: PlaceOrder, session: Session) -> int:
        return 1

    cure = (
        "If it is the transaction's, ask for AsyncSession or AsyncConnection of sqlalchemy.ext.asyncio; "
        "else add a provider of that"
    )
    assert problems(registry=registry, database=database) == [
        f"{path(handler)}: nothing provides 'session' (Session) ({place(handler)}). {cure} type to the container."
    ]


def test_a_session_without_a_database_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, session: AsyncSession) -> int:
        return 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: nothing provides 'session' (AsyncSession) ({place(handler)}). "
            'Give bootstrap one: database="sqlite+aiosqlite:///app.db".'
        )
    ]


def test_a_parameter_that_two_providers_provide_is_refused(registry: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        main = providers.Factory(Orders)
        archive = providers.Factory(Orders)

    @registry.command_handler
    async def handler(command: PlaceOrder, orders: Orders) -> int:
        return 1

    assert problems(registry=registry, container=Container()) == [
        (
            f"{path(handler)}: parameter 'orders': 'main' and 'archive' both provide Orders ({place(handler)}). "
            'Name one: Annotated[Orders, Provide["main"]].'
        )
    ]
