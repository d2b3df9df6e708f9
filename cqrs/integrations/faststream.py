"""FastStream: subscribes the published events of an application, and hands what arrives to its consumer.

`async with app.consuming()` does it with a broker of its own, `mount` with a broker that the user has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

try:
    from faststream import AckPolicy, Context
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
GRACE = 10.0
"""Seconds that what is at work has when a mounted broker stops."""


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
    subscribe(broker, make(), app.name, grace=GRACE)


@asynccontextmanager
async def consumption(publisher: Publisher, consumer: Consumer, *, name: str, grace: float) -> AsyncGenerator[Consumer]:
    """Subscribe, start as soon as the broker can be reached, and stop in an order that keeps keys in order."""
    if not consumer.reader.plans:
        log.info("'%s' handles no published event, so it consumes nothing.", name)
        yield consumer
        return
    broker, ours = _broker_of(publisher, grace)
    subscribers = subscribe(broker, consumer, name, grace=grace)
    consumer.fault = "the broker has not been reached yet"
    starting = asyncio.create_task(_start(broker, subscribers, consumer, ours=ours), name="cqrs consuming")
    try:
        yield consumer
    finally:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await consumer.stop(grace)
        for subscriber in subscribers:
            await _ended(subscriber.stop())
        if ours:
            await _ended(broker.stop())


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
            for subscriber in subscribers:
                await _ended(subscriber.stop())
            if ours:
                await _ended(broker.stop())
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            consumer.fault = None
            return


async def _ended(ending: Any) -> None:
    """Wait for an end; what is broken already may say so."""
    try:
        await ending
    except Exception as error:  # noqa: BLE001 - each client has errors of its own
        log.debug("While consuming ended: %s", text_of(error))


def _broker_of(publisher: Publisher, grace: float) -> tuple[Any, bool]:
    """Return the FastStream broker to subscribe to, and whether it is ours."""
    if isinstance(publisher, FastStreamBroker):
        return publisher.broker, False
    make = getattr(publisher, "faststream_broker", None)
    if make is None:
        raise MisuseError(
            f"The broker {type(publisher).__qualname__} only publishes. Give bootstrap a URL or a FastStream broker to "
            "consume as well, or await app.send(event) for what you receive yourself."
        )
    return make(graceful_timeout=grace, logger=log, log_level=logging.DEBUG), True


# Kafka


class _Listener:
    """Lets lanes end before their partitions are given up: what slips through is a duplicate for the inbox."""

    def __init__(self, consumer: Consumer, grace: float) -> None:
        self._consumer = consumer
        self._grace = grace

    async def on_partitions_revoked(self, revoked: Any) -> None:
        del revoked
        await self._consumer.stop(self._grace)

    async def on_partitions_assigned(self, assigned: Any) -> None:
        del assigned
        self._consumer.resume()


def _subscribe_kafka(broker: Any, consumer: Consumer, name: str, grace: float) -> list[Any]:
    from aiokafka import ConsumerRebalanceListener

    listener = type("Listener", (_Listener, ConsumerRebalanceListener), {})
    subscriber = broker.subscriber(
        *sorted(consumer.reader.plans),
        group_id=name,
        batch=True,
        max_records=BATCH,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
        listener=listener(consumer, grace),
        parser=_unparsed,
        decoder=_undecoded,
        title=name,
        description=_described(consumer),
    )

    async def take(message: Annotated[Any, Context("message")]) -> None:
        ended = False
        try:
            received = [_from_kafka(record) for record in message.raw_message if record.value is not None]
            ended = await consumer.take(received)
        finally:
            if not ended:
                await _read_again(message)
        if ended:
            await _acknowledge(message)

    subscriber(take)
    return [subscriber]


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


class _Window:
    """Messages of one queue that have arrived, taken in batches, in the order in which the broker sent them."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._waiting: list[tuple[int, Received, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    async def take(self, tag: int, received: Received) -> bool:
        """Return whether this message has ended."""
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((tag, received, ended))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="cqrs consuming a queue")
        return await ended

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = sorted(self._waiting, key=lambda arrived: arrived[0]), []
                ended = False
                try:
                    ended = await self._consumer.take([received for _, received, _ in batch])
                finally:
                    for *_, future in batch:
                        if not future.done():
                            future.set_result(ended)
        finally:
            self._task = None


def _subscribe_rabbitmq(broker: Any, consumer: Consumer, name: str, grace: float) -> list[Any]:
    return [_subscribe_queue(broker, consumer, name, topic, grace) for topic in sorted(consumer.reader.plans)]


def _subscribe_queue(broker: Any, consumer: Consumer, name: str, topic: str, grace: float) -> Any:
    from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitExchange, RabbitQueue

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
        channel=Channel(prefetch_count=BATCH),
        ack_policy=AckPolicy.MANUAL,
        decoder=_undecoded,
        title=f"{name}.{topic}",
        description=_described(consumer),
    )
    window = _Window(consumer)

    async def take(message: Annotated[Any, Context("message")]) -> None:
        raw = message.raw_message
        if await window.take(raw.delivery_tag or 0, _from_rabbitmq(topic, raw)):
            await _acknowledge(message)

    subscriber(take)
    _stop_in_order(subscriber, consumer, grace)
    return subscriber


def _stop_in_order(subscriber: Any, consumer: Consumer, grace: float) -> None:
    """Close the channel first: a consumer that is only cancelled keeps messages that later ones overtake."""
    stop: Callable[[], Any] = subscriber.stop

    async def stop_in_order() -> None:
        queue = subscriber._queue_obj  # noqa: SLF001 - FastStream has no other name for it
        if queue is not None:
            subscriber.running = False
            await consumer.stop(grace)
            await subscriber.lock.wait_release(grace)
            await _ended(queue.channel.close())
        await stop()
        consumer.resume()

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


async def _undecoded(message: Any) -> Any:
    """Leave bodies as they are: each handler's plan reads them."""
    return message.body


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
