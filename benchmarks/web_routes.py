"""What `benchmarks.web` asks: the same route of the same command and handler, each time by another way.

Each is a FastAPI application of its own, so that none is found behind the others.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI

import cqrs
from cqrs.integrations.fastapi import OriginMiddleware, expose, get_mediator, router


class Confirmation(cqrs.Response):
    order_id: str
    total: int


class PlaceOrder(cqrs.Command[Confirmation]):
    order_id: str
    customer: str
    sku: str
    quantity: int


registry = cqrs.Registry()


@registry.command_handler
async def place_order(command: PlaceOrder) -> Confirmation:
    return Confirmation(order_id=command.order_id, total=690 * command.quantity)


app = cqrs.bootstrap(registry=registry, name="web")


async def get_handler() -> Any:
    return place_order


async def direct(command: PlaceOrder) -> Confirmation:
    return await place_order(command)


async def sent(command: PlaceOrder) -> Confirmation:
    return await app.send(command)


async def direct_depends(command: PlaceOrder, handle: Annotated[Any, Depends(get_handler)]) -> Confirmation:
    return await handle(command)


async def depends(command: PlaceOrder, mediator: Annotated[cqrs.Mediator, Depends(get_mediator)]) -> Confirmation:
    return await mediator.send(command)


def serving(routes: APIRouter, *, through_bus: bool = True) -> FastAPI:
    served = FastAPI()
    if through_bus:  # what `lifespan` does; without a database nothing has to be opened
        served.state.mediator = app
        served.add_middleware(OriginMiddleware)
    served.include_router(routes)
    return served


def by_hand(endpoint: Any) -> APIRouter:
    routes = APIRouter()
    routes.post("/orders")(endpoint)
    return routes


SERVED = {
    "direct": serving(by_hand(direct), through_bus=False),
    "direct-depends": serving(by_hand(direct_depends), through_bus=False),
    "sent": serving(by_hand(sent)),
    "depends": serving(by_hand(depends)),
    "exposed": serving(router(app, expose(PlaceOrder, "POST /orders"))),
}


async def api(scope: Any, receive: Any, send: Any) -> None:
    """Hand a request to the application that its path begins with, and the lifespan to the first one."""
    if scope["type"] == "lifespan":
        await SERVED["direct"](scope, receive, send)
        return
    name = scope["path"].split("/", 2)[1]
    await SERVED[name](scope | {"path": "/orders", "raw_path": b"/orders"}, receive, send)
