"""The connection to Kafka: an aiokafka producer that is replaced after its first fault."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from cqrs.brokers.ending import Endings

IN_FLIGHT = 64 * 1024 * 1024
"""How many bytes wait for their acknowledgement at most; a broker takes 100 MiB in one request."""


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


class Producer:
    """An aiokafka producer, from its start to its first fault."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.aiokafka: Any = AIOKafkaProducer(**options)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Connect, or leave nothing behind."""
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


class Producers:
    """The one producer in use. It is started when somebody first needs it; a fresh one takes its place after a fault.

    A producer that was given up sends no more, and is disconnected beside the work.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._current: Producer | None = None
        self._starting = asyncio.Lock()
        self._endings = Endings("cqrs kafka producer's end")
        self._room = asyncio.Semaphore(max(1, IN_FLIGHT // options["max_batch_size"]))
        self.closed = False
        """Whether no producer is to be had any more: who needs one is told `ProducerClosed`."""

    async def current(self) -> Producer:
        """Return the producer in use. Raises one of `LOST` where none can be started."""
        async with self._starting:
            if self.closed:
                raise kafka.ProducerClosed
            if self._current is None:
                producer = Producer(self._options)
                await producer.start()
                self._current = producer
            return self._current

    async def send(self, producer: Producer, batch: Any, topic: str, partition: int) -> Exception | None:
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

    async def end(self, seconds: float) -> None:
        """Disconnect from the cluster, and wait for that no longer than this."""
        if self._current is not None:
            self._replace(self._current)
        await self._endings.wait(seconds)

    def _replace(self, producer: Producer) -> None:
        if self._current is producer:
            self._current = None
            self._endings.begin(producer.end())
