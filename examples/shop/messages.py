"""Everything that is said in the shop: commands and a query to ask, events to tell."""

import os
from typing import Annotated

import pydantic

import cqrs

TOPIC = os.environ.get("SHOP_TOPIC", "orders")
"""Where the shop publishes. Shops that share a broker have a topic each."""

Name = Annotated[
    str, pydantic.StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^\x00]*$")
]


class Confirmation(cqrs.Response):
    order_id: str
    total: int
    """In cents."""


class PlaceOrder(cqrs.Command[Confirmation], extra="forbid"):
    line: int
    """Where the order stands in its file: the same line sent twice is one order."""
    order_id: Name
    customer: Name
    sku: Name
    quantity: pydantic.PositiveInt


class RefuseLine(cqrs.Command[None]):
    line: int
    reason: str


class LastLine(cqrs.Query[int]):
    """The last line that was dealt with; 0 before the first."""


class StockReserved(cqrs.Event):
    """Local: its handlers run in the transaction of the command that emitted it."""

    order_id: str
    sku: str
    quantity: int


@cqrs.integration_event(topic=TOPIC, key="customer")
class OrderPlaced(cqrs.Event):
    """Published: saved with the order, delivered after the commit, each customer's in order."""

    order_id: str
    customer: str
    sku: str
    quantity: int
    total: int
    event_id: str | None = pydantic.Field(default=None, exclude=True)
    """Not in the body: whoever takes the event from a broker writes the message's id here, so that it counts once."""


class Refused(Exception):
    """The shop does not take an order; the text is the reason."""
