import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, TestRabbitBroker
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from cqrs.integrations.faststream import mount
from cqrs.integrations.from_rabbitmq import Window
from cqrs.reading import Received
from tests.unit.outbox.support import run_sql, until
from tests.unit.support import RecordingPublisher


class Scene:
    """An application with a handler of `OrderPlaced` on the topic `orders`."""

    def __init__(self, registry: cqrs.Registry, database: str, broker: Any) -> None:
        self.database = database

        @registry.integration_event(topic="orders", key="order", name="OrderPlaced")
        class OrderPlaced(cqrs.Event):
            order: str

        @registry.event_handler(name="receipts", retry=cqrs.Retry(attempts=3, first=0.0))
        async def receipts(event: OrderPlaced, session: AsyncSession) -> None:
            await session.execute(text("insert into receipts (id) values (:id)"), {"id": event.order})

        self.event = OrderPlaced
        self.app = cqrs.bootstrap(registry=registry, name="shop", database=database, broker=broker)

    async def prepare(self) -> None:
        await run_sql(self.database, "create table receipts (id text)")

    async def receipts(self) -> list[str]:
        return await run_sql(self.database, "select id from receipts order by id")


HEADERS = {"ce_id": "m1", "ce_type": "OrderPlaced"}
BODY = json.dumps({"order": "7"}).encode()


async def test_a_message_on_kafka_under_test_reaches_its_handler_once(registry: cqrs.Registry, database: str):
    broker = KafkaBroker()
    scene = Scene(registry, database, broker)
    await scene.prepare()
    mount(scene.app, broker)
    async with TestKafkaBroker(broker, connect_only=False), scene.app:
        for _ in range(2):
            await broker.publish(BODY, "orders", key=b"7", headers=HEADERS)
    assert await scene.receipts() == ["7"]


async def test_a_message_on_rabbitmq_under_test_reaches_its_handler_once(registry: cqrs.Registry, database: str):
    broker = RabbitBroker()
    scene = Scene(registry, database, broker)
    await scene.prepare()
    mount(scene.app, broker)
    exchange = RabbitExchange("orders", type=ExchangeType.TOPIC)
    async with TestRabbitBroker(broker, connect_only=False), scene.app:
        for _ in range(2):
            await broker.publish(BODY, exchange=exchange, routing_key="OrderPlaced.03", headers=HEADERS)
    assert await scene.receipts() == ["7"]


async def test_what_an_application_emits_comes_back_through_a_broker_under_test(registry: cqrs.Registry, database: str):
    broker = KafkaBroker()
    scene = Scene(registry, database, broker)
    await scene.prepare()
    mount(scene.app, broker)
    async with TestKafkaBroker(broker, connect_only=False), scene.app:
        await scene.app.emit(scene.event(order="7"))
        await scene.app.drain()
    assert await scene.receipts() == ["7"]


async def test_poison_is_dead_with_its_bytes(registry: cqrs.Registry, database: str):
    broker = KafkaBroker()
    scene = Scene(registry, database, broker)
    await scene.prepare()
    mount(scene.app, broker)
    async with TestKafkaBroker(broker, connect_only=False), scene.app:
        await broker.publish(b"<order/>", "orders", key=b"7", headers=HEADERS)
        [letter] = await scene.app.outbox.dead()
    assert letter.payload == b"<order/>"
    assert "cannot be read back as" in letter.error


async def test_subscribers_say_in_asyncapi_what_they_handle(registry: cqrs.Registry, database: str):
    from faststream import FastStream

    broker = KafkaBroker()
    mount(Scene(registry, database, broker).app, broker)
    channels = FastStream(broker).schema.to_specification().to_jsonable()["channels"]
    [channel] = channels.values()
    assert "orders" in channel["address"]


def test_an_application_is_mounted_on_a_broker_once(registry: cqrs.Registry, database: str):
    broker = KafkaBroker()
    app = Scene(registry, database, broker).app
    mount(app, broker)
    with pytest.raises(cqrs.MisuseError, match=r"'.*' is mounted on this broker already. Call mount once"):
        mount(app, broker)
    assert len(broker.subscribers) == 1


def test_an_application_without_a_broker_cannot_be_mounted(registry: cqrs.Registry, database: str):
    app = cqrs.bootstrap(registry=registry, name="shop", database=database)
    with pytest.raises(cqrs.MisuseError, match="has no database and no broker"):
        mount(app, KafkaBroker())


def test_a_broker_without_order_is_refused(registry: cqrs.Registry, database: str):
    scene = Scene(registry, database, RecordingPublisher())
    nats = type("NatsBroker", (), {"__module__": "faststream.nats.broker", "publish": lambda: None})
    with pytest.raises(cqrs.MisuseError, match="NatsBroker is no broker whose order can be kept"):
        mount(scene.app, nats())


async def test_a_publisher_that_only_publishes_is_refused_when_it_is_to_consume(registry: cqrs.Registry, database: str):
    scene = Scene(registry, database, RecordingPublisher())
    async with scene.app:
        with pytest.raises(cqrs.MisuseError, match="The broker RecordingPublisher only publishes"):
            async with scene.app.consuming():
                pass


