"""Kafka: the publisher of what goes to Kafka topics, on aiokafka."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

try:
    from aiokafka import errors as kafka
    from aiokafka.partitioner import murmur2
except ModuleNotFoundError as error:
    if error.name != "aiokafka":
        raise
    raise ModuleNotFoundError(
        "Kafka needs the package aiokafka. Run: pip install 'cqrs-toolkit[kafka]'", name="aiokafka"
    ) from None

from cqrs.brokers.batches import REFUSED, Batches
from cqrs.brokers.ending import Idle
from cqrs.brokers.producers import LOST, WORN_OUT, Producer, Producers
from cqrs.brokers.tally import Tally, caused, text_of
from cqrs.errors import PublishError
from cqrs.outbox.publisher import Fate, Outcome, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cqrs.codec import Envelope

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 1_048_576
"""The largest message in bytes, with its key and headers; a broker's own default is twelve bytes more."""
TOPIC = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")
FAULTS = 3
"""How often a batch is tried again in one publish because its producer had to be replaced."""
CONNECTION = frozenset({
    "connections_max_idle_ms",
    "retry_backoff_ms",
    "sasl_kerberos_domain_name",
    "sasl_kerberos_service_name",
    "sasl_mechanism",
    "sasl_oauth_token_provider",
    "sasl_plain_password",
    "sasl_plain_username",
    "security_protocol",
    "ssl_context",
})  # fmt: skip


@lru_cache(maxsize=100_000)
def key_hash(key: str) -> int:
    """Return what the Java client makes of a key: modulo the number of partitions it is the key's partition."""
    return int(murmur2(key.encode())) & 0x7FFFFFFF


