import pytest

import cqrs
from tests.unit.outbox.shop import Shop, Start


async def test_tables_of_another_application_are_refused(shop: Shop):
    async with shop.app():
        pass
    with pytest.raises(cqrs.SchemaError) as caught:
        await shop.app(name="store").__aenter__()
    assert str(caught.value) == (
        "These tables belong to the application 'shop', and this one is 'store'. If it is the same application, pass "
        "name='shop' to bootstrap; otherwise give it tables of its own: prefix='...', or on a server schema='...'."
    )


async def test_another_application_may_have_tables_of_its_own_in_the_file(shop: Shop):
    async with shop.app(relay=False) as one, shop.app(name="store", prefix="store_", relay=False) as two:
        await one.send(Start(orders=["o1"]))
        await two.send(Start(orders=["o2", "o3"]))
        assert [(await app.outbox.counts()).outbox for app in (one, two)] == [1, 2]


async def test_another_number_of_slots_is_refused(shop: Shop):
    async with shop.app():
        pass
    with pytest.raises(cqrs.SchemaError) as caught:
        await shop.app(slots=8).__aenter__()
    assert str(caught.value) == (
        "The outbox was begun with 16 slots, and this application has 8. Pass slots=16 to bootstrap, or empty the "
        "outbox and its slot table before a change."
    )
