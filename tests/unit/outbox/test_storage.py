import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from cqrs.outbox import storage
from tests.unit.outbox.shop import SAVED, FakeBroker, Happened, Shop, Start, is_parked
from tests.unit.outbox.support import run_sql, storage_of, until

SLOTS = "SELECT count(*) FROM cqrs_slot WHERE owner IS NOT NULL"


# Opening again


async def test_what_was_saved_is_there_when_the_database_is_opened_again(shop: Shop):
    async with shop.app(relay=False) as app:
        await app.send(Start(orders=["o1"]))
    async with shop.app() as app:
        await until(lambda: shop.seen == ["o1"])


async def test_one_application_object_can_be_opened_again_and_relays(shop: Shop):
    app = shop.app()
    for order in ("o1", "o2"):
        async with app:
            await app.send(Start(orders=[order]))
            await app.drain()
    assert shop.seen == ["o1", "o2"]


async def test_a_refused_start_leaves_no_connection_behind(shop: Shop):
    async with shop.app():
        pass
    await run_sql(shop.database, "UPDATE cqrs_settings SET value = '99' WHERE name = 'schema'")
    app = shop.app()
    with pytest.raises(cqrs.SchemaError):
        await app.__aenter__()
    await run_sql(shop.database, "UPDATE cqrs_settings SET value = '1' WHERE name = 'schema'")
    async with app:
        await app.send(Start(orders=["o1"]))
        await app.drain()
    assert shop.seen == ["o1"]


# Rows that nobody serves


async def test_rows_of_a_handler_that_is_gone_are_reported_at_start_with_the_cure(
    shop: Shop, caplog: pytest.LogCaptureFixture
):
    async with shop.app(relay=False) as app:
        await app.send(Start(orders=["o1", "o2"]))
    async with shop.app(handler="receive_order"):
        pass
    (message,) = caplog.messages
    assert message == (
        "2 rows wait for the handler 'receive', which this process does not have. If it was renamed, give the handler "
        "its old name: name='receive'. Otherwise they wait for a process that has it."
    )


async def test_rows_of_handlers_that_are_there_are_not_reported(shop: Shop, caplog: pytest.LogCaptureFixture):
    async with shop.app(relay=False) as app:
        await app.send(Start(orders=["o1"]))
    async with shop.app(relay=False):
        pass
    assert caplog.messages == []


async def test_rows_for_a_broker_that_is_gone_are_reported_at_start(shop: Shop, caplog: pytest.LogCaptureFixture):
    async with shop.app(handler=None, relay=False) as app:
        await app.send(Start(orders=["o1"]))
    async with shop.app():
        pass
    assert "1 rows wait for" in caplog.text


async def test_rows_wait_for_a_process_that_has_their_handler(shop: Shop):
    async with shop.app(relay=False) as app:
        await app.send(Start(orders=["o1"]))
    async with shop.app(handler="receive_order") as app:
        await app.send(Start(orders=["o2"]))
        await app.drain()
    assert shop.seen == ["o2"]
    async with shop.app():
        await until(lambda: shop.seen == ["o2", "o1"])


# Several processes


async def test_two_processes_on_one_file_deliver_each_event_once(shop: Shop):
    orders = [f"o{number}" for number in range(40)]
    async with shop.app() as one, shop.app() as two:
        await asyncio.gather(*(app.send(Start(orders=orders[n::2])) for n, app in enumerate((one, two))))
        await asyncio.gather(one.drain(), two.drain())
    assert sorted(shop.seen) == sorted(orders)


async def test_a_process_delivers_what_another_saved(shop: Shop):
    async with shop.app(relay=False) as one, shop.app() as two:
        await one.send(Start(orders=["o1"]))
        storage_of(two).relay.wake()
        await one.drain()
    assert shop.seen == ["o1"]


async def test_a_handler_that_takes_longer_than_the_lease_runs_once(database: str):
    begun, release, seen = asyncio.Event(), asyncio.Event(), []

    def make(**wishes: Any) -> cqrs.Mediator:
        registry = cqrs.Registry()
        registry.integration_event(topic="orders", key="order")(Happened)

        @registry.event_handler(name="receive")
        async def receive(event: Happened) -> None:
            seen.append(event.order)
            begun.set()
            await release.wait()

        return cqrs.bootstrap(registry=registry, name="shop", database=database, lease=0.2, **wishes)

    async with make() as one, make(relay=False) as two:
        await one.emit(Happened(order="o1"))
        await begun.wait()
        (until_first,) = await run_sql(database, "SELECT until FROM cqrs_slot WHERE owner IS NOT NULL")
        later = f"SELECT julianday(until) - julianday('{until_first}') > 0.2 / 86400 FROM cqrs_slot WHERE owner <> ''"

        async def is_renewed_past_its_lease() -> bool:
            return await run_sql(database, later) == [1]

        await until(is_renewed_past_its_lease)
        await storage_of(two).relay.relay_outbox()
        release.set()
        await one.drain()
    assert seen == ["o1"]


# Opening and closing


async def test_leaving_finishes_what_is_in_flight_and_hands_back_the_rest(database: str):
    begun, release, seen = asyncio.Event(), asyncio.Event(), []
    registry = cqrs.Registry()
    registry.integration_event(topic="orders", key="order")(Happened)

    @registry.event_handler(name="receive")
    async def receive(event: Happened, session: AsyncSession) -> None:
        begun.set()
        await release.wait()
        await session.execute(text("SELECT 1"))
        seen.append(event.order)

    app = cqrs.bootstrap(registry=registry, name="shop", database=database)
    async with app:
        for _ in range(2):
            await app.emit(Happened(order="o1"))
        await begun.wait()
        relay = storage_of(app).relay
        closing = asyncio.create_task(app.__aexit__(None, None, None))
        await until(lambda: relay.stopping)
        release.set()
        await closing
    assert seen == ["o1"]
    assert await run_sql(database, SAVED) == [1]
    assert await run_sql(database, SLOTS) == [0]


