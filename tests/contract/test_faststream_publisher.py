from collections.abc import AsyncIterator
from dataclasses import replace

import aiormq
import pytest
from faststream.kafka import KafkaBroker
from faststream.rabbit import Channel, RabbitBroker
from yarl import URL

from cqrs.brokers.faststream import FastStreamBroker
from cqrs.outbox import Failed, Unavailable
from tests.brokers import url_of
from tests.contract.broker_bench import TIMEOUT
from tests.contract.publisher import BrokerContract, letter, letters, shape
from tests.contract.test_kafka_publisher import KafkaBench, by_proxy
from tests.contract.test_rabbitmq_publisher import RabbitBench
from tests.proxy import Proxy

pytestmark = pytest.mark.services


class TestFastStreamKafka(BrokerContract):
    @pytest.fixture
    async def bench(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KafkaBench]:
        server = url_of("KAFKA_URL").removeprefix("kafka://")
        async with by_proxy(server, monkeypatch) as proxy:
            broker = KafkaBroker(
                server,
                client_id="cqrs-toolkit",
                acks="all",
                enable_idempotence=True,
                request_timeout_ms=int(TIMEOUT * 1000),
                logger=None,
            )
            bench = KafkaBench(FastStreamBroker(broker, timeout=TIMEOUT), proxy)
            bench.server = server
            await bench.create()
            await bench.open()
            yield bench
            proxy.resume()
            await bench.close()

    async def test_a_message_is_as_the_wire_says(self, bench: KafkaBench):
        sent = replace(letter("1", "größe"), headers={"correlation_id": "story", "content-type": "application/json"})
        await bench.publish([sent])
        (record,) = await bench.records()
        assert (record.key, record.value) == ("größe".encode(), sent.payload)
        assert {name: value.decode() for name, value in record.headers} == dict(sent.wire_headers)

    async def test_a_message_that_is_too_large_for_the_client_has_failed_for_good(self, bench: KafkaBench):
        large = replace(letter("2"), payload=b"x" * 1_048_576)
        outcomes = await bench.publish([letter("1"), large, letter("3"), letter("4", "b")])
        assert shape(outcomes) == ["delivered", "failed", "not sent", "delivered"]
        assert isinstance(outcomes[1], Failed)
        assert outcomes[1].final


class TestFastStreamRabbit(BrokerContract):
    @pytest.fixture(params=[False, True], ids=["returned", "raised"])
    async def bench(self, request: pytest.FixtureRequest) -> AsyncIterator[RabbitBench]:
        url = URL(url_of("RABBITMQ_URL"))
        async with Proxy(str(url.host), url.port or 5672) as proxy:
            connection = await aiormq.connect(url)
            broker = RabbitBroker(
                str(url.with_port(proxy.port)),
                default_channel=Channel(on_return_raises=request.param),
                reconnect_interval=0.1,
                logger=None,
            )
            bench = RabbitBench(FastStreamBroker(broker, timeout=TIMEOUT), proxy)
            bench.url = url
            bench.channel = await connection.channel()
            await bench.bind()
            await bench.open()
            yield bench
            proxy.resume()
            await bench.close()
            await bench.remove()
            await connection.close()

    async def test_a_message_is_as_the_wire_says(self, bench: RabbitBench):
        headers = {"ce_time": "2026-11-25T12:00:00+00:00", "content-type": "application/json", "correlation_id": "story"}
        sent = replace(letter("1", "größe"), headers=headers)
        await bench.publish([sent])
        (message,) = await bench.messages()
        properties = message.header.properties
        assert message.body == sent.payload
        assert properties.headers == dict(sent.wire_headers) | {"ce_partitionkey": "größe"}
        assert (properties.message_id, properties.message_type) == ("1", "Happened")
        assert (properties.content_type, properties.correlation_id) == ("application/json", "story")
        assert properties.delivery_mode == 2

    async def test_a_message_that_no_queue_takes_makes_its_topic_unavailable(self, bench: RabbitBench):
        unbound = replace(letter("2", "b"), type="Unbound")
        outcomes = await bench.publish([letter("1"), unbound, replace(letter("3", "b")), letter("4")])
        assert shape(outcomes) == ["delivered", "unavailable", "not sent", "delivered"]
        assert isinstance(outcomes[1], Unavailable)
        assert "No queue is bound" in str(outcomes[1].error)

    async def test_a_user_who_connected_the_broker_keeps_it(self, bench: RabbitBench):
        broker = bench.inner._broker
        await broker.start()
        await bench.close()
        assert broker.running
        await bench.open()
        assert shape(await bench.publish(letters("1"))) == ["delivered"]
        await bench.close()
        await broker.publish("{}", exchange=bench.topic, routing_key="Unbound", mandatory=False)
        await broker.stop()
