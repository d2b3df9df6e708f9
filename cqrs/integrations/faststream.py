"""FastStream: subscribes the published events of an application, and hands what arrives to its consumer.

`async with app.consuming()` does it with a broker of its own, `mount` with a broker that the user has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from cqrs.brokers.faststream import FastStreamBroker, kind_of
from cqrs.brokers.tally import text_of
from cqrs.errors import MisuseError
from cqrs.integrations import from_kafka, from_rabbitmq
from cqrs.integrations.subscribing import ENDING, let_end
from cqrs.mediator import Mediator
from cqrs.outbox.waiting import came

if TYPE_CHECKING:
    from cqrs.consuming import Consumer
    from cqrs.outbox.publisher import Publisher

log = logging.getLogger(__name__)

LONGEST_PAUSE = 15.0
BEGINNING = 5.0
"""Seconds for which `consuming()` waits for a broker that does not answer, before it lets the application go on."""

_MOUNTED: WeakKeyDictionary[Any, WeakSet[Mediator]] = WeakKeyDictionary()
"""Which applications a user's broker has subscribers of."""


class _Log:
    """FastStream's log. That we let it create no topics is as intended, and aiokafka tells which one is missing."""

    def log(self, level: int, text: object, /, **options: Any) -> None:
        skipped = str(text).startswith("Topic creation is skipped")
        log.log(logging.DEBUG if skipped else level, text, **options)


def mount(app: Mediator, broker: Any) -> None:
    """Subscribe the published events that `app` handles to a FastStream broker, before that is started.

    Open the application around the broker's life: `FastStream(broker, lifespan=...)` with `async with app` in it.
    Raises `MisuseError` where the broker is of no kind that this can keep in order: Kafka's and RabbitMQ's, and where
    the application is mounted on it already.
    """
    given: Any = app
    if not isinstance(given, Mediator):
        raise MisuseError("mount takes the application, then the broker: mount(app, broker).")
    if app.intake is None:
        raise MisuseError(
            f"Application '{app.name}' has no database and no broker, so nothing of it can be consumed. "
            "Give bootstrap both; the broker may be this FastStream broker."
        )
    assert app.blueprint is not None  # noqa: S101 - where there is something to consume
    if _is_orderly(broker) and app in _MOUNTED.setdefault(broker, WeakSet()):
        raise MisuseError(f"Application '{app.name}' is mounted on this broker already. Call mount once.")
    subscribe(broker, app.intake.consumer(), app.name, grace=app.blueprint.wishes.grace)
    _MOUNTED[broker].add(app)


@asynccontextmanager
async def consumption(publisher: Publisher, consumer: Consumer, *, name: str, grace: float) -> AsyncGenerator[Consumer]:
    """Subscribe, start as soon as the broker can be reached, and stop in an order that keeps keys in order.

    What is published from now on finds the queues bound, unless the broker cannot be reached at once.
    """
    broker, ours = _broker_of(publisher)
    subscribers = subscribe(broker, consumer, name, grace=grace)
    consumer.fault = "the broker has not been reached yet"
    tried = asyncio.Event()
    starting = asyncio.create_task(_start(broker, subscribers, consumer, tried, ours=ours), name="cqrs consuming")
    try:
        await came(tried, BEGINNING)
        yield consumer
    finally:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await _stop(broker, subscribers, ours=ours)
        broker._subscribers.difference_update(subscribers)  # noqa: SLF001 - else a user's broker would start them again


def subscribe(broker: Any, consumer: Consumer, name: str, *, grace: float) -> list[Any]:
    """Add subscribers of all topics that the consumer reads; returns them."""
    if not _is_orderly(broker):
        raise MisuseError(
            f"{type(broker).__module__}.{type(broker).__qualname__} is no broker whose order can be kept. "
            "Use FastStream's KafkaBroker or RabbitBroker, or a subscriber of your own that awaits app.send(event)."
        )
    return _SUBSCRIBERS[kind_of(broker)](broker, consumer, name, grace)


def _is_orderly(broker: Any) -> bool:
    """Whether it is of a kind whose order can be kept."""
    return kind_of(broker) in _SUBSCRIBERS


async def _start(
    broker: Any, subscribers: Sequence[Any], consumer: Consumer, tried: asyncio.Event, *, ours: bool
) -> None:
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
            tried.set()
            await _stop(broker, subscribers, ours=ours)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            consumer.fault = None
            tried.set()
            return


async def _stop(broker: Any, subscribers: Sequence[Any], *, ours: bool) -> None:
    """Stop all at once: each waits within the grace period for what is at work."""
    await asyncio.gather(*(let_end(subscriber.stop, seconds=None) for subscriber in subscribers))
    if ours:
        await let_end(broker.stop)


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
    broker = make(graceful_timeout=ENDING, logger=_Log(), log_level=logging.DEBUG)
    if kind_of(broker) == "rabbit":
        from_rabbitmq.leave_no_connection(broker)
    return broker, True


_SUBSCRIBERS: dict[str, Callable[[Any, Consumer, str, float], list[Any]]] = {
    "kafka": from_kafka.subscribe,
    "rabbit": from_rabbitmq.subscribe,
}
