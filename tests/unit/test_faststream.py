import json
from typing import Any

import pytest
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, TestRabbitBroker
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from cqrs.integrations.faststream import mount
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
