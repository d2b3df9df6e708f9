import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from cqrs.outbox import Fate, storage
from tests.unit.outbox.support import run_sql, storage_of, until


class Start(cqrs.Command[None]):
    orders: list[str]


class Happened(cqrs.Event):
    order: str


class Followed(cqrs.Event):
    order: str


SAVED = "SELECT count(*) FROM cqrs_outbox"
SLOTS = "SELECT count(*) FROM cqrs_slot WHERE owner IS NOT NULL"


class Shop:
    """What an application of these tests is made of; each call of `app` is another process of it."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.seen: list[str] = []
        self.failing = False

    def app(self, *, handler: str | None = "receive", follows: bool = False, **wishes: Any) -> cqrs.Mediator:
        registry = cqrs.Registry()
        registry.integration_event(topic="orders", key="order")(Happened)
        registry.integration_event(topic="orders", key="order")(Followed)

        @registry.command_handler(name="start")
        async def start(command: Start, context: cqrs.Context) -> None:
            for order in command.orders:
                context.emit(Happened(order=order))

        async def receive(event: Happened, context: cqrs.Context, session: AsyncSession) -> None:
            if self.failing:
                raise ValueError("no stock")
            self.seen.append(event.order)
            if follows:
                context.emit(Followed(order=event.order))

        async def follow(event: Followed) -> None:
            self.seen.append(f"after {event.order}")

        if handler is not None:
            registry.event_handler(name=handler)(receive)
            registry.event_handler(name="follow")(follow)
        else:
            # Somebody has to wait for the event, or nobody could emit it.
            wishes.setdefault("broker", FakeBroker())
        options = {"name": "shop", "database": self.database, "retry": cqrs.Retry(attempts=1), **wishes}
        return cqrs.bootstrap(registry=registry, **options)


class FakeBroker:
    """A broker that notes when it is opened and closed, and takes everything."""

    def __init__(self, log: list[str] | None = None, *, refuses: bool = False) -> None:
        self.log = log if log is not None else []
        self.refuses = refuses

    async def open(self) -> None:
        self.log.append("open")
        if self.refuses:
            raise ConnectionError("no broker")

    async def close(self) -> None:
        self.log.append("close")

    async def publish(self, envelopes: Sequence[cqrs.Envelope]) -> Sequence[Fate]:
        self.log += [f"publish {envelope.key}" for envelope in envelopes]
        return [Fate.DELIVERED] * len(envelopes)


@pytest.fixture
def shop(database: str) -> Shop:
    return Shop(database)


# The schema


async def test_a_file_that_does_not_exist_is_made_and_migrated(shop: Shop):
    async with shop.app():
        pass
    tables = await run_sql(shop.database, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'cqrs%'")
    assert {"cqrs_outbox", "cqrs_parked", "cqrs_inbox", "cqrs_slot", "cqrs_settings"} <= set(tables)


async def test_a_database_with_tables_of_the_users_is_migrated(shop: Shop):
    await run_sql(shop.database, "CREATE TABLE items (name TEXT)", "INSERT INTO items VALUES ('tea')")
    async with shop.app() as app:
        await app.send(Start(orders=["o1"]))
        await app.drain()
    assert await run_sql(shop.database, "SELECT name FROM items") == ["tea"]


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


async def test_a_schema_that_is_behind_is_refused_with_the_command_to_run(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    async with shop.app():
        pass
    monkeypatch.setattr(storage, "VERSION", 2)
    with pytest.raises(cqrs.SchemaError) as caught:
        await shop.app().__aenter__()
    assert str(caught.value) == (
        f"{shop.database} has schema number 1, and this version needs number 2. Add "
        "`cqrs.migrations.upgrade(op, to=2)` to a revision of your Alembic project and run `alembic upgrade head`; "
        "without Alembic, run `cqrs db upgrade`, or pass migrate=True to bootstrap."
    )


async def test_a_schema_that_is_ahead_is_refused_with_the_command_to_run(shop: Shop):
    async with shop.app():
        pass
    await run_sql(shop.database, "UPDATE cqrs_settings SET value = '99' WHERE name = 'schema'")
    with pytest.raises(cqrs.SchemaError) as caught:
        await shop.app().__aenter__()
    assert str(caught.value) == (
        f"{shop.database} has schema number 99, and this version of cqrs-toolkit knows 1: the database was upgraded "
        "for a newer version. Run `pip install --upgrade cqrs-toolkit`."
    )


async def test_a_schema_that_is_ahead_is_not_migrated_on_request_either(shop: Shop):
    async with shop.app():
        pass
    await run_sql(shop.database, "UPDATE cqrs_settings SET value = '99' WHERE name = 'schema'")
    with pytest.raises(cqrs.SchemaError):
        await shop.app(migrate=True).__aenter__()
    assert await run_sql(shop.database, "SELECT value FROM cqrs_settings WHERE name = 'schema'") == ["99"]


async def test_tables_that_do_not_tell_their_number_are_refused(shop: Shop):
    async with shop.app():
        pass
    await run_sql(shop.database, "DELETE FROM cqrs_settings WHERE name = 'schema'")
    with pytest.raises(cqrs.SchemaError):
        async with shop.app():
            pass


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


# Draining


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
    assert str(caught.value).endswith(" to receive: dead")


async def test_draining_lists_what_waits_behind_a_dead_letter(shop: Shop):
    shop.failing = True
    async with shop.app() as app:
        await app.send(Start(orders=["o1", "o1"]))
        await until(lambda: _is_parked(app, dead=1, waiting=1))
        with pytest.raises(cqrs.DrainTimeout) as caught:
            await app.drain(0.0)
    assert [line.rpartition(": ")[2] for line in caught.value.pending] == ["dead", "waiting"]


async def _is_parked(app: cqrs.Mediator, *, dead: int, waiting: int) -> bool:
    counts = await app.outbox.counts()
    return (counts.outbox, counts.dead, counts.waiting) == (0, dead, waiting)


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
        await until(lambda: _is_parked(app, dead=1, waiting=0))
        storage_of(app).store.ahead += 101
        await until(lambda: _is_parked(app, dead=0, waiting=0))


@pytest.mark.usefixtures("busy_keeper")
async def test_what_a_person_removed_by_hand_lets_its_successors_go_on(shop: Shop):
    shop.failing = True
    async with shop.app() as app:
        await app.send(Start(orders=["o1", "o1"]))
        await until(lambda: _is_parked(app, dead=1, waiting=1))
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

        storage_of(app).store.parked.wake_heads = counted  # type: ignore[method-assign]
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
        store.inbox.forget = failing  # type: ignore[method-assign]
        await until(lambda: bool(done))
    assert "Housekeeping failed and is tried again: gone" in caplog.messages


async def test_only_the_last_events_are_remembered_for_draining(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "REMEMBERED", 2)
    async with shop.app(relay=False) as app:
        await app.send(Start(orders=["o1", "o2", "o3"]))
        assert len(storage_of(app)._emitted) == 2


async def test_draining_waits_for_what_is_emitted_while_the_database_is_asked(shop: Shop):
    async with shop.app() as app:
        store = storage_of(app).store
        unended, late = store.unended, ["o2"]

        async def asked(event_ids: Collection[str]) -> list[tuple[str, str, str, str]]:
            left = await unended(event_ids)
            if late and not left:
                await app.send(Start(orders=[late.pop()]))
            return left

        store.unended = asked  # type: ignore[method-assign]
        await app.send(Start(orders=["o1"]))
        await app.drain()
    assert shop.seen == ["o1", "o2"]
