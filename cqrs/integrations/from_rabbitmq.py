"""Subscribes to RabbitMQ by FastStream: a queue a topic, each message acknowledged once it has ended, in its order."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

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
    from collections.abc import Awaitable, Callable, Iterable

    from cqrs.consuming import Consumer

IN_ORDER: Any = {"x-single-active-consumer": True, "x-delivery-limit": 1_000_000}
"""Of a queue. RabbitMQ 4 drops what it has delivered 20 times; -1 would lift that, and drop all of it in RabbitMQ 3."""


@dataclass(slots=True, eq=False)
class _Place:
    """A message on its way through FastStream: what came of it, and whether it has ended, once it is taken."""

    received: Received | None = None
    ended: asyncio.Future[bool] | None = None
    begun: bool = False


class Window:
    """Messages of one queue, taken in batches, in the order in which the broker sent them.

    Each has its place from its arrival on: FastStream and its middlewares may let one message overtake another, so
    none is begun before all that came earlier are there or were turned away.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._places: dict[int, _Place] = {}
        self._task: asyncio.Task[None] | None = None

    def announce(self, raw: Any) -> None:
        """Keep a message's place."""
        self._places[id(raw)] = _Place()

    def leave(self, raw: Any) -> None:
        """Wait no longer for a message."""
        self._places.pop(id(raw), None)
        self._go()

    async def take(self, raw: Any, received: Received) -> bool:
        """Return whether this message has ended."""
        place = self._places.setdefault(id(raw), _Place())
        place.received, place.ended = received, asyncio.get_running_loop().create_future()
        self._go()
        try:
            return await place.ended
        finally:
            self.leave(raw)

    async def end(self) -> None:
        """Give up what is at work, and what has not begun."""
        for place in self._places.values():
            place.begun = True
        if self._task is not None:
            await all_ended([self._task])
        _answer(self._places.values(), ended=False)

    def _go(self) -> None:
        if self._task is None and self._next():
            self._task = asyncio.create_task(self._work(), name="cqrs consuming a queue")

    def _next(self) -> list[_Place]:
        waiting = (place for place in self._places.values() if not place.begun)
        return list(takewhile(lambda place: place.received is not None, waiting))

    async def _work(self) -> None:
        try:
            while batch := self._next():
                for place in batch:
                    place.begun = True
                ended = False
                try:
                    ended = await self._consumer.take([place.received for place in batch if place.received is not None])
                finally:
                    _answer(batch, ended=ended)
        finally:
            self._task = None


def _answer(places: Iterable[_Place], *, ended: bool) -> None:
    for place in places:
        if place.ended is not None and not place.ended.done():
            place.ended.set_result(ended)


def leave_no_connection(broker: Any) -> None:
    """Let a broker of ours close each connection that it began to make.

    One whose making or closing was cut short connects by itself again, for ever, and FastStream does not know of it.
    """
    from aio_pika import RobustConnection

    stop: Callable[[], Awaitable[None]] = broker.stop
    made: list[RobustConnection] = []

    def connection(*args: Any, **options: Any) -> RobustConnection:
        made.append(RobustConnection(*args, **options))
        return made[-1]

    async def hang_up() -> None:
        while made:
            await let_end(made.pop().close)
        await stop()

    broker._connection_kwargs["connection_class"] = connection  # noqa: SLF001 - FastStream has no other name for it
    broker.stop = hang_up


def subscribe(broker: Any, consumer: Consumer, name: str, grace: float) -> list[Any]:
    """Add a subscriber for each topic, to the application's queue of it."""
    return [_subscribe_queue(broker, consumer, name, topic, grace) for topic in sorted(consumer.reader.plans)]


def _subscribe_queue(broker: Any, consumer: Consumer, name: str, topic: str, grace: float) -> Any:
    from faststream.rabbit import ExchangeType, QueueType, RabbitExchange, RabbitQueue

    queue = RabbitQueue(
        f"{name}.{topic}",
        queue_type=QueueType.QUORUM,
        durable=True,
        routing_key="#",
        arguments=IN_ORDER,
    )
    subscriber = broker.subscriber(
        queue,
        RabbitExchange(topic, type=ExchangeType.TOPIC, durable=True),
        ack_policy=MANUAL,
        decoder=undecoded,
        title=f"{name}.{topic}",
        description=described(consumer),
    )
    window = Window(consumer)

    async def take(message: Any) -> None:
        raw = message.raw_message
        with suppress(asyncio.CancelledError):  # its connection is lost; FastStream would log each with a traceback
            if await window.take(raw, _from_rabbitmq(topic, raw)):
                await acknowledge(message)

    subscriber(take, filter=everything)
    _keep_places(subscriber, window)
    _start_afresh(subscriber, consumer)
    _stop_in_order(subscriber, consumer, window, grace)
    return subscriber


def _keep_places(subscriber: Any, window: Window) -> None:
    consume: Callable[[Any], Awaitable[Any]] = subscriber.consume

    async def consume_in_place(raw: Any) -> Any:
        window.announce(raw)
        try:
            return await consume(raw)
        finally:
            window.leave(raw)

    subscriber.consume = consume_in_place


def _start_afresh(subscriber: Any, consumer: Consumer) -> None:
    """Start with a channel of its own, and take what comes before FastStream says that it runs: it would be left out.

    FastStream keeps channels and queues, also closed ones.
    """
    from faststream.rabbit import Channel

    start: Callable[[], Awaitable[None]] = subscriber.start

    async def start_afresh() -> None:
        consumer.resume()
        subscriber.channel = Channel(prefetch_count=BATCH)
        subscriber._outer_config.declarer.disconnect()  # noqa: SLF001 - FastStream has no other name for it
        subscriber.running = True
        try:
            await start()
        except BaseException:
            subscriber.running = False
            raise

    subscriber.start = start_afresh


def _stop_in_order(subscriber: Any, consumer: Consumer, window: Window, grace: float) -> None:
    """Close the channel first: a consumer that is only cancelled keeps messages that later ones overtake."""
    stop: Callable[[], Awaitable[None]] = subscriber.stop

    async def stop_in_order() -> None:
        queue = subscriber._queue_obj  # noqa: SLF001 - FastStream has no other name for it
        if queue is not None:
            subscriber.running = False
            await consumer.stop(grace)
            await window.end()
            await subscriber.lock.wait_release(ENDING)
            await let_end(queue.channel.close)
        await let_end(stop)

    subscriber.stop = stop_in_order


def _from_rabbitmq(topic: str, message: Any) -> Received:
    headers = {name: _text(value) for name, value in (message.headers or {}).items() if value is not None}
    for prefix in ("cloudEvents:", "cloudEvents_"):
        headers |= {f"ce_{name.removeprefix(prefix)}": headers[name] for name in headers if name.startswith(prefix)}
    properties = {
        "content-type": message.content_type,
        "correlation_id": message.correlation_id,
        "message_id": message.message_id,
        "type": message.type,
    }
    headers = {name: str(value) for name, value in properties.items() if value} | headers
    return Received(topic, headers.get("ce_partitionkey"), headers, message.body)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)
