"""That all processes of an application leave the broker's rows to the same carrier, and that somebody reads the log."""

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

import cqrs
from cqrs.outbox import Failed, Fate, Outcome, storage
from tests.servers import empty_database, server
from tests.unit.outbox.support import until

pytestmark = pytest.mark.services

PUBLICATION = (
    "CREATE PUBLICATION cqrs_outbox FOR TABLE cqrs_outbox WHERE (destination = 'broker') WITH (publish = 'insert')"
)


class Shipped(cqrs.Event):
    order: str


class Broker:
    def __init__(self, outcome: Outcome = Fate.DELIVERED) -> None:
        self.outcome = outcome
        self.seen: list[str | None] = []

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def publish(self, envelopes: Sequence[cqrs.Envelope]) -> Sequence[Outcome]:
        self.seen += [envelope.key for envelope in envelopes]
        return [self.outcome] * len(envelopes)


class Shop:
    """A database with a slot; each call of `app` is a process."""

    def __init__(self, url: str, connection: asyncpg.Connection) -> None:
        self.url = url
        self.connection = connection
        self.slot = f"{sa.make_url(url).database}_slot"

    def app(self, carrier: Any = "relay", **wishes: Any) -> cqrs.Mediator:
        registry = cqrs.Registry()
        registry.integration_event(topic="orders", key="order")(Shipped)
        if carrier == "relay":
            wishes.setdefault("broker", Broker())
        options = {"name": "shop", "database": self.url, "migrate": True, "retry": cqrs.Retry(attempts=1), **wishes}
        return cqrs.bootstrap(registry=registry, carrier=carrier, **options)

    async def refusal(self, carrier: str) -> str:
        with pytest.raises(cqrs.SchemaError) as caught:
            await self.app(carrier).__aenter__()
        return str(caught.value)

    async def carrier(self) -> str:
        return await self.connection.fetchval("SELECT value FROM cqrs_settings WHERE name = 'carrier'")

    async def make_slot(self) -> None:
        await self.connection.execute(f"SELECT pg_create_logical_replication_slot('{self.slot}', 'pgoutput')")

    async def drop_slot(self) -> None:
        await self.connection.execute(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{self.slot}'"
        )


@pytest.fixture
async def bare() -> AsyncIterator[Shop]:
    """A database with the tables."""
    async with empty_database(server("POSTGRES_LOGICAL_URL")) as url:
        place = sa.make_url(url)
        connection = await asyncpg.connect(place.set(drivername="postgresql").render_as_string(hide_password=False))
        shop = Shop(url, connection)
        try:
            async with shop.app():
                pass
            yield shop
        finally:
            await shop.drop_slot()
            await connection.close()


@pytest.fixture
async def shop(bare: Shop) -> Shop:
    """A database whose log can be read."""
    await bare.connection.execute(PUBLICATION)
    await bare.make_slot()
    return bare


async def test_the_first_process_decides(shop: Shop):
    assert await shop.carrier() == "relay"
    async with shop.app("relay"), shop.app("relay"):
        pass


async def test_an_application_changes_to_the_log_and_back_when_nothing_waits(shop: Shop):
    async with shop.app("log") as app:
        assert await shop.carrier() == "log"
        await app.emit(Shipped(order="o1"))
        await app.drain()
    broker = Broker()
    async with shop.app("relay", broker=broker) as app:
        assert await shop.carrier() == "relay"
        await app.emit(Shipped(order="o2"))
        await app.drain()
    assert broker.seen == ["o2"]


async def test_the_change_is_refused_while_rows_wait_in_the_outbox(shop: Shop):
    async with shop.app(relay=False) as app:
        await app.emit(Shipped(order="o1"))
    assert await shop.refusal("log") == (
        "1 rows wait for the broker in the outbox and 0 parked, which carrier='log' would overtake. "
        "Run this application with carrier='relay' until they are gone."
    )
    assert await shop.carrier() == "relay"


