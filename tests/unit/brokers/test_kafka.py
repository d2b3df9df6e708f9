import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.producer.message_accumulator import BatchBuilder

import cqrs
from cqrs.brokers import kafka, producers
from cqrs.brokers.kafka import Kafka, key_hash
from cqrs.outbox import Failed, Fate, Unavailable
from tests.contract.publisher import letter, letters, shape


class FakeProducer:
    """An aiokafka producer whose cluster takes, refuses or ignores batches as `answer` says."""

    made: "list[FakeProducer]"
    answer: Callable[[list[bytes]], BaseException | None] = staticmethod(lambda values: None)
    start_error: BaseException | None = None
    unknown: set[str]
    reachable = True

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.sent: list[list[bytes]] = []
        self.values: dict[int, list[bytes]] = {}
        self.stopped = False
        self.client = self
        self._sender = self
        self.sender_task = asyncio.ensure_future(asyncio.Event().wait())
        self.made.append(self)

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error

    async def stop(self) -> None:
        self.sender_task.cancel()
        self.stopped = True

    async def partitions_for(self, topic: str) -> set[int]:
        if topic in self.unknown:
            await asyncio.Event().wait()
        return {0}

    async def force_metadata_update(self) -> bool:
        return self.reachable

    def create_batch(self) -> BatchBuilder:
        builder = BatchBuilder(self.options["max_batch_size"], 0)
        values = self.values[id(builder)] = []
        append = builder.append

        def noting(*, value: bytes, **parts: Any) -> Any:
            taken = append(value=value, **parts)
            if taken is not None:
                values.append(value)
            return taken

        builder.append = noting
        return builder

    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> "asyncio.Future[None]":
        future = asyncio.get_running_loop().create_future()
        values = self.values[id(batch)]
        error = type(self).answer(values)
        if error is None:
            self.sent.append(values)
            future.set_result(None)
        elif not isinstance(error, TimeoutError):
            future.set_exception(error)
        return future


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeProducer]:
    kind = type("Fake", (FakeProducer,), {"made": [], "unknown": set()})
    monkeypatch.setattr(producers, "AIOKafkaProducer", kind)
    return kind


async def publish(envelopes: list[cqrs.Envelope], **options: Any) -> list[Any]:
    publisher = Kafka("one:9092", **{"timeout": 0.4, **options})
    await publisher.open()
    outcomes = await publisher.publish(envelopes)
    await publisher.close()
    return outcomes


