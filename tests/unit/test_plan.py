from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pydantic
import pytest

import cqrs
from cqrs.plan import Route, event_plan
from cqrs.registry import Kind, Publication
from tests.unit.support import name, path, place, problems


class PlaceOrder(cqrs.Command[int]):
    sku: str


class OrderPlaced(cqrs.Event):
    order_id: str


class UserCreated(pydantic.BaseModel):
    user_id: str


class Opaque:
    """Nothing that pydantic knows."""


ONE_OF_THEM = "Keep one, or make it an event if several should hear of it."
WRITE_AND_READ = "Give every field a type that pydantic can write and read."
A_NAME_OF_ITS_OWN = "Give one of them a name of its own with name=...; names stand in tables."


def test_a_command_has_one_handler(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder) -> int:
        return 1

    plan = cqrs.bootstrap(registry=registry).plans[PlaceOrder]
    assert (plan.message, plan.kind, [found.name for found in plan.handlers]) == (
        PlaceOrder,
        Kind.COMMAND,
        [name(handler)],
    )


def test_an_event_has_its_handlers_in_the_order_of_their_decoration(registry: cqrs.Registry):
    @registry.event_handler
    async def first(event: OrderPlaced) -> None: ...

    @registry.event_handler
    async def second(event: OrderPlaced) -> None: ...

    plan = cqrs.bootstrap(registry=registry).plans[OrderPlaced]
    assert [found.name for found in plan.handlers] == [name(first), name(second)]


def test_the_same_handler_written_down_twice_is_one(registry: cqrs.Registry):
    async def handler(command: PlaceOrder) -> int:
        return 1

    registry.command_handler(registry.command_handler(handler))
    assert len(cqrs.bootstrap(registry=registry).plans[PlaceOrder].handlers) == 1


def test_two_command_handlers_are_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def one(command: PlaceOrder) -> int:
        return 1

    @registry.command_handler
    async def other(command: PlaceOrder) -> int:
        return 2

    assert problems(registry=registry) == [
        (
            f"{path(PlaceOrder)} has 2 command handlers, expected one: "
            f"{name(one)} ({place(one)}), {name(other)} ({place(other)}). {ONE_OF_THEM}"
        )
    ]


def test_two_query_handlers_are_refused(registry: cqrs.Registry):
    class GetOrder(cqrs.Query[int]):
        pass

    @registry.query_handler
    async def one(query: GetOrder) -> int:
        return 1

    @registry.query_handler
    async def other(query: GetOrder) -> int:
        return 2

    (problem,) = problems(registry=registry)
    assert problem.startswith(f"{path(GetOrder)} has 2 query handlers, expected one: ")


def test_handlers_of_several_kinds_are_refused(registry: cqrs.Registry):
    @dataclass
    class Ping:
        pass

    @registry.command_handler
    async def one(message: Ping) -> None: ...

    @registry.event_handler
    async def other(message: Ping) -> None: ...

    assert problems(registry=registry) == [
        (
            f"{path(Ping)} has 2 command and event handlers, expected one: "
            f"{name(one)} ({place(one)}), {name(other)} ({place(other)}). {ONE_OF_THEM}"
        )
    ]


def test_a_published_event_that_cannot_be_written_is_refused(registry: cqrs.Registry, database: str):
    @registry.integration_event(topic="orders")
    class Shipped(cqrs.Event):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        parcel: Opaque

    @registry.event_handler
    async def handler(event: Shipped) -> None: ...

    (problem,) = problems(registry=registry, database=database)
    assert problem.startswith(f"{path(Shipped)} cannot be written as JSON and read back: ")
    assert "Opaque" in problem
    assert problem.endswith(f"({place(Shipped)}). {WRITE_AND_READ}")


def test_an_event_of_a_durable_handler_that_cannot_be_written_is_refused(registry: cqrs.Registry, database: str):
    class Shipped(cqrs.Event):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        parcel: Opaque

    @registry.event_handler(durable=True)
    async def handler(event: Shipped) -> None: ...

    (problem,) = problems(registry=registry, database=database)
    assert problem.startswith(f"{path(Shipped)} cannot be written as JSON and read back: ")


def test_a_published_dataclass_that_cannot_be_written_is_refused(registry: cqrs.Registry, database: str):
    @registry.integration_event(topic="orders")
    @dataclass(frozen=True)
    class Shipped:
        parcel: Opaque

    @registry.event_handler
    async def handler(event: Shipped) -> None: ...

    (problem,) = problems(registry=registry, database=database)
    assert problem.startswith(f"{path(Shipped)} cannot be written as JSON and read back: ")


