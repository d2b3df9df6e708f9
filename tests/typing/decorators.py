"""Decorators, bare and with options, keep the types of what they decorate."""

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

import cqrs
from cqrs.context import Call


class PlaceOrder(cqrs.Command[int]):
    sku: str


class CancelOrder(cqrs.Command[None]):
    sku: str


class GetOrder(cqrs.Query[str]):
    order_id: str


class OrderCounted(cqrs.Event):
    order_id: str


class Orders:
    async def place(self, sku: str) -> int:
        return len(sku)


async def logged(message: Any, context: cqrs.Context, call_next: Call) -> Any:
    return await call_next(message, context)


middleware: cqrs.Middleware = logged


# Functions, bare


@cqrs.command_handler
async def place_order(command: PlaceOrder, orders: Orders) -> int:
    return await orders.place(command.sku)


@cqrs.query_handler
async def get_order(query: GetOrder) -> str:
    return query.order_id


@cqrs.event_handler
async def count(event: OrderCounted, context: cqrs.Context) -> None:
    context.emit(event)


# Functions, with options


@cqrs.command_handler(name="orders.cancel", middlewares=(logged,))
async def cancel_order(command: CancelOrder) -> None: ...


@cqrs.query_handler(name="orders.get")
async def get_order_again(query: GetOrder) -> str:
    return query.order_id


@cqrs.event_handler(
    durable=True, retry=cqrs.Retry(attempts=3), on_dead="skip", timeout=5.0, name="orders.count", middlewares=(logged,)
)
async def count_durably(event: OrderCounted) -> None: ...


@cqrs.event_handler(concurrent=True)
async def count_beside(event: OrderCounted) -> None: ...


@cqrs.event_handler(
    durable=True, retry={ConnectionError: cqrs.Retry(attempts=None), ValueError: cqrs.Retry(attempts=1)}
)
async def count_with_policies(event: OrderCounted) -> None: ...


async def functions_are_called_as_they_were_written(orders: Orders, context: cqrs.Context) -> None:
    assert_type(await place_order(PlaceOrder(sku="tea"), orders), int)
    assert_type(await place_order(command=PlaceOrder(sku="tea"), orders=orders), int)
    assert_type(await get_order(GetOrder(order_id="o1")), str)
    assert_type(await get_order_again(GetOrder(order_id="o1")), str)
    await cancel_order(CancelOrder(sku="tea"))
    await count(OrderCounted(order_id="o1"), context)
    await count_durably(OrderCounted(order_id="o1"))
    keeps: Callable[[GetOrder], Coroutine[Any, Any, str]] = get_order_again
    del keeps
    await place_order(PlaceOrder(sku="tea"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await cancel_order("tea")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Classes


@cqrs.command_handler
class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder, int]):
    def __init__(self, orders: Orders) -> None:
        self.orders = orders

    async def handle(self, request: PlaceOrder) -> int:
        return await self.orders.place(request.sku)


@cqrs.query_handler(name="orders.get")
class GetOrderHandler:
    async def handle(self, query: GetOrder) -> str:
        return query.order_id


@cqrs.event_handler(durable=True)
class CountHandler(cqrs.EventHandler[OrderCounted]):
    async def handle(self, event: OrderCounted) -> None: ...


async def classes_are_made_as_they_were_written(orders: Orders) -> None:
    assert_type(PlaceOrderHandler(orders), PlaceOrderHandler)
    assert_type(PlaceOrderHandler(orders).orders, Orders)
    assert_type(await PlaceOrderHandler(orders).handle(PlaceOrder(sku="tea")), int)
    assert_type(await GetOrderHandler().handle(GetOrder(order_id="o1")), str)
    assert_type(CountHandler, type[CountHandler])
    PlaceOrderHandler()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# Published events


@cqrs.integration_event(topic="orders", key="order_id")
class OrderPlaced(cqrs.Event):
    order_id: str


@cqrs.integration_event(topic="orders", name="order.shipped")
class OrderShipped(cqrs.Event):
    order_id: str


def published_events_keep_their_types() -> None:
    assert_type(OrderPlaced, type[OrderPlaced])
    assert_type(OrderPlaced(order_id="o1"), OrderPlaced)
    assert_type(OrderShipped(order_id="o1").order_id, str)


# A registry's own decorators are the same

registry = cqrs.Registry()


@registry.command_handler
async def place_elsewhere(command: PlaceOrder) -> int:
    return 1


@registry.event_handler(durable=True)
async def count_elsewhere(event: OrderCounted) -> None: ...


@registry.integration_event(topic="orders")
class OrderReturned(cqrs.Event):
    order_id: str


async def a_registrys_decorators_keep_types() -> None:
    assert_type(await place_elsewhere(PlaceOrder(sku="tea")), int)
    assert_type(OrderReturned(order_id="o1"), OrderReturned)


# Options that there are not


@cqrs.command_handler(durable=True)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
async def durable_command(command: PlaceOrder) -> int:
    return 1


@cqrs.event_handler(on_dead="forget")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def forgetful(event: OrderCounted) -> None: ...
