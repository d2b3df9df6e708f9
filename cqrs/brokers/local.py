"""Local delivery: the publisher of rows whose destination is a handler of this application."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from cqrs.codec import Envelope
from cqrs.context import Trace
from cqrs.errors import DecodingError
from cqrs.outbox.faults import is_transient
from cqrs.outbox.publisher import Failed, Fate, Outcome
from cqrs.outbox.waiting import is_being_cancelled

if TYPE_CHECKING:
    from cqrs.mediator import Mediator
    from cqrs.outbox.series import Series
    from cqrs.plan import Plan
    from cqrs.signature import Handler

TIMEOUT = 60.0
"""Seconds that a handler without a `timeout` of its own may take."""

SHARES = 4
"""Into how many shares the keys of a handler that takes groups are spread: as many transactions side by side."""
FAILURES = 2
"""After how many failures the groups of a strand become half as large."""

Taken = Callable[[Sequence[Envelope]], Awaitable[set[tuple[str, str]]]]


class Local:
    """Calls handlers: strands side by side, in order within a strand, each handler in a transaction with its inbox row.

    `patience` is for how many seconds rows of the outbox may be worked on, where they are held by locks: then what has
    not begun is not sent, and a first attempt that is still at work is overdue. A retry has its handler's own timeout.
    `lead` is the share of it in which deliveries begin: what takes no longer than the rest is never overdue.
    """

    def __init__(
        self,
        app: Mediator,
        deliveries: Mapping[tuple[str, str], tuple[Handler, Plan]],
        *,
        taken: Taken,
        stopping: Callable[[], bool],
        strands: int = 16,
        patience: float | None = None,
        lead: float = 1.0,
    ) -> None:
        self._app = app
        self._deliveries = deliveries
        self._taken = taken
        self.stopping = stopping
        """Whether nothing new is to be begun."""
        self._strands = strands
        self._patience = patience
        self._lead = lead

    async def open(self) -> None:
        """Need nothing: handlers are in this process."""

    async def close(self) -> None:
        """Hold nothing."""

    async def publish(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        """Deliver to handlers; what the inbox holds already counts as delivered."""
        taken = await self._taken(envelopes)
        outcomes: list[Outcome] = [Fate.NOT_SENT] * len(envelopes)
        strands: dict[tuple[str, ...], list[int]] = {}
        for index, envelope in enumerate(envelopes):
            if (envelope.destination, envelope.message_id) in taken:
                outcomes[index] = Fate.DELIVERED
            else:
                strands.setdefault(self._strand_of(envelope), []).append(index)
        parked = any(envelope.parked for envelope in envelopes)
        patience = inf if self._patience is None or parked else self._patience
        work = _Work(self, envelopes, outcomes, monotonic() + patience * self._lead, patience)
        waiting = deque(strands.values())

        async def drain() -> None:
            # A timer a delivery costs as much as to read its message.
            with suppress(TimeoutError):
                async with self._app.series() as series, asyncio.timeout(None if patience == inf else patience):
                    while waiting:
                        await work.go(waiting.popleft(), series)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._strands, len(waiting))):
                tasks.create_task(drain())
        return outcomes

    def group_of(self, envelope: Envelope) -> int:
        """Return how many messages of its handler one transaction may deliver."""
        found = self._deliveries.get((envelope.destination, envelope.type))
        return found[0].group if found is not None and not envelope.parked else 1

    def _strand_of(self, envelope: Envelope) -> tuple[str, ...]:
        """Return what is worked on in a row: a key's, or of a handler that takes groups, a share of all keys."""
        if self.group_of(envelope) == 1:
            return envelope.strand
        return envelope.destination, str(envelope.share(SHARES))

    async def deliver_together(self, envelopes: Sequence[Envelope]) -> bool:
        """Deliver in one transaction; returns whether it was committed, after a second try where that may help."""
        for again in (True, False):
            try:
                await self._deliver_group(envelopes)
            except asyncio.CancelledError:
                if is_being_cancelled():
                    raise
                return False
            except Exception as error:  # noqa: BLE001 - each is delivered by itself afterwards, and tells then
                if again and is_transient(error):
                    continue
                return False
            return True
        return False

    async def _deliver_group(self, envelopes: Sequence[Envelope]) -> None:
        read = [self._read(envelope) for envelope in envelopes]
        handler = read[0][0]
        async with (
            asyncio.timeout(handler.timeout or TIMEOUT),
            self._app.group(handler, [envelope.message_id for envelope in envelopes]) as group,
        ):
            for _, plan, message, trace in read:
                await self._app.deliver(handler, plan, message, trace, group.unit)

    async def deliver(self, envelope: Envelope, patience: float, series: Series) -> Outcome:
        """Deliver one message in a transaction of its own; the caller gives it up after so many seconds."""
        if (envelope.destination, envelope.type) not in self._deliveries:
            # Not final: during a rolling deploy another process may know what this one does not.
            return Failed(DecodingError(f"{envelope.destination} does not handle events named '{envelope.type}'."))
        try:
            handler, plan, message, trace = self._read(envelope)
        except Exception as error:  # noqa: BLE001 - a validator of the event may raise anything
            return Failed(error, final=isinstance(error, DecodingError))
        own = handler.timeout or TIMEOUT
        try:
            async with asyncio.timeout(own) if own < patience else nullcontext():
                await self._app.deliver(handler, plan, message, trace, partial(series.unit, handler, trace.message_id))
        except asyncio.CancelledError as error:
            if is_being_cancelled():
                raise
            return Failed(error)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is the outcome
            return Failed(error)
        return Fate.DELIVERED

    def _read(self, envelope: Envelope) -> tuple[Handler, Plan, object, Trace]:
        handler, plan = self._deliveries[envelope.destination, envelope.type]
        assert plan.codec is not None  # noqa: S101 - every event that can be saved has one
        return handler, plan, plan.codec.decode(envelope.payload), _trace(envelope)