async def test_consuming_needs_an_open_application(registry: cqrs.Registry, database: str):
    scene = Scene(registry, database, RecordingPublisher())
    with pytest.raises(cqrs.NotOpen):
        async with scene.app.consuming():
            pass


async def test_without_a_broker_there_is_nothing_to_consume(registry: cqrs.Registry, database: str):
    app = cqrs.bootstrap(registry=registry, name="shop", database=database)
    async with app, app.consuming():
        assert app.consumer is None


async def test_an_application_that_handles_nothing_published_consumes_without_faststream(
    registry: cqrs.Registry, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "cqrs.integrations.faststream", None)
    app = cqrs.bootstrap(registry=registry, name="shop", database=database, broker=RecordingPublisher())
    async with app, app.consuming():
        assert app.consumer is not None
        assert app.consumer.fault is None


@pytest.mark.parametrize("url", ["kafka://127.0.0.1:1", "amqp://127.0.0.1:1/"])
async def test_a_broker_that_is_down_is_tried_again_and_told_of(registry: cqrs.Registry, database: str, url: str):
    scene = Scene(registry, database, url)
    async with scene.app, scene.app.consuming():
        consumer = scene.app.consumer
        assert consumer is not None
        await until(lambda: "the broker is out of reach" in str(consumer.fault))


async def test_an_application_consumes_once_a_process(registry: cqrs.Registry, database: str):
    scene = Scene(registry, database, "kafka://127.0.0.1:1")
    async with scene.app, scene.app.consuming():
        with pytest.raises(cqrs.MisuseError, match="consumes already"):
            async with scene.app.consuming():
                pass


class RecordingConsumer:
    """Takes everything to its end, and keeps the batches; what it is held by may be cleared."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def take(self, received: Sequence[Received]) -> bool:
        self.batches.append([message.topic for message in received])
        await self.free.wait()
        return True


def arrived(name: str) -> Received:
    return Received(name, None, {}, b"")


class Queue:
    """A window over a recording consumer, and messages on their way to it."""

    def __init__(self) -> None:
        self.consumer: Any = RecordingConsumer()
        self.window = Window(self.consumer)
        self.raws = {name: object() for name in "abcd"}

    def announce(self, names: str) -> None:
        for name in names:
            self.window.announce(self.raws[name])

    def take(self, name: str) -> asyncio.Task[bool]:
        return asyncio.create_task(self.window.take(self.raws[name], arrived(name)))


async def test_a_message_does_not_overtake_one_that_the_broker_sent_before_it():
    queue = Queue()
    queue.announce("abc")
    later = [queue.take("c"), queue.take("b")]
    await asyncio.sleep(0)
    assert queue.consumer.batches == []
    assert await queue.take("a")
    assert all(await asyncio.gather(*later))
    assert [name for batch in queue.consumer.batches for name in batch] == ["a", "b", "c"]


async def test_a_message_that_was_turned_away_on_its_way_is_not_waited_for():
    queue = Queue()
    queue.announce("ab")
    later = queue.take("b")
    await asyncio.sleep(0)
    queue.window.leave(queue.raws["a"])
    assert await later
    assert queue.consumer.batches == [["b"]]


async def test_what_arrives_while_a_batch_is_at_work_is_the_next_batch():
    queue = Queue()
    queue.consumer.free.clear()
    queue.announce("abc")
    taken = [queue.take(name) for name in "a"]
    await until(lambda: queue.consumer.batches == [["a"]])
    taken += [queue.take(name) for name in "bc"]
    await asyncio.sleep(0)
    queue.consumer.free.set()
    assert all(await asyncio.gather(*taken))
    assert queue.consumer.batches == [["a"], ["b", "c"]]


async def test_at_the_end_of_a_window_nothing_is_left_at_work_and_nothing_has_ended():
    queue = Queue()
    queue.consumer.free.clear()
    queue.announce("ab")
    first = queue.take("a")
    await until(lambda: queue.consumer.batches == [["a"]])
    second = queue.take("b")
    await asyncio.sleep(0)
    await queue.window.end()
    assert await asyncio.gather(first, second) == [False, False]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_broker_under_test_may_be_started_again(registry: cqrs.Registry, database: str):
    broker = KafkaBroker()
    scene = Scene(registry, database, broker)
    await scene.prepare()
    mount(scene.app, broker)
    for number in "12":
        async with TestKafkaBroker(broker, connect_only=False), scene.app:
            body = json.dumps({"order": number}).encode()
            await broker.publish(body, "orders", headers={**HEADERS, "ce_id": f"m{number}"})
    assert await scene.receipts() == ["1", "2"]


def test_mount_says_what_it_takes_and_in_which_order():
    app = cqrs.bootstrap(registry=cqrs.Registry(), name="shop")
    with pytest.raises(cqrs.MisuseError, match=r"mount takes the application, then the broker: mount\(app, broker\)\."):
        mount(KafkaBroker(), app)
