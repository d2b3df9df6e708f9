from typing import Any

import pytest
from dependency_injector import containers, providers

import cqrs
from cqrs.describe import describe
from cqrs.description import Application, Handler, Message
from cqrs.mediator import Mediator
from tests.unit.support import name, place


class Place(cqrs.Command[int]):
    number: int


class Find(cqrs.Query[list[str]]):
    number: int


class Counted(cqrs.Event):
    number: int


class Placed(cqrs.Event):
    number: int


class Clock:
    pass


def message(described: Application, kind: type) -> Message:
    (found,) = [each for each in described.messages if each.name == kind.__qualname__]
    return found


def handler(described: Application, kind: type) -> Handler:
    (found,) = message(described, kind).handlers
    return found


def test_messages_come_by_kind_and_name(registry: cqrs.Registry):
    @registry.event_handler
    async def count(event: Counted) -> None: ...

    @registry.query_handler
    async def find(query: Find) -> list[str]: ...

    @registry.command_handler
    async def place_it(command: Place) -> int: ...

    described = describe(cqrs.bootstrap(registry=registry))
    assert [(each.kind, each.name) for each in described.messages] == [
        ("command", "Place"),
        ("query", "Find"),
        ("event", "Counted"),
    ]
    assert [each.reply for each in described.messages] == ["int", "list[str]", None]


def test_a_handler_is_told_with_its_place_and_its_reason(registry: cqrs.Registry):
    @registry.command_handler
    async def place_it(command: Place) -> int: ...

    found = handler(describe(cqrs.bootstrap(registry=registry)), Place)
    assert (found.name, found.where) == (name(place_it), place(place_it))
    assert found.why == "its first parameter is Place, and it is decorated as command handler"


class PlaceHandler(cqrs.RequestHandler[Place, int]):
    async def handle(self, request: Place) -> int: ...


def test_a_bound_handler_says_that_it_was_bound():
    app = cqrs.bootstrap(registry=cqrs.Registry(), commands_mapper=lambda m: m.bind(Place, PlaceHandler))
    assert handler(describe(app), Place).why == "it was bound to Place by a mapper"


class Container(containers.DeclarativeContainer):
    clock = providers.Singleton(Clock)


def make_clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("container", "provider"),
    [
        (Container(), "'clock' of the container, a Singleton"),
        ({Clock: make_clock}, f"{make_clock.__module__}.make_clock ({place(make_clock)})"),
    ],
)
def test_a_need_is_told_with_what_provides_it(registry: cqrs.Registry, container: Any, provider: str):
    @registry.command_handler
    async def place_it(command: Place, clock: Clock, context: cqrs.Context) -> int: ...

    needs = handler(describe(cqrs.bootstrap(registry=registry, container=container)), Place).needs
    assert [(need.parameter, need.type, need.provider) for need in needs] == [
        ("clock", "Clock", provider),
        ("context", "Context", "what is running"),
    ]


async def outer(message: Any, context: cqrs.Context, call_next: cqrs.Call) -> Any: ...


async def inner(message: Any, context: cqrs.Context, call_next: cqrs.Call) -> Any: ...


def test_middlewares_come_from_the_outside_inwards(registry: cqrs.Registry):
    @registry.command_handler(middlewares=(inner,))
    async def place_it(command: Place) -> int: ...

    found = handler(describe(cqrs.bootstrap(registry=registry, middlewares=[outer])), Place)
    assert [each.name.rpartition(".")[2] for each in found.middlewares] == ["outer", "inner"]
    assert [each.where for each in found.middlewares] == [place(outer), place(inner)]


def test_a_handler_emits_the_events_that_its_code_names(registry: cqrs.Registry):
    registry.integration_event(topic="places")(Placed)

    @registry.command_handler
    async def place_it(command: Place, context: cqrs.Context) -> int:
        context.emit(Counted(number=command.number))
        return command.number

    @registry.event_handler
    async def count(event: Counted, context: cqrs.Context) -> None:
        context.emit(Placed(number=event.number))

    @registry.event_handler
    async def told(event: Placed) -> None: ...

    described = describe(cqrs.bootstrap(registry=registry, database="sqlite+aiosqlite:///app.db"))
    assert handler(described, Place).emits == ("Counted",)
    assert handler(described, Counted).emits == ("Placed",)
    assert handler(described, Placed).emits == ()


def published(registry: cqrs.Registry, **wishes: Any) -> Mediator:
    registry.integration_event(topic="places", key="number", name="placed")(Placed)
    return cqrs.bootstrap(registry=registry, database="sqlite+aiosqlite:///app.db", **wishes)


def test_a_published_event_without_a_handler_is_a_message_as_well(registry: cqrs.Registry):
    found = message(describe(published(registry, broker="kafka://localhost")), Placed)
    assert found.handlers == ()
    assert not found.consumed
    assert found.route is not None
    assert (found.route.topic, found.route.key, found.route.name) == ("places", "number", "placed")
    assert found.route.carrier == "the broker"


def test_a_handled_event_is_consumed_where_there_is_a_broker(registry: cqrs.Registry):
    @registry.event_handler
    async def told(event: Placed) -> None: ...

    assert message(describe(published(registry, broker="amqp://localhost")), Placed).consumed


def test_a_handler_in_the_background_has_its_own_policies_before_those_of_the_application(registry: cqrs.Registry):
    @registry.event_handler(retry={ValueError: cqrs.Retry(attempts=2)}, timeout=3.0, on_dead="skip")
    async def told(event: Placed) -> None: ...

    found = handler(describe(published(registry)), Placed)
    assert found.background
    assert [(policy.error, policy.attempts) for policy in found.retry] == [("ValueError", 2), ("BaseException", 8)]
    assert (found.timeout, found.on_dead) == (3.0, "skip")


def test_a_handler_in_the_transaction_is_not_retried(registry: cqrs.Registry):
    @registry.event_handler
    async def count(event: Counted) -> None: ...

    found = handler(describe(cqrs.bootstrap(registry=registry)), Counted)
    assert not found.background
    assert (found.retry, found.on_dead) == ((), None)


def test_neither_the_databases_nor_the_brokers_password_is_told(registry: cqrs.Registry):
    app = cqrs.bootstrap(
        registry=registry,
        database="postgresql+asyncpg://shop:secret@db/shop?password=secret",
        broker="amqp://shop:secret@host/%2F?heartbeat=30",
    )
    described = describe(app)
    assert "secret" not in repr(described)
    assert described.database == "postgresql+asyncpg://shop:***@db/shop"
    assert described.broker == "amqp://host"


def test_an_application_that_bootstrap_has_not_made_cannot_be_described():
    with pytest.raises(TypeError, match=r"Application 'shop' was not made by cqrs\.bootstrap"):
        describe(Mediator("shop", {}, []))
