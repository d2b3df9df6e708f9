"""FastStream: the publisher of what goes through a broker of FastStream's, with its middlewares.

It is slower than a URL, since FastStream publishes one by one; what it does not acknowledge is refused at start-up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cqrs.brokers.tally import Idle, Tally, caused, name_of, refused, text_of
from cqrs.brokers.wire import keyed_headers, routing_key, unroutable
from cqrs.errors import ConfigurationError, Problem, PublishError
from cqrs.outbox.publisher import Fate, Outcome, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cqrs.codec import Envelope

log = logging.getLogger(__name__)

Publish = Callable[[Any, "Envelope", int, dict[str, Any]], Awaitable[Outcome]]


def check(broker: Any, problems: list[Problem], options: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Add what would lose messages, or break their order, with the setting that does not."""
    kind = _kind(broker)
    if kind not in _KINDS:
        what = f"{type(broker).__module__}.{type(broker).__qualname__} is no FastStream broker that can publish"
        problems.append(Problem(what, f"Pass a broker of faststream.{', faststream.'.join(_KINDS)}, or a URL."))
        return
    settings = getattr(broker, "_connection_kwargs", {})
    if kind == "kafka" and not settings.get("enable_idempotence"):
        what = "The KafkaBroker is not idempotent: a retry of its client may write twice or out of order"
        problems.append(Problem(what, "Make it with KafkaBroker(..., acks='all', enable_idempotence=True)."))
    if kind in ("kafka", "confluent") and settings.get("acks") in (0, 1):
        what = f"The KafkaBroker has acks={settings['acks']}: what one replica acknowledged is lost with it"
        problems.append(Problem(what, "Make it with KafkaBroker(..., acks='all', enable_idempotence=True)."))
    if kind == "nats" and "stream" not in options:
        what = "The NatsBroker would publish without JetStream, where nothing is acknowledged"
        problems.append(Problem(what, "Pass cqrs.brokers.faststream.FastStreamBroker(broker, stream='...')."))
    if kind == "rabbit" and not _confirms(broker):
        what = "The RabbitBroker has no publisher confirms: what is lost on the way stays unnoticed"
        problems.append(Problem(what, "Leave out publisher_confirms=False of its default_channel."))


