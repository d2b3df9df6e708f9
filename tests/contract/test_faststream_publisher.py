from collections.abc import AsyncIterator

import aiormq
import pytest
from faststream.kafka import KafkaBroker
from faststream.rabbit import RabbitBroker
from yarl import URL

from cqrs.brokers.faststream import FastStreamBroker
from cqrs.codec import headers_text
from cqrs.outbox import Failed, Unavailable
from tests.contract.broker_bench import TIMEOUT
from tests.contract.publisher import BrokerContract, letter, shape
from tests.contract.test_kafka_publisher import KafkaBench, by_proxy
from tests.contract.test_rabbitmq_publisher import RabbitBench
from tests.proxy import Proxy
from tests.servers import server

pytestmark = pytest.mark.services


class TestFastStreamKafka(BrokerContract):
    @pytest.fixture
    async def bench(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KafkaBench]:
        address = server("KAFKA_URL").removeprefix("kafka://")
        async with by_proxy(address, monkeypatch) as proxy:
            broker = KafkaBroker(
                address,
                client_id="cqrs-toolkit",
                logger=None,
            )
            bench = KafkaBench(FastStreamBroker(broker, timeout=TIMEOUT), proxy)
            bench.server = address
            await bench.create()
            await bench.open()
            yield bench
            proxy.resume()
            await bench.close()
            await bench.remove()

    async def test_a_message_is_as_the_wire_says(self, bench: KafkaBench):
        sent = letter("1", "größe")._replace(saved='{"correlation_id":"story","content-type":"application/json"}')
        await bench.publish([sent])
        (record,) = await bench.records()
        assert (record.key, record.value) == ("größe".encode(), sent.payload)
        assert {name: value.decode() for name, value in record.headers} == dict(sent.wire_headers)

    async def test_a_message_that_is_too_large_for_the_client_has_failed_for_good(self, bench: KafkaBench):
        large = letter("2")._replace(payload=b"x" * 1_048_576)
        outcomes = await bench.publish([letter("1"), large, letter("3"), letter("4", "b")])
        assert shape(outcomes) == ["delivered", "failed", "not sent", "delivered"]
        assert isinstance(outcomes[1], Failed)
        assert outcomes[1].final


class TestFastStreamRabbit(BrokerContract):
    @pytest.fixture
    async def bench(self) -> AsyncIterator[RabbitBench]:
        url = URL(server("RABBITMQ_URL"))
        async with Proxy(str(url.host), url.port or 5672) as proxy:
            connection = await aiormq.connect(url)
            broker = RabbitBroker(str(url.with_port(proxy.port)), logger=None)
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
        headers = {
            "ce_time": "2026-11-25T12:00:00+00:00",
            "content-type": "application/json",
            "correlation_id": "story",
        }
        sent = letter("1", "größe")._replace(saved=headers_text(headers))
        await bench.publish([sent])
        (message,) = await bench.messages()
        properties = message.header.properties
        assert message.body == sent.payload
        assert properties.headers == dict(sent.wire_headers) | {"ce_partitionkey": "größe"}
        assert (properties.message_id, properties.message_type) == ("1", "Happened")
        assert (properties.content_type, properties.correlation_id) == ("application/json", "story")
        assert properties.delivery_mode == 2

    async def test_a_message_that_no_queue_takes_makes_its_topic_unavailable(self, bench: RabbitBench):
        unbound = letter("2", "b")._replace(type="Unbound")
        outcomes = await bench.publish([letter("1"), unbound, letter("3", "b"), letter("4")])
        assert shape(outcomes) == ["delivered", "unavailable", "not sent", "delivered"]
        assert isinstance(outcomes[1], Unavailable)
        assert "No queue is bound" in str(outcomes[1].error)