async def test_the_change_is_refused_while_rows_are_parked(shop: Shop):
    async with shop.app(broker=Broker(Failed(ValueError("refused"), final=True))) as app:
        await app.emit(Shipped(order="o1"))
        with pytest.raises(cqrs.DrainTimeout):
            await app.drain()
    assert await shop.refusal("log") == (
        "0 rows wait for the broker in the outbox and 1 parked, which carrier='log' would overtake. Run this "
        "application with carrier='relay' until they are gone; 1 are dead: app.outbox.replay() or discard() ends them."
    )
    async with shop.app() as app:
        await app.outbox.discard()
    async with shop.app("log"):
        assert await shop.carrier() == "log"


@pytest.mark.parametrize(("first", "second"), [("relay", "log"), ("log", "relay")])
async def test_two_processes_with_different_carriers_are_refused(shop: Shop, first: str, second: str):
    async with shop.app(first):
        text = await shop.refusal(second)
        assert await shop.carrier() == first
    assert text.startswith(f"Processes of this application that run have carrier='{first}', and this one has")
    assert f"pass carrier='{first}'" in text
    async with shop.app(second):
        pass


async def test_a_process_that_was_killed_counts_as_gone_after_a_while(shop: Shop):
    sign = "INSERT INTO cqrs_settings VALUES ('process x', 'relay ' || extract(epoch FROM now())::int - {})"
    await shop.connection.execute(sign.format(170))
    assert "1 of them, last seen 17" in await shop.refusal("log")
    await shop.connection.execute("DELETE FROM cqrs_settings WHERE name = 'process x'")
    await shop.connection.execute(sign.format(181))
    async with shop.app("log"):
        pass
    assert await shop.connection.fetch("SELECT * FROM cqrs_settings WHERE name LIKE 'process %'") == []


async def test_a_running_process_shows_signs_of_life_and_none_when_it_is_closed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "HOUSEKEEPING", 0.01)
    signs = "SELECT count(*) FROM cqrs_settings WHERE name LIKE 'process %' AND value NOT LIKE '% 0'"
    async with shop.app():
        await shop.connection.execute("UPDATE cqrs_settings SET value = 'relay 0' WHERE name LIKE 'process %'")
        await until(lambda: shop.connection.fetchval(signs))
        await shop.connection.execute("DELETE FROM cqrs_settings WHERE name LIKE 'process %'")
        await until(lambda: shop.connection.fetchval(signs))
    assert await shop.connection.fetchval(signs) == 0


async def test_a_process_that_was_frozen_during_the_change_says_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(storage, "HOUSEKEEPING", 0.01)
    async with shop.app():
        await shop.connection.execute("UPDATE cqrs_settings SET value = 'log' WHERE name = 'carrier'")
        await until(lambda: "The carrier was changed to 'log'" in caplog.text)


async def test_nobody_leaves_events_to_a_log_that_nobody_reads(bare: Shop):
    text = "With carrier='log' events are lost here: there is no {}; examples/debezium/publication.sql makes it."
    both = "publication of cqrs_outbox and no replication slot in this database"
    assert await bare.refusal("log") == text.format(both)
    await bare.connection.execute(PUBLICATION)
    assert await bare.refusal("log") == text.format("replication slot in this database")
    await bare.make_slot()
    await bare.connection.execute("ALTER PUBLICATION cqrs_outbox SET (publish = 'truncate')")
    assert await bare.refusal("log") == text.format("publication of cqrs_outbox")
    assert await bare.carrier() == "relay"


async def test_a_slot_that_is_dropped_meanwhile_is_reported(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(storage, "HOUSEKEEPING", 0.01)
    async with shop.app("log"):
        assert not [each for each in caplog.records if each.name.startswith("cqrs") and each.levelno >= logging.ERROR]
        await shop.drop_slot()
        await until(lambda: "there is no replication slot in this database" in caplog.text)


async def test_a_server_whose_log_cannot_be_decoded_is_refused():
    async with empty_database(server("POSTGRES_URL")) as url:
        registry = cqrs.Registry()
        app = cqrs.bootstrap(registry=registry, name="shop", database=url, migrate=True, carrier="log")
        with pytest.raises(cqrs.SchemaError, match=r"the server has wal_level = replica\. Set wal_level = logical"):
            await app.__aenter__()
