"""FastStream: publishes where a FastStream broker points, without what its own way to publish loses.

For Kafka and RabbitMQ only the broker's connection settings are used. Its producer has acks=1 and no idempotence, or
transient messages, by default; an idempotent one is stuck on a partition after a single refusal; and its telemetry
overwrites `traceparent`. Other brokers publish by themselves, one message of a key at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from cqrs.brokers.ending import Idle
from cqrs.brokers.tally import Tally, caused, name_of, refused, text_of
from cqrs.brokers.wire import keyed_headers, routing_key
from cqrs.errors import ConfigurationError, DecodingError, Problem, PublishError
from cqrs.outbox.publisher import Fate, Naming, Outcome, Pingable, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cqrs.codec import Envelope

log = logging.getLogger(__name__)


def check(broker: Any, problems: list[Problem], options: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Add why this broker cannot be published through without loss."""
    kind = kind_of(broker)
    if kind not in _WAYS:
        what = f"{type(broker).__module__}.{type(broker).__qualname__} is no FastStream broker that can publish"
        problems.append(Problem(what, f"Pass a broker of faststream.{', faststream.'.join(_WAYS)}, or a URL."))
    elif kind in _DIRECT and not hasattr(broker, "_connection_kwargs"):
        what = f"This version of FastStream does not tell where its {type(broker).__qualname__} connects to"
        problems.append(Problem(what, "Pass its URL instead, or install 'faststream>=0.7.6,<0.8'."))
    elif kind == "confluent" and broker._connection_kwargs.get("acks") in (0, 1):  # noqa: SLF001 - no other name
        what = "The KafkaBroker of faststream.confluent does not wait for all replicas"
        problems.append(Problem(what, "Make it with acks='all', enable_idempotence=True."))
    elif kind == "nats" and "stream" not in options:
        what = "The NatsBroker would publish without JetStream, where nothing is acknowledged"
        problems.append(Problem(what, "Pass cqrs.brokers.faststream.FastStreamBroker(broker, stream='...')."))


class _Direct(Naming, Pingable, Protocol):
    """The toolkit's own publisher to the same broker."""


class FastStreamBroker:
    """Publishes to where a FastStream broker points.

    For Kafka and RabbitMQ a connection of its own is opened with the broker's settings, and the broker is left alone,
    unless it is under test (`TestKafkaBroker`, `TestRabbitBroker`). Other brokers are connected, publish one message of
    a key at a time, up to `strands` keys side by side, and are stopped unless somebody has started them meanwhile; no
    subscriber is started. `options` go to their `publish`: a NATS broker needs `stream=`.

    Raises `ConfigurationError` for a broker that would lose messages.
    """

    def __init__(
        self, broker: Any, *, slots: int = 16, timeout: float = 8.0, strands: int = 100, **options: Any
    ) -> None:
        problems: list[Problem] = []
        check(broker, problems, options)
        if problems:
            raise ConfigurationError(problems)
        self.broker = broker
        """The FastStream broker that this publishes through."""
        self._name = type(broker).__qualname__
        self._kind = kind_of(broker)
        self._slots = slots
        self._timeout = timeout
        self._strands = strands
        self._options = options
        direct = _DIRECT.get(self._kind)
        self._direct: _Direct | None = None if direct is None else direct(broker, slots, timeout)
        self._ours = False
        self._idle = Idle()
        self._closed = False

    def refusal(self, topic: str) -> str | None:
        """Return what a topic has to be called, where the broker will never have one of this name."""
        return None if self._direct is None else self._direct.refusal(topic)

    async def open(self) -> None:
        """Connect. A broker out of reach is reported and tried again at the first publish."""
        self._closed = False
        self._ours = not self.broker.running
        if self._direct is not None:
            if not self._is_under_test():
                await self._direct.open()
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self.broker.connect()
        except Exception as error:  # noqa: BLE001 - each client has errors of its own; publishing tells
            log.warning("%s is out of reach, and is tried again: %s", self._name, text_of(error))

    async def close(self) -> None:
        """Begin no further message, finish those in flight within the timeout, and disconnect what was connected."""
        self._closed = True
        if self._direct is not None:
            await self._direct.close()
            return
        if await self._idle.wait(self._timeout) and self._ours and not self.broker.running:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self.broker.stop()

    async def ping(self) -> None:
        """Raise `PublishError`, with the reason, where the broker does not answer."""
        if self._is_under_test():
            return
        if self._direct is not None:
            await self._direct.ping()
        elif not await self._answers():
            raise PublishError(f"{self._name} is out of reach. Check that it runs, and the address, user and password.")

    async def publish(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        """Publish; see `Publisher`."""
        if self._direct is not None and not self._is_under_test():
            return await self._direct.publish(envelopes)
        tally = Tally(envelopes)
        async with self._idle:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._publish(tally)
            except TimeoutError:
                text = f"{self._name} acknowledged no more within {self._timeout:g} s. See the broker's log."
                tally.give_up_all(Unavailable(PublishError(text), everything=tally.is_silent()))
        return tally.outcomes

    async def _publish(self, tally: Tally) -> None:
        waiting = deque(tally.by_strand(range(len(tally.envelopes))))

        async def work() -> None:
            while waiting and not self._closed:
                strand = waiting.popleft()
                while strand and not self._closed:
                    outcome = await self._publish_one(tally.envelopes[strand[0]])
                    if outcome is not Fate.DELIVERED:
                        tally.give_up(strand, outcome)
                        break
                    tally.settle((strand.popleft(),), outcome)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._strands, len(waiting))):
                tasks.create_task(work())

    async def _publish_one(self, envelope: Envelope) -> Outcome:
        try:
            how = _WAYS[self._kind](envelope, self._slots)
        except DecodingError as error:
            return refused(f"{name_of(envelope)} cannot be sent: {error}", error, final=True)
        try:
            await self.broker.connect()
            await self.broker.publish(envelope.payload, **how, **self._options)
        except Exception as error:  # noqa: BLE001 - each client has errors of its own
            text = f"{self._name} did not take {name_of(envelope)}: {text_of(error)}"
            if await self._answers():
                return refused(text, error)
            return Unavailable(caused(text, error), everything=True)
        return Fate.DELIVERED

    async def _answers(self) -> bool:
        """Whether the broker is there, and so refused this message."""
        try:
            return bool(await self.broker.ping(timeout=self._timeout / 4))
        except Exception:  # noqa: BLE001 - each client has errors of its own
            return False

    def _is_under_test(self) -> bool:
        return type(self.broker.config.producer).__module__.endswith(".testing")


