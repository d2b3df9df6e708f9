"""RabbitMQ: the publisher of what goes to RabbitMQ exchanges, on aiormq, the client under aio-pika."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Any

try:
    from aiormq import exceptions as amqp
except ModuleNotFoundError as error:
    if error.name != "aiormq":
        raise
    raise ModuleNotFoundError(
        "RabbitMQ needs the package aiormq. Run: pip install 'cqrs-toolkit[rabbitmq]'", name="aiormq"
    ) from None

from pamqp.commands import Basic
from yarl import URL

from cqrs.brokers.channels import LOST, Channels
from cqrs.brokers.confirms import End, Letter, send
from cqrs.brokers.ending import Idle
from cqrs.brokers.tally import UNSENDABLE, Tally, caused, name_of, refused, text_of
from cqrs.brokers.wire import keyed_headers, routing_key, unroutable
from cqrs.errors import PublishError
from cqrs.outbox.publisher import Fate, Outcome, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ssl import SSLContext

    from cqrs.codec import Envelope

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 128 * 1024 * 1024
"""The largest body in bytes: RabbitMQ's default up to 3.13. From 4.0 it is 16 MiB, which a refusal tells."""
FAULTS = 2
"""How often a round is tried again in one publish because the broker closed its channel."""
SHORT = 63
"""How many characters certainly fit into the 255 bytes of a property; what is longer has its header."""
NAME_LIMIT = 255
"""The bytes of an exchange's name."""
TOO_LARGE = re.compile(r"message size \d+ .* max size (\d+)")
Strand = deque[int]


