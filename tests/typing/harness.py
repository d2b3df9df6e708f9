"""What a harness answers: `send` as the application does, and assertions what they found."""

from typing import assert_type

import cqrs
from cqrs.testing import Attempt, Harness, Published, harness


class Reply(cqrs.Response):
    order_id: str


class PlaceOrder(cqrs.Command[Reply]):
    sku: str


class GetOrder(cqrs.Query[Reply | None]):
    order_id: str


class OrderPlaced(cqrs.Event):
    order_id: str


class Mailer: ...


async def use(app: cqrs.Mediator) -> None:
    async with harness(app, overrides={Mailer: Mailer(), "clock": 1}, timeout=1.0) as t:
        assert_type(t, Harness)
        assert_type(await t.send(PlaceOrder(sku="tea")), Reply)
        assert_type(await t.send(GetOrder(order_id="1")), Reply | None)
        assert_type(t.assert_sent(PlaceOrder, sku="tea"), PlaceOrder)
        assert_type(t.assert_emitted(OrderPlaced), OrderPlaced)
        assert_type(t.assert_published(OrderPlaced), Published)
        assert_type(t.failures, list[Attempt])
        assert_type(t.app, cqrs.Mediator)
