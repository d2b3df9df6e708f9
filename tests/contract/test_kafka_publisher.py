import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiokafka.client
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from cqrs.brokers.kafka import Kafka
from cqrs.codec import Envelope
from cqrs.outbox import Failed, Fate, Unavailable
from tests.contract.broker_bench import TIMEOUT, BrokerBench
from tests.contract.publisher import BrokerContract, letter, letters, shape
from tests.proxy import Proxy
from tests.servers import server

pytestmark = pytest.mark.services

PARTITIONS = 4
LIMIT = 20_000


class KafkaBench(BrokerBench):
    final = True
    server: str

    def refusable(self, envelope: Envelope) -> Envelope:
        return envelope._replace(payload=b"x" * LIMIT)

    async def create(self, *, partitions: int = PARTITIONS) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.server)
        await admin.start()
        try:
            configs = {"max.message.bytes": str(LIMIT)}
            await admin.create_topics([NewTopic(self.topic, partitions, 1, topic_configs=configs)])
            while not await self._is_led(admin):  # noqa: ASYNC110 - a cluster tells nobody
                await asyncio.sleep(0.01)
        finally:
            await admin.close()

    async def remove(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.server)
        await admin.start()
        try:
            await admin.delete_topics([self.topic])
        finally:
            await admin.close()

    async def _is_led(self, admin: AIOKafkaAdminClient) -> bool:
        (found,) = await admin.describe_topics([self.topic])
        return found["error_code"] == 0 and all(place["error_code"] == 0 for place in found["partitions"])

    async def records(self) -> list[Any]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.server, enable_auto_commit=False)
        await consumer.start()
        try:
            places = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            for place in places:
                consumer.seek(place, 0)
            found: list[Any] = []
            while any([await consumer.position(place) < ends[place] for place in places]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
        finally:
            await consumer.stop()
        return found

    async def arrived(self) -> list[str]:
        return [dict(record.headers)["ce_id"].decode() for record in await self.records()]


@asynccontextmanager
async def by_proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """Let the publisher's connections, and only those, go by a proxy, although brokers tell clients where they are."""
    create_conn = aiokafka.client.create_conn

    async def create_conn_by_proxy(host: str, port: int, **options: Any) -> Any:
        publishes = options["client_id"] == "cqrs-toolkit"
        return await create_conn(host, proxy.port if publishes else port, **options)

    host, _, port = server.partition(":")
    async with Proxy(host, int(port)) as proxy:
        monkeypatch.setattr("aiokafka.client.create_conn", create_conn_by_proxy)
        yield proxy


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KafkaBench]:
    address = server("KAFKA_URL").removeprefix("kafka://")
    async with by_proxy(address, monkeypatch) as proxy:
        bench = KafkaBench(Kafka(address, timeout=TIMEOUT), proxy)
        bench.server = address
        await bench.create()
        await bench.open()
        yield bench
        proxy.resume()
        await bench.close()
        await bench.remove()


