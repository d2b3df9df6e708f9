import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Optional, TypeVar

import pydantic
import pytest
from dependency_injector import containers, providers

import cqrs
from cqrs.integrations.mapping import MappingResolver
from cqrs.registry import HandlerRecord, Kind
from cqrs.signature import read
from cqrs.sources import Injector
from tests.unit.support import name, path, place, problems


class PlaceOrder(cqrs.Command[int]):
    sku: str


class CancelOrder(cqrs.Command[None]):
    sku: str


class GetOrder(cqrs.Query[str]):
    order_id: str


class Untyped(cqrs.Command):
    pass


class OrderPlaced(cqrs.Event):
    order_id: str


class OrderCancelled(cqrs.Event):
    order_id: str


class UserCreated(pydantic.BaseModel):
    user_id: str


class Orders:
    pass


ADD_A_MESSAGE = "Add `message: YourMessage`."
A_CLASS_OF_ITS_OWN = "Use a class of its own: a cqrs.Command, Query or Event, another pydantic model, or a dataclass."


def handled(registry: cqrs.Registry, **wishes: Any) -> dict[type, list[str]]:
    """Return the names of the handlers of each message, as bootstrap has read them."""
    app = cqrs.bootstrap(registry=registry, **wishes)
    return {message: [handler.name for handler in plan.handlers] for message, plan in app.plans.items()}


# What a handler is for