class _Work:
    """What becomes of one batch: each strand in order, up to its first failure."""

    def __init__(
        self, local: Local, envelopes: Sequence[Envelope], outcomes: list[Outcome], last: float, patience: float
    ) -> None:
        self._local = local
        self._envelopes = envelopes
        self._outcomes = outcomes
        self._last = last
        self._patience = patience
        self._stuck: set[tuple[str, str, str]] = set()

    def may_begin(self) -> bool:
        """Whether another delivery may begin."""
        return not self._local.stopping() and monotonic() < self._last

    async def go(self, indexes: Sequence[int], series: Series) -> None:
        """Deliver a strand in groups where its handler takes them, and one by one after a group has failed."""
        left, failures = list(indexes), 0
        size = self._local.group_of(self._envelopes[indexes[0]])
        while left and self.may_begin():
            group, left = left[:size], left[size:]
            if len(group) > 1 and await self._together(group, series):
                continue
            failures += len(group) > 1
            if failures == FAILURES:
                size, failures = max(1, size // 2), 0
            await self._singly(group, series)
            left = [index for index in left if self._envelopes[index].strand not in self._stuck]

    async def _together(self, group: Sequence[int], series: Series) -> bool:
        await series.release()
        if not await self._local.deliver_together([self._envelopes[index] for index in group]):
            return False
        for index in group:
            self._outcomes[index] = Fate.DELIVERED
        return True

    async def _singly(self, group: Sequence[int], series: Series) -> None:
        for index in group:
            envelope = self._envelopes[index]
            if envelope.strand in self._stuck:
                continue
            if not self.may_begin():
                return
            self._outcomes[index] = Fate.OVERDUE  # if nothing else becomes of it
            self._outcomes[index] = await self._local.deliver(envelope, self._patience, series)
            if self._outcomes[index] is not Fate.DELIVERED:
                self._stuck.add(envelope.strand)


def _trace(envelope: Envelope) -> Trace:
    headers = envelope.wire_headers
    correlation = headers.get("correlation_id", envelope.message_id)
    return Trace(envelope.message_id, correlation, headers.get("causation_id"), headers, envelope.attempt)
