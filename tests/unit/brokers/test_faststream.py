import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.kafka.annotations import KafkaMessage
from faststream.rabbit import RabbitBroker, RabbitExchange, TestRabbitBroker
from faststream.rabbit.annotations import RabbitMessage
from faststream.rabbit.schemas import ExchangeType
from faststream.security import SASLScram256

import cqrs
from cqrs.brokers.faststream import FastStreamBroker
from cqrs.brokers.kafka import Kafka
from cqrs.brokers.rabbitmq import RabbitMQ
from cqrs.brokers.urls import from_object
from cqrs.codec import headers_text
from cqrs.outbox import Failed, Fate, Unavailable
from tests.contract.publisher import letter, letters, shape

HEADERS = {"correlation_id": "story", "content-type": "application/json"}


def adapted(broker: Any) -> Any:
    problems: list[cqrs.Problem] = []
    publisher = from_object(broker, problems, slots=16, timeout=5.0)
    assert problems == []
    return publisher


def refused(broker: Any) -> list[str]:
    problems: list[cqrs.Problem] = []
    assert from_object(broker, problems, slots=16) is None
    return [str(problem) for problem in problems]


def test_a_kafka_broker_gives_its_connection_settings_and_none_that_lose():
    security = SASLScram256(username="me", password="hush")
    broker = KafkaBroker(["one:9092", "two:9092"], security=security, acks=1, max_request_size=5000, client_id="shop")
    direct = adapted(broker)._direct
    assert isinstance(direct, Kafka)
    options = direct._options
    assert options["bootstrap_servers"] == ["one:9092", "two:9092"]
    assert (options["sasl_mechanism"], options["sasl_plain_password"]) == ("SCRAM-SHA-256", "hush")
    assert (options["acks"], options["enable_idempotence"]) == ("all", True)
    assert (options["client_id"], options["max_batch_size"]) == ("shop", 5000)


def test_a_rabbit_broker_gives_its_url():
    direct = adapted(RabbitBroker("amqp://me:hush@one:5673/host"))._direct
    assert isinstance(direct, RabbitMQ)
    assert (direct._url.host, direct._url.port, direct._url.password, direct._url.path) == (
        "one",
        5673,
        "hush",
        "/host",
    )


def test_an_adapter_shows_no_secret():
    assert "hush" not in repr(adapted(RabbitBroker("amqp://me:hush@one:5673/host")))


def test_a_faststream_object_that_is_no_broker_is_refused():
    (problem,) = refused(RabbitExchange("orders"))
    assert problem.startswith(
        "faststream.rabbit.schemas.exchange.RabbitExchange is no FastStream broker that can publish."
    )


async def test_a_kafka_broker_under_test_is_published_through():
    broker = KafkaBroker()
    seen: list[Any] = []

    @broker.subscriber("orders")
    async def note(body: dict[str, str], message: KafkaMessage) -> None:
        seen.append((body, message.headers["ce_id"], message.correlation_id, message.raw_message.key))

    async with TestKafkaBroker(broker, connect_only=False):
        publisher = adapted(broker)
        await publisher.open()
        sent = cqrs.Envelope("1", "broker", "orders", "a", "Happened", headers_text(HEADERS), b'{"name":"tea"}')
        assert await publisher.publish([sent]) == [Fate.DELIVERED]
        await publisher.close()
    assert seen == [({"name": "tea"}, "1", "story", b"a")]


async def test_a_rabbit_broker_under_test_is_published_through():
    broker = RabbitBroker()
    seen: list[Any] = []

    @broker.subscriber("#", RabbitExchange("orders", type=ExchangeType.TOPIC))
    async def note(body: dict[str, str], message: RabbitMessage) -> None:
        seen.append((body, message.message_id, message.headers["ce_partitionkey"]))

    async with TestRabbitBroker(broker, connect_only=False):
        publisher = adapted(broker)
        await publisher.open()
        sent = cqrs.Envelope("1", "broker", "orders", "a", "Happened", headers_text(HEADERS), b'{"name":"tea"}')
        assert await publisher.publish([sent]) == [Fate.DELIVERED]
        await publisher.close()
    assert seen == [({"name": "tea"}, "1", "a")]


class Producer:
    pass


class BrokerOf:
    """Makes brokers of FastStream's packages that are not installed: they note what is published."""

    def __init__(self, kind: str, **settings: Any) -> None:
        self.kind = kind
        self.settings = settings

    def make(self) -> Any:
        async def connect(broker: Any) -> None:
            broker.connected += 1

        async def publish(broker: Any, message: bytes, **options: Any) -> None:
            if broker.error is not None:
                raise broker.error
            broker.published.append((message, options))

        async def ping(broker: Any, timeout: float | None) -> bool:
            return bool(broker.answers)

        async def stop(broker: Any) -> None:
            broker.stopped += 1

        methods = {"connect": connect, "publish": publish, "ping": ping, "stop": stop}
        broker = type("Broker", (), methods | {"__module__": f"faststream.{self.kind}.broker.broker"})()
        broker.__dict__ |= {
            "published": [],
            "connected": 0,
            "stopped": 0,
            "running": False,
            "answers": True,
            "error": None,
            "config": SimpleNamespace(producer=Producer()),
            "_connection_kwargs": self.settings,
        }
        return broker


