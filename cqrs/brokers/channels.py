"""The connection to RabbitMQ: made when it is first needed and after each loss, with a channel for each topic."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiormq
from aiormq.exceptions import AMQPError

from cqrs.brokers.confirms import Outlet
from cqrs.brokers.ending import Endings

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from ssl import SSLContext

    from aiormq.abc import AbstractConnection
    from yarl import URL

LOST = (OSError, AMQPError, RuntimeError)
"""What aiormq raises where a channel or connection cannot be had; `RuntimeError` where it was closed meanwhile."""


class Channels:
    """A connection and its channels: each topic has one of its own, so that what closes one disturbs no other.

    A topic's exchange is declared when its channel is opened, or without `declare` looked for.
    """

    def __init__(self, url: URL, ssl_context: SSLContext | None, *, declare: bool) -> None:
        self._url = url
        self._ssl_context = ssl_context
        self._declare = declare
        self._connection: AbstractConnection | None = None
        self._connecting = asyncio.Lock()
        self._outlets: dict[str, Outlet] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._endings = Endings("cqrs rabbitmq close")

    async def connected(self) -> AbstractConnection:
        """Return the connection, which is made unless it is open. Raises one of `LOST`."""
        async with self._connecting:
            if self._connection is None or self._connection.is_closed:
                self._outlets.clear()
                try:
                    self._connection = await aiormq.connect(self._url, context=self._ssl_context)
                except StopAsyncIteration as error:  # of aiormq, and none that a coroutine may raise
                    raise ConnectionError("the other end hung up while the connection was made") from error
            return self._connection

    async def outlet(self, topic: str) -> Outlet:
        """Return a topic's channel, which is opened unless it is open. Raises one of `LOST`."""
        async with self._opening.setdefault(topic, asyncio.Lock()):
            outlet = self._outlets.get(topic)
            if outlet is None or outlet.channel.is_closed:
                connection = await self.connected()
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                await channel.exchange_declare(topic, exchange_type="topic", durable=True, passive=not self._declare)
                outlet = self._outlets[topic] = Outlet(channel, channel.closing)
            return outlet

    def drop(self, topic: str) -> BaseException:
        """Give up a topic's channel; returns why it was closed."""
        outlet = self._outlets.pop(topic, None)
        if outlet is None:
            return ConnectionError("the channel was closed")
        if outlet.channel.is_closed:
            reason = None if outlet.closing.cancelled() else outlet.closing.exception()
            return reason or ConnectionError("the channel was closed")
        self._endings.begin(_quietly(outlet.channel.close()))
        return TimeoutError("not confirmed in time")

    def disconnect(self) -> None:
        """Give up the connection with all channels; the next one is another."""
        connection, self._connection = self._connection, None
        self._outlets.clear()
        if connection is not None:
            self._endings.begin(_quietly(connection.close()))

    def are_lost(self) -> bool:
        """Whether there is no connection now."""
        return self._connection is None or self._connection.is_closed

    async def end(self, seconds: float) -> None:
        """Disconnect, and wait for that no longer than this."""
        self.disconnect()
        await self._endings.wait(seconds)


async def _quietly(closing: Coroutine[Any, Any, Any]) -> None:
    with suppress(*LOST):
        await closing
