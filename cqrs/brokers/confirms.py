"""Publishing many messages to RabbitMQ side by side, each with its confirmation: in one write, or as documented.

The one write reaches into an aiormq channel: its lock, tags, confirmations and write queue are no documented interface.
It is used with the versions of aiormq that it was tested with, and nothing else of the toolkit knows about it.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pamqp.frame
from aiormq.abc import ChannelFrame
from aiormq.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from cqrs.outbox.publisher import Fate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiormq.abc import AbstractChannel

TESTED = "7."
"""The versions of aiormq that one write was tested with."""
PARTS = ("confirmations", "delivery_tag", "lock", "max_content_size", "message_id_delivery_tag", "write_queue")
"""The parts of a channel that it needs."""
HEADER, BODY, END = 2, 3, b"\xce"
"""AMQP 0-9-1, section 4.2.3: the types of content frames, and what every frame ends with."""

End = Fate | BaseException
"""DELIVERED (confirmed), NOT_SENT (unknown), or the error: aiormq's DeliveryError, or PublishError where returned."""


class Letter:
    """A message as AMQP has it. Raises ValueError or TypeError for what AMQP cannot carry."""

    __slots__ = ("body", "exchange", "header", "properties", "routing_key")

    def __init__(self, exchange: str, routing_key: str, properties: Basic.Properties, body: bytes) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body
        try:
            self.header = ContentHeader(body_size=len(body), properties=properties).marshal()
        except struct.error as error:
            raise ValueError(f"a property is longer than 255 bytes ({error})") from error


@dataclass(frozen=True, slots=True)
class Outlet:
    """An open channel with confirmations, and the future that ends when it is closed."""

    channel: AbstractChannel
    closing: asyncio.Future[Any]


async def send(outlet: Outlet, letters: Sequence[Letter], ends: list[End]) -> None:
    """Publish, and note each letter's end as it comes; return when all have one, or the channel is closed.

    When it is cancelled, the channel must not be used again.
    """
    known = _is_tested() and all(hasattr(outlet.channel, part) for part in PARTS)
    await (send_at_once if known else send_each)(outlet, letters, ends)


@cache
def _is_tested() -> bool:
    return version("aiormq").startswith(TESTED)


async def send_each(outlet: Outlet, letters: Sequence[Letter], ends: list[End]) -> None:
    """Publish by the documented interface."""

    async def publish(place: int, letter: Letter) -> None:
        try:
            await outlet.channel.basic_publish(
                letter.body,
                exchange=letter.exchange,
                routing_key=letter.routing_key,
                properties=letter.properties,
                mandatory=True,
            )
        except DeliveryError as error:
            ends[place] = error
        except (OSError, AMQPError, ChannelInvalidStateError):
            pass  # the channel or the connection is closed, which `closing` tells
        else:
            ends[place] = Fate.DELIVERED

    async with asyncio.TaskGroup() as tasks:
        for place, letter in enumerate(letters):
            tasks.create_task(publish(place, letter))


class _Confirms:
    """The ends of one write's letters."""

    __slots__ = ("all", "ends", "left")

    def __init__(self, ends: list[End]) -> None:
        self.ends = ends
        self.left = len(ends)
        self.all: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(self, place: int, end: End) -> None:
        self.ends[place] = end
        self.left -= 1
        if self.left == 0 and not self.all.done():
            self.all.set_result(None)


class _Slip:
    """Stands in for the future that aiormq keeps of each unconfirmed message, which costs more than its message."""

    __slots__ = ("_confirms", "_place")

    def __init__(self, confirms: _Confirms, place: int) -> None:
        self._confirms = confirms
        self._place = place

    def done(self) -> bool:
        return False

    def set_result(self, _: object) -> None:
        self._confirms.note(self._place, Fate.DELIVERED)

    def set_exception(self, error: BaseException) -> None:
        self._confirms.note(self._place, error)


async def send_at_once(outlet: Outlet, letters: Sequence[Letter], ends: list[End]) -> None:
    """Publish in one write."""
    channel: Any = outlet.channel
    confirms = _Confirms(ends)
    block = _frames(letters, channel.number, channel.max_content_size)
    tags: dict[str, int] = channel.message_id_delivery_tag
    try:
        async with channel.lock:
            first = channel.delivery_tag + 1
            channel.delivery_tag += len(letters)
            for place, letter in enumerate(letters):
                channel.confirmations[first + place] = _Slip(confirms, place)
                tags[str(letter.properties.message_id)] = first + place
            await channel.write_queue.put(ChannelFrame(payload=block, should_close=False, drain_future=None))
    except ChannelInvalidStateError:
        return
    await asyncio.wait({confirms.all, outlet.closing}, return_when=asyncio.FIRST_COMPLETED)
    for letter in letters:
        tags.pop(str(letter.properties.message_id), None)


def _frames(letters: Sequence[Letter], channel: int, most: int) -> bytes:
    """Return the frames of all letters: method, header and bodies of each."""
    methods: dict[tuple[str, str], bytes] = {}
    parts: list[bytes] = []
    pack = struct.Struct(">BHI").pack
    for letter in letters:
        way = letter.exchange, letter.routing_key
        if way not in methods:
            method = Basic.Publish(exchange=letter.exchange, routing_key=letter.routing_key, mandatory=True)
            methods[way] = pamqp.frame.marshal(method, channel)
        parts += (methods[way], pack(HEADER, channel, len(letter.header)), letter.header, END)
        for start in range(0, len(letter.body), most):
            body = letter.body[start : start + most]
            parts += (pack(BODY, channel, len(body)), body, END)
    return b"".join(parts)