def test_the_annotation_of_the_first_parameter_decides(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(anything_at_all: PlaceOrder) -> int:
        return 1

    assert handled(registry) == {PlaceOrder: [name(handler)]}


async def test_a_message_may_be_a_dataclass(registry: cqrs.Registry):
    @dataclass(frozen=True)
    class Ping:
        text: str

    @registry.command_handler
    async def handler(message: Ping) -> str:
        return message.text

    assert await cqrs.bootstrap(registry=registry).send(Ping("hello")) == "hello"


async def test_a_message_may_be_any_pydantic_model(registry: cqrs.Registry):
    class Ping(pydantic.BaseModel):
        text: str

    @registry.query_handler
    async def handler(message: Ping) -> str:
        return message.text

    assert await cqrs.bootstrap(registry=registry).send(Ping(text="hello")) == "hello"


def test_an_annotated_message_is_its_class(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Annotated[PlaceOrder, "by hand"]) -> int:
        return 1

    assert handled(registry) == {PlaceOrder: [name(handler)]}


def test_an_event_handler_may_take_a_union_of_events(registry: cqrs.Registry):
    @registry.event_handler
    async def handler(event: OrderPlaced | OrderCancelled) -> None: ...

    assert handled(registry) == {OrderPlaced: [name(handler)], OrderCancelled: [name(handler)]}


async def test_a_handler_of_a_union_hears_of_each_event(registry: cqrs.Registry):
    heard = []

    @registry.event_handler
    async def handler(event: Annotated[OrderPlaced | OrderCancelled, "either"]) -> None:
        heard.append(event)

    app = cqrs.bootstrap(registry=registry)
    await app.send(OrderPlaced(order_id="o1"))
    await app.send(OrderCancelled(order_id="o2"))
    assert heard == [OrderPlaced(order_id="o1"), OrderCancelled(order_id="o2")]


async def test_a_handler_of_a_notification_gets_the_one_of_its_payload(registry: cqrs.Registry):
    heard = []

    @registry.event_handler
    async def handler(event: cqrs.NotificationEvent[UserCreated]) -> None:
        heard.append(event.payload)

    app = cqrs.bootstrap(registry=registry)
    await app.send(cqrs.NotificationEvent[UserCreated](payload=UserCreated(user_id="u1")))
    await app.send(cqrs.NotificationEvent[int](payload=1))
    assert heard == [UserCreated(user_id="u1")]


async def test_annotations_may_be_text(package: Any):
    source = """\
from __future__ import annotations

from typing import Annotated

import pydantic

import cqrs

registry = cqrs.Registry()

class Payload(pydantic.BaseModel):
    text: str

class Ping(cqrs.Command[str]):
    text: str

class Clock:
    now = "noon"

class Greeter:
    def __init__(self, clock: Clock | None) -> None:
        self.clock = clock

    async def handle(self, event: cqrs.NotificationEvent[Payload]) -> None:
        heard.append((event.payload.text, self.clock.now))

heard = []
registry.event_handler(Greeter)

@registry.command_handler
async def ping(message: Annotated[Ping, "text"], clock: Annotated[Clock, "any"], context: cqrs.Context) -> str:
    context.emit(cqrs.NotificationEvent[Payload](payload=Payload(text=message.text)))
    return f"{message.text} at {clock.now}"
"""
    import importlib

    module = importlib.import_module(package({"__init__.py": source}))
    app = cqrs.bootstrap(registry=module.registry, container={module.Clock: module.Clock})
    assert await app.send(module.Ping(text="hello")) == "hello at noon"
    assert module.heard == [("hello", "noon")]


async def test_the_message_of_a_class_may_be_named_by_its_base_alone(registry: cqrs.Registry):
    @registry.command_handler
    class Handler(cqrs.RequestHandler[PlaceOrder, int]):
        async def handle(self, request) -> int:
            return len(request.sku)

    assert await cqrs.bootstrap(registry=registry).send(PlaceOrder(sku="tea")) == 3


# Names


def test_a_handler_is_named_by_module_and_qualified_name(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder) -> int:
        return 1

    (names,) = handled(registry).values()
    assert names == [f"{__name__}:test_a_handler_is_named_by_module_and_qualified_name.<locals>.handler"]


def test_a_handler_may_have_a_name_of_its_own(registry: cqrs.Registry):
    @registry.command_handler(name="orders.place")
    async def handler(command: PlaceOrder) -> int:
        return 1

    assert handled(registry) == {PlaceOrder: ["orders.place"]}


def test_a_handler_of_the_running_script_goes_by_the_scripts_name():
    async def handler(command: PlaceOrder) -> int:
        return 1

    handler.__module__ = "__main__"
    found: list[cqrs.Problem] = []
    injector = Injector({}, MappingResolver({}, found))
    ((_, read_handler),) = read(HandlerRecord(Kind.COMMAND, handler), injector, found, "shop")
    assert read_handler.name == f"shop:{handler.__qualname__}"


# How a handler is called


async def test_a_class_asks_for_its_dependencies_in_init(registry: cqrs.Registry):
    @registry.command_handler
    class Handler:
        def __init__(self, orders: Orders, *, context: cqrs.Context) -> None:
            self.orders = orders
            self.context = context

        async def handle(self, command: PlaceOrder) -> int:
            return int(isinstance(self.orders, Orders) and self.context.message is command)

    assert await cqrs.bootstrap(registry=registry, container={Orders: Orders}).send(PlaceOrder(sku="tea")) == 1


async def test_a_dataclass_may_be_a_handler(registry: cqrs.Registry):
    @registry.command_handler
    @dataclass
    class Handler:
        orders: Orders

        async def handle(self, command: PlaceOrder) -> int:
            return int(isinstance(self.orders, Orders))

    assert await cqrs.bootstrap(registry=registry, container={Orders: Orders}).send(PlaceOrder(sku="tea")) == 1


async def test_a_handler_class_that_the_container_provides_is_made_by_it(registry: cqrs.Registry):
    @registry.command_handler
    class Handler:
        def __init__(self, number: int) -> None:
            self.number = number

        async def handle(self, command: PlaceOrder) -> int:
            return self.number

    app = cqrs.bootstrap(registry=registry, container={Handler: lambda: Handler(7)})
    assert await app.send(PlaceOrder(sku="tea")) == 7


async def test_a_wrapped_handler_is_read_through_its_wrapper(registry: cqrs.Registry):
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*arguments: Any) -> Any:
            return await function(*arguments) + 1

        return wrapper

    @registry.command_handler
    @logged
    async def handler(command: PlaceOrder, orders: Orders) -> int:
        return 1

    assert await cqrs.bootstrap(registry=registry, container={Orders: Orders}).send(PlaceOrder(sku="tea")) == 2


