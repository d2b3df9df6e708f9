"""How an application is, told while the networks to its servers behave badly."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa

import cqrs
from cqrs.health import Health, State, examine
from tests.proxy import Proxy
from tests.servers import empty_database, server

SECRET = "p-4711"


@asynccontextmanager
async def behind_proxy(variable: str) -> AsyncIterator[tuple[cqrs.Mediator, Proxy]]:
    """An open application whose database is behind a proxy."""
    async with empty_database(server(variable)) as url:
        place = sa.make_url(url)
        async with Proxy(place.host or "localhost", place.port or 0) as proxy:
            through = place.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
            async with cqrs.bootstrap(registry=cqrs.Registry(), name="shop", database=through, migrate=True) as app:
                yield app, proxy


async def until_ready(app: cqrs.Mediator) -> None:
    async with asyncio.timeout(30):
        while not (await examine(app)).is_ready:  # noqa: ASYNC110 - a server tells nobody
            await asyncio.sleep(0.1)


def failed(found: Health) -> list[str]:
    return [name for name, check in found.checks.items() if check.state is State.FAILED]


@pytest.mark.services
@pytest.mark.parametrize("variable", ["POSTGRES_URL", "MYSQL_URL"])
async def test_a_database_that_hangs_or_is_gone_is_told_in_time_and_so_is_its_return(variable: str):
    async with behind_proxy(variable) as (app, proxy):
        assert failed(await examine(app)) == []
        proxy.stall()
        began = time.monotonic()
        hung = await examine(app, timeout=1.0)
        assert time.monotonic() - began < 2
        assert failed(hung) == ["database", "schema", "lag"]
        assert hung.checks["database"].reason == "no answer within 1 s"
        proxy.resume()
        await until_ready(app)
        proxy.cut()
        gone = await examine(app)
        assert failed(gone) == ["database", "schema", "lag"]
        assert "cannot be connected to" in gone.checks["database"].reason
        assert f":{sa.make_url(server(variable)).password}@" not in str(gone.figures)
        proxy.resume()
        await until_ready(app)


@pytest.mark.parametrize("broker", ["kafka://127.0.0.1:1", f"amqp://me:{SECRET}@127.0.0.1:1/"])
async def test_a_broker_that_is_down_at_the_start_stops_nobody_and_is_told(tmp_path, broker: str):
    database = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    async with cqrs.bootstrap(registry=cqrs.Registry(), name="shop", database=database, broker=broker) as app:
        found = await examine(app)
    assert failed(found) == ["broker"]
    assert "127.0.0.1:1 is out of reach" in found.checks["broker"].reason
    assert SECRET not in str(found.figures)