async def test_what_outlasts_the_grace_period_is_rolled_back_and_stays_saved(database: str):
    begun = asyncio.Event()
    registry = cqrs.Registry()
    registry.integration_event(topic="orders", key="order")(Happened)

    @registry.event_handler(name="receive")
    async def receive(event: Happened, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO items VALUES ('tea')"))
        begun.set()
        await asyncio.Event().wait()

    await run_sql(database, "CREATE TABLE items (name TEXT)")
    async with cqrs.bootstrap(registry=registry, name="shop", database=database, grace=0.01) as app:
        await app.emit(Happened(order="o1"))
        await begun.wait()
    assert await run_sql(database, "SELECT count(*) FROM items") == [0]
    assert await run_sql(database, "SELECT count(*) FROM cqrs_inbox") == [0]
    assert await run_sql(database, SAVED) == [1]
    assert await run_sql(database, SLOTS) == [0]


async def test_without_a_relay_rows_stay_for_workers(shop: Shop):
    async with shop.app(relay=False) as app:
        await app.send(Start(orders=["o1"]))
    assert await run_sql(shop.database, SAVED) == [1]


async def test_a_broker_is_opened_before_and_closed_after_the_relay(shop: Shop):
    log: list[str] = []
    async with shop.app(handler=None, broker=FakeBroker(log)) as app:
        await app.send(Start(orders=["o1"]))
        await app.drain()
    assert log == ["open", "publish o1", "close"]


async def test_a_broker_that_cannot_be_opened_stops_the_start(shop: Shop):
    log: list[str] = []
    app = shop.app(handler=None, broker=FakeBroker(log, refuses=True))
    with pytest.raises(ConnectionError):
        await app.__aenter__()
    with pytest.raises(cqrs.NotOpen):
        await app.send(Start(orders=["o1"]))
    assert log == ["open"]


# Housekeeping


@pytest.fixture
def busy_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep house all the time, where it is done once a minute."""
    monkeypatch.setattr(storage, "HOUSEKEEPING", 0.001)


@pytest.mark.usefixtures("busy_keeper")
async def test_inbox_rows_are_forgotten_after_their_retention(shop: Shop):
    async def is_forgotten() -> bool:
        return await run_sql(shop.database, "SELECT count(*) FROM cqrs_inbox") == [0]

    async with shop.app(inbox_retention=100.0) as app:
        await app.send(Start(orders=["o1"]))
        await app.drain()
        assert not await is_forgotten()
        storage_of(app).store.ahead += 101
        await until(is_forgotten)


@pytest.mark.usefixtures("busy_keeper")
async def test_dead_letters_are_forgotten_after_their_retention(shop: Shop):
    shop.failing = True
    async with shop.app(dead_retention=100.0, on_dead="skip") as app:
        await app.send(Start(orders=["o1"]))
        await until(lambda: is_parked(app, dead=1, waiting=0))
        storage_of(app).store.ahead += 101
        await until(lambda: is_parked(app, dead=0, waiting=0))


@pytest.mark.usefixtures("busy_keeper")
async def test_what_a_person_removed_by_hand_lets_its_successors_go_on(shop: Shop):
    shop.failing = True
    async with shop.app() as app:
        await app.send(Start(orders=["o1", "o1"]))
        await until(lambda: is_parked(app, dead=1, waiting=1))
        shop.failing = False
        await run_sql(shop.database, "DELETE FROM cqrs_parked WHERE state = 'dead'")
        storage_of(app).relay.look()

        async def is_over() -> bool:
            storage_of(app).relay.look()
            return shop.seen == ["o1"]

        await until(is_over)


@pytest.mark.usefixtures("busy_keeper")
async def test_rows_that_nobody_claims_are_reported_once_after_a_while(shop: Shop, caplog: pytest.LogCaptureFixture):
    def reports() -> list[str]:
        return [line for line in caplog.messages if line.startswith("1 rows wait for the handler 'receive'")]

    async with shop.app(handler="other") as app, shop.app(relay=False) as old:
        await old.send(Start(orders=["o1"]))
        assert reports() == []
        storage_of(app).store.ahead += 901
        await until(lambda: reports() != [])
        rounds = storage_of(app).store.parked.wake_heads
        count = 0

        async def counted(*arguments: Any) -> None:
            nonlocal count
            count += 1
            await rounds(*arguments)

        storage_of(app).store.parked.wake_heads = counted
        await until(lambda: count >= 3)
        assert len(reports()) == 1


@pytest.mark.usefixtures("busy_keeper")
async def test_housekeeping_that_failed_is_tried_again(shop: Shop, caplog: pytest.LogCaptureFixture):
    async with shop.app() as app:
        store = storage_of(app).store
        forget, failures = store.inbox.forget, [ConnectionError("gone")]

        async def failing(**options: Any) -> int:
            if failures:
                raise failures.pop()
            done.append(1)
            return await forget(**options)

        done: list[int] = []
        store.inbox.forget = failing
        await until(lambda: bool(done))
    assert "Housekeeping failed and is tried again: gone" in caplog.messages