# What is wrong with a handler


def test_a_class_without_handle_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    class Handler:
        pass

    assert problems(registry=registry) == [
        f"{path(Handler)}: a handler class needs `async def handle(self, message)` ({place(Handler)}). Add it."
    ]


def test_an_async_generator_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder) -> AsyncIterator[int]:
        yield 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: an async generator is a streaming handler, which this version cannot run "
            f"({place(handler)}). Return a list."
        )
    ]


@pytest.mark.parametrize("style", ["function", "class"])
def test_a_plain_function_is_refused(registry: cqrs.Registry, style: str):
    def handler(command: PlaceOrder) -> int:
        return 1

    class Handler:
        def handle(self, command: PlaceOrder) -> int:
            return 1

    target = registry.command_handler(handler if style == "function" else Handler)
    assert problems(registry=registry) == [
        (
            f"{path(target)}: a handler is a coroutine function, this one is a plain function ({place(target)}). "
            "Make it `async def` and call blocking code through `await asyncio.to_thread(...)`."
        )
    ]


def test_an_unknown_option_is_refused(registry: cqrs.Registry):
    @registry.command_handler(durable=True, retries=3)
    async def handler(command: PlaceOrder) -> int:
        return 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: @cqrs.command_handler has no option durable, retries ({place(handler)}). "
            "There are: middlewares, name."
        )
    ]


def test_an_unknown_option_of_an_event_handler_is_refused(registry: cqrs.Registry):
    @registry.event_handler(durabel=True)
    async def handler(event: OrderPlaced) -> None: ...

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: @cqrs.event_handler has no option durabel ({place(handler)}). "
            "There are: concurrent, durable, group, middlewares, name, on_dead, retry, timeout."
        )
    ]


def test_annotations_that_cannot_be_resolved_are_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: "Missing") -> int:  # noqa: F821 - the missing name is what is tested
        return 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: its annotations cannot be resolved: name 'Missing' is not defined ({place(handler)}). "
            "Import what annotations name at run time too, not only under TYPE_CHECKING."
        )
    ]


def test_annotations_of_init_that_cannot_be_resolved_are_refused(registry: cqrs.Registry):
    @registry.command_handler
    class Handler:
        def __init__(self, orders: "Missing") -> None: ...  # noqa: F821 - the missing name is what is tested

        async def handle(self, command: PlaceOrder) -> int:
            return 1

    assert problems(registry=registry) == [
        (
            f"{path(Handler)}: its annotations cannot be resolved: name 'Missing' is not defined ({place(Handler)}). "
            "Import what annotations name at run time too, not only under TYPE_CHECKING."
        )
    ]


def test_a_handler_without_a_parameter_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler() -> int:
        return 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: the first parameter of a handler is its message, and there is none ({place(handler)}). "
            f"{ADD_A_MESSAGE}"
        )
    ]


def test_a_handler_with_keywords_only_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(*, command: PlaceOrder) -> int:
        return 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: the first parameter of a handler is its message, and there is none ({place(handler)}). "
            f"{ADD_A_MESSAGE}"
        )
    ]


def test_a_handler_class_whose_handle_takes_no_message_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    class Handler:
        async def handle(self) -> int:
            return 1

    assert problems(registry=registry) == [
        (
            f"{path(Handler)}: the first parameter of a handler is its message, and there is none ({place(Handler)}). "
            f"{ADD_A_MESSAGE}"
        )
    ]


def test_a_first_parameter_without_an_annotation_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command) -> int:
        return 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: its first parameter 'command' has no annotation ({place(handler)}). "
            "Annotate it with the message's class; the annotation decides what the handler is for."
        )
    ]


