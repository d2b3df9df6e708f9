"""What `send` answers: the type that the message promises."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, assert_type

import cqrs


class OrderPlacedReply(cqrs.Response):
    order_id: str


class PlaceOrder(cqrs.Command[OrderPlacedReply]):
    sku: str
    quantity: int


class CancelOrder(cqrs.Command[None]):
    order_id: str


class Reindex(cqrs.Command):  # a command that promises nothing
    pass


class GetOrder(cqrs.Query[OrderPlacedReply | None]):
    order_id: str


class ListOrders(cqrs.Query[list[OrderPlacedReply]]):
    pass


class OrderPlaced(cqrs.Event):
    order_id: str


class Ping(cqrs.Request):
    text: str


@dataclass(frozen=True)
class Plain:
    text: str


async def through_the_mediator(app: cqrs.Mediator) -> None:
    assert_type(await app.send(PlaceOrder(sku="tea", quantity=2)), OrderPlacedReply)
    assert_type(await app.send(GetOrder(order_id="o1")), OrderPlacedReply | None)
    assert_type(await app.send(ListOrders()), list[OrderPlacedReply])
    assert_type(await app.send(Reindex()), Any)
    assert_type(await app.send(Ping(text="hello")), Any)
    assert_type(await app.send(Plain("hello")), Any)


async def through_the_context(context: cqrs.Context) -> None:
    assert_type(await context.send(PlaceOrder(sku="tea", quantity=2)), OrderPlacedReply)
    assert_type(await context.send(GetOrder(order_id="o1")), OrderPlacedReply | None)
    assert_type(await context.send(Reindex()), Any)
    assert_type(await context.send(Ping(text="hello")), Any)


async def without_an_answer(app: cqrs.Mediator, context: cqrs.Context) -> None:
    await app.send(CancelOrder(order_id="o1"))
    await app.send(OrderPlaced(order_id="o1"))
    await context.send(CancelOrder(order_id="o1"))
    nothing: Awaitable[None] = app.send(CancelOrder(order_id="o1"))
    nothing_of_an_event: Awaitable[None] = app.send(OrderPlaced(order_id="o1"))
    nothing_of_a_nested_command: Awaitable[None] = context.send(CancelOrder(order_id="o1"))
    await nothing
    await nothing_of_an_event
    await nothing_of_a_nested_command


async def a_wrong_use_of_a_reply(app: cqrs.Mediator) -> None:
    reply = await app.send(PlaceOrder(sku="tea", quantity=2))
    wrong: int = reply  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    del wrong


def wrong_fields_of_a_message() -> None:
    PlaceOrder(sku="tea")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def the_rest_of_the_mediator(app: cqrs.Mediator) -> None:
    assert_type(app.name, str)
    await app.emit(OrderPlaced(order_id="o1"))
    await app.drain(timeout=5.0)
    assert_type(await app.outbox.replay(topic="orders"), int)
    assert_type(await app.outbox.discard(), int)
    async with app as opened:
        assert_type(opened, cqrs.Mediator)


def the_rest_of_the_context(context: cqrs.Context) -> None:
    assert_type(context.message_id, str)
    assert_type(context.correlation_id, str)
    assert_type(context.causation_id, str | None)
    assert_type(context.attempt, int)
    context.emit(OrderPlaced(order_id="o1"))


def a_reply_as_a_dict(reply: OrderPlacedReply) -> None:
    assert_type(reply.data, dict[str, Any])
    assert_type(reply.order_id, str)
