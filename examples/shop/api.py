"""The shop behind HTTP: `uvicorn --factory examples.shop.api:serve`, with DATABASE_URL and BROKER_URL.

With `serve_and_consume` the same process takes the events back from the broker.
"""

import os

from fastapi import FastAPI

import cqrs
from cqrs.integrations.fastapi import expose, lifespan, probes, problems, router
from examples.shop.app import make_shop
from examples.shop.messages import GetOrder, LastLine, PlaceOrder, Refused, RefuseLine, UnknownOrder


def make_api(shop: cqrs.Mediator, *, consume: bool = False) -> FastAPI:
    api = FastAPI(
        title="The shop",
        lifespan=lifespan(shop, consume=consume),
        exception_handlers=problems({Refused: 409, UnknownOrder: 404}),
    )
    orders = router(
        shop,
        expose(PlaceOrder, "POST /orders", status=201, refused=[409]),
        expose(GetOrder, "GET /orders/{order_id}", refused=[404]),
        expose(RefuseLine, "PUT /refused-lines/{line}"),
        expose(LastLine, "GET /last-line"),
    )
    api.include_router(orders)
    api.include_router(probes(shop))
    return api


def serve(*, consume: bool = False) -> FastAPI:
    """Return the shop on the servers that the environment names."""
    return make_api(make_shop(os.environ["DATABASE_URL"], os.environ.get("BROKER_URL") or None), consume=consume)


def serve_and_consume() -> FastAPI:
    """Return the shop that also writes its receipts: one process is enough as long as there is little to do."""
    return serve(consume=True)
