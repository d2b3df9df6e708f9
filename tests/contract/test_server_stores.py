"""The contract on database servers, which share slots by locks: what a lane holds ends with its connection."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import delete, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cqrs import migrations
from cqrs.codec import Envelope
from cqrs.outbox import asyncpg_driver, locks, slot_rows
from cqrs.outbox.advisory_slots import _LOCK, Names, begin, fetch
from cqrs.outbox.database import connect, dialect_of
from cqrs.outbox.dialect import Nothing
from cqrs.outbox.settings import record
from cqrs.outbox.store import Store
from tests.contract.store import (
    OTHER_STRANDS,
    OpenStore,
    StoreContract,
    add,
    claim,
    letter,
    numbers,
    relays,
    settle,
    view,
)
from tests.servers import empty_database, server

pytestmark = pytest.mark.services

TABLES = ("outbox", "parked", "inbox", "slot")


class ServerContract(StoreContract):
    """A subclass names the variable of its server and makes an engine from a URL."""

    variable: str

    def engine(self, url: str) -> AsyncEngine:
        return create_async_engine(url, pool_size=5)

    @pytest.fixture(scope="class")
    @classmethod
    def url(cls) -> Iterator[str]:
        """A database of the class's own, with the tables."""

        async def migrate(url: str) -> None:
            engine = create_async_engine(url)
            async with engine.begin() as connection:
                await connection.run_sync(migrations.migrate)
            await engine.dispose()

        with asyncio.Runner() as runner:
            scratch = empty_database(server(cls.variable))
            url = runner.run(scratch.__aenter__())
            try:
                runner.run(migrate(url))
                yield url
            finally:
                runner.run(scratch.__aexit__(None, None, None))

    @pytest.fixture
    async def open_store(self, url: str) -> AsyncIterator[OpenStore]:
        async with AsyncExitStack() as stack:

            async def open_store(slots: int) -> Store:
                engine = self.engine(url)
                stack.push_async_callback(engine.dispose)
                store = Store(dialect_of(engine), engine, engine, slots=slots)
                await record(store, {"slots": str(slots)})
                return store

            yield open_store
            engine = create_async_engine(url)
            async with engine.begin() as connection:
                for table in TABLES:
                    await connection.execute(text(f"DELETE FROM cqrs_{table}"))
                await connection.execute(text("DELETE FROM cqrs_settings WHERE name <> 'schema'"))
            await engine.dispose()

    @pytest.fixture(autouse=True)
    def sizes_are_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the first claim be as large as any other."""
        monkeypatch.setattr(locks, "CAREFUL", 10_000)

    async def test_a_first_claim_is_small_since_nobody_knows_how_large_rows_are(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(locks, "CAREFUL", 2)
        await add(store, *(letter(number) for number in range(20)))
        assert len(await claim(store)) == 2
        await settle(store)
        assert len(await claim(store)) == 8

    async def test_slots_of_a_lane_that_was_closed_are_free(self, store: Store):
        await add(store, letter(1))
        await claim(store, "one")
        await relays(store).lane("one").close()
        assert numbers(await claim(store, "two")) == [1]

    async def test_a_claim_whose_connection_was_lost_cannot_be_settled(self, store: Store):
        await add(store, letter(1))
        rows = await claim(store, "one")
        await relays(store).lane("one").close()
        with pytest.raises(ConnectionError, match="lost"):
            await relays(store).claims["one"].settle(rows, [], [])
        assert (await store.counts()).outbox == 1

    async def test_a_lane_goes_on_after_its_connection_was_lost(self, store: Store):
        await add(store, letter(1))
        await claim(store, "one")
        await relays(store).lane("one").close()
        assert numbers(await claim(store, "one")) == [1]


class TestAsyncpg(ServerContract):
    variable = "POSTGRES_URL"

    async def test_a_second_look_of_a_transaction_is_not_compiled(self, store: Store):
        look = Names(store).fill(_LOCK, view())
        values = ["1000", "1000", 1, [1], [0], ["handler"]]
        async with store.short.begin() as connection:
            await begin(store, connection, look, *values)
            plan = await fetch(connection, f"EXPLAIN {look}", *values)
        assert not [line for (line,) in plan if "JIT" in line]


class TestAsyncpgOfOurOwn(TestAsyncpg):
    """The engine that the toolkit makes from a URL, whose BEGIN takes the inbox row along."""

    def engine(self, url: str) -> AsyncEngine:
        database = connect(url, [], prefix="cqrs_", schema=None, migrate=False)
        assert database is not None
        return database.writers

    async def test_begin_and_the_first_statement_are_one_trip(self, store: Store):
        async with store.writers.connect() as connection:
            await connection.run_sync(store.inbox.take, "handler", ["event-1"])
            driver = (await connection.get_raw_connection()).driver_connection
            assert (driver.status, driver.is_in_transaction()) == ("INSERT 0 1", True)

    async def test_a_transaction_that_has_begun_takes_a_message_as_well(self, store: Store):
        async with store.writers.begin() as connection:
            await connection.execute(text("SELECT 1"))
            assert await connection.run_sync(store.inbox.take, "handler", ["event-1"])
            driver = (await connection.get_raw_connection()).driver_connection
            assert not driver.status
        assert await store.inbox.has_taken("handler", "event-1")

    async def test_behind_a_pooler_with_names_of_its_own_nothing_is_joined(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(asyncpg_driver, "KNOWN", "SELECT 0 WHERE $1 <> ''")
        async with store.writers.begin() as connection:
            assert await connection.run_sync(store.inbox.take, "handler", ["event-1"])
            await connection.run_sync(lambda last: store.add(last, [letter(1)], last=True))
            driver = (await connection.get_raw_connection()).driver_connection
            assert (driver.status, driver.before_commit) == ("", None)
        assert await store.inbox.has_taken("handler", "event-1")
        assert numbers(await claim(store)) == [1]

    async def test_a_failure_to_take_gives_the_connection_up(self, store: Store):
        async with store.writers.connect() as holder, store.writers.connect() as waiter:
            await holder.run_sync(store.inbox.take, "handler", ["event-1"])
            await waiter.execute(text("SET lock_timeout = '50ms'"))
            await waiter.commit()
            with pytest.raises(DBAPIError, match="lock timeout") as caught:
                await waiter.run_sync(store.inbox.take, "handler", ["event-1"])
            assert caught.value.connection_invalidated
            assert waiter.invalidated
        assert await self.take(store, "handler", "event-1")


class TestPsycopg(TestAsyncpg):
    def engine(self, url: str) -> AsyncEngine:
        return create_async_engine(url.replace("+asyncpg", "+psycopg"), pool_size=5)


class TestAsyncmy(ServerContract):
    variable = "MYSQL_URL"

    def engine(self, url: str) -> AsyncEngine:
        return create_async_engine(url, pool_size=5, isolation_level="REPEATABLE READ")

    # A key that ends with a blank is refused at emit: MySQL does not tell it apart.
    @pytest.mark.parametrize("other", [other for other in OTHER_STRANDS if other.key != "a "])
    async def test_rows_of_another_strand_are_not_held_back(self, store: Store, other: Envelope):
        await super().test_rows_of_another_strand_are_not_held_back(store, other)

    async def test_a_slot_whose_row_somebody_deleted_has_no_work_until_it_is_there_again(self, store: Store):
        await add(store, letter(1))
        async with store.writers.begin() as connection:
            await connection.execute(delete(store.tables.slot))
        assert await relays(store).lane("one").claim(view(), 100) is Nothing.IDLE
        await record(store, {})
        assert numbers(await claim(store)) == [1]


class TestAsyncmyBesideManyParkedKeys(TestAsyncmy):
    """Each row is looked up, since more keys are parked than are fetched with a claim."""

    @pytest.fixture(autouse=True)
    def few_parked_keys_are_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(slot_rows, "MOST_PARKED", 0)