def test_a_handler_bound_to_another_message_is_refused(registry: cqrs.Registry):
    async def handler(command: PlaceOrder):
        return 1

    assert problems(registry=registry, commands_mapper=lambda m: m.bind(CancelOrder, handler)) == [
        (
            f"{path(handler)}: it was bound to {path(CancelOrder)}, but handles PlaceOrder ({place(handler)}). "
            "Bind it to the latter."
        )
    ]


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (str, "str"),
        (dict, "dict"),
        (list[PlaceOrder], f"list[{path(PlaceOrder)}]"),
        (Any, "Any"),
        (cqrs.Command, "Command"),
        (cqrs.Query, "Query"),
        (cqrs.Request, "Request"),
        (PlaceOrder | CancelOrder, f"{path(PlaceOrder)} | {path(CancelOrder)}"),
    ],
)
def test_a_first_parameter_that_is_no_message_is_refused(registry: cqrs.Registry, annotation: Any, shown: str):
    @registry.command_handler
    async def handler(command):
        return 1

    handler.__annotations__["command"] = annotation
    assert problems(registry=registry) == [
        (
            f"{path(handler)}: its first parameter 'command: {shown}' is no message class ({place(handler)}). "
            f"{A_CLASS_OF_ITS_OWN}"
        )
    ]


def test_a_union_of_commands_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder | CancelOrder) -> int:
        return 1

    (problem,) = problems(registry=registry)
    assert problem.startswith(f"{path(handler)}: its first parameter 'command: ")
    assert problem.endswith(f"is no message class ({place(handler)}). {A_CLASS_OF_ITS_OWN}")


def test_an_optional_event_is_refused(registry: cqrs.Registry):
    @registry.event_handler
    async def handler(event: OrderPlaced | None) -> None: ...

    (problem,) = problems(registry=registry)
    assert problem.endswith(f"is no message class ({place(handler)}). {A_CLASS_OF_ITS_OWN}")


@pytest.mark.parametrize(
    ("decorator", "said", "message", "expected"),
    [
        ("command_handler", "command", GetOrder, "query"),
        ("query_handler", "query", PlaceOrder, "command"),
        ("event_handler", "event", PlaceOrder, "command"),
        ("event_handler", "event", GetOrder, "query"),
    ],
)
def test_a_handler_of_another_kind_than_its_message_is_refused(
    registry: cqrs.Registry, decorator: str, said: str, message: type, expected: str
):
    async def handler(message):
        return None

    handler.__annotations__["message"] = message
    getattr(registry, decorator)(handler)
    assert (
        f"{path(handler)}: it is {'an' if said == 'event' else 'a'} {said} handler, "
        f"but {path(message)} is a {expected} ({place(handler)}). "
        f"Decorate it with @cqrs.{expected}_handler."
    ) in problems(registry=registry)


def test_a_command_handler_of_an_event_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(event: OrderPlaced) -> None: ...

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: it is a command handler, but {path(OrderPlaced)} is an event ({place(handler)}). "
            "Decorate it with @cqrs.event_handler."
        )
    ]


def test_a_reply_that_contradicts_the_message_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder) -> str:
        return "1"

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: it returns str, but {path(PlaceOrder)} promises int ({place(handler)}). "
            "Make the two agree: callers see the type that the message promises."
        )
    ]


class Animal(cqrs.Response):
    name: str


class Dog(Animal):
    pass


AnimalOrNone = Animal | None
S = TypeVar("S")


class Page(cqrs.Response, Generic[S]):
    items: list[S]