def test_a_published_event_that_is_written_under_a_name_it_is_not_read_by_is_refused(
    registry: cqrs.Registry, database: str
):
    @registry.integration_event(topic="orders")
    class Shipped(cqrs.Event):
        parcel: str = pydantic.Field(serialization_alias="parcelNumber")

    @registry.event_handler
    async def handler(event: Shipped) -> None: ...

    (problem,) = problems(registry=registry, database=database)
    assert problem.startswith(f"{path(Shipped)} cannot be written as JSON and read back: ")


def test_only_events_are_published(registry: cqrs.Registry, database: str):
    @registry.integration_event(topic="orders")
    class Place(cqrs.Command[None]):
        pass

    @registry.command_handler
    async def handler(command: Place) -> None: ...

    cure = "Publish a class of its own, which says what has happened: `class OrderPlaced(cqrs.Event)`."
    assert problems(registry=registry, database=database) == [
        f"{path(Place)} is no event, and only events are published ({place(Place)}). {cure}"
    ]


@pytest.mark.parametrize("topic", ["", "x" * 250, None])
def test_a_topic_that_does_not_fit_is_refused(registry: cqrs.Registry, database: str, topic: Any):
    @registry.integration_event(topic=topic)
    class Shipped(cqrs.Event):
        pass

    @registry.event_handler
    async def handler(event: Shipped) -> None: ...

    assert problems(registry=registry, database=database) == [
        (
            f"{path(Shipped)}: topic={topic!r} cannot be ({place(Shipped)}). "
            'Pass a text of at most 249 characters: topic="orders".'
        )
    ]


def test_a_local_event_need_not_be_written(registry: cqrs.Registry):
    class Shipped(cqrs.Event):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        parcel: Opaque

    @registry.event_handler
    async def handler(event: Shipped) -> None: ...

    assert cqrs.bootstrap(registry=registry).plans[Shipped].codec is None


def test_a_key_that_the_event_does_not_have_is_refused(registry: cqrs.Registry, database: str):
    @registry.integration_event(topic="orders", key="order")
    class Shipped(cqrs.Event):
        order_id: str

    @registry.event_handler
    async def handler(event: Shipped) -> None: ...

    assert problems(registry=registry, database=database) == [
        (
            f"{path(Shipped)} has no 'order' to be its key ({place(Shipped)}). "
            "Name one of the event's fields or properties."
        )
    ]


@pytest.mark.parametrize("key", ["order_id", "both"])
def test_a_key_is_a_field_or_a_property(registry: cqrs.Registry, database: str, key: str):
    @registry.integration_event(topic="orders", key=key)
    class Shipped(cqrs.Event):
        order_id: str

        @property
        def both(self) -> str:
            return f"{self.order_id}!"

    @registry.event_handler
    async def handler(event: Shipped) -> None: ...

    plan = cqrs.bootstrap(registry=registry, database=database).plans[Shipped]
    expected = {"order_id": "o1", "both": "o1!"}[key]
    assert plan.route(Shipped(order_id="o1")) == Route("Shipped", "orders", expected)


def test_a_key_of_a_dataclass_is_a_field(registry: cqrs.Registry, database: str):
    @registry.integration_event(topic="orders", key="order_id")
    @dataclass(frozen=True)
    class Shipped:
        order_id: int

    @registry.event_handler
    async def handler(event: Shipped) -> None: ...

    plan = cqrs.bootstrap(registry=registry, database=database).plans[Shipped]
    assert plan.route(Shipped(7)) == Route("Shipped", "orders", 7)


@pytest.mark.parametrize("published", [True, False], ids=["published", "durable"])
def test_a_concurrent_handler_in_the_background_is_refused(registry: cqrs.Registry, database: str, published: bool):
    class Shipped(cqrs.Event):
        pass

    if published:
        registry.integration_event(topic="orders")(Shipped)

    @registry.event_handler(concurrent=True, durable=not published)
    async def handler(event: Shipped) -> None: ...

    assert problems(registry=registry, database=database) == [
        (
            f"{name(handler)} is concurrent, but is delivered in the background, where every handler is on its own "
            f"({place(handler)}). Remove concurrent=True."
        )
    ]