class FastStreamBroker:
    """Publishes through a FastStream broker: one message of a key at a time, up to `lanes` keys side by side.

    A broker that is not connected is connected here, and stopped unless somebody has started it meanwhile; its
    subscribers are never started. `options` go to `broker.publish`: a NATS broker needs `stream=`.

    Raises `ConfigurationError` for a broker that would lose messages.
    """

    def __init__(self, broker: Any, *, slots: int = 16, timeout: float = 8.0, lanes: int = 100, **options: Any) -> None:
        problems: list[Problem] = []
        check(broker, problems, options)
        if problems:
            raise ConfigurationError(problems)
        self._broker = broker
        self._slots = slots
        self._timeout = timeout
        self._lanes = lanes
        self._options = options
        self._publish: Publish = _KINDS[_kind(broker)]
        self._name = type(broker).__qualname__
        self._ours = False
        self._idle = Idle()
        self._closed = False

    async def open(self) -> None:
        """Connect. A broker out of reach is reported and tried again at the first publish."""
        self._closed = False
        self._ours = not self._broker.running
        try:
            async with asyncio.timeout(self._timeout):
                await self._broker.connect()
        except Exception as error:  # noqa: BLE001 - each client has its own; the first publish tells
            log.warning("%s is out of reach, and is tried again: %s", self._name, text_of(error))

    async def close(self) -> None:
        """Begin no further message, finish those in flight within the timeout, and disconnect what was connected here."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._idle.wait()
        if self._ours and not self._broker.running:
            await self._broker.stop()

    async def publish(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        """Publish; see `Publisher`."""
        tally = Tally(envelopes)
        async with self._idle:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._publish_all(tally)
            except TimeoutError:
                silent = all(outcome is Fate.NOT_SENT for outcome in tally.outcomes)
                text = f"{self._name} acknowledged no more within {self._timeout:g} s. See its log."
                tally.give_up(sorted(tally.open), Unavailable(PublishError(text), everything=silent))
        return tally.outcomes

    async def _publish_all(self, tally: Tally) -> None:
        lanes: dict[tuple[str, str, str], deque[int]] = {}
        for index, envelope in enumerate(tally.envelopes):
            lanes.setdefault(envelope.lane, deque()).append(index)
        waiting = deque(lanes.values())

        async def work() -> None:
            while waiting and not self._closed:
                lane = waiting.popleft()
                while lane and not self._closed:
                    outcome = await self._publish_one(tally.envelopes[lane[0]])
                    if outcome is not Fate.DELIVERED:
                        tally.give_up(lane, outcome)
                        break
                    tally.settle((lane.popleft(),), outcome)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._lanes, len(waiting))):
                tasks.create_task(work())

    async def _publish_one(self, envelope: Envelope) -> Outcome:
        try:
            await self._broker.connect()
        except Exception as error:  # noqa: BLE001 - each client has its own
            text = f"{self._name} is out of reach: {text_of(error)}"
            return Unavailable(caused(text, error), everything=True)
        try:
            return await self._publish(self._broker, envelope, self._slots, self._options)
        except Exception as error:  # noqa: BLE001 - what no client explains is no message's fault
            text = f"{self._name} did not take {name_of(envelope)}: {text_of(error)}"
            return Unavailable(caused(text, error), everything=isinstance(error, ConnectionError))


async def _to_kafka(broker: Any, envelope: Envelope, slots: int, options: dict[str, Any]) -> Outcome:
    del slots
    from aiokafka import errors

    from cqrs.brokers.kafka import REFUSED, unavailable

    headers = dict(envelope.wire_headers)
    key = None if envelope.key is None else envelope.key.encode()
    try:
        await broker.publish(
            envelope.payload,
            envelope.topic,
            key=key,
            headers=headers,
            correlation_id=headers.get("correlation_id"),
            **options,
        )
    except REFUSED as error:
        final = isinstance(error, errors.MessageSizeTooLargeError)
        size = f"{len(envelope.payload)} bytes without its key and headers"
        return refused(f"{name_of(envelope)}, {size}, was refused: {text_of(error)}", error, final=final)
    except errors.KafkaConnectionError as error:
        return Unavailable(caused(f"Kafka is out of reach: {text_of(error)}", error), everything=True)
    except errors.KafkaError as error:
        return unavailable(envelope.topic, error)
    return Fate.DELIVERED


async def _to_rabbit(broker: Any, envelope: Envelope, slots: int, options: dict[str, Any]) -> Outcome:
    from aiormq.exceptions import DeliveryError
    from aiormq.exceptions import PublishError as Returned
    from faststream.rabbit import ExchangeType, RabbitExchange

    headers = keyed_headers(envelope)
    exchange = RabbitExchange(envelope.topic, type=ExchangeType.TOPIC, durable=True)
    way = routing_key(envelope, slots)
    try:
        await broker.declare_exchange(exchange)
        answer = await broker.publish(
            envelope.payload,
            exchange=exchange,
            routing_key=way,
            mandatory=True,
            persist=True,
            headers=headers,
            content_type=headers.get("content-type"),
            correlation_id=headers.get("correlation_id"),
            message_id=envelope.message_id,
            message_type=envelope.type,
            timestamp=datetime.fromisoformat(headers["ce_time"]) if "ce_time" in headers else None,
            **options,
        )
    except Returned as error:
        return Unavailable(caused(unroutable(envelope.topic, way), error))
    except DeliveryError as error:
        return refused(f"RabbitMQ did not accept {name_of(envelope)}: {text_of(error)}", error)
    # Without `on_return_raises` aiormq gives the message back where the broker returned it.
    if hasattr(answer, "delivery") and getattr(answer.delivery, "name", "") == "Basic.Return":
        return Unavailable(PublishError(unroutable(envelope.topic, way)))
    return Fate.DELIVERED


async def _to_confluent(broker: Any, envelope: Envelope, slots: int, options: dict[str, Any]) -> Outcome:
    del slots
    key = None if envelope.key is None else envelope.key.encode()
    await broker.publish(envelope.payload, envelope.topic, key=key, headers=dict(envelope.wire_headers), **options)
    return Fate.DELIVERED


async def _to_redis(broker: Any, envelope: Envelope, slots: int, options: dict[str, Any]) -> Outcome:
    del slots
    await broker.publish(envelope.payload, stream=envelope.topic, headers=keyed_headers(envelope), **options)
    return Fate.DELIVERED


async def _to_nats(broker: Any, envelope: Envelope, slots: int, options: dict[str, Any]) -> Outcome:
    del slots
    await broker.publish(envelope.payload, envelope.topic, headers=keyed_headers(envelope), **options)
    return Fate.DELIVERED


def _confirms(broker: Any) -> bool:
    """Whether the channel that a RabbitBroker publishes on has publisher confirms; FastStream has no name for it."""
    manager = getattr(broker.config, "channel_manager", None)
    channel = getattr(manager, "_ChannelManagerImpl__default_channel", None)
    return getattr(channel, "publisher_confirms", True)


def _kind(broker: Any) -> str:
    """Return which of FastStream's packages a broker is of, as in `faststream.kafka.broker`."""
    for ancestor in type(broker).__mro__:
        package, _, rest = ancestor.__module__.partition(".")
        if package == "faststream" and callable(getattr(broker, "publish", None)):
            return rest.partition(".")[0]
    return ""


_KINDS: dict[str, Publish] = {
    "confluent": _to_confluent,
    "kafka": _to_kafka,
    "nats": _to_nats,
    "rabbit": _to_rabbit,
    "redis": _to_redis,
}
