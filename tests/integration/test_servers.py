"""What only database servers do: wake-ups, poolers, locks that end with a connection, wrong addresses."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import asyncmy
import asyncpg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

import cqrs
from cqrs.outbox import bell, floor, storage
from cqrs.outbox.relay import Pace
from cqrs.outbox.rows import View
from tests.proxy import Proxy
from tests.servers import empty_database, server
from tests.unit.outbox.support import run_sql, storage_of, until

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]

BOTH = pytest.mark.parametrize("variable", ["POSTGRES_URL", "MYSQL_URL"])


class Happened(cqrs.Event):
    order: str = "o1"
    number: int = 0


@pytest.fixture
def variable() -> str:
    return "POSTGRES_URL"


@pytest.fixture
async def database(variable: str) -> AsyncIterator[str]:
    async with empty_database(server(variable)) as url:
        yield url


class Shop:
    """What its handler has seen, and how it answers."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.answers = asyncio.Event()
        self.answers.set()

    def app(self, database: str | AsyncEngine, **wishes: Any) -> cqrs.Mediator:
        registry = cqrs.Registry()
        registry.integration_event(topic="orders", key="order")(Happened)

        @registry.event_handler(name="receive", retry=cqrs.Retry(attempts=3, first=0.0))
        async def receive(event: Happened, session: AsyncSession) -> None:
            await self.answers.wait()
            await session.execute(text("SELECT 1"))
            self.seen.append(event.number)

        return cqrs.bootstrap(registry=registry, **{"name": "shop", "database": database, "migrate": True, **wishes})


def idle_for_ever(app: cqrs.Mediator) -> cqrs.Mediator:
    """Leave nothing but wake-ups."""
    relay = storage_of(app).relay
    relay._pace = Pace(idle=1000.0, lanes=1)
    return app


def pooled(url: str, pooler: str) -> AsyncEngine:
    """Return an engine through the pooler, as its users are told to make it."""
    direct, through = make_url(url), make_url(pooler)
    if direct.get_driver_name() == "psycopg":
        arguments: dict[str, Any] = {"prepare_threshold": None}
    else:
        arguments = {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__cqrs_{uuid4()}__",
        }
    return create_async_engine(direct.set(host=through.host, port=through.port), connect_args=arguments)


# Wake-ups


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_what_one_process_saves_wakes_the_relay_of_another(database: str, driver: str):
    shop, database = Shop(), database.replace("asyncpg", driver)
    async with idle_for_ever(shop.app(database)), shop.app(database, relay=False) as saving:
        for number in range(3):
            await saving.emit(Happened(number=number))
            await until(lambda number=number: number in shop.seen)
    assert shop.seen == [0, 1, 2]


