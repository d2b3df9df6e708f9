import asyncio
from collections.abc import AsyncIterator
from typing import Any
from zlib import crc32

import aiormq
import pytest
from yarl import URL

from cqrs.brokers import confirms
from cqrs.brokers.rabbitmq import RabbitMQ
from cqrs.codec import Envelope, headers_text
from cqrs.outbox import Failed, Fate, Unavailable
from tests.contract.broker_bench import TIMEOUT, BrokerBench
from tests.contract.publisher import BrokerContract, letter, letters, shape
from tests.proxy import Proxy
from tests.servers import server

pytestmark = pytest.mark.services


class RabbitBench(BrokerBench):
    channel: Any
    url: URL

    def refusable(self, envelope: Envelope) -> Envelope:
        return envelope._replace(type="Refused")

    async def bind(self) -> None:
        """Bind a queue for what is taken, and one that is full for what is refused."""
        full = {"x-max-length": 0, "x-overflow": "reject-publish"}
        await self.channel.exchange_declare(self.topic, exchange_type="topic", durable=True)
        for name, key, arguments in ((self.topic, "Happened.*", {}), (f"{self.topic}.full", "Refused.*", full)):
            await self.channel.queue_declare(name, durable=True, arguments=arguments)
            await self.channel.queue_bind(name, self.topic, key)

    async def remove(self) -> None:
        for name in (self.topic, f"{self.topic}.full"):
            await self.channel.queue_delete(name)
        await self.channel.exchange_delete(self.topic)

    async def messages(self) -> list[Any]:
        found = []
        while (message := await self.channel.basic_get(self.topic)).body:
            found.append(message)
        return found

    async def arrived(self) -> list[str]:
        return [message.header.properties.message_id for message in await self.messages()]


@pytest.fixture
async def bench() -> AsyncIterator[RabbitBench]:
    url = URL(server("RABBITMQ_URL"))
    async with Proxy(str(url.host), url.port or 5672) as proxy:
        connection = await aiormq.connect(url)
        bench = RabbitBench(RabbitMQ(str(url.with_port(proxy.port)), timeout=TIMEOUT), proxy)
        bench.url = url
        bench.channel = await connection.channel()
        await bench.bind()
        await bench.open()
        yield bench
        proxy.resume()
        await bench.close()
        await bench.remove()
        await connection.close()


