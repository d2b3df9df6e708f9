"""A relay, as a process: it goes through proxies, and ends itself by SIGKILL at the point that it is given.

The points are reached by wrapping what the relay calls, here in the test's own process: the product has no hooks.
"""

import asyncio
import logging
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import cqrs
from cqrs.codec import Envelope
from cqrs.outbox.publisher import Outcome
from cqrs.outbox.storage import Storage
from tests.faults.application import BATCH, Setting, make
from tests.faults.mutations import MUTATIONS

POINTS = ("claiming", "claimed", "publishing", "published", "settling", "settled")
"""Within a claim, after it, within a publish, after it, within a settlement, after it."""
WITHIN = 0.004
"""Seconds from the begin of a step until it is cut off."""


class Crash:
    """Ends the process when a point has been passed so many times."""

    def __init__(self, wish: str) -> None:
        self.point, _, passes = wish.partition(":")
        self._passes = int(passes or 0)

    def reach(self, point: str) -> None:
        if self._is_due(point):
            die()

    def enter(self, point: str) -> None:
        """Reach a point that lasts: the process ends somewhere within."""
        if self._is_due(point):
            asyncio.get_running_loop().call_later(random.uniform(0.0, WITHIN), die)

    def _is_due(self, point: str) -> bool:
        self._passes -= point == self.point
        return point == self.point and self._passes == 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Crashing:
    """A publisher before and after whose work the process may end."""

    def __init__(self, inner: cqrs.Publisher, crash: Crash) -> None:
        self._inner = inner
        self._crash = crash

    async def open(self) -> None:
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    async def publish(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        self._crash.reach("claimed")
        self._crash.enter("publishing")
        outcomes = await self._inner.publish(envelopes)
        self._crash.reach("published")
        return outcomes


def arm(storage: Storage, crash: Crash) -> None:
    """Put the crash between the relay, its publishers and its lanes."""
    relay = storage.relay
    wrapped = {id(inner): Crashing(inner, crash) for inner in relay._handover.publishers.values()}
    relay._handover.publishers = {name: wrapped[id(inner)] for name, inner in relay._handover.publishers.items()}
    for lane in relay._outbox:
        lane.claim = _claiming(lane.claim, crash)


def _claiming(claim: Callable[..., Awaitable[Any]], crash: Crash) -> Callable[..., Awaitable[Any]]:
    async def wrapped(*arguments: Any) -> Any:
        crash.enter("claiming")
        found = await claim(*arguments)
        if hasattr(found, "settle"):
            found.settle = _settling(found.settle, crash)
        return found

    return wrapped


def _settling(settle: Callable[..., Awaitable[None]], crash: Crash) -> Callable[..., Awaitable[None]]:
    async def wrapped(*arguments: Any) -> None:
        crash.enter("settling")
        await settle(*arguments)
        crash.reach("settled")

    return wrapped


def publisher(setting: Setting) -> cqrs.Publisher | None:
    """Return the broker's publisher, which finds no way past the proxy."""
    timeout = 0.8 * setting.lease
    if setting.broker.startswith("kafka"):
        import aiokafka.client

        from cqrs.brokers.kafka import Kafka

        connect = aiokafka.client.create_conn

        async def by_proxy(host: str, port: int, **options: Any) -> Any:
            # Brokers tell clients where they are.
            return await connect(host, setting.broker_port or port, **options)

        aiokafka.client.create_conn = by_proxy
        return Kafka(setting.broker.removeprefix("kafka://"), timeout=timeout)
    if setting.broker.startswith("amqp"):
        from yarl import URL

        from cqrs.brokers.rabbitmq import RabbitMQ

        url = URL(setting.broker)
        return RabbitMQ(str(url.with_port(setting.broker_port or url.port)), timeout=timeout)
    return None


async def main(setting: Setting) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app = make(setting, relay=True, broker=publisher(setting))
    assert isinstance(app.storage, Storage)
    app.storage.relay._pace = replace(app.storage.relay._pace, batch=BATCH)
    if setting.mutation:
        MUTATIONS[setting.mutation](app.storage)
    if setting.crash:
        arm(app.storage, Crash(setting.crash))
    async with app:
        await stop.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s relay %(process)d %(name)s %(message)s")
    asyncio.run(main(Setting.given()))
