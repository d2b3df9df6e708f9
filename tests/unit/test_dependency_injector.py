import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Protocol

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from tests.unit.support import path, place, problems


class Ask(cqrs.Command[Any]):
    pass


class Orders:
    def __init__(self, name: str = "orders") -> None:
        self.name = name

    def place(self) -> str:
        return self.name


class FastOrders(Orders):
    pass


class Placing(Protocol):
    def place(self) -> str: ...


class Log:
    pass


async def asked(registry: cqrs.Registry, container: Any) -> Any:
    return await cqrs.bootstrap(registry=registry, container=container).send(Ask())


@pytest.fixture
def gives_orders(registry: cqrs.Registry) -> cqrs.Registry:
    """A registry with one handler, which returns the `Orders` that it was given."""

    @registry.command_handler
    async def handler(command: Ask, orders: Orders) -> Any:
        return orders

    return registry


# By type


async def test_a_parameter_is_provided_by_its_class(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        log = providers.Factory(Log)
        orders = providers.Factory(Orders, name="main")

    orders = await asked(gives_orders, Container())
    assert (type(orders), orders.name) == (Orders, "main")


async def test_a_factory_makes_a_new_object_each_time(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        orders = providers.Factory(Orders)

    app = cqrs.bootstrap(registry=gives_orders, container=Container())
    assert await app.send(Ask()) is not await app.send(Ask())


async def test_a_singleton_is_one_object(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        orders = providers.Singleton(Orders)

    container = Container()
    app = cqrs.bootstrap(registry=gives_orders, container=container)
    assert await app.send(Ask()) is await app.send(Ask()) is container.orders()


async def test_a_base_class_is_provided_by_the_one_subclass(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        orders = providers.Factory(FastOrders)

    assert type(await asked(gives_orders, Container())) is FastOrders


async def test_the_exact_class_goes_before_a_subclass(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        fast = providers.Factory(FastOrders)
        plain = providers.Factory(Orders)

    assert type(await asked(gives_orders, Container())) is Orders


async def test_a_protocol_is_provided_by_the_one_class_that_has_its_members(registry: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        log = providers.Factory(Log)
        orders = providers.Factory(Orders)

    @registry.command_handler
    async def handler(command: Ask, orders: Placing) -> Any:
        return orders

    assert type(await asked(registry, Container())) is Orders


def make_orders() -> Orders:
    return Orders("made")


@pytest.mark.parametrize(
    "provider",
    [
        providers.Callable(make_orders),
        providers.Factory(make_orders),
        providers.Singleton(make_orders),
        providers.ThreadSafeSingleton(make_orders),
        providers.Object(Orders("made")),
    ],
    ids=["callable", "factory", "singleton", "thread-safe singleton", "object"],
)
async def test_what_a_provider_makes_is_read_from_its_function_or_object(
    gives_orders: cqrs.Registry, provider: providers.Provider[Orders]
):
    container = containers.DynamicContainer()
    container.orders = provider
    assert (await asked(gives_orders, container)).name == "made"


def test_a_provider_whose_function_says_nothing_provides_no_type(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        orders = providers.Callable(lambda: Orders())  # noqa: PLW0108 - a function without a return annotation

    (problem,) = problems(registry=gives_orders, container=Container())
    assert "nothing provides 'orders' (Orders)" in problem


def test_configuration_is_no_provider_of_anything(registry: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        config = providers.Configuration()
        limit = providers.Object(5)

    @registry.command_handler
    async def handler(command: Ask, limit: int) -> Any:
        return limit

    (problem,) = problems(registry=registry, container=Container())
    assert "nothing provides 'limit' (int)" in problem


def test_two_providers_of_a_type_are_refused_by_their_names(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        main = providers.Factory(Orders)
        archive = providers.Singleton(Orders)

    target = gives_orders.handlers[0].target
    assert problems(registry=gives_orders, container=Container()) == [
        (
            f"{path(target)}: parameter 'orders': 'main' and 'archive' both provide Orders ({place(target)}). "
            'Name one: Annotated[Orders, Provide["main"]].'
        )
    ]


def test_a_container_without_what_a_handler_asks_for_is_refused(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        log = providers.Factory(Log)

    target = gives_orders.handlers[0].target
    assert problems(registry=gives_orders, container=Container()) == [
        (
            f"{path(target)}: nothing provides 'orders' (Orders) ({place(target)}). "
            "Add a provider of that type to the container, or give the parameter a default."
        )
    ]


# Nested containers


class Storage(containers.DeclarativeContainer):
    orders = providers.Factory(Orders, name="nested")


class Outer(containers.DeclarativeContainer):
    storage = providers.Container(Storage)
    log = providers.Factory(Log)


async def test_a_nested_containers_provider_is_found_by_type(gives_orders: cqrs.Registry):
    assert (await asked(gives_orders, Outer())).name == "nested"


def test_providers_of_nested_containers_are_named_by_their_path(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        storage = providers.Container(Storage)
        orders = providers.Factory(Orders)

    (problem,) = problems(registry=gives_orders, container=Container())
    assert "'storage.orders' and 'orders' both provide Orders" in problem


async def test_a_nested_provider_is_named_with_dots(registry: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        storage = providers.Container(Storage)
        orders = providers.Factory(Orders)

    @registry.command_handler
    async def handler(command: Ask, orders: Annotated[Orders, Provide["storage.orders"]]) -> Any:
        return orders.name

    assert await asked(registry, Container()) == "nested"


# By name


class Two(containers.DeclarativeContainer):
    main = providers.Factory(Orders, name="main")
    archive = providers.Factory(Orders, name="archive")
    limit = providers.Object(5)
    config = providers.Configuration(default={"currency": "EUR"})


async def test_annotated_names_a_provider(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Ask, orders: Annotated[Orders, Provide["archive"]]) -> Any:
        return orders.name

    assert await asked(registry, Two()) == "archive"


async def test_a_default_names_a_provider(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Ask, orders: Orders = Provide["archive"]) -> Any:
        return orders.name

    assert await asked(registry, Two()) == "archive"


async def test_a_default_names_a_provider_on_the_containers_class(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Ask, orders: Orders = Provide[Two.archive]) -> Any:
        return orders.name

    assert await asked(registry, Two()) == "archive"


async def test_annotated_names_a_provider_on_the_containers_class(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Ask, orders: Annotated[Orders, Provide[Two.archive]]) -> Any:
        return orders.name

    assert await asked(registry, Two()) == "archive"


async def test_a_provider_on_the_containers_class_is_that_of_the_given_container(registry: cqrs.Registry):
    container = Two()
    container.archive.override(providers.Factory(Orders, name="of this container"))

    @registry.command_handler
    async def handler(command: Ask, orders: Orders = Provide[Two.archive]) -> Any:
        return orders.name

    assert await asked(registry, container) == "of this container"


async def test_a_provider_on_a_nested_containers_class_is_that_of_the_given_container(registry: cqrs.Registry):
    container = Outer()
    container.storage.orders.override(providers.Factory(Orders, name="of this container"))

    @registry.command_handler
    async def handler(command: Ask, orders: Orders = Provide[Outer.storage.orders]) -> Any:
        return orders.name

    assert await asked(registry, container) == "of this container"


async def test_a_name_provides_values_that_no_type_could(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(
        command: Ask, limit: int = Provide["limit"], *, currency: str = Provide["config.currency"]
    ) -> Any:
        return limit, currency

    assert await asked(registry, Two()) == (5, "EUR")


async def test_a_class_names_providers_in_init(registry: cqrs.Registry):
    @registry.command_handler
    class Handler:
        def __init__(self, orders: Orders = Provide["archive"]) -> None:
            self.orders = orders

        async def handle(self, command: Ask) -> Any:
            return self.orders.name

    assert await asked(registry, Two()) == "archive"


def test_a_name_that_the_container_does_not_have_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Ask, orders: Annotated[Orders, Provide["missing"]]) -> Any: ...

    (problem,) = problems(registry=registry, container=Two())
    assert problem == (
        f"{path(handler)}: parameter 'orders': the container has no provider named 'missing' ({place(handler)}). "
        "It has: archive, config, limit, main."
    )


def test_a_name_without_a_container_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Ask, orders: Orders = Provide["orders"]) -> Any: ...

    (problem,) = problems(registry=registry)
    assert problem.startswith(f"{path(handler)}: ")
    assert "'orders'" in problem


# Asynchronous providers


async def test_an_async_factory_is_awaited(registry: cqrs.Registry):
    async def connect() -> Orders:
        await asyncio.sleep(0)
        return Orders("connected")

    class Container(containers.DeclarativeContainer):
        orders = providers.Factory(connect)

    @registry.command_handler
    async def handler(command: Ask, orders: Orders) -> Any:
        return orders.name

    assert await asked(registry, Container()) == "connected"


async def test_what_depends_on_an_async_provider_is_awaited_each_time(registry: cqrs.Registry):
    async def connect() -> AsyncIterator[Log]:
        yield Log()

    class Service:
        def __init__(self, log: Log) -> None:
            self.log = log

    class Container(containers.DeclarativeContainer):
        log = providers.Resource(connect)
        service = providers.Factory(Service, log=log)

    @registry.command_handler
    async def handler(command: Ask, service: Service) -> Any:
        return type(service.log)

    async with cqrs.bootstrap(registry=registry, container=Container()) as app:
        assert [await app.send(Ask()) for _ in range(3)] == [Log, Log, Log]


# Overriding


async def test_an_override_after_bootstrap_is_followed(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        orders = providers.Factory(Orders, name="real")

    container = Container()
    app = cqrs.bootstrap(registry=gives_orders, container=container)
    with container.orders.override(providers.Object(Orders("fake"))):
        assert (await app.send(Ask())).name == "fake"
    assert (await app.send(Ask())).name == "real"


async def test_an_override_by_an_object_is_followed(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        orders = providers.Singleton(Orders)

    container, fake = Container(), Orders("fake")
    app = cqrs.bootstrap(registry=gives_orders, container=container)
    with container.orders.override(fake):
        assert await app.send(Ask()) is fake


async def test_an_override_by_an_async_provider_is_followed(gives_orders: cqrs.Registry):
    async def make() -> Orders:
        return Orders("async")

    class Container(containers.DeclarativeContainer):
        orders = providers.Factory(Orders, name="sync")

    container = Container()
    app = cqrs.bootstrap(registry=gives_orders, container=container)
    assert (await app.send(Ask())).name == "sync"
    with container.orders.override(providers.Factory(make)):
        assert (await app.send(Ask())).name == "async"


async def test_an_override_before_bootstrap_is_followed(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        orders = providers.Factory(Orders, name="real")

    container = Container()
    with container.orders.override(providers.Factory(FastOrders, name="fake")):
        assert (await asked(gives_orders, container)).name == "fake"


async def test_a_dependency_is_provided_by_what_was_given_for_it(gives_orders: cqrs.Registry):
    class Container(containers.DeclarativeContainer):
        orders = providers.Dependency(instance_of=Orders)

    assert (await asked(gives_orders, Container(orders=providers.Factory(Orders, name="given")))).name == "given"


# Resources


async def test_resources_are_opened_and_closed_with_the_application(registry: cqrs.Registry):
    log = []

    async def connect() -> AsyncIterator[Orders]:
        log.append("open")
        yield Orders("connected")
        log.append("close")

    class Container(containers.DeclarativeContainer):
        orders = providers.Resource(connect)

    @registry.command_handler
    async def handler(command: Ask, orders: Orders) -> Any:
        log.append(orders.name)

    async with cqrs.bootstrap(registry=registry, container=Container()) as app:
        assert log == ["open"]
        await app.send(Ask())
    assert log == ["open", "connected", "close"]


async def test_synchronous_resources_are_opened_and_closed_too(registry: cqrs.Registry):
    log = []

    def connect() -> Iterator[Orders]:
        log.append("open")
        yield Orders("connected")
        log.append("close")

    class Container(containers.DeclarativeContainer):
        orders = providers.Resource(connect)

    @registry.command_handler
    async def handler(command: Ask, orders: Orders) -> Any:
        log.append(orders.name)

    async with cqrs.bootstrap(registry=registry, container=Container()) as app:
        await app.send(Ask())
    assert log == ["open", "connected", "close"]


async def test_resources_are_closed_when_the_application_ends_with_an_error(registry: cqrs.Registry):
    log = []

    async def connect() -> AsyncIterator[Orders]:
        yield Orders()
        log.append("close")

    class Container(containers.DeclarativeContainer):
        orders = providers.Resource(connect)

    with pytest.raises(ValueError, match="no"):
        async with cqrs.bootstrap(registry=registry, container=Container()):
            raise ValueError("no")
    assert log == ["close"]


async def test_a_resource_that_fails_to_open_stops_the_start(registry: cqrs.Registry):
    async def connect() -> AsyncIterator[Orders]:
        raise ConnectionError("refused")
        yield Orders()

    class Container(containers.DeclarativeContainer):
        orders = providers.Resource(connect)

    app = cqrs.bootstrap(registry=registry, container=Container())
    with pytest.raises(ConnectionError, match="refused"):
        async with app:
            pass


async def test_the_database_is_closed_before_the_resources(registry: cqrs.Registry, database: str):
    log = []

    async def connect() -> AsyncIterator[Orders]:
        yield Orders()
        with pytest.raises(cqrs.NotOpen):
            await app.send(Ask())
        log.append("close")

    class Container(containers.DeclarativeContainer):
        orders = providers.Resource(connect)

    @registry.command_handler
    async def handler(command: Ask, session: AsyncSession) -> Any: ...

    async with cqrs.bootstrap(registry=registry, container=Container(), database=database, name="shop") as app:
        await app.send(Ask())
    assert log == ["close"]


# The session in a container


class Repository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session


class WithSession(containers.DeclarativeContainer):
    session = providers.Callable(cqrs.current_session)
    repository = providers.Factory(Repository, session=session)


async def test_a_repository_gets_the_session_of_the_running_command(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def handler(command: Ask, repository: Repository, session: AsyncSession) -> Any:
        await repository.session.execute(text("SELECT 1"))
        return repository.session is session

    async with cqrs.bootstrap(registry=registry, container=WithSession(), database=database, name="shop") as app:
        assert await app.send(Ask()) is True


async def test_each_command_has_a_session_of_its_own(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def handler(command: Ask, repository: Repository) -> Any:
        return repository.session

    async with cqrs.bootstrap(registry=registry, container=WithSession(), database=database, name="shop") as app:
        assert await app.send(Ask()) is not await app.send(Ask())


async def test_a_container_may_provide_the_session_itself(registry: cqrs.Registry):
    session = AsyncSession()

    class Container(containers.DeclarativeContainer):
        session_of_mine = providers.Object(session)

    @registry.command_handler
    async def handler(command: Ask, given: AsyncSession) -> Any:
        return given is session

    assert await asked(registry, Container()) is True
