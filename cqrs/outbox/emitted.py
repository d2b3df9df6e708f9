"""What this process emitted and has not ended, as far as it knows: what `drain` waits for."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING

from cqrs.errors import DrainTimeout
from cqrs.outbox.rows import DEAD
from cqrs.outbox.survey import describe
from cqrs.outbox.waiting import came

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from cqrs.codec import Envelope
    from cqrs.outbox.rows import Unended
    from cqrs.outbox.store import Store

REMEMBERED = 100_000
"""How many events that this process emitted `drain` waits for: the last ones."""
LOOK = 0.05
"""Seconds until the database is asked again although the relay has settled nothing: others relay as well."""


class Emitted:
    """The ids of events that were saved here and may still be on their way."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids: OrderedDict[str, None] = OrderedDict()  # in a dict the first one is found past all that have gone

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, envelopes: Sequence[Envelope]) -> None:
        """Remember events that were saved."""
        for envelope in envelopes:
            self._ids[envelope.message_id] = None
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)

    async def drain(self, timeout: float, settled: asyncio.Event) -> None:
        """Wait until all of them have ended, and look again when the relay has settled something."""
        end = monotonic() + timeout
        # What was emitted while the database was asked has not been asked for yet.
        while (left := await self._unended()) or self._ids:
            if left and all(row.state == DEAD for row in left):
                raise DrainTimeout(describe(left), "given up: app.outbox.replay() or discard() ends them")
            if monotonic() >= end:
                raise DrainTimeout(describe(left), f"not delivered after {timeout:g} s")
            settled.clear()
            await came(settled, min(LOOK, max(0.0, end - monotonic())))

    async def _unended(self) -> list[Unended]:
        asked = list(self._ids)
        left = await self._store.unended(asked)
        pending = {row.event_id for row in left}
        for event_id in asked:
            if event_id not in pending:
                self._ids.pop(event_id, None)
        return left