class TestRabbitMQPublisher(BrokerContract):
    async def test_a_message_is_as_the_wire_says(self, bench: RabbitBench):
        headers = {
            "ce_source": "shop",
            "ce_time": "2026-11-25T12:00:00.5+00:00",
            "content-type": "application/json",
            "correlation_id": "story",
            "note": "grün",
        }
        sent = letter("1", "größe")._replace(saved=headers_text(headers))
        await bench.publish([sent])
        (message,) = await bench.messages()
        properties = message.header.properties
        assert message.body == sent.payload
        assert properties.headers == dict(sent.wire_headers) | {"ce_partitionkey": "größe"}
        assert (properties.message_id, properties.message_type, properties.app_id) == ("1", "Happened", "shop")
        assert (properties.content_type, properties.correlation_id) == ("application/json", "story")
        assert properties.delivery_mode == 2
        assert properties.timestamp.isoformat() == "2026-11-25T12:00:00+00:00"
        slot = crc32(f"{bench.topic}\0größe".encode()) % 16
        assert message.delivery.routing_key == f"Happened.{slot:02d}"

    @pytest.mark.parametrize("send", [confirms.send_at_once, confirms.send_each])
    async def test_both_ways_to_send_give_the_same(
        self, bench: RabbitBench, monkeypatch: pytest.MonkeyPatch, send: Any
    ):
        monkeypatch.setattr("cqrs.brokers.rabbitmq.send", send)
        large = letter("large", "l")._replace(payload=b"x" * 300_000)
        empty = letter("empty", "e")._replace(payload=b"")
        bench.refused.add("n1")
        unbound = letter("u1", "u")._replace(type="Unbound")
        batch = [
            large,
            *letters("123", "a"),
            empty,
            letter("n1", "n"),
            letter("n2", "n"),
            unbound,
            *letters("456", None),
        ]
        outcomes = shape(await bench.publish(batch))
        assert outcomes == [*["delivered"] * 5, "failed", "not sent", "unavailable", *["delivered"] * 3]
        messages = {
            m.header.properties.message_id: m for m in [await bench.channel.basic_get(bench.topic) for _ in "12345678"]
        }
        assert sorted(messages) == sorted(["large", "empty", *"123456"])
        assert messages["large"].body == large.payload
        assert messages["empty"].body == b""

    async def test_a_message_for_a_full_queue_has_failed_and_may_be_tried_again(self, bench: RabbitBench):
        bench.refused.add("1")
        (outcome,) = await bench.publish([letter("1")])
        assert isinstance(outcome, Failed)
        assert "RabbitMQ did not accept Refused 1" in str(outcome.error)
        assert "reject-publish" in str(outcome.error)

    async def test_a_message_that_no_queue_takes_makes_its_topic_unavailable(self, bench: RabbitBench):
        unbound = letter("2", "b")._replace(type="Unbound")
        outcomes = await bench.publish([letter("1"), unbound, letter("3", "b"), letter("4")])
        assert shape(outcomes) == ["delivered", "unavailable", "not sent", "delivered"]
        assert isinstance(outcomes[1], Unavailable)
        assert not outcomes[1].everything
        text = str(outcomes[1].error)
        assert text.startswith(f"No queue is bound to exchange '{bench.topic}' for routing key 'Unbound.")
        assert "Bind one" in text

    async def test_a_message_that_is_too_large_names_the_limit_and_its_size(self, bench: RabbitBench):
        bench.inner._limit = 1000
        large = letter("2")._replace(payload=b"x" * 1001)
        outcomes = await bench.publish([letter("1"), large, letter("3"), letter("4", "b")])
        assert shape(outcomes) == ["delivered", "failed", "not sent", "delivered"]
        assert isinstance(outcomes[1], Failed)
        assert outcomes[1].final
        assert "has a body of 1001 bytes; at most 1000 are sent" in str(outcomes[1].error)

    async def test_a_message_that_amqp_cannot_carry_has_failed_for_good(self, bench: RabbitBench):
        long = letter("2")._replace(type="x" * 300)
        outcomes = await bench.publish([letter("1"), long, letter("3"), letter("4", "b")])
        assert shape(outcomes) == ["delivered", "failed", "not sent", "delivered"]
        assert isinstance(outcomes[1], Failed)
        assert outcomes[1].final

    async def test_an_exchange_is_declared_at_its_first_use(self, bench: RabbitBench):
        other = f"{bench.topic}.declared"
        (outcome,) = await bench.inner.publish([letter("1")._replace(topic=other)])
        assert "No queue is bound" in str(outcome.error)
        await bench.channel.exchange_declare(other, exchange_type="topic", durable=True)  # as it is there
        await bench.channel.exchange_delete(other)

    async def test_an_exchange_that_is_not_there_is_unavailable_without_declare(self, bench: RabbitBench):
        publisher = RabbitMQ(str(bench.url), timeout=TIMEOUT, declare=False)
        await publisher.open()
        missing, there = letter("1")._replace(topic=f"{bench.topic}.missing"), letter("2")._replace(topic=bench.topic)
        outcomes = await publisher.publish([missing, there])
        await publisher.close()
        assert shape(outcomes) == ["unavailable", "delivered"]
        assert isinstance(outcomes[0], Unavailable)
        assert not outcomes[0].everything
        assert "Declare a durable topic exchange of that name" in str(outcomes[0].error)

    async def test_an_exchange_that_was_deleted_is_declared_again(self, bench: RabbitBench):
        await bench.publish([letter("1")])
        await bench.channel.exchange_delete(bench.topic)
        (outcome,) = await bench.publish([letter("2")])
        assert "No queue is bound" in str(outcome.error)
        await bench.bind()
        assert await bench.publish([letter("2")]) == [Fate.DELIVERED]

    async def test_an_exchange_of_another_type_is_unavailable(self, bench: RabbitBench):
        other = f"{bench.topic}.fanout"
        await bench.channel.exchange_declare(other, exchange_type="fanout")
        (outcome,) = await bench.inner.publish([letter("1")._replace(topic=other)])
        await bench.channel.exchange_delete(other)
        assert isinstance(outcome, Unavailable)
        assert not outcome.everything
        assert "make it a durable topic exchange" in str(outcome.error)

    async def test_more_messages_than_the_window_holds_arrive_in_order(self, bench: RabbitBench):
        bench.inner._window = 7
        batch = [letter(f"k{key}-{number}", f"k{key}") for number in range(5) for key in range(20)]
        assert set(await bench.publish(batch)) == {Fate.DELIVERED}
        arrived = await bench.arrived()
        for key in range(20):
            assert [found for found in arrived if found.startswith(f"k{key}-")] == [f"k{key}-{n}" for n in range(5)]

    async def test_lanes_publish_side_by_side(self, bench: RabbitBench):
        async def publish(key: str) -> None:
            for number in range(0, 200, 10):
                batch = [letter(f"{key}{n:03}", key) for n in range(number, number + 10)]
                assert set(await bench.publish(batch)) == {Fate.DELIVERED}

        await asyncio.gather(*(publish(key) for key in "abcd"))
        arrived = await bench.arrived()
        for key in "abcd":
            assert [found for found in arrived if found[0] == key] == [f"{key}{number:03}" for number in range(200)]

    async def test_a_wrong_password_is_told_without_it(self, bench: RabbitBench, caplog: pytest.LogCaptureFixture):
        publisher = RabbitMQ(str(bench.url.with_password("wrong-secret")), timeout=TIMEOUT)
        await publisher.open()
        (outcome,) = await publisher.publish([letter("1")])
        await publisher.close()
        assert isinstance(outcome, Unavailable)
        assert outcome.everything
        assert "user, password" in str(outcome.error)
        assert "wrong-secret" not in str(outcome.error) + repr(publisher) + caplog.text