def test_two_handlers_of_one_name_are_refused(registry: cqrs.Registry):
    @registry.event_handler(name="orders.ship")
    async def one(event: OrderPlaced) -> None: ...

    @registry.event_handler(name="orders.ship")
    async def other(event: OrderPlaced) -> None: ...

    assert problems(registry=registry) == [
        f"Two handlers are named 'orders.ship': {place(one)} and {place(other)}. {A_NAME_OF_ITS_OWN}"
    ]


def test_one_name_for_handlers_of_different_messages_is_refused_too(registry: cqrs.Registry):
    @registry.event_handler(name="orders.ship")
    async def one(event: OrderPlaced) -> None: ...

    @registry.command_handler(name="orders.ship")
    async def other(command: PlaceOrder) -> int:
        return 1

    assert problems(registry=registry) == [
        f"Two handlers are named 'orders.ship': {place(one)} and {place(other)}. {A_NAME_OF_ITS_OWN}"
    ]


# What becomes of an event


def test_an_event_that_nobody_handles_goes_nowhere():
    plan = event_plan(OrderPlaced, None)
    event = OrderPlaced(order_id="o1")
    assert (plan.durable, plan.handlers, plan.route(event)) == (False, (), None)


def test_a_published_event_is_saved_under_its_name_topic_and_key():
    plan = event_plan(OrderPlaced, Publication(OrderPlaced, "order.placed", "orders", "order_id"))
    event = OrderPlaced(order_id="o1")
    assert (plan.durable, plan.route(event)) == (False, Route("order.placed", "orders", "o1"))
    assert plan.name == "order.placed"


def test_a_published_event_without_a_key_has_none():
    plan = event_plan(OrderPlaced, Publication(OrderPlaced, "OrderPlaced", "orders", None))
    assert plan.route(OrderPlaced(order_id="o1")) == Route("OrderPlaced", "orders", None)


def test_an_event_with_a_durable_and_a_plain_handler_is_both_saved_and_local(registry: cqrs.Registry, database: str):
    @registry.event_handler
    async def plain(event: OrderPlaced) -> None: ...

    @registry.event_handler(durable=True)
    async def durable(event: OrderPlaced) -> None: ...

    plan = cqrs.bootstrap(registry=registry, database=database).plans[OrderPlaced]
    event = OrderPlaced(order_id="o1")
    assert (plan.durable, plan.route(event)) == (True, None)
    assert [found.name for found in plan.local] == [name(plain)]


def test_an_event_with_durable_handlers_only_is_not_local(registry: cqrs.Registry, database: str):
    @registry.event_handler(durable=True)
    async def durable(event: OrderPlaced) -> None: ...

    plan = cqrs.bootstrap(registry=registry, database=database).plans[OrderPlaced]
    assert plan.local == ()


@pytest.mark.parametrize("topic", ["", "users"])
def test_a_notification_is_published_where_it_has_a_topic(topic: str):
    plan = event_plan(cqrs.NotificationEvent[UserCreated], None)
    event = cqrs.NotificationEvent[UserCreated](payload=UserCreated(user_id="u1"), topic=topic, key="u1")
    assert not plan.durable
    assert plan.route(event) == (Route("UserCreated", "users", "u1") if topic else None)


def test_concurrent_handlers_are_kept_apart_from_those_that_run_in_turn(registry: cqrs.Registry):
    @registry.event_handler(concurrent=True)
    async def beside(event: OrderPlaced) -> None: ...

    @registry.event_handler
    async def in_turn(event: OrderPlaced) -> None: ...

    plan = cqrs.bootstrap(registry=registry).plans[OrderPlaced]
    assert [found.name for found in plan.local] == [name(in_turn)]
    assert [found.name for found in plan.concurrent] == [name(beside)]


def test_a_notification_carries_the_name_of_its_instance(registry: cqrs.Registry):
    plan = event_plan(cqrs.NotificationEvent[UserCreated], None)
    event = cqrs.NotificationEvent[UserCreated](
        payload=UserCreated(user_id="u1"), topic="users", event_name="user.created"
    )
    assert plan.route(event) == Route("user.created", "users", None)


def test_events_of_datetimes_pass_the_check(registry: cqrs.Registry, database: str):
    @registry.integration_event(topic="orders")
    class Shipped(cqrs.Event):
        at: datetime
        lines: dict[str, list[int | None]]
        anything: Any = None

    @registry.event_handler
    async def handler(event: Shipped) -> None: ...

    assert cqrs.bootstrap(registry=registry, database=database).plans[Shipped].publication is not None
