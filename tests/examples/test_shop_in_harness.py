"""The shop in a harness: what an order causes, without a server and without waiting."""

import pytest
from sqlalchemy import insert, select

from cqrs.testing import harness
from examples.shop.app import make_shop
from examples.shop.messages import GetOrder, OrderPlaced, PlaceOrder, Refused
from examples.shop.tables import Article, Base, Movement, Receipt

TEA = PlaceOrder(line=1, order_id="A1", customer="Ada", sku="mug", quantity=2)


@pytest.mark.parametrize("broker", [None, "kafka://localhost:1", "amqp://localhost:1"])
async def test_an_order_takes_stock_and_has_a_receipt(broker: str | None):
    shop = make_shop("postgresql+asyncpg://nobody@localhost:1/nowhere", broker)
    async with harness(shop, tables=Base.metadata) as t:
        async with t.session() as session:
            await session.execute(insert(Article).values(sku="mug", price=1450, initial=2, available=2))
        reply = await t.send(TEA)
        assert (await t.send(TEA), (await t.send(GetOrder(order_id="A1"))).total) == (reply, 2900)
        with pytest.raises(Refused):
            await t.send(TEA.model_copy(update={"line": 2, "order_id": "A2"}))
        assert [each.event.order_id for each in t.published] == ["A1"]
        assert t.assert_published(OrderPlaced).key == "Ada"
        async with t.session() as session:
            assert list(await session.scalars(select(Receipt.order_id))) == ["A1"]
            assert list(await session.scalars(select(Movement.quantity))) == [2]