class RabbitMQ:
    """Publishes to RabbitMQ: confirmed, mandatory, persistent; one message of a key in flight, all keys side by side.

    A topic is a durable topic exchange of its name, declared at its first use unless `declare=False`. The routing key
    is `<event name>.<slot>` with the slot in two digits; `slots` is the application's number of them. At most
    `window` messages of a topic wait for their confirmation. A `publish` takes `timeout` seconds at most.

    Each topic has a channel of its own: what closes one disturbs no other. A channel with messages whose end is
    unknown when the time is up is closed; what the broker still takes of them is a duplicate later, one for a key.
    """

    def __init__(
        self,
        url: str,
        *,
        slots: int = 16,
        timeout: float = 8.0,
        window: int = 1000,
        declare: bool = True,
        max_message_bytes: int = MESSAGE_LIMIT,
        heartbeat: int = 30,
        ssl_context: SSLContext | None = None,
    ) -> None:
        self._url = URL(url).update_query({"heartbeat": str(heartbeat), "name": "cqrs-toolkit"})
        self._place = f"{self._url.host}:{self._url.port or (5671 if self._url.scheme == 'amqps' else 5672)}"
        self._slots = slots
        self._timeout = timeout
        self._window = window
        self._limit = max_message_bytes
        self._ssl_context = ssl_context
        self._channels = Channels(self._url, ssl_context, declare=declare)
        self._closed = False
        self._idle = Idle()

    def faststream_broker(self, **options: Any) -> Any:
        """Return a FastStream broker that consumes from the same broker; nothing is connected yet."""
        from faststream.rabbit import RabbitBroker
        from faststream.security import BaseSecurity

        security = BaseSecurity(ssl_context=self._ssl_context, use_ssl=self._url.scheme == "amqps")
        return RabbitBroker(str(self._url), security=security, **options)

    def refusal(self, topic: str) -> str | None:
        """Return what a topic has to be called, where the broker will never have one of this name."""
        if topic.startswith("amq."):
            return "RabbitMQ keeps the exchanges whose names begin with 'amq.' for itself"
        if len(topic.encode()) > NAME_LIMIT:
            return f"RabbitMQ's exchanges have names of up to {NAME_LIMIT} bytes"
        return None

    async def open(self) -> None:
        """Connect. A broker out of reach is reported and tried again at the first publish."""
        self._closed = False
        try:
            async with asyncio.timeout(self._timeout):
                await self._channels.connected()
        except (TimeoutError, *LOST) as error:
            log.warning("RabbitMQ at %s is out of reach, and is tried again: %s", self._place, text_of(error))

    async def close(self) -> None:
        """Begin no further round, finish those in flight within the timeout, and disconnect."""
        self._closed = True
        await self._idle.wait(self._timeout)
        await self._channels.end(self._timeout)

    async def ping(self) -> None:
        """Raise `PublishError`, with the reason, where the broker does not answer."""
        try:
            channel = await (await self._channels.connected()).channel()
            await channel.close()
        except LOST as error:
            raise PublishError(self._silence(error)) from error

    async def publish(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        """Publish; see `Publisher`."""
        tally = Tally(envelopes)
        async with self._idle:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._publish(tally)
            except TimeoutError:
                self._give_up(tally)
        return tally.outcomes

    async def _publish(self, tally: Tally) -> None:
        if self._closed:
            return
        try:
            await self._channels.connected()
        except LOST as error:
            tally.give_up_all(self._unavailable(error))
            return
        async with asyncio.TaskGroup() as tasks:
            for topic, indexes in tally.by_topic().items():
                tasks.create_task(self._publish_topic(tally, topic, indexes))

    async def _publish_topic(self, tally: Tally, topic: str, indexes: list[int]) -> None:
        """Send round after round: the first message of each key, then the second of each, and so on."""
        waiting = deque(tally.by_strand(indexes))
        faults = 0
        while waiting and not self._closed:
            try:
                reason = await self._round(tally, topic, waiting)
            except LOST as error:
                reason, faults = error, FAULTS
            if reason is None or self._has_learnt(reason):
                continue
            faults += 1
            if faults > FAULTS or self._channels.are_lost():
                tally.give_up([index for strand in waiting for index in strand], self._unavailable(reason, topic))
                return

    async def _round(self, tally: Tally, topic: str, waiting: deque[Strand]) -> BaseException | None:
        """Send the first message of each strand, as many as the window holds; returns why some have no end."""
        strands, letters = self._write(tally, [waiting.popleft() for _ in range(min(self._window, len(waiting)))])
        if not letters:
            return None
        ends: list[End] = [Fate.NOT_SENT] * len(letters)
        try:
            await send(await self._channels.outlet(topic), letters, ends)
        except asyncio.CancelledError:
            self._channels.drop(topic)
            raise
        finally:
            again = [strand for strand, end in zip(strands, ends, strict=True) if not self._settle(tally, strand, end)]
            waiting.extend(more for more, end in zip(strands, ends, strict=True) if more and end is Fate.DELIVERED)
            waiting.extendleft(reversed(again))
        return self._channels.drop(topic) if again else None

    def _write(self, tally: Tally, strands: Sequence[Strand]) -> tuple[list[Strand], list[Letter]]:
        """Return the first message of each strand, without the strands whose first one can never be sent."""
        sent: list[Strand] = []
        letters: list[Letter] = []
        for strand in strands:
            envelope = tally.envelopes[strand[0]]
            try:
                letter = self._letter(envelope)
            except UNSENDABLE as error:
                text = f"{name_of(envelope)} is nothing AMQP can carry: {text_of(error)}"
                _stop(tally, strand, refused(text, error, final=True))
                continue
            if len(envelope.payload) > self._limit:
                text = (
                    f"{name_of(envelope)} has a body of {len(envelope.payload)} bytes; at most {self._limit} are sent. "
                    "Raise max_message_bytes and RabbitMQ's max_message_size, or publish a reference to what is large."
                )
                _stop(tally, strand, refused(text, final=True))
                continue
            sent.append(strand)
            letters.append(letter)
        return sent, letters

    def _letter(self, envelope: Envelope) -> Letter:
        headers: dict[str, Any] = keyed_headers(envelope)  # text is a value of theirs, but their type is invariant
        correlation = headers.get("correlation_id", "")
        properties = Basic.Properties(
            content_type=headers.get("content-type"),
            headers=headers,
            delivery_mode=2,
            correlation_id=correlation if len(correlation) <= SHORT else None,
            message_id=envelope.message_id,
            timestamp=_moment(headers.get("ce_time")),
            message_type=envelope.type,
            app_id=headers.get("ce_source"),
        )
        return Letter(envelope.topic, routing_key(envelope, self._slots), properties, envelope.payload)

    def _settle(self, tally: Tally, strand: Strand, end: End) -> bool:
        """Note the end of a strand's first message; returns whether it has one."""
        if end is Fate.DELIVERED:
            tally.settle([strand.popleft()], Fate.DELIVERED)
        elif isinstance(end, amqp.PublishError):
            frame: Any = end.frame
            _stop(tally, strand, Unavailable(caused(unroutable(frame.exchange, frame.routing_key), end)))
        elif isinstance(end, BaseException):
            name = name_of(tally.envelopes[strand[0]])
            cure = "A queue that it goes to is full (x-overflow: reject-publish), or lost its leader."
            _stop(tally, strand, refused(f"RabbitMQ did not accept {name}. {cure}", end))
        else:
            return False
        return True

    def _give_up(self, tally: Tally) -> None:
        """End what has no end when the time is up; where nothing at all was confirmed, connect anew next time."""
        cause = "A queue without a majority of its members does so, and a broker short of memory or disk space"
        if tally.is_silent():
            self._channels.disconnect()
            text = (
                f"RabbitMQ at {self._place} confirmed nothing within {self._timeout:g} s. {cause}, or a broken network."
            )
            tally.give_up_all(Unavailable(PublishError(text), everything=True))
        for topic, indexes in tally.by_topic().items():
            text = f"RabbitMQ confirmed no more of exchange '{topic}' within {self._timeout:g} s. {cause}."
            tally.give_up(indexes, Unavailable(PublishError(text)))

    def _unavailable(self, error: BaseException, topic: str = "") -> Unavailable:
        if self._channels.are_lost():
            return Unavailable(caused(self._silence(error), error), everything=True)
        cure = "See the broker's log."
        if isinstance(error, amqp.ChannelNotFoundEntity):
            cure = "Declare a durable topic exchange of that name, or leave out declare=False."
        if isinstance(error, amqp.ChannelAccessRefused):
            cure = "Allow this user to write to it, and to configure it unless declare=False."
        if isinstance(error, amqp.ChannelPreconditionFailed):
            cure = "It is there with other properties: make it a durable topic exchange, or pass declare=False."
        return Unavailable(caused(f"Exchange '{topic}' takes nothing: {text_of(error)}. {cure}", error))

    def _silence(self, error: BaseException) -> str:
        cure = "Check that it runs, and the address, user, password and virtual host."
        return f"RabbitMQ at {self._place} is out of reach: {text_of(error)}. {cure}"

    def _has_learnt(self, reason: BaseException) -> bool:
        """Whether the broker closed the channel over a size, which is the limit from now on."""
        found = TOO_LARGE.search(text_of(reason))
        if found is None or int(found[1]) >= self._limit:
            return False
        self._limit = int(found[1])
        return True


def _stop(tally: Tally, strand: Strand, outcome: Outcome) -> None:
    """End a strand's first message with this outcome, and the rest as not sent."""
    tally.give_up(strand, outcome)
    strand.clear()


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