class TestKafkaPublisher(BrokerContract):
    async def test_a_message_is_as_the_wire_says(self, bench: KafkaBench):
        sent = letter("1", "größe")._replace(saved='{"note":"grün"}')
        await bench.publish([sent])
        (record,) = await bench.records()
        assert (record.key, record.value) == ("größe".encode(), sent.payload)
        assert [(name, value.decode()) for name, value in record.headers] == list(sent.wire_headers.items())

    async def test_a_message_without_a_key_has_none(self, bench: KafkaBench):
        await bench.publish([letter("1", None)])
        (record,) = await bench.records()
        assert record.key is None

    async def test_keys_are_where_other_clients_put_them(self, bench: KafkaBench):
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=bench.server)
        await producer.start()
        theirs = {}
        for number in range(50):
            sent = await producer.send_and_wait(bench.topic, b"{}", key=f"k{number}".encode(), headers=[("ce_id", b"")])
            theirs[sent.partition, f"k{number}".encode()] = 1
        await producer.stop()
        await bench.publish([letter(str(number), f"k{number}") for number in range(50)])
        assert {(record.partition, record.key): 1 for record in await bench.records()} == theirs

    async def test_messages_without_a_key_are_spread(self, bench: KafkaBench):
        for number in range(PARTITIONS):
            await bench.publish(letters(str(number), None))
        assert {record.partition for record in await bench.records()} == set(range(PARTITIONS))

    async def test_a_message_that_is_too_large_for_the_client_names_the_limit_and_its_size(self, bench: KafkaBench):
        large = letter("2")._replace(payload=b"x" * 1_048_576)
        outcomes = await bench.publish([letter("1"), large, letter("3"), letter("4", "b")])
        assert shape(outcomes) == ["delivered", "failed", "not sent", "delivered"]
        assert isinstance(outcomes[1], Failed)
        assert outcomes[1].final
        assert "Happened 2" in str(outcomes[1].error)
        assert "at most 1048576 are sent" in str(outcomes[1].error)
        assert await bench.arrived() in (["1", "4"], ["4", "1"])

    async def test_a_message_that_is_too_large_for_the_topic_is_found_in_its_batch(self, bench: KafkaBench):
        bench.refused.add("k3-7")
        batch = [letter(f"k{key}-{number}", f"k{key}") for number in range(20) for key in range(10)]
        outcomes = await bench.publish(batch)
        failed = [found for found in outcomes if isinstance(found, Failed)]
        assert len(failed) == 1
        assert "bytes with its key and headers, more than the topic's max.message.bytes" in str(failed[0].error)
        assert shape(outcomes).count("not sent") == 12
        assert shape(outcomes).count("delivered") == 187
        arrived = await bench.arrived()
        for key in range(10):
            last = 7 if key == 3 else 20
            assert [found for found in arrived if found.startswith(f"k{key}-")] == [
                f"k{key}-{number}" for number in range(last)
            ]

    async def test_batches_that_are_too_large_for_the_topic_are_divided(self, bench: KafkaBench):
        batch = [letter(f"{number:03}", "a")._replace(payload=b"x" * 3000) for number in range(100)]
        assert set(await bench.publish(batch)) == {Fate.DELIVERED}
        assert await bench.arrived() == [f"{number:03}" for number in range(100)]

    async def test_a_topic_that_is_not_there_is_unavailable_and_holds_up_no_other(self, bench: KafkaBench):
        missing = letter("9")._replace(topic="no topic can have this name")
        there = letter("1")._replace(topic=bench.topic)
        outcomes = await bench.inner.publish([missing, there, missing._replace(message_id="10")])
        assert shape(outcomes) == ["unavailable", "delivered", "not sent"]
        assert isinstance(outcomes[0], Unavailable)
        assert not outcomes[0].everything

    async def test_a_topic_that_is_created_later_is_published_to(self, bench: KafkaBench):
        bench.topic += "-later"
        await bench.create()
        assert await bench.publish([letter("1")]) == [Fate.DELIVERED]

    async def test_many_messages_arrive_once(self, bench: KafkaBench):
        batch = [letter(f"{number:05}", f"k{number % 300}") for number in range(5000)]
        for start in range(0, 5000, 500):
            assert set(await bench.publish(batch[start : start + 500])) == {Fate.DELIVERED}
        assert sorted(await bench.arrived()) == [f"{number:05}" for number in range(5000)]

    async def test_lanes_publish_side_by_side(self, bench: KafkaBench):
        async def publish(key: str) -> None:
            for number in range(0, 200, 10):
                batch = [letter(f"{key}{n:03}", key) for n in range(number, number + 10)]
                assert set(await bench.publish(batch)) == {Fate.DELIVERED}

        await asyncio.gather(*(publish(key) for key in "abcd"))
        arrived = await bench.arrived()
        for key in "abcd":
            assert [found for found in arrived if found[0] == key] == [f"{key}{number:03}" for number in range(200)]
