"""FastStream: subscribes the published events of an application, and hands what arrives to its consumer.

`async with app.consuming()` does it with a broker of its own, `mount` with a broker that the user has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

try:
    from faststream import AckPolicy
except ModuleNotFoundError as error:
    if error.name != "faststream":
        raise
    raise ModuleNotFoundError(
        "Consuming needs the package faststream. Run: pip install 'cqrs-toolkit[faststream]'", name="faststream"
    ) from None

from cqrs.brokers.faststream import FastStreamBroker, kind_of
from cqrs.brokers.tally import text_of
from cqrs.codec import received_headers
from cqrs.errors import MisuseError
from cqrs.reading import Received

if TYPE_CHECKING:
    from cqrs.consuming import Consumer
    from cqrs.mediator import Mediator
    from cqrs.outbox.publisher import Publisher

log = logging.getLogger(__name__)

BATCH = 500
"""How many messages are taken from Kafka at once, and how many of a RabbitMQ queue are on their way."""
LONGEST_PAUSE = 15.0
IN_ORDER: Any = {"x-single-active-consumer": True, "x-delivery-limit": 1_000_000}
"""Of a queue. RabbitMQ 4 drops what it has delivered 20 times; -1 would lift that, and drop all of it in RabbitMQ 3."""
ENDING = 5.0
"""Seconds that each last step has when consuming ends: acknowledgements, a cancelled task, a goodbye to the broker."""


def mount(app: Mediator, broker: Any) -> None:
    """Subscribe the published events that `app` handles to a FastStream broker, before that is started.

    Open the application around the broker's life: `FastStream(broker, lifespan=...)` with `async with app` in it.
    Raises `MisuseError` where the broker is of no kind that this can keep in order: Kafka's and RabbitMQ's.
    """
    make = app.make_consumer
    if make is None:
        raise MisuseError(
            f"Application '{app.name}' has no database and no broker, so nothing of it can be consumed. "
            "Give bootstrap both; the broker may be this FastStream broker."
        )
    assert app.blueprint is not None  # noqa: S101 - where there is something to consume
    subscribe(broker, make(), app.name, grace=app.blueprint.wishes.grace)


@asynccontextmanager
async def consumption(publisher: Publisher, consumer: Consumer, *, name: str, grace: float) -> AsyncGenerator[Consumer]:
    """Subscribe, start as soon as the broker can be reached, and stop in an order that keeps keys in order."""
    if not consumer.reader.plans:
        log.info("'%s' handles no published event, so it consumes nothing.", name)
        yield consumer
        return
    broker, ours = _broker_of(publisher)
    subscribers = subscribe(broker, consumer, name, grace=grace)
    consumer.fault = "the broker has not been reached yet"
    starting = asyncio.create_task(_start(broker, subscribers, consumer, ours=ours), name="cqrs consuming")
    try:
        yield consumer
    finally:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await _stop(broker, subscribers, ours=ours)
        broker._subscribers.difference_update(subscribers)  # noqa: SLF001 - else a user's broker would start them again


def subscribe(broker: Any, consumer: Consumer, name: str, *, grace: float) -> list[Any]:
    """Add subscribers of all topics that the consumer reads; returns them."""
    kind = kind_of(broker)
    if kind not in _SUBSCRIBERS:
        raise MisuseError(
            f"{type(broker).__module__}.{type(broker).__qualname__} is no broker whose order can be kept. "
            "Use FastStream's KafkaBroker or RabbitBroker, or a subscriber of your own that awaits app.send(event)."
        )
    return _SUBSCRIBERS[kind](broker, consumer, name, grace)


async def _start(broker: Any, subscribers: Sequence[Any], consumer: Consumer, *, ours: bool) -> None:
    """Start, again and again until it works: a broker that is down delays an application, and does not end it."""
    pause = 0.25
    while True:
        try:
            await broker.connect()
            for subscriber in subscribers:
                if not subscriber.running:
                    await subscriber.start()
        except Exception as error:  # noqa: BLE001 - each client has errors of its own
            if pause == 0.25:  # noqa: PLR2004 - the first time
                log.warning("The broker is out of reach, so nothing is consumed; it is tried again: %s", text_of(error))
            consumer.fault = f"the broker is out of reach: {text_of(error)}"
            await _stop(broker, subscribers, ours=ours)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            consumer.fault = None
            return


async def _stop(broker: Any, subscribers: Sequence[Any], *, ours: bool) -> None:
    """Stop all at once: each waits within the grace period for what is at work."""
    await asyncio.gather(*(_ended(subscriber.stop, seconds=None) for subscriber in subscribers))
    if ours:
        await _ended(broker.stop)


async def _ended(end: Callable[[], Awaitable[object]], *, seconds: float | None = ENDING) -> None:
    """Wait for an end; what is broken already may say so, or say nothing."""
    try:
        async with asyncio.timeout(seconds):
            await end()
    except Exception as error:  # noqa: BLE001 - each client has errors of its own
        log.debug("While consuming ended: %s", text_of(error))


async def _all_ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=ENDING)


def _broker_of(publisher: Publisher) -> tuple[Any, bool]:
    """Return the FastStream broker to subscribe to, and whether it is ours."""
    if isinstance(publisher, FastStreamBroker):
        return publisher.broker, False
    make = getattr(publisher, "faststream_broker", None)
    if make is None:
        raise MisuseError(
            f"The broker {type(publisher).__qualname__} only publishes. Give bootstrap a URL or a FastStream broker to "
            "consume as well, or await app.send(event) for what you receive yourself."
        )
    return make(graceful_timeout=ENDING, logger=log, log_level=logging.DEBUG), True


# Kafka


class _Listener:
    """Lets lanes end before their partitions are given up: what slips through is a duplicate for the inbox."""

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


def _subscribe_kafka(broker: Any, consumer: Consumer, name: str, grace: float) -> list[Any]:
    from aiokafka import ConsumerRebalanceListener

    listener = type("Listener", (_Listener, ConsumerRebalanceListener), {})(consumer, grace)
    subscriber = broker.subscriber(
        *sorted(consumer.reader.plans),
        group_id=name,
        batch=True,
        max_records=BATCH,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
        listener=listener,
        parser=_unparsed,
        decoder=_undecoded,
        title=name,
        description=_described(consumer),
    )

    async def take(message: Any) -> None:
        ended = False
        try:
            received = [_from_kafka(record) for record in message.raw_message if record.value is not None]
            ended = await consumer.take(received)
        finally:
            if not ended:
                await _read_again(message)
        if ended:
            await _acknowledge(message)

    subscriber(take, filter=_everything)
    _begin_and_end(subscriber, consumer, listener, grace)
    return [subscriber]


def _begin_and_end(subscriber: Any, consumer: Consumer, listener: Any, grace: float) -> None:
    """Begin no further lane once it stops, and leave nothing behind that is still at work after the grace period."""
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
        await _all_ended(working)
        await _ended(stop)

    subscriber.start, subscriber.stop = begin, end


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


# RabbitMQ


@dataclass(slots=True, eq=False)
class _Place:
    """A message on its way through FastStream: what came of it, and whether it has ended, once it is taken."""

    received: Received | None = None
    ended: asyncio.Future[bool] | None = None
    begun: bool = False


class _Window:
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
            await _all_ended([self._task])
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


def _subscribe_rabbitmq(broker: Any, consumer: Consumer, name: str, grace: float) -> list[Any]:
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
        ack_policy=AckPolicy.MANUAL,
        decoder=_undecoded,
        title=f"{name}.{topic}",
        description=_described(consumer),
    )
    window = _Window(consumer)

    async def take(message: Any) -> None:
        raw = message.raw_message
        with suppress(asyncio.CancelledError):  # its connection is lost; FastStream would log each with a traceback
            if await window.take(raw, _from_rabbitmq(topic, raw)):
                await _acknowledge(message)

    subscriber(take, filter=_everything)
    _keep_places(subscriber, window)
    _start_afresh(subscriber, consumer)
    _stop_in_order(subscriber, consumer, window, grace)
    return subscriber


def _keep_places(subscriber: Any, window: _Window) -> None:
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


def _stop_in_order(subscriber: Any, consumer: Consumer, window: _Window, grace: float) -> None:
    """Close the channel first: a consumer that is only cancelled keeps messages that later ones overtake."""
    stop: Callable[[], Awaitable[None]] = subscriber.stop

    async def stop_in_order() -> None:
        queue = subscriber._queue_obj  # noqa: SLF001 - FastStream has no other name for it
        if queue is not None:
            subscriber.running = False
            await consumer.stop(grace)
            await window.end()
            await subscriber.lock.wait_release(ENDING)
            await _ended(queue.channel.close)
        await stop()

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


# Both


async def _everything(message: Any) -> bool:
    """Take every message. FastStream asks its own filter in a thread, where messages overtake each other."""
    del message
    return True


async def _undecoded(message: Any) -> Any:
    """Leave bodies as they are: each handler's plan reads them. FastStream would fetch the message in a thread, too."""
    return message


def _described(consumer: Consumer) -> str:
    names = [f"{name} ({topic})" for topic, plans in sorted(consumer.reader.plans.items()) for name in plans]
    return f"Handles {', '.join(names)}."


async def _acknowledge(message: Any) -> None:
    """Tell the broker; if that is lost, it sends again, and the inbox knows."""
    try:
        await message.ack()
    except Exception as error:  # noqa: BLE001 - each client has errors of its own
        log.info("An acknowledgement was lost; what comes again takes no effect again: %s", text_of(error))


_SUBSCRIBERS: dict[str, Callable[[Any, Consumer, str, float], list[Any]]] = {
    "kafka": _subscribe_kafka,
    "rabbit": _subscribe_rabbitmq,
}
