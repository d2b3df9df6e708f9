"""Local delivery: the publisher of rows whose destination is a handler of this application."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from cqrs.codec import Envelope
from cqrs.context import Trace
from cqrs.errors import DecodingError
from cqrs.outbox.publisher import Failed, Fate, Outcome

if TYPE_CHECKING:
    from cqrs.mediator import Mediator
    from cqrs.plan import Plan
    from cqrs.signature import Handler

TIMEOUT = 60.0
"""Seconds that a handler without a `timeout` of its own may take."""

Taken = Callable[[Sequence[Envelope]], Awaitable[set[tuple[str, str]]]]


class Local:
    """Calls handlers: lanes side by side, in order within a lane, each handler in a transaction with its inbox row.

    `patience` is for how many seconds rows of the outbox may be worked on, where they are held by locks: then what has
    not begun is not sent, and a first attempt that is still at work is overdue. A retry has its handler's own timeout.
    """

    def __init__(
        self,
        app: Mediator,
        deliveries: Mapping[tuple[str, str], tuple[Handler, Plan]],
        *,
        taken: Taken,
        stopping: Callable[[], bool],
        lanes: int = 16,
        patience: float | None = None,
    ) -> None:
        self._app = app
        self._deliveries = deliveries
        self._taken = taken
        self._stopping = stopping
        self._lanes = lanes
        self._patience = patience

    async def open(self) -> None:
        """Need nothing: handlers are in this process."""

    async def close(self) -> None:
        """Hold nothing."""

    async def publish(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        """Deliver to handlers; what the inbox holds already counts as delivered."""
        taken = await self._taken(envelopes)
        outcomes: list[Outcome] = [Fate.NOT_SENT] * len(envelopes)
        lanes: dict[tuple[str, str, str], list[int]] = {}
        for index, envelope in enumerate(envelopes):
            if (envelope.destination, envelope.message_id) in taken:
                outcomes[index] = Fate.DELIVERED
            else:
                lanes.setdefault(envelope.lane, []).append(index)
        waiting = deque(lanes.values())

        parked = any(envelope.parked for envelope in envelopes)
        end = inf if self._patience is None or parked else monotonic() + self._patience

        async def work() -> None:
            while waiting and not self._stopping() and monotonic() < end:
                for index in waiting.popleft():
                    outcomes[index] = await self._deliver(envelopes[index], end)
                    if outcomes[index] is not Fate.DELIVERED or self._stopping() or monotonic() >= end:
                        break

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._lanes, len(waiting))):
                tasks.create_task(work())
        return outcomes

    async def _deliver(self, envelope: Envelope, end: float) -> Outcome:
        if (envelope.destination, envelope.type) not in self._deliveries:
            # Not final: during a rolling deploy another process may know what this one does not.
            return Failed(DecodingError(f"{envelope.destination} does not handle events named '{envelope.type}'."))
        try:
            handler, plan, message, trace = self._read(envelope)
        except DecodingError as error:
            return Failed(error, final=True)
        own, left = handler.timeout or TIMEOUT, end - monotonic()
        try:
            async with asyncio.timeout(min(own, left)):
                await self._app.deliver(handler, plan, message, trace)
        except TimeoutError as error:
            return Fate.OVERDUE if left < own and monotonic() >= end else Failed(error)
        except asyncio.CancelledError as error:
            if _is_being_cancelled():
                raise
            return Failed(error)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is the outcome
            return Failed(error)
        return Fate.DELIVERED

    def _read(self, envelope: Envelope) -> tuple[Handler, Plan, object, Trace]:
        handler, plan = self._deliveries[envelope.destination, envelope.type]
        assert plan.codec is not None  # noqa: S101 - every event that can be saved has one
        return handler, plan, plan.codec.decode(envelope.payload), _trace(envelope)


def _is_being_cancelled() -> bool:
    """Whether the relay stops this task, rather than something within the handler that was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _trace(envelope: Envelope) -> Trace:
    headers = envelope.wire_headers
    correlation = headers.get("correlation_id", envelope.message_id)
    return Trace(envelope.message_id, correlation, headers.get("causation_id"), headers, envelope.attempt)
