"""Kafka: the publisher of what goes to Kafka topics, on aiokafka. The only module that speaks to it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

try:
    from aiokafka import AIOKafkaProducer
    from aiokafka import errors as kafka
    from aiokafka.partitioner import murmur2
except ModuleNotFoundError as error:
    if error.name != "aiokafka":
        raise
    raise ModuleNotFoundError(
        "Kafka needs the package aiokafka. Run: pip install 'cqrs-toolkit[kafka]'", name="aiokafka"
    ) from None

from cqrs.brokers.tally import UNSENDABLE, Idle, Tally, caused, name_of, refused, text_of
from cqrs.errors import PublishError
from cqrs.outbox.publisher import Failed, Fate, Outcome, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cqrs.codec import Envelope

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 1_048_576
"""The largest message in bytes, with its key and headers; a broker's own default is twelve bytes more."""
IN_FLIGHT = 64 * 1024 * 1024
"""How many bytes wait for their acknowledgement at most; a broker takes 100 MiB in one request."""
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
TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)
REFUSED = (*TOO_LARGE, kafka.CorruptRecordException, kafka.InvalidTimestampError, kafka.UnknownError)
"""What a broker answers to a batch because of a message in it (aiokafka does not know INVALID_RECORD by name)."""


class _Ended(Exception):
    """The producer was given up before the end of this batch was known."""


WORN_OUT = (
    _Ended,
    kafka.InvalidProducerEpoch,
    kafka.InvalidProducerIdMapping,
    kafka.OutOfOrderSequenceNumber,
    kafka.ProducerClosed,
    kafka.ProducerFenced,
    kafka.UnknownProducerId,
)
"""The producer's fault alone: the batch was not taken, and goes to a fresh one."""
LOST = (OSError, kafka.KafkaError)
"""What aiokafka raises where a producer cannot be started."""


@lru_cache(maxsize=100_000)
def key_hash(key: str) -> int:
    """Return what the Java client makes of a key: modulo the number of partitions it is the key's partition."""
    return int(murmur2(key.encode())) & 0x7FFFFFFF


