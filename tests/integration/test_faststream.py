"""FastStream as users have it, on real brokers: mounted, and with subscribers of their own."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import faststream
import pydantic
import pytest
from faststream.kafka import KafkaBroker
from faststream.rabbit import RabbitBroker
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from cqrs.integrations.faststream import mount
from tests.servers import server
from tests.unit.outbox.support import run_sql, until

pytestmark = pytest.mark.services
BROKERS = {"Kafka": "KAFKA_URL", "RabbitMQ": "RABBITMQ_URL"}
PATIENCE = 40.0


class UserCreated(pydantic.BaseModel):
    user_id: str


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Any:
    url = server(BROKERS[request.param])
    return KafkaBroker(url.removeprefix("kafka://")) if request.param == "Kafka" else RabbitBroker(url)


@pytest.fixture
def topic() -> str:
    return f"user_events-{uuid.uuid4().hex[:8]}"


def subscribe(broker: Any, topic: str, **options: Any) -> Any:
    """Subscribe from the beginning of a topic, whose first message is there before its first consumer on Kafka."""
    if isinstance(broker, KafkaBroker):
        options |= {"auto_offset_reset": "earliest", "group_id": topic}
    return broker.subscriber(topic, **options)


async def test_a_subscriber_hands_a_notification_to_the_mediator(broker: Any, topic: str, database: str):
    registry = cqrs.Registry()
    await run_sql(database, "create table greetings (user_id text)")

    @registry.event_handler
    async def greet(event: cqrs.NotificationEvent[UserCreated], session: AsyncSession) -> None:
        await session.execute(text("insert into greetings values (:id)"), {"id": event.payload.user_id})

    app = cqrs.bootstrap(registry=registry, name="users", database=database)

    def get_mediator() -> cqrs.EventMediator:
        return app

    @subscribe(broker, topic)
    async def on_user(
        event: cqrs.NotificationEvent[UserCreated],
        mediator: cqrs.EventMediator = faststream.Depends(get_mediator),  # noqa: B008 - as FastStream has it
    ) -> None:
        await mediator.send(event)

    first, second = (
        cqrs.NotificationEvent[UserCreated](payload=UserCreated(user_id=name), topic=topic) for name in ("7", "8")
    )
    async with app, broker:
        await broker.start()
        for event in (first, first, second):
            await broker.publish(event, topic)

        async def greeted() -> bool:
            return "8" in await run_sql(database, "select user_id from greetings")

        await until(greeted, PATIENCE)
    assert sorted(await run_sql(database, "select user_id from greetings")) == ["7", "8"]


class Scene:
    """An application that is mounted on a FastStream broker."""

    def __init__(self, broker: Any, topic: str, database: str) -> None:
        registry = cqrs.Registry()
        self.taken: list[int] = []
        self.broker = broker

        @registry.integration_event(topic=topic, key="key")
        class Happened(cqrs.Event):
            key: str
            number: int

        @registry.event_handler
        async def take(event: Happened) -> None:
            self.taken.append(event.number)

        self.event = Happened
        self.app = cqrs.bootstrap(registry=registry, name=topic, database=database, broker=broker)
        mount(self.app, broker)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with self.app:
            await self.broker.start()
            try:
                yield
            finally:
                await self.broker.stop()


async def test_a_mounted_application_gets_what_it_emits_in_order(broker: Any, topic: str, database: str):
    scene = Scene(broker, topic, database)
    async with scene.at_work():
        for number in range(20):
            await scene.app.emit(scene.event(key="a", number=number))
        await until(lambda: len(scene.taken) >= 20, PATIENCE)
    assert scene.taken == list(range(20))


async def test_a_mounted_broker_can_be_started_again(broker: Any, topic: str, database: str):
    scene = Scene(broker, topic, database)
    for number in range(2):
        async with scene.at_work():
            await scene.app.emit(scene.event(key="a", number=number))
            await until(lambda number=number: len(scene.taken) > number, PATIENCE)
    assert scene.taken == [0, 1]