@pytest.mark.parametrize(
    ("promised", "returned"),
    [
        (None, None),
        (int, int),
        (int, bool),
        (int, Any),
        (int, Annotated[int, "of orders"]),
        (Animal, Dog),
        (AnimalOrNone, Dog),
        (AnimalOrNone, None),
        (AnimalOrNone, AnimalOrNone),
        (Optional[Animal], Animal | None),  # noqa: UP045 - the older spelling is what is tested
        (list[int], list[int]),
        (list[int], list),
        (Page[int], Page[int]),
        (Any, str),
    ],
)
def test_a_reply_that_fits_the_message_is_accepted(registry: cqrs.Registry, promised: Any, returned: Any):
    class Ask(cqrs.Query[promised]):
        pass

    async def handler(query: Ask): ...

    handler.__annotations__["return"] = returned
    registry.query_handler(handler)
    assert handled(registry) == {Ask: [name(handler)]}


@pytest.mark.parametrize(
    ("promised", "returned"),
    [
        (int, None),
        (None, int),
        (Dog, Animal),
        (Animal, Animal | None),
        (list[int], list[str]),
        (list[int], tuple[int, ...]),
        (Page[int], Page[str]),
        (int, str | int),
    ],
)
def test_a_reply_that_does_not_fit_the_message_is_refused(registry: cqrs.Registry, promised: Any, returned: Any):
    class Ask(cqrs.Query[promised]):
        pass

    async def handler(query: Ask): ...

    handler.__annotations__["return"] = returned
    registry.query_handler(handler)
    (problem,) = problems(registry=registry)
    assert f"{path(handler)}: it returns " in problem
    assert f", but {path(Ask)} promises " in problem


def test_a_reply_of_a_message_without_a_promise_may_be_anything(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Untyped) -> bytes:
        return b""

    assert handled(registry) == {Untyped: [name(handler)]}


def test_a_class_whose_handle_contradicts_the_message_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    class Handler(cqrs.RequestHandler[PlaceOrder, str]):
        async def handle(self, request: PlaceOrder) -> str:
            return "1"

    assert problems(registry=registry) == [
        (
            f"{path(Handler)}: it returns str, but {path(PlaceOrder)} promises int ({place(Handler)}). "
            "Make the two agree: callers see the type that the message promises."
        )
    ]


def test_a_handle_that_asks_for_more_than_the_message_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    class Handler:
        async def handle(self, command: PlaceOrder, orders: Orders) -> int:
            return 1

    assert problems(registry=registry) == [
        f"{path(Handler)}: `handle` takes the message alone ({place(Handler)}). Ask for dependencies in `__init__`."
    ]


def test_a_handler_that_was_bound_the_wrong_way_round_is_refused():
    class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder, int]):
        async def handle(self, request: PlaceOrder) -> int:
            return 1

    [problem] = problems(cqrs.Registry(), commands_mapper=lambda m: m.bind(PlaceOrderHandler, PlaceOrder))
    name = PlaceOrderHandler.__qualname__
    assert problem == (
        f"{path(PlaceOrder)}: it was bound as the handler of {name} ({place(PlaceOrder)}). "
        f"Bind the message first: bind(PlaceOrder, {name})."
    )


def test_a_handler_whose_message_does_not_come_first_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(context: cqrs.Context, command: PlaceOrder) -> int:
        return 1

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: its first parameter is 'context: Context', where the message belongs "
            f"({place(handler)}). Put the message first; everything else follows in any order."
        )
    ]


def test_a_handler_class_that_two_providers_provide_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    class Handler:
        async def handle(self, command: PlaceOrder) -> int:
            return 1

    class Container(containers.DeclarativeContainer):
        one = providers.Factory(Handler)
        other = providers.Singleton(Handler)

    assert problems(registry=registry, container=Container()) == [
        (
            f"{path(Handler)}: 'one' and 'other' both provide {Handler.__qualname__} ({place(Handler)}). "
            "Remove one of them."
        )
    ]


def test_a_problem_of_a_handler_of_several_events_is_told_once(registry: cqrs.Registry):
    @registry.event_handler
    async def handler(event: OrderPlaced | OrderCancelled, orders: Orders) -> None: ...

    assert len(problems(registry=registry)) == 1