async def test_a_confluent_broker_publishes_with_key_and_headers():
    broker = BrokerOf("confluent").make()
    publisher = adapted(broker)
    await publisher.open()
    sent = letter("1")
    assert await publisher.publish([sent]) == [Fate.DELIVERED]
    assert broker.published == [(sent.payload, {"topic": "orders", "key": b"a", "headers": dict(sent.wire_headers)})]
    await publisher.close()
    assert broker.stopped == 1


@pytest.mark.parametrize("acks", [0, 1])
def test_a_confluent_broker_that_does_not_wait_for_all_replicas_is_refused(acks: int):
    (problem,) = refused(BrokerOf("confluent", acks=acks).make())
    assert problem.startswith("The KafkaBroker of faststream.confluent does not wait for all replicas.")
    assert problem.endswith("Make it with acks='all', enable_idempotence=True.")


def test_a_nats_broker_without_a_stream_is_refused():
    (problem,) = refused(BrokerOf("nats").make())
    assert problem.endswith("Pass cqrs.brokers.faststream.FastStreamBroker(broker, stream='...').")
    with pytest.raises(cqrs.ConfigurationError, match="without JetStream"):
        FastStreamBroker(BrokerOf("nats").make())


async def test_a_nats_broker_publishes_to_its_stream():
    broker = BrokerOf("nats").make()
    publisher = FastStreamBroker(broker, stream="shop")
    await publisher.publish([letter("1")])
    ((_, options),) = broker.published
    assert (options["subject"], options["stream"], options["headers"]["ce_partitionkey"]) == ("orders", "shop", "a")


async def test_a_redis_broker_publishes_to_a_stream():
    broker = BrokerOf("redis").make()
    await adapted(broker).publish([letter("1", None)])
    ((_, options),) = broker.published
    assert (options["stream"], options["headers"]) == ("orders", {"ce_id": "1", "ce_type": "Happened"})


async def test_messages_of_a_key_are_published_one_after_the_other():
    broker = BrokerOf("redis").make()
    batch = [letter(f"{key}{number}", key) for number in range(5) for key in "abc"]
    assert await adapted(broker).publish(batch) == [Fate.DELIVERED] * 15
    ids = [options["headers"]["ce_id"] for _, options in broker.published]
    for key in "abc":
        assert [found for found in ids if found[0] == key] == [f"{key}{number}" for number in range(5)]


async def test_what_a_broker_refuses_has_failed():
    broker = BrokerOf("redis").make()
    broker.error = ValueError("too odd")
    outcomes = await adapted(broker).publish(letters("12"))
    assert shape(outcomes) == ["failed", "not sent"]
    assert isinstance(outcomes[0], Failed)
    assert str(outcomes[0].error) == "Broker did not take Happened 1 to topic 'orders': too odd"


async def test_what_a_broker_that_does_not_answer_does_not_take_is_unavailable():
    broker = BrokerOf("redis").make()
    broker.error, broker.answers = ConnectionError("gone"), False
    outcomes = await adapted(broker).publish(letters("12"))
    assert shape(outcomes) == ["unavailable", "not sent"]
    assert isinstance(outcomes[0], Unavailable)
    assert outcomes[0].everything


async def test_a_broker_that_hangs_is_given_up_in_time():
    broker = BrokerOf("redis").make()

    async def publish(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    broker.publish = publish
    publisher = FastStreamBroker(broker, timeout=0.05)
    assert shape(await publisher.publish([letter("1"), letter("2"), letter("3", "b")])) == [
        "unavailable",
        "not sent",
        "unavailable",
    ]


async def test_a_broker_that_somebody_started_is_not_stopped():
    broker = BrokerOf("redis").make()
    broker.running = True
    publisher = adapted(broker)
    await publisher.open()
    await publisher.close()
    assert broker.stopped == 0


async def test_a_broker_that_cannot_be_connected_to_is_reported(caplog: pytest.LogCaptureFixture):
    broker = BrokerOf("redis").make()

    async def connect() -> None:
        raise ConnectionError("refused")

    broker.connect = connect
    await adapted(broker).open()
    assert "Broker is out of reach, and is tried again: refused" in caplog.text


def test_a_faststream_that_does_not_tell_its_settings_is_refused():
    broker = BrokerOf("kafka").make()
    del broker._connection_kwargs
    (problem,) = refused(broker)
    assert problem.startswith("This version of FastStream does not tell where its Broker connects to.")
