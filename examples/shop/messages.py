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
Reason = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


Line = Annotated[int, pydantic.Field(ge=1, le=2**31 - 1)]
"""The number of a line, as the database's integers hold it."""


class Confirmation(cqrs.Response):
    order_id: str
    total: int
    """In cents."""


class PlaceOrder(cqrs.Command[Confirmation], extra="forbid"):
    line: Line
    """Where the order stands in its file: the same line sent twice is one order."""
    order_id: Name
    customer: Name
    sku: Name
    quantity: pydantic.PositiveInt


class RefuseLine(cqrs.Command[None], extra="forbid"):
    line: Line
    reason: Reason


class PlacedOrder(cqrs.Response):
    order_id: str
    customer: str
    sku: str
    quantity: int
    total: int
    """In cents."""


class GetOrder(cqrs.Query[PlacedOrder]):
    order_id: Name


class LastLine(cqrs.Query[int]):
    """The last line that was dealt with; 0 before the first."""


class MissingReceipts(cqrs.Query[int]):
    """How many orders have no receipt yet."""


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


class Refused(Exception):
    """The shop does not take an order; the text is the reason."""


class UnknownOrder(Exception):
    """There is no order of that id."""
