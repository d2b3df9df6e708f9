"""What happens in a test, written down as it happens: what was sent and emitted, who handled it, and how that ended.

It listens at four places: around every handler, around every transaction, at `emit`, and after COMMIT.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cqrs.outbox.rows import DEAD
from cqrs.scan import script_name
from cqrs.signature import name_of

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from cqrs.checks import Found
    from cqrs.codec import Envelope
    from cqrs.context import Call, Context
    from cqrs.outbox.rows import Unended
    from cqrs.plan import Route
    from cqrs.registry import HandlerRecord, Middleware


class How(StrEnum):
    """How a message came about."""

    SENT = "sent"
    EMITTED = "emitted"
    RECEIVED = "received"


@dataclass(frozen=True, slots=True)
class Published:
    """What a broker would have been given of an event: saved with its transaction, and no longer to be taken back."""

    event: Any
    topic: str
    key: str | None
    type: str
    message_id: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True, eq=False)
class Told:
    """A message in a story, and who handled it."""

    message: Any
    how: How
    message_id: str | None = None
    route: Route | None = None
    exists: bool = False
    """Whether the transaction that emitted it has committed."""
    waiting: list[str] = field(default_factory=list)
    """The handlers that it waits for, behind a dead letter of its key."""
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt of a handler at a message, counted from 1; `dead` says that it was the last one, and failed."""

    handler: str
    message: Any
    number: int
    error: BaseException | None = None
    ended: bool = False
    dead: bool = False
    caused: list[Told] = field(default_factory=list, repr=False)


class Story:
    """All that happened, in its order, and what caused what."""

    def __init__(self) -> None:
        self.roots: list[Told] = []
        """What nothing here caused."""
        self.told: list[Told] = []
        self.attempts: list[Attempt] = []
        self.published: list[Published] = []
        self._by_id: dict[str, Told] = {}
        self._of: dict[Context, Told] = {}
        self._running: dict[Context, Attempt] = {}
        """The attempt that is, or was last, at work in a context."""
        self._unhandled: dict[int, list[Told]] = {}
        """Local events whose handlers have not begun, by the event's identity."""
        self._uncommitted: dict[Context, list[Told]] = {}

    # Where it listens

    def listening(self, found: Found) -> Found:
        """Return what an application is made of, with this story around each handler."""
        script = script_name()
        records = [self._heard(record, name_of(record, script)) for record in dict.fromkeys(found.records)]
        return replace(found, records=records)

    def _heard(self, record: HandlerRecord, name: str) -> HandlerRecord:
        options = record.options.copy()
        options["middlewares"] = (self._around(name), *options.get("middlewares", ()))
        return replace(record, options=options)

    def _around(self, handler: str) -> Middleware:
        async def listen(message: Any, context: Context, call_next: Call) -> Any:
            with self._attempt(handler, context):
                return await call_next(message, context)

        return listen

    async def transaction(self, message: Any, context: Context, call_next: Call) -> Any:
        """Listen around a transaction: a middleware of the application, the innermost one."""
        self._uncommitted[context] = []
        try:
            reply = await call_next(message, context)
        except BaseException as error:
            attempt = self._running.get(context)
            if attempt is not None and attempt.error is None:
                attempt.error = error
            raise
        else:
            for told in self._uncommitted[context]:
                told.exists = True
        finally:
            del self._uncommitted[context]
        return reply

    def emitted(self, event: Any, context: Context, message_id: str | None) -> None:
        """Listen at `emit`."""
        told = Told(event, How.EMITTED, message_id, context.app.plan_of(type(event)).route(event))
        self._tell(told, self._running.get(context))
        if message_id is not None:
            self._by_id[message_id] = told
        elif context.root in self._uncommitted:
            self._uncommitted[context.root].append(told)
        else:
            told.exists = True  # outside a handler
        if context.message is not event:
            self._unhandled.setdefault(id(event), []).append(told)

    def committed(self, envelopes: Sequence[Envelope]) -> None:
        """Listen after COMMIT: what was saved exists from now on."""
        for envelope in envelopes:
            told = self._by_id[envelope.message_id]
            if told.route is not None and not told.exists:
                self.published.append(_published(told.message, envelope))
            told.exists = True

    # What a test does by itself

    def sent(self, message: Any) -> None:
        """Tell that a test sends a message, whatever becomes of it."""
        self._tell(Told(message, How.SENT, exists=True), None)

    def received(self, event: Any, message_id: str, route: Route | None) -> None:
        """Tell that a test hands in an event; the second time of the same one nothing new happens."""
        if message_id not in self._by_id:
            self._by_id[message_id] = Told(event, How.RECEIVED, message_id, route, exists=True)
            self._tell(self._by_id[message_id], None)

    def take_stock(self, unended: Sequence[Unended]) -> None:
        """Tell what was left: dead letters, and what waits behind them."""
        for told in self.told:
            told.waiting.clear()
            for attempt in told.attempts:
                attempt.dead = False
        for row in unended:
            told = self._by_id[row.event_id]
            failed = [attempt for attempt in told.attempts if attempt.handler == row.destination]
            if row.state == DEAD and failed:
                failed[-1].dead = True
            else:
                told.waiting.append(row.destination)

    @property
    def ids(self) -> list[str]:
        """The ids of all that was saved."""
        return list(self._by_id)

    # What caused what

    @contextmanager
    def _attempt(self, handler: str, context: Context) -> Generator[None]:
        told = self._told_of(context)
        number = 1 + sum(attempt.handler == handler for attempt in told.attempts)
        attempt = self._running[context] = Attempt(handler, told.message, number)
        told.attempts.append(attempt)
        self.attempts.append(attempt)
        try:
            yield
            attempt.ended = True
        except asyncio.CancelledError:
            attempt.error, attempt.ended = TimeoutError("cut off while it was at work"), True
            raise
        except BaseException as error:
            attempt.error, attempt.ended = error, True
            raise

    def _told_of(self, context: Context) -> Told:
        found = self._of.get(context)
        if found is None:
            found = self._of[context] = self._find(context)
        return found

    def _find(self, context: Context) -> Told:
        message, parent, trace = context.message, context.parent, context.trace
        if trace is not None and trace.message_id in self._by_id:
            return self._by_id[trace.message_id]
        if parent is not None and parent.message is message:
            return self._told_of(parent)  # of a handler beside others, or of an event emitted outside a handler
        if parent is not None and self._unhandled.get(id(message)):
            return self._unhandled[id(message)].pop(0)
        before = [told for told in self.roots if told.message is message] if parent is None else []
        if before:
            return before[-1]
        told = Told(message, How.SENT, exists=True)
        self._tell(told, self._running.get(parent) if parent is not None else None)
        return told

    def _tell(self, told: Told, cause: Attempt | None) -> None:
        self.told.append(told)
        (self.roots if cause is None else cause.caused).append(told)


def _published(event: Any, envelope: Envelope) -> Published:
    return Published(
        event,
        envelope.topic,
        envelope.key,
        envelope.type,
        envelope.message_id,
        envelope.wire_headers,
        envelope.payload,
    )