def _kafka(broker: Any, slots: int, timeout: float) -> _Direct:
    from cqrs.brokers.kafka import CONNECTION, Kafka

    del slots
    settings = {name: value for name, value in broker._connection_kwargs.items() if value is not None}  # noqa: SLF001 - as below
    servers = settings["bootstrap_servers"]
    return Kafka(
        servers if isinstance(servers, str) else ",".join(servers),
        timeout=timeout,
        max_message_bytes=settings["max_request_size"],
        compression=settings.get("compression_type"),
        client_id=settings["client_id"],
        **{name: value for name, value in settings.items() if name in CONNECTION},
    )


def _rabbitmq(broker: Any, slots: int, timeout: float) -> _Direct:
    from cqrs.brokers.rabbitmq import RabbitMQ

    settings = broker._connection_kwargs  # noqa: SLF001 - FastStream has no other name for them
    return RabbitMQ(settings["url"], slots=slots, timeout=timeout, ssl_context=settings["ssl_context"])


def _keyed(envelope: Envelope, slots: int) -> dict[str, Any]:
    del slots
    key = None if envelope.key is None else envelope.key.encode()
    return {"topic": envelope.topic, "key": key, "headers": dict(envelope.wire_headers)}


def _routed(envelope: Envelope, slots: int) -> dict[str, Any]:
    headers = keyed_headers(envelope)
    return {
        "exchange": envelope.topic,
        "routing_key": routing_key(envelope, slots),
        "persist": True,
        "headers": headers,
        "content_type": headers.get("content-type"),
        "message_id": envelope.message_id,
        "message_type": envelope.type,
    }


def _to_subject(envelope: Envelope, slots: int) -> dict[str, Any]:
    del slots
    return {"subject": envelope.topic, "headers": keyed_headers(envelope)}


def _to_stream(envelope: Envelope, slots: int) -> dict[str, Any]:
    del slots
    return {"stream": envelope.topic, "headers": keyed_headers(envelope)}


def kind_of(broker: Any) -> str:
    """Return which of FastStream's packages a broker is of, `kafka` for one of `faststream.kafka.broker`."""
    for ancestor in type(broker).__mro__:
        package, _, rest = ancestor.__module__.partition(".")
        if package == "faststream" and callable(getattr(broker, "publish", None)):
            return rest.partition(".")[0]
    return ""


_WAYS: dict[str, Callable[[Envelope, int], dict[str, Any]]] = {
    "confluent": _keyed,
    "kafka": _keyed,
    "nats": _to_subject,
    "rabbit": _routed,
    "redis": _to_stream,
}
_DIRECT: dict[str, Callable[[Any, int, float], _Direct]] = {"kafka": _kafka, "rabbit": _rabbitmq}
