"""How consuming ends where the broker is gone, or has never been there: in time, and with nothing left behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest
from faststream.rabbit import RabbitBroker
from sqlalchemy.engine import make_url

from cqrs.integrations.faststream import mount
from tests.integration.test_consuming import PATIENCE, Scene, order
from tests.proxy import Proxy, all_ways_through
from tests.servers import server
from tests.unit.outbox.support import until

pytestmark = pytest.mark.services
BROKERS = {"Kafka": "KAFKA_URL", "RabbitMQ": "RABBITMQ_URL"}


@pytest.fixture(params=BROKERS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Scene, Proxy]]:
    """An application on SQLite whose broker is behind a proxy."""
    url = make_url(server(BROKERS[request.param]))
    async with Proxy("localhost", url.port or 0) as proxy:
        with all_ways_through(proxy):
            here = url.set(host="127.0.0.1").render_as_string(hide_password=False)
            scene = Scene(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}", here)
            await scene.prepare()
            yield scene, proxy


def at_work() -> set[str]:
    """Return what runs, but for the proxy."""
    return {str(task.get_coro()) for task in asyncio.all_tasks() if "Proxy" not in str(task.get_coro())}


@pytest.mark.parametrize("fault", ["cut", "stall"])
async def test_a_cancelled_start_leaves_nothing_behind(place: tuple[Scene, Proxy], fault: str):
    scene, proxy = place
    async with scene.application(relay=False) as app:
        before = at_work()
        getattr(proxy, fault)()

        async def consume() -> None:
            async with app.consuming():
                await asyncio.Event().wait()

        task = asyncio.create_task(consume())
        await until(lambda: len(at_work() - before) > 2, PATIENCE)
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        assert task.cancelled()
        await until(lambda: at_work() <= before, 5.0)


@pytest.mark.parametrize("fault", ["cut", "stall"])
async def test_a_broker_that_was_never_reached_leaves_nothing_behind(place: tuple[Scene, Proxy], fault: str):
    scene, proxy = place
    async with scene.application(relay=False) as app:
        before = at_work()
        getattr(proxy, fault)()
        async with app.consuming():
            assert app.consumer is not None
            assert app.consumer.fault is not None
        await until(lambda: at_work() <= before, 5.0)


async def test_a_broker_that_is_gone_does_not_delay_the_end(place: tuple[Scene, Proxy]):
    scene, proxy = place
    scene.hangs = {"a"}
    async with scene.application(relay=False, grace=0.2, lease=60.0) as app:
        before = at_work()
        async with app.consuming():
            await until(lambda: app.consumer is not None and app.consumer.fault is None, PATIENCE)
            await scene.publish(order(0))
            await until(lambda: scene.attempts == ["a"], PATIENCE)
            proxy.cut()
            began = monotonic()
        assert monotonic() - began < 5.0
        await until(lambda: at_work() <= before, 5.0)
        proxy.resume()
        async with app.consuming():
            await scene.until_effects(1)


async def test_a_network_that_swallows_everything_delays_the_end_by_the_last_goodbyes_alone(
    place: tuple[Scene, Proxy],
):
    scene, proxy = place
    async with scene.application(relay=False, grace=0.2) as app:
        before = at_work()
        async with app.consuming():
            await until(lambda: app.consumer is not None and app.consumer.fault is None, PATIENCE)
            proxy.stall()
            began = monotonic()
        assert monotonic() - began < 12.0
        await until(lambda: at_work() <= before, 5.0)


async def test_a_mounted_broker_that_lost_its_connection_can_be_stopped_and_started_again(tmp_path: Path):
    url = make_url(server("RABBITMQ_URL"))
    async with Proxy(str(url.host), url.port or 5672) as proxy, contextlib.AsyncExitStack() as stack:
        through = url.set(host="127.0.0.1", port=proxy.port, query={"heartbeat": "1"}).render_as_string(
            hide_password=False
        )
        scene = Scene(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}", server("RABBITMQ_URL"))
        await scene.prepare()
        app = await stack.enter_async_context(scene.application(relay=False, grace=0.2))
        broker = RabbitBroker(through)
        mount(app, broker)
        await broker.start()
        stack.push_async_callback(broker.stop)
        await scene.publish(order(0))
        await scene.until_effects(1)
        proxy.stall()
        await broker.stop()
        proxy.resume()
        await broker.start()
        await scene.publish(order(1))
        await scene.until_effects(2)
    assert await scene.effects() == [("a", 0), ("a", 1)]
