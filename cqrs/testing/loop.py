"""The broker of a test: what is published comes back to the handlers here, as it does to a group of this name."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from cqrs.deliveries import consumed
from cqrs.outbox.publisher import Fate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cqrs.codec import Envelope
    from cqrs.mediator import Mediator
    from cqrs.outbox.publisher import Outcome
    from cqrs.outbox.storage import Storage
    from cqrs.outbox.store import Store
    from cqrs.plan import Plan


class Loop:
    """Takes everything, and saves it for the handlers that the application would consume it by."""

    app: Mediator
    storage: Storage

    async def open(self) -> None:
        """Need nothing."""

    async def close(self) -> None:
        """Hold nothing."""

    async def publish(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        """Save a row for each handler, in order; one without a handler here is published and that is all."""
        rows = [
            envelope._replace(destination=handler.name, attempt=1, parked=False)
            for envelope in envelopes
            if (plan := self._consumed.get(envelope.topic, {}).get(envelope.type)) is not None
            for handler in plan.handlers
        ]
        await save(self.storage.store, rows)
        return [Fate.DELIVERED] * len(envelopes)

    @cached_property
    def _consumed(self) -> Mapping[str, Mapping[str, Plan]]:
        return consumed(self.app.plans.values())


async def save(store: Store, envelopes: Sequence[Envelope]) -> None:
    """Save rows in a transaction of their own."""
    if envelopes:
        async with store.short.begin() as connection:
            await connection.run_sync(store.add, envelopes)
