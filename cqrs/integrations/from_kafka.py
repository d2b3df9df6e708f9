"""Subscribes to Kafka by FastStream: batches, whose offsets are committed once they have ended."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cqrs.codec import received_headers
from cqrs.integrations.subscribing import (
    BATCH,
    ENDING,
    MANUAL,
    acknowledge,
    all_ended,
    described,
    everything,
    let_end,
    undecoded,
)
from cqrs.reading import Received

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cqrs.consuming import Consumer


class _Listener:
    """Lets strands end before their partitions are given up: what slips through is a duplicate for the inbox."""

    def __init__(self, consumer: Consumer, grace: float) -> None:
        self._consumer = consumer
        self._grace = grace
        self.open = True
        """Whether what is assigned is to be worked on; not while the subscriber stops."""

    async def on_partitions_revoked(self, revoked: Any) -> None:
        del revoked
        await self._consumer.stop(self._grace)

    async def on_partitions_assigned(self, assigned: Any) -> None:
        del assigned
        if self.open:
            self._consumer.resume()


def subscribe(broker: Any, consumer: Consumer, name: str, grace: float) -> list[Any]:
    """Add one subscriber of all topics, in the group of the application."""
    from aiokafka import ConsumerRebalanceListener

    listener = type("Listener", (_Listener, ConsumerRebalanceListener), {})(consumer, grace)
    subscriber = broker.subscriber(
        *sorted(consumer.reader.plans),
        group_id=name,
        batch=True,
        max_records=BATCH,
        auto_offset_reset="earliest",
        ack_policy=MANUAL,
        listener=listener,
        parser=_unparsed,
        decoder=undecoded,
        title=name,
        description=described(consumer),
    )

    async def take(message: Any) -> None:
        ended = False
        try:
            received = [_from_kafka(record) for record in message.raw_message if record.value is not None]
            ended = await consumer.take(received)
        except asyncio.CancelledError:
            if subscriber.running:
                raise  # else it was given up at the end, which FastStream would log with a traceback
        finally:
            if not ended:
                await _read_again(message)
        if ended:
            await acknowledge(message)

    subscriber(take, filter=everything)
    _begin_and_end(subscriber, consumer, listener, grace)
    return [subscriber]


def _begin_and_end(subscriber: Any, consumer: Consumer, listener: Any, grace: float) -> None:
    """Begin no further strand once it stops, and leave nothing behind that is still at work after the grace period."""
    start: Callable[[], Awaitable[None]] = subscriber.start
    stop: Callable[[], Awaitable[None]] = subscriber.stop

    async def begin() -> None:
        listener.open = True
        consumer.resume()
        await start()

    async def end() -> None:
        listener.open = subscriber.running = False
        working = list(subscriber.tasks)
        if working and await consumer.stop(grace):
            await subscriber.lock.wait_release(ENDING)
        await all_ended(working)
        await let_end(stop)
        if subscriber.consumer is not None:
            await _hang_up(subscriber.consumer)
            subscriber.consumer = None

    subscriber.start, subscriber.stop = begin, end


async def _hang_up(consumer: Any) -> None:
    """End what aiokafka leaves at work where its end is cut short, or stumbles over a task that it has cancelled.

    It would stay in the group, and keep partitions that nobody reads.
    """
    owners = (consumer._coordinator, consumer._fetcher)  # noqa: SLF001 - aiokafka has no other name for them
    names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_fetch_task")
    tasks = [getattr(owner, name, None) for owner in owners for name in names]
    tasks += getattr(consumer._fetcher, "_pending_tasks", ())  # noqa: SLF001 - as above
    await all_ended([task for task in tasks if task is not None])
    await let_end(consumer._client.close)  # noqa: SLF001 - as above


async def _unparsed(records: Any, parse: Callable[[Any], Any]) -> Any:
    """Make one message of a batch without a look at headers: FastStream passes over a batch that has a binary one."""
    message = await parse((replace(records[0], headers=()),))
    message.raw_message = records
    return message


async def _read_again(message: Any) -> None:
    """Go back to the first record of a batch that has not ended: the next acknowledgement would pass over it."""
    with suppress(Exception):  # its partitions may be somebody else's by now
        await message.nack()


def _from_kafka(record: Any) -> Received:
    place = f"{record.topic}/{record.partition}/{record.offset}"
    return Received(record.topic, record.key, received_headers(record.headers), record.value, place)
