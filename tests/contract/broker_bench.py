"""What the benches of all brokers share: a topic of their own, messages that are refused, and a stop in the middle."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import cqrs
from cqrs.codec import Envelope
from cqrs.outbox import Fate, Outcome, Pingable, Publisher
from tests.proxy import Proxy

TIMEOUT = 2.0


class StoppingEnvelope(Envelope):
    """An envelope that closes its publisher while it is written."""

    publisher: Publisher
    closing: asyncio.Task[None] | None = None

    @property
    def wire_headers(self) -> dict[str, str]:
        self._stop()
        return super().wire_headers

    @property
    def encoded_headers(self) -> list[tuple[str, bytes]]:
        self._stop()
        return super().encoded_headers

    def _stop(self) -> None:
        type(self).closing = type(self).closing or asyncio.ensure_future(type(self).publisher.close())


class BrokerBench:
    """Publishes under a topic of its own what the contract publishes to the topic 'orders'."""

    final = False
    timeout = TIMEOUT

    def __init__(self, inner: Publisher, proxy: Proxy) -> None:
        self.inner = inner
        self.proxy = proxy
        self.topic = f"orders-{uuid4().hex[:12]}"
        self.refused: set[str] = set()
        self.last = ""

    @property
    def publisher(self) -> Publisher:
        return self

    def stop_at(self, message_id: str) -> None:
        self.last = message_id

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def publish(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        return await self.inner.publish([self.prepared(envelope) for envelope in envelopes])

    async def ping(self) -> None:
        assert isinstance(self.inner, Pingable)
        await self.inner.ping()

    async def is_in_reach(self) -> bool:
        try:
            await self.ping()
        except cqrs.PublishError:
            return False
        return True

    def prepared(self, envelope: Envelope) -> Envelope:
        """Return an envelope as this bench publishes it."""
        envelope = envelope._replace(topic=self.topic)
        if envelope.message_id in self.refused:
            envelope = self.refusable(envelope)
        if envelope.message_id == self.last:
            kind = type("Stopping", (StoppingEnvelope,), {"publisher": self.inner})
            envelope = kind(*envelope)
        return envelope

    def refusable(self, envelope: Envelope) -> Envelope:
        """Return a message that the far end refuses."""
        raise NotImplementedError

    async def until_delivered(self, envelopes: Sequence[Envelope]) -> None:
        waiting = list(envelopes)
        async with asyncio.timeout(60):
            while waiting:
                outcomes = await self.publish(waiting)
                waiting = [
                    envelope
                    for envelope, outcome in zip(waiting, outcomes, strict=True)
                    if outcome is not Fate.DELIVERED
                ]
                if waiting:
                    await asyncio.sleep(0.05)