async def test_a_bell_rings_again_after_its_connections_were_lost(database: str):
    shop = Shop()
    async with idle_for_ever(shop.app(database)), shop.app(database, relay=False) as saving:
        await saving.emit(Happened(number=1))
        await until(lambda: shop.seen == [1])
        await run_sql(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        await until(lambda: rings_again(saving, shop))


async def rings_again(app: cqrs.Mediator, shop: Shop) -> bool:
    try:
        await app.emit(Happened(number=2))
    except (DBAPIError, OSError):
        return False
    return 2 in shop.seen


async def test_behind_a_pooler_the_relay_polls_and_says_so_once(
    database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bell, "PATIENCE", 0.3)
    shop, engine = Shop(), pooled(database, server("PGBOUNCER_URL"))
    async with shop.app(engine) as app:
        await app.emit(Happened(number=1))
        await app.drain()
        await until(lambda: "LISTEN hears nothing" in caplog.text)
    assert caplog.text.count("LISTEN hears nothing") == 1
    await engine.dispose()


async def test_behind_a_pooler_a_direct_way_to_the_database_is_listened_on(
    database: str, caplog: pytest.LogCaptureFixture
):
    shop, engine = Shop(), pooled(database, server("PGBOUNCER_URL"))
    relaying = idle_for_ever(shop.app(engine, listen_url=database))
    async with relaying, shop.app(engine, relay=False) as saving:
        await until(lambda: rings_again(saving, shop))
    assert "LISTEN hears nothing" not in caplog.text
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_many_commands_and_deliveries_go_through_a_pooler(database: str, driver: str):
    shop = Shop()
    engine = pooled(database.replace("asyncpg", driver), server("PGBOUNCER_URL"))
    async with shop.app(engine) as app:
        await asyncio.gather(*(app.emit(Happened(order=f"o{number % 5}", number=number)) for number in range(100)))
        await app.drain()
    assert sorted(shop.seen) == list(range(100))
    await engine.dispose()


# Order


@BOTH
@pytest.mark.parametrize("first_commits_first", [True, False])
async def test_strict_ordering_lets_writers_of_a_key_come_one_after_the_other(database: str, first_commits_first: bool):
    """The second writer draws its ids when the first has ended, however it ended."""
    shop = Shop()
    engine = create_async_engine(database)
    async with shop.app(engine, ordering="strict", relay=False) as app, AsyncSession(engine) as one:
        await app.emit(Happened(number=1), session=one)

        async def write_second() -> None:
            async with AsyncSession(engine) as two:
                await app.emit(Happened(number=2), session=two)
                await two.commit()

        second = asyncio.create_task(write_second())
        done, _ = await asyncio.wait({second}, timeout=0.3)
        assert not done
        await (one.commit() if first_commits_first else one.rollback())
        await second
        relay = storage_of(app).relay
        while await relay.relay_outbox():
            pass
    assert shop.seen == ([1, 2] if first_commits_first else [2])
    await engine.dispose()


@BOTH
async def test_strict_ordering_does_not_hold_up_other_keys(database: str):
    shop = Shop()
    engine = create_async_engine(database)
    async with shop.app(engine, ordering="strict", relay=False) as app, AsyncSession(engine) as one:
        await app.emit(Happened(order="a", number=1), session=one)
        async with asyncio.timeout(5.0):
            await app.emit(Happened(order="b", number=2))
        await one.commit()
    await engine.dispose()


async def test_a_row_of_a_transaction_that_stayed_open_is_read_as_soon_as_it_ends(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    """Its id lies below the floor by then, and nobody else writes anything that would make a lane read."""
    monkeypatch.setattr(floor, "PATIENCE", 0.0)
    shop, engine = Shop(), create_async_engine(database)
    async with shop.app(engine, relay=False, slots=1) as app, AsyncSession(engine) as late:
        relay = storage_of(app).relay
        await app.emit(Happened(number=1), session=late)
        for number in (2, 3, 4):
            await app.emit(Happened(order="o2", number=number))
            await relay.relay_outbox()
        assert min(relay._outbox[0]._slots._floors[relay._circuits.view(["receive"])].slots.values()) > 1
        await late.commit()
        assert await relay.relay_outbox()
    assert shop.seen == [2, 3, 4, 1]
    await engine.dispose()


# Faults


@BOTH
async def test_a_lane_whose_connection_is_killed_while_it_delivers_goes_on(database: str, variable: str):
    shop = Shop()
    shop.answers.clear()
    async with shop.app(database) as app:
        await app.emit(Happened(number=1))
        await until(lambda: claims(database, variable))
        await kill_claims(database, variable)
        shop.answers.set()
        await app.drain()
    assert shop.seen[-1] == 1
    assert await run_sql(database, "SELECT count(*) FROM cqrs_inbox") == [1]


async def claims(database: str, variable: str) -> bool:
    return bool(await run_sql(database, IDLE[variable]))


async def kill_claims(database: str, variable: str) -> None:
    for (pid,) in [(pid,) for pid in await run_sql(database, IDLE[variable])]:
        kill = f"SELECT pg_terminate_backend({pid})" if variable == "POSTGRES_URL" else f"KILL {pid}"
        await run_sql(database, kill)


IDLE = {
    "POSTGRES_URL": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
    "AND state = 'idle in transaction' AND query LIKE '%pg_current_snapshot%'",
    "MYSQL_URL": "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx "
    "JOIN information_schema.processlist ON id = trx_mysql_thread_id WHERE db = DATABASE() AND trx_rows_locked > 0",
}


@BOTH
async def test_the_server_frees_what_a_silent_relay_has_claimed(database: str):
    """A frozen host: nothing of its process runs any more, and nothing closes its connection."""
    shop = Shop()
    async with shop.app(database, lease=1.0, relay=False) as frozen, shop.app(database, lease=1.0) as other:
        await other.emit(Happened(number=0))
        await other.drain()
        await storage_of(other).relay.stop()
        await frozen.emit(Happened(number=1))
        lane = storage_of(frozen).store.lane("frozen", 1.0)
        held: Any = await lane.claim(View(("receive",)), 10)
        assert [row.envelope.type for row in held.rows if row.envelope] == ["Happened"]
        storage_of(other).relay.start()
        await until(lambda: shop.seen == [0, 1])
        with pytest.raises((asyncpg.InterfaceError, asyncmy.errors.Error)):
            await held.settle(held.rows, [], [])


@BOTH
async def test_a_handler_that_outlasts_its_claim_is_tried_again_without_a_lost_attempt(database: str):
    shop = Shop()
    shop.answers.clear()
    async with shop.app(database, lease=1.0) as app:
        await app.emit(Happened(number=1))
        await until(lambda: parked(app))
        shop.answers.set()
        await app.drain()
        assert await app.outbox.dead() == []
    assert shop.seen == [1]


async def parked(app: cqrs.Mediator) -> bool:
    return (await app.outbox.counts()).waiting == 1


async def test_slot_rows_and_settings_that_were_deleted_are_written_again(monkeypatch: pytest.MonkeyPatch):
    async with empty_database(server("MYSQL_URL")) as database:
        shop = Shop()
        monkeypatch.setattr(storage, "HOUSEKEEPING", 0.05)
        async with shop.app(database) as app:
            await run_sql(database, "DELETE FROM cqrs_slot", "DELETE FROM cqrs_settings")
            await app.emit(Happened(number=1))
            await app.drain()
            found = await run_sql(database, "SELECT name FROM cqrs_settings ORDER BY name")
    assert found == ["application", "carrier", "schema", "slots"]


class Write(cqrs.Command[None]):
    emits: bool = False
    cuts: bool = True


@pytest.mark.parametrize(
    ("variable", "emits", "expected"),
    [
        ("POSTGRES_URL", False, cqrs.CommitUnknown),
        ("POSTGRES_URL", True, cqrs.CommitUnknown),
        ("MYSQL_URL", False, cqrs.CommitUnknown),
        ("MYSQL_URL", True, DBAPIError),
    ],
)
async def test_a_connection_lost_during_commit_leaves_it_unknown(database: str, emits: bool, expected: type[Exception]):
    """With an event to insert first, nothing has reached COMMIT yet where that is a trip of its own."""
    registry = cqrs.Registry()
    registry.integration_event(topic="orders", key="order")(Happened)
    url = make_url(database)
    async with Proxy(url.host or "", url.port or 0) as proxy:

        @registry.command_handler
        async def write(command: Write, session: AsyncSession, context: cqrs.Context) -> None:
            await session.execute(text("SELECT 1"))
            if command.emits:
                context.emit(Happened())
            if command.cuts:
                proxy.cut()

        @registry.event_handler(name="receive")
        async def receive(event: Happened) -> None: ...

        through = url.set(port=proxy.port).render_as_string(hide_password=False)
        app = cqrs.bootstrap(registry=registry, name="shop", database=through, migrate=True, relay=False)
        async with app:
            await app.send(Write(emits=emits, cuts=False))
            with pytest.raises(expected):
                await app.send(Write(emits=emits))
            proxy.resume()


async def test_a_stalled_connection_costs_a_lane_its_lease_and_no_more(database: str):
    """A network that swallows everything: the relay opens another connection, and the server frees the slots."""
    shop, url = Shop(), make_url(database)
    async with Proxy(url.host or "", url.port or 0) as proxy:
        through = url.set(port=proxy.port).render_as_string(hide_password=False)
        async with shop.app(through, lease=1.0, grace=0.5) as app, shop.app(database, relay=False) as saving:
            await saving.emit(Happened(number=1))
            await until(lambda: shop.seen == [1])
            proxy.stall()
            await saving.emit(Happened(number=2))
            turn = asyncio.create_task(storage_of(app).relay.relay_outbox())
            await asyncio.wait({turn}, timeout=1.5)
            proxy.cut()
            proxy.resume()
            await until(lambda: 2 in shop.seen, 20.0)
            await asyncio.gather(turn, return_exceptions=True)


# Bad input


@BOTH
async def test_a_wrong_password_is_told_without_any(database: str):
    wrong = make_url(database).set(password="secret-and-wrong").render_as_string(hide_password=False)
    with pytest.raises(cqrs.DatabaseUnreachable) as caught:
        await Shop().app(wrong).__aenter__()
    assert "user and password are right" in str(caught.value)
    assert "secret" not in str(caught.value)


@BOTH
async def test_a_database_that_does_not_exist_is_named(database: str):
    missing = make_url(database).set(database="no_such_database").render_as_string(hide_password=False)
    with pytest.raises(cqrs.DatabaseUnreachable, match="no_such_database"):
        await Shop().app(missing).__aenter__()


@BOTH
async def test_a_server_that_does_not_run_is_named(database: str):
    nowhere = make_url(database).set(port=1).render_as_string(hide_password=False)
    with pytest.raises(cqrs.DatabaseUnreachable, match="cannot be connected to"):
        await Shop().app(nowhere).__aenter__()


@BOTH
async def test_missing_tables_are_named_with_what_to_run(database: str):
    with pytest.raises(cqrs.SchemaError, match="alembic upgrade head"):
        await Shop().app(database, migrate=False).__aenter__()


async def test_a_sequence_that_hands_out_ids_in_advance_is_refused_with_the_cure(database: str):
    async with Shop().app(database):
        pass
    await run_sql(database, "ALTER SEQUENCE cqrs_outbox_id_seq CACHE 20")
    with pytest.raises(
        cqrs.SchemaError, match=r"hands out 20 ids at a time.*Run: ALTER SEQUENCE cqrs_outbox_id_seq CACHE 1"
    ):
        await Shop().app(database).__aenter__()


@BOTH
async def test_another_application_on_the_same_tables_is_refused_with_both_cures(database: str):
    async with Shop().app(database):
        pass
    with pytest.raises(cqrs.SchemaError, match=r"name='shop'.*prefix='\.\.\.', or on a server schema='\.\.\.'"):
        await Shop().app(database, name="other").__aenter__()


@BOTH
async def test_another_number_of_slots_is_refused(database: str):
    async with Shop().app(database):
        pass
    with pytest.raises(cqrs.SchemaError, match="begun with 16 slots, and this application has 8"):
        await Shop().app(database, slots=8).__aenter__()


async def test_applications_share_a_database_in_schemas_of_their_own(database: str):
    await run_sql(database, "CREATE SCHEMA one", "CREATE SCHEMA two")
    shops = {name: Shop() for name in ("one", "two")}
    async with (
        shops["one"].app(database, name="one", schema="one") as one,
        shops["two"].app(database, name="two", schema="two") as two,
    ):
        await one.emit(Happened(number=1))
        await two.emit(Happened(number=2))
        await one.drain()
        await two.drain()
    assert [shops["one"].seen, shops["two"].seen] == [[1], [2]]


@BOTH
async def test_processes_that_migrate_at_once_wait_for_each_other(database: str):
    starts = [process(database), process(database), process(database)]
    assert await asyncio.gather(*starts) == [0, 0, 0]
    assert await run_sql(database, "SELECT value FROM cqrs_settings WHERE name = 'schema'") == ["1"]


async def process(database: str) -> int:
    """Open and close an application in a process of its own."""
    program = (
        "import asyncio, sys, cqrs\n"
        "async def main():\n"
        "    async with cqrs.bootstrap(registry=cqrs.Registry(), name='shop', database=sys.argv[1], migrate=True):\n"
        "        pass\n"
        "asyncio.run(main())\n"
    )
    started = await asyncio.create_subprocess_exec(sys.executable, "-c", program, database, cwd=ROOT)
    return await started.wait()


async def test_a_database_that_falls_silent_does_not_hold_up_the_end(database: str):
    url = make_url(database)
    async with Proxy(str(url.host), url.port or 0) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        before = asyncio.all_tasks()
        async with asyncio.timeout(30.0):
            async with Shop().app(through, migrate=True, grace=0.2):
                proxy.stall()
                began = monotonic()
            assert monotonic() - began < 12.0
        proxy.resume()
        await until(lambda: not {task for task in asyncio.all_tasks() - before if "Proxy" not in repr(task)})
    gc.collect()  # asyncpg tells here, and in no other test, of what it has lost
