from typing import Any

import pytest

import cqrs
from tests.unit.support import path, place, problems

pytestmark = pytest.mark.usefixtures("own_registrations")

POLICIES = "Pass a cqrs.Retry, or a mapping from exception types to them."
MIDDLEWARE = "`async def middleware(message, context, call_next)`."


class PlaceOrder(cqrs.Command[str]):
    pass


class OrderPlaced(cqrs.Event):
    pass


async def pass_on(message: Any, call_next: Any) -> Any:
    return await call_next(message)


class Timed:
    async def __call__(self, message: Any, context: cqrs.Context, call_next: Any) -> Any:
        return await call_next(message, context)


@pytest.mark.parametrize(
    ("option", "value", "cure"),
    [
        ("retry", 5, POLICIES),
        ("retry", {"ValueError": cqrs.Retry()}, POLICIES),
        ("on_dead", "blok", "Pass 'block' or 'skip'."),
        ("timeout", 0, "Pass seconds above 0."),
        ("timeout", "60", "Pass seconds above 0."),
        ("name", "", "Pass a text that is not empty."),
        ("group", 2.0, "Pass a number of messages from 1 to 1000, or leave it out for a transaction a message."),
    ],
)
def test_a_value_that_a_handlers_option_cannot_have_is_refused(
    registry: cqrs.Registry, option: str, value: Any, cure: str
):
    @registry.event_handler(**{option: value})
    async def handler(event: OrderPlaced) -> None: ...

    assert problems(registry=registry) == [f"{path(handler)}: {option}={value!r} cannot be ({place(handler)}). {cure}"]


def test_what_an_option_cannot_be_is_told_with_all_else(registry: cqrs.Registry):
    @registry.event_handler(retry=5, on_dead="blok")
    async def handler(event: OrderPlaced) -> None: ...

    @registry.command_handler
    async def place_order(command: PlaceOrder) -> int:
        return 1

    assert len(problems(registry=registry)) == 3


def test_a_middleware_that_does_not_take_what_it_is_given_is_refused(registry: cqrs.Registry):
    assert problems(registry=registry, middlewares=[pass_on]) == [
        f"The middleware pass_on does not take what it is given ({place(pass_on)}). Write {MIDDLEWARE}"
    ]


def test_a_handlers_middleware_that_does_not_take_what_it_is_given_is_refused(registry: cqrs.Registry):
    @registry.command_handler(middlewares=(pass_on,))
    async def handler(command: PlaceOrder) -> str:
        return ""

    assert problems(registry=registry) == [
        (
            f"{path(handler)}: The middleware pass_on does not take what it is given ({place(handler)}). "
            f"Write {MIDDLEWARE}"
        )
    ]


def test_middlewares_that_are_no_list_are_refused(registry: cqrs.Registry):
    assert problems(registry=registry, middlewares=pass_on) == [
        f"middlewares={pass_on!r} cannot be. Pass a list of them."
    ]


async def test_an_object_may_be_a_middleware(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder) -> str:
        return "placed"

    assert await cqrs.bootstrap(registry=registry, middlewares=[Timed()]).send(PlaceOrder()) == "placed"