class Kafka:
    """Publishes to Kafka: idempotent, acknowledged by all replicas in sync, a batch a partition.

    `servers` is `host:port`, or several with commas between. A `publish` takes `timeout` seconds at most.
    `max_message_bytes` limits a message with its key and headers, and a batch: keep it at the `max.message.bytes` of
    your topics. `connection` is passed on to `aiokafka.AIOKafkaProducer`: `security_protocol`, `ssl_context`,
    `sasl_mechanism`, `sasl_plain_username` and the like.

    A `publish` has one batch of a partition in flight; the next one follows its acknowledgement, so that nothing
    queues behind a batch whose end is unknown. After its first fault a producer is replaced and sends no more: what
    it had sent by then is at worst a duplicate, in whole batches, when the relay publishes those events again.
    """

    def __init__(
        self,
        servers: str,
        *,
        timeout: float = 8.0,
        max_message_bytes: int = MESSAGE_LIMIT,
        compression: str | None = None,
        client_id: str = "cqrs-toolkit",
        **connection: Any,
    ) -> None:
        unknown = sorted(connection.keys() - CONNECTION)
        if unknown:
            raise TypeError(f"Kafka does not take {', '.join(unknown)}; of a connection it takes {sorted(CONNECTION)}.")
        self._servers = servers
        self._timeout = timeout
        self._options = (
            {"retry_backoff_ms": 250}
            | connection
            | {
                "bootstrap_servers": [server.strip() for server in servers.split(",")],
                "client_id": client_id,
                "acks": "all",
                "enable_idempotence": True,
                "compression_type": compression,
                "max_batch_size": max_message_bytes,
                "request_timeout_ms": int(timeout * 1000),
                "metadata_max_age_ms": 60_000,
            }
        )
        self._producers = Producers(self._options)
        self._batches = Batches(max_message_bytes)
        self._turn = 0
        self._idle = Idle()

    def faststream_broker(self, **options: Any) -> Any:
        """Return a FastStream broker that consumes from the same cluster; nothing is connected yet."""
        from faststream.kafka import KafkaBroker

        settings = {name: self._options[name] for name in ("bootstrap_servers", "client_id", "retry_backoff_ms")}
        return KafkaBroker(**settings, security=_security(self._options), consumer_only=True, **options)

    def refusal(self, topic: str) -> str | None:
        """Return what a topic has to be called, where the broker will never have one of this name."""
        return None if TOPIC.fullmatch(topic) else "Kafka's topics have up to 249 of the characters a-z A-Z 0-9 . _ -"

    async def open(self) -> None:
        """Connect. A cluster out of reach is reported and tried again at the first publish."""
        self._producers.closed = False
        try:
            async with asyncio.timeout(self._timeout):
                await self._producers.current()
        except (TimeoutError, *LOST) as error:
            log.warning("Kafka at %s is out of reach, and is tried again: %s", self._servers, text_of(error))

    async def close(self) -> None:
        """Begin no further batch, finish those in flight within the timeout, and disconnect."""
        self._producers.closed = True
        await self._idle.wait(self._timeout)
        await self._producers.end(self._timeout)

    async def ping(self) -> None:
        """Raise `PublishError`, with the reason, where the cluster does not answer."""
        try:
            producer = await self._producers.current()
        except LOST as error:
            raise PublishError(self._silence(text_of(error))) from error
        if not await producer.answers():
            raise PublishError(self._silence("it does not tell what its topics are"))

    async def publish(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        """Publish; see `Publisher`."""
        tally = Tally(envelopes)
        reserve = min(1.0, self._timeout / 4)
        async with self._idle:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout - reserve):
                    await self._publish(tally)
            if tally.open and not self._producers.closed:
                await self._give_up(tally, reserve)
        return tally.outcomes

    async def _publish(self, tally: Tally) -> None:
        try:
            producer = await self._producers.current()
        except LOST:
            return
        self._turn += 1
        async with asyncio.TaskGroup() as tasks:
            for topic, indexes in tally.by_topic().items():
                tasks.create_task(self._publish_topic(tally, producer, topic, indexes))

    async def _publish_topic(self, tally: Tally, producer: Producer, topic: str, indexes: list[int]) -> None:
        number = await self._partitions_of(tally, producer, topic, indexes)
        if not number:
            return
        partitions: dict[int, list[int]] = {}
        for index in indexes:
            key = tally.envelopes[index].key
            partitions.setdefault((self._turn if key is None else key_hash(key)) % number, []).append(index)
        async with asyncio.TaskGroup() as tasks:
            for partition, own in partitions.items():
                tasks.create_task(self._publish_partition(tally, topic, partition, own))

    async def _partitions_of(self, tally: Tally, producer: Producer, topic: str, indexes: list[int]) -> int:
        """Return how many partitions a topic has, or 0: then it was ended, unless the whole cluster is silent."""
        try:
            async with asyncio.timeout(self._timeout / 4):
                return len(await producer.aiokafka.partitions_for(topic))
        except TimeoutError:
            if await producer.answers():
                cure = "Create it, with as many partitions as it shall keep, or allow auto.create.topics.enable."
                tally.give_up(indexes, Unavailable(PublishError(f"Kafka has no topic '{topic}'. {cure}")))
        except Exception as error:  # noqa: BLE001 - whatever it is, no message is to blame
            tally.give_up(indexes, unavailable(topic, error))
        return 0

    async def _publish_partition(self, tally: Tally, topic: str, partition: int, indexes: list[int]) -> None:
        """Send batch after batch; one that is refused is halved until it is known which message is to blame."""
        groups = deque([indexes])
        faults = 0
        while groups:
            try:
                producer = await self._producers.current()
            except LOST:
                return
            batch, taken, rest = self._batches.fill(tally, producer, groups.popleft())
            if rest:
                groups.appendleft(rest)
            if not taken:
                continue
            fault = await self._producers.send(producer, batch, topic, partition)
            if fault is None:
                tally.settle(taken, Fate.DELIVERED)
            elif isinstance(fault, REFUSED):
                groups.extendleft(self._batches.divide(tally, taken, batch.size(), fault))
            elif isinstance(fault, WORN_OUT) and faults < FAULTS:
                faults += 1
                groups.appendleft(taken)
            else:
                left = [*taken, *(index for group in groups for index in group)]
                tally.give_up(left, unavailable(topic, fault))
                return

    async def _give_up(self, tally: Tally, seconds: float) -> None:
        """End what has no end: the broker is out of reach, or, where a fresh producer starts, a topic is."""
        try:
            async with asyncio.timeout(seconds):
                await self._producers.current()
        except (TimeoutError, *LOST) as error:
            silence = caused(self._silence(text_of(error)), error)
            tally.give_up_all(Unavailable(silence, everything=True))
            return
        for topic, indexes in tally.by_topic().items():
            cure = "See the broker's log; often fewer replicas are in sync than min.insync.replicas, or none leads."
            text = f"Kafka took no more of topic '{topic}' within {self._timeout:g} s. {cure}"
            tally.give_up(indexes, Unavailable(PublishError(text)))

    def _silence(self, reason: str) -> str:
        cure = "Check that it runs, and the address, user and password."
        return f"Kafka at {self._servers} is out of reach: {reason}. {cure}"


def unavailable(topic: str, error: BaseException) -> Unavailable:
    """Return the outcome of an error that no message is to blame for."""
    if isinstance(error, kafka.TopicAuthorizationFailedError):
        text = f"Kafka does not let this application write to topic '{topic}'. Allow its user WRITE and DESCRIBE on it."
        return Unavailable(caused(text, error))
    if isinstance(error, kafka.ClusterAuthorizationFailedError):
        text = "Kafka does not let this application write idempotently. Allow its user IDEMPOTENT_WRITE on the cluster."
        return Unavailable(caused(text, error), everything=True)
    return Unavailable(caused(f"Kafka took nothing of topic '{topic}': {text_of(error)}", error))


def _security(options: dict[str, Any]) -> Any:
    """Return how to log in, as FastStream has it."""
    from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

    makers = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
    secure: dict[str, Any] = {
        "ssl_context": options.get("ssl_context"),
        "use_ssl": "SSL" in options.get("security_protocol", ""),
    }
    mechanism = options.get("sasl_mechanism")
    if options.get("sasl_plain_username") is None or mechanism not in makers:
        return BaseSecurity(**secure)
    return makers[mechanism](options["sasl_plain_username"], options["sasl_plain_password"], **secure)