@pytest.mark.parametrize(
    ("key", "murmur2"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_a_key_is_hashed_as_by_the_java_client(key: str, murmur2: int):
    assert key_hash(key) == murmur2 & 0x7FFFFFFF


def test_what_would_cost_a_guarantee_cannot_be_passed():
    with pytest.raises(TypeError, match="Kafka does not take acks, enable_idempotence; of a connection it takes"):
        Kafka("one:9092", acks=1, enable_idempotence=False)


async def test_what_a_connection_needs_is_passed_on(fake: type[FakeProducer]):
    await publish([], security_protocol="SASL_PLAINTEXT", sasl_plain_username="me", sasl_plain_password="hush")
    assert fake.made[0].options["sasl_plain_password"] == "hush"
    assert fake.made[0].options["enable_idempotence"] is True


async def test_a_batch_holds_what_goes_to_one_partition(fake: type[FakeProducer]):
    assert await publish([letter("1", "a"), letter("2", "b"), letter("3", None)]) == [Fate.DELIVERED] * 3
    assert len(fake.made[0].sent) == 1


async def test_a_cluster_that_is_out_of_reach_is_told_with_its_servers(
    fake: type[FakeProducer], caplog: pytest.LogCaptureFixture
):
    fake.start_error = errors.KafkaConnectionError("no")
    (outcome, *rest) = await publish(letters("12"))
    assert isinstance(outcome, Unavailable)
    assert outcome.everything
    assert str(outcome.error) == (
        "Kafka at one:9092 is out of reach: KafkaConnectionError: no. "
        "Check that it runs, and the address, user and password."
    )
    assert rest == [Fate.NOT_SENT]
    assert "Kafka at one:9092 is out of reach, and is tried again" in caplog.text
    assert all(producer.stopped for producer in fake.made)


async def test_a_topic_that_takes_nothing_in_time_is_unavailable_and_its_producer_replaced(fake: type[FakeProducer]):
    fake.answer = staticmethod(lambda values: TimeoutError())
    (outcome, *rest) = await publish(letters("12"))
    assert isinstance(outcome, Unavailable)
    assert not outcome.everything
    assert str(outcome.error).startswith("Kafka took no more of topic 'orders' within 0.4 s.")
    assert rest == [Fate.NOT_SENT]
    assert [producer.stopped for producer in fake.made] == [True, True]


@pytest.mark.parametrize(("reachable", "everything"), [(True, False), (False, False)])
async def test_a_topic_that_is_not_known_is_unavailable(fake: type[FakeProducer], reachable: bool, everything: bool):
    fake.unknown, fake.reachable = {"orders"}, reachable
    (outcome,) = await publish([letter("1")])
    assert isinstance(outcome, Unavailable)
    assert outcome.everything is everything
    assert str(outcome.error).startswith(
        "Kafka has no topic 'orders'. Create it" if reachable else "Kafka took no more"
    )


@pytest.mark.parametrize(
    ("error", "everything", "text"),
    [
        (errors.TopicAuthorizationFailedError("orders"), False, "Kafka does not let this application write to topic"),
        (errors.ClusterAuthorizationFailedError(), True, "Kafka does not let this application write idempotently"),
        (errors.NotEnoughReplicasError(), False, "Kafka took nothing of topic 'orders'"),
        (errors.KafkaError("Unexpected error during batch delivery"), False, "Kafka took nothing of topic 'orders'"),
        (AssertionError("Unrecognized partition"), False, "Kafka took nothing of topic 'orders': Unrecognized"),
    ],
)  # fmt: skip
async def test_an_error_that_no_message_is_to_blame_for_makes_unavailable(
    fake: type[FakeProducer], error: BaseException, everything: bool, text: str
):
    fake.answer = staticmethod(lambda values: error)
    outcome, behind, other = await publish([letter("1"), letter("2"), letter("3", "b")])
    assert isinstance(outcome, Unavailable)
    assert outcome.everything is everything
    assert str(outcome.error).startswith(text)
    assert outcome.error.__cause__ is error
    assert shape([behind, other]) == ["not sent", "unavailable"]


@pytest.mark.parametrize(
    "error", [errors.OutOfOrderSequenceNumber(), errors.ProducerFenced(), errors.UnknownProducerId()]
)
async def test_a_worn_out_producer_is_replaced_and_the_batch_sent_again(fake: type[FakeProducer], error: BaseException):
    answers: Iterator[BaseException | None] = iter([error, None])
    fake.answer = staticmethod(lambda values: next(answers))
    assert await publish(letters("12")) == [Fate.DELIVERED] * 2
    assert [len(producer.sent) for producer in fake.made] == [0, 1]
    assert all(producer.stopped for producer in fake.made)


async def test_producers_that_are_worn_out_again_and_again_make_the_topic_unavailable(fake: type[FakeProducer]):
    fake.answer = staticmethod(lambda values: errors.OutOfOrderSequenceNumber())
    (outcome,) = await publish([letter("1")])
    assert isinstance(outcome, Unavailable)
    assert len(fake.made) == kafka.FAULTS + 1


async def test_a_message_that_the_cluster_refuses_is_found_and_may_be_tried_again(fake: type[FakeProducer]):
    fake.answer = staticmethod(lambda values: errors.UnknownError() if b"bad" in values else None)
    batch = [letter(str(number), f"k{number % 3}") for number in range(12)]
    bad = cqrs.Envelope("4", "handler", "orders", "k1", "Happened", "{}", b"bad")
    outcomes = await publish([*batch[:4], bad, *batch[5:]])
    expected = ["delivered"] * 12
    expected[4], expected[7], expected[10] = "failed", "not sent", "not sent"
    assert shape(outcomes) == expected
    assert isinstance(outcomes[4], Failed)
    assert not outcomes[4].final
    assert str(outcomes[4].error).startswith("Kafka refused Happened 4 to topic 'orders'")


async def test_headers_that_kafka_cannot_carry_fail_for_good(fake: type[FakeProducer]):
    broken = cqrs.Envelope("1", "handler", "orders", "a", "Half\ud800", "{}", b"{}")
    outcomes = await publish([broken, letter("2"), letter("3", "b")])
    assert shape(outcomes) == ["failed", "not sent", "delivered"]
    assert outcomes[0].final
    assert " 1 to topic 'orders' is nothing that Kafka can carry" in str(outcomes[0].error)


async def test_nothing_is_published_after_close(fake: type[FakeProducer]):
    publisher = Kafka("one:9092", timeout=0.4)
    await publisher.open()
    await publisher.close()
    assert await publisher.publish(letters("12")) == [Fate.NOT_SENT] * 2
    assert fake.made[0].sent == []


async def test_the_partitions_of_messages_without_a_key_take_turns(fake: type[FakeProducer]):
    async def partitions_for(self: FakeProducer, topic: str) -> set[int]:
        return {0, 1, 2}

    seen: list[int] = []

    async def send_batch(self: FakeProducer, batch: Any, topic: str, *, partition: int) -> "asyncio.Future[None]":
        seen.append(partition)
        return await FakeProducer.send_batch(self, batch, topic, partition=partition)

    fake.partitions_for, fake.send_batch = partitions_for, send_batch
    publisher = Kafka("one:9092", timeout=0.4)
    for number in "123456":
        await publisher.publish([letter(number, None)])
    await publisher.close()
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]