class _Producer:
    """An aiokafka producer, from its start to its first fault."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.aiokafka: Any = AIOKafkaProducer(**options)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        try:
            await self.aiokafka.start()
        except BaseException:
            await self.aiokafka.stop()
            raise

    async def send(self, batch: Any, topic: str, partition: int) -> None:
        """Return once all replicas in sync have the batch."""
        sent = await self.aiokafka.send_batch(batch, topic, partition=partition)
        await asyncio.wait({sent, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        if not sent.done():
            raise _Ended
        await sent

    async def answers(self) -> bool:
        """Whether the cluster tells what its topics are."""
        try:
            return bool(await self.aiokafka.client.force_metadata_update())
        except Exception:  # noqa: BLE001 - whatever it is, it is no answer
            return False

    async def end(self) -> None:
        """Send nothing more, wait for what a broker has already, and disconnect.

        An idempotent producer of aiokafka tries for ever and its `stop` waits for that, so the task that sends is
        cancelled first; it has no documented name.
        """
        sender, self.aiokafka._sender = self.aiokafka._sender, None  # noqa: SLF001 - see above
        sender.sender_task.cancel()
        try:
            await asyncio.wait({sender.sender_task})
        finally:
            self._ended.set_result(None)
            await self.aiokafka.stop()


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
        self._limit = max_message_bytes
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
        self._producer: _Producer | None = None
        self._starting = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(max(1, IN_FLIGHT // max_message_bytes))
        self._turn = 0
        self._batch_limits: dict[str, int] = {}
        """Topics that refused a batch for its size, and the size that batches of theirs have at most since."""
        self._idle = Idle()
        self._closed = False

    def faststream_broker(self, **options: Any) -> Any:
        """Return a FastStream broker that consumes from the same cluster; nothing is connected yet."""
        from faststream.kafka import KafkaBroker

        settings = {name: self._options[name] for name in ("bootstrap_servers", "client_id", "retry_backoff_ms")}
        return KafkaBroker(**settings, security=_security(self._options), consumer_only=True, **options)

    async def open(self) -> None:
        """Connect. A cluster out of reach is reported and tried again at the first publish."""
        self._closed = False
        try:
            async with asyncio.timeout(self._timeout):
                await self._started()
        except (TimeoutError, *LOST) as error:
            log.warning("Kafka at %s is out of reach, and is tried again: %s", self._servers, text_of(error))

    async def close(self) -> None:
        """Begin no further batch, finish those in flight within the timeout, and disconnect."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._idle.wait()
        producer, self._producer = self._producer, None
        if producer is not None:
            self._end(producer)
        if self._ending:
            await asyncio.wait(self._ending, timeout=self._timeout)
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def ping(self) -> None:
        """Raise `PublishError`, with the reason, where the cluster does not answer."""
        try:
            producer = await self._started()
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
            if tally.open and not self._closed:
                await self._give_up(tally, reserve)
        return tally.outcomes

    async def _publish(self, tally: Tally) -> None:
        try:
            producer = await self._started()
        except LOST:
            return
        self._turn += 1
        async with asyncio.TaskGroup() as tasks:
            for topic, indexes in tally.by_topic().items():
                tasks.create_task(self._publish_topic(tally, producer, topic, indexes))

    async def _publish_topic(self, tally: Tally, producer: _Producer, topic: str, indexes: list[int]) -> None:
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

    async def _partitions_of(self, tally: Tally, producer: _Producer, topic: str, indexes: list[int]) -> int:
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
                producer = await self._started()
            except LOST:
                return
            batch, taken, rest = self._fill(tally, producer, groups.popleft())
            if rest:
                groups.appendleft(rest)
            if not taken:
                continue
            fault = await self._send(producer, batch, topic, partition)
            if fault is None:
                tally.settle(taken, Fate.DELIVERED)
            elif isinstance(fault, REFUSED):
                groups.extendleft(self._divide(tally, taken, batch.size(), fault))
            elif isinstance(fault, WORN_OUT) and faults < FAULTS:
                faults += 1
                groups.appendleft(taken)
            else:
                left = [*taken, *(index for group in groups for index in group)]
                tally.give_up(left, unavailable(topic, fault))
                return

    async def _send(self, producer: _Producer, batch: Any, topic: str, partition: int) -> Exception | None:
        """Return None once a batch was acknowledged, or why it was not; then the producer is replaced."""
        try:
            async with self._room:
                await producer.send(batch, topic, partition)
        except asyncio.CancelledError:
            self._replace(producer)
            raise
        except Exception as error:  # noqa: BLE001 - the caller decides about each
            self._replace(producer)
            return error
        return None

    def _fill(self, tally: Tally, producer: _Producer, indexes: list[int]) -> tuple[Any, list[int], list[int]]:
        """Return a batch, what is in it, and what did not fit; a message that can never be sent is refused here."""
        batch = producer.aiokafka.create_batch()
        limit = self._batch_limits.get(tally.envelopes[indexes[0]].topic, self._limit)
        taken: list[int] = []
        for position, index in enumerate(indexes):
            if tally.held and tally.is_held(index):
                continue
            envelope = tally.envelopes[index]
            try:
                key = None if envelope.key is None else envelope.key.encode()
                headers = envelope.encoded_headers
                fits = batch.append(timestamp=None, key=key, value=envelope.payload, headers=headers)
            except UNSENDABLE as error:
                text = f"{name_of(envelope)} is nothing that Kafka can carry: {text_of(error)}"
                tally.stop(index, refused(text, error, final=True))
                continue
            if fits is None:
                return batch, taken, indexes[position:]
            if not taken and batch.size() > self._limit:
                tally.stop(index, self._oversized(envelope, batch.size()))
                batch = producer.aiokafka.create_batch()
                continue
            taken.append(index)
            if limit < self._limit and batch.size() >= limit:
                return batch, taken, indexes[position + 1 :]
        return batch, taken, []

    def _divide(self, tally: Tally, taken: list[int], size: int, fault: Exception) -> list[list[int]]:
        """Return the halves of a batch that was refused, the second one first; a single message has failed."""
        if len(taken) == 1:
            tally.stop(taken[0], _refused(tally.envelopes[taken[0]], size, fault))
            return []
        if isinstance(fault, TOO_LARGE):
            self._batch_limits[tally.envelopes[taken[0]].topic] = size // 2
        middle = len(taken) // 2
        return [taken[middle:], taken[:middle]]

    async def _give_up(self, tally: Tally, seconds: float) -> None:
        """End what has no end: the broker is out of reach, or, where a fresh producer starts, a topic is."""
        try:
            async with asyncio.timeout(seconds):
                await self._started()
        except (TimeoutError, *LOST) as error:
            silence = caused(self._silence(text_of(error)), error)
            tally.give_up(sorted(tally.open), Unavailable(silence, everything=True))
            return
        for topic, indexes in tally.by_topic().items():
            cure = "See the broker's log; often fewer replicas are in sync than min.insync.replicas, or none leads."
            text = f"Kafka took no more of topic '{topic}' within {self._timeout:g} s. {cure}"
            tally.give_up(indexes, Unavailable(PublishError(text)))

    def _silence(self, reason: str) -> str:
        cure = "Check that it runs, and the address, user and password."
        return f"Kafka at {self._servers} is out of reach: {reason}. {cure}"

    def _oversized(self, envelope: Envelope, size: int) -> Failed:
        text = (
            f"{name_of(envelope)} has {size} bytes with its key and headers; at most {self._limit} are sent. Raise "
            "max_message_bytes, and the topic's max.message.bytes with it, or publish a reference to what is large."
        )
        return refused(text, final=True)

    async def _started(self) -> _Producer:
        async with self._starting:
            if self._closed:
                raise kafka.ProducerClosed
            if self._producer is None:
                producer = _Producer(self._options)
                await producer.start()
                self._producer = producer
            return self._producer

    def _replace(self, producer: _Producer) -> None:
        if self._producer is producer:
            self._producer = None
            self._end(producer)

    def _end(self, producer: _Producer) -> None:
        task = asyncio.create_task(producer.end(), name="cqrs kafka producer's end")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _refused(envelope: Envelope, size: int, error: BaseException) -> Failed:
    if isinstance(error, TOO_LARGE):
        text = (
            f"{name_of(envelope)} has {size} bytes with its key and headers, more than the topic's max.message.bytes. "
            "Raise that, or publish a reference to what is large."
        )
        return refused(text, error, final=True)
    return refused(f"Kafka refused {name_of(envelope)}: {text_of(error)}", error)


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
