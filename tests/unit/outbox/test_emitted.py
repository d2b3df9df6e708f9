from collections.abc import Collection

import pytest

import cqrs
from cqrs.outbox import emitted
from cqrs.outbox.rows import Unended
from tests.unit.outbox.shop import SAVED, Shop, Start, is_parked
from tests.unit.outbox.support import run_sql, storage_of, until


async def test_draining_waits_until_all_was_delivered(shop: Shop):
    async with shop.app() as app:
        await app.send(Start(orders=["o1", "o2", "o3"]))
        await app.drain()
        assert sorted(shop.seen) == ["o1", "o2", "o3"]
        assert await run_sql(shop.database, SAVED) == [0]


async def test_draining_waits_for_what_was_caused_by_the_delivery(shop: Shop):
    async with shop.app(follows=True) as app:
        await app.send(Start(orders=["o1"]))
        await app.drain()
        assert shop.seen == ["o1", "after o1"]


async def test_with_nothing_emitted_there_is_nothing_to_drain(shop: Shop):
    async with shop.app() as app:
        await app.drain(0.0)


async def test_draining_does_not_wait_for_what_others_emitted(shop: Shop):
    async with shop.app(relay=False) as one, shop.app(relay=False) as two:
        await one.send(Start(orders=["o1"]))
        await two.drain(0.0)


async def test_draining_lists_what_waits_when_its_time_is_over(shop: Shop):
    async with shop.app(relay=False) as app:
        await app.send(Start(orders=["o1"]))
        with pytest.raises(cqrs.DrainTimeout) as caught:
            await app.drain(0.0)
        (event_id,) = await run_sql(shop.database, "SELECT event_id FROM cqrs_outbox")
    assert str(caught.value) == f"1 not delivered after 0 s\n- Happened {event_id} to receive: waiting"
    assert caught.value.pending == (f"- Happened {event_id} to receive: waiting",)


async def test_draining_ends_at_once_when_only_dead_letters_are_left(shop: Shop):
    shop.failing = True
    async with shop.app() as app:
        await app.send(Start(orders=["o1"]))
        with pytest.raises(cqrs.DrainTimeout) as caught:
            await app.drain(1000.0)
    assert str(caught.value).startswith("1 given up: app.outbox.replay() or discard() ends them\n- Happened ")
    assert str(caught.value).endswith(" to receive: dead (ValueError: no stock)")


async def test_draining_lists_what_waits_behind_a_dead_letter(shop: Shop):
    shop.failing = True
    async with shop.app() as app:
        await app.send(Start(orders=["o1", "o1"]))
        await until(lambda: is_parked(app, dead=1, waiting=1))
        with pytest.raises(cqrs.DrainTimeout) as caught:
            await app.drain(0.0)
    assert [line.partition(" to receive: ")[2].split()[0] for line in caught.value.pending] == ["dead", "waiting"]


async def test_a_dead_letter_that_was_replayed_can_be_drained(shop: Shop):
    shop.failing = True
    async with shop.app() as app:
        await app.send(Start(orders=["o1"]))
        with pytest.raises(cqrs.DrainTimeout):
            await app.drain()
        shop.failing = False
        await app.outbox.replay()
        await app.drain()
    assert shop.seen == ["o1"]


async def test_only_the_last_events_are_remembered_for_draining(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(emitted, "REMEMBERED", 2)
    async with shop.app(relay=False) as app:
        await app.send(Start(orders=["o1", "o2", "o3"]))
        assert len(storage_of(app)._emitted) == 2


async def test_draining_waits_for_what_is_emitted_while_the_database_is_asked(shop: Shop):
    async with shop.app() as app:
        store = storage_of(app).store
        unended, late = store.unended, ["o2"]

        async def asked(event_ids: Collection[str]) -> list[Unended]:
            left = await unended(event_ids)
            if late and not left:
                await app.send(Start(orders=[late.pop()]))
            return left

        store.unended = asked
        await app.send(Start(orders=["o1"]))
        await app.drain()
    assert shop.seen == ["o1", "o2"]
