"""What is known while a message is handled: its identity, and the transaction that it belongs to.

Every `send` and every delivery opens one `Context`; the one at the root owns the transaction, those of nested sends
and of local events join it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

from uuid_utils import uuid7

from cqrs.errors import MisuseError, OutsideHandler, QueryViolation
from cqrs.messages import Request
from cqrs.origin import origin
from cqrs.registry import Kind

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from cqrs.messages import Command, Query, Reply
    from cqrs.plan import Plan, Route

log = logging.getLogger(__name__)

Call = Callable[[Any, "Context"], Awaitable[Any]]
"""A message and its context in, the reply out: handlers with all they need, and what middlewares go on with."""

TRACED = ("traceparent", "tracestate", "baggage")


class Unit(Protocol):
    """The unit of work of a root context: what it saves takes effect with `commit`, or not at all."""

    @property
    def session(self) -> AsyncSession:
        """The session of the transaction, connected at its first use."""
        ...

    async def connect(self) -> AsyncConnection:
        """Return the connection of the transaction, which begins now if it has not."""
        ...

    def save(self, plan: Plan, event: Any, route: Route | None, context: Context) -> str:
        """Encode a published or durable event, to be inserted right before COMMIT; returns the id that it has."""
        ...

    @property
    def already_taken(self) -> bool:
        """Whether the inbox ended this delivery: its handler has taken the message before."""
        ...

    async def commit(self) -> None:
        """Insert what was saved and commit. A query's unit is rolled back instead."""
        ...

    async def rollback(self) -> None:
        """Undo everything and close the session."""
        ...

    def doom(self, message: Any) -> None:
        """Refuse the commit: a nested command failed after it may have changed something here."""
        ...


class Application(Protocol):
    """What a context asks of its application."""

    plans: dict[type, Plan]
    heard: Callable[[Any, Context, str | None], None] | None
    """Is told of every event that is emitted, of the context that did it, and of its id if it is saved."""

    def plan_of(self, message: type) -> Plan:
        """Return the plan of a message type; for an event that nobody handles an empty one."""
        ...

    def begin(self, context: Context) -> Unit:
        """Open the unit of work of a root context."""
        ...

    def send(self, message: Any) -> Awaitable[Any]:
        """Send a message; inside a handler it joins the running transaction."""
        ...


class Trace(NamedTuple):
    """A message's identity and its place in the story: ids as text, and the W3C trace headers that travel on."""

    message_id: str
    correlation_id: str
    causation_id: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    attempt: int = 1

    def caused(self) -> Trace:
        """Return the trace of a new message that this one causes."""
        headers = {name: self.headers[name] for name in TRACED if name in self.headers}
        return Trace(str(uuid7()), self.correlation_id, self.message_id, headers)


def new_trace() -> Trace:
    """Return the trace of a message that nothing here caused: of the story that a request named, or of a new one."""
    message_id = str(uuid7())
    found = origin()
    return Trace(message_id, found.correlation_id or message_id, None, found.headers)


class Context:
    """The message that is being handled: its identity, and the way to emit events and to send further messages.

    A handler asks for it by annotation. It ends with its handler: emitting afterwards raises.
    """

    __slots__ = ("app", "message", "open", "outer", "parent", "plan", "queue", "trace", "unit")

    app: Application
    plan: Plan
    message: Any
    parent: Context | None
    """The context that caused this one: it sent the message, or emitted the event."""
    outer: Context | None
    """The context that runs again when this one has ended."""
    queue: list[tuple[Plan, Any, Context]] | None
    """Local events that wait to be handled, each with the context that emitted it."""
    unit: Unit | None
    trace: Trace | None
    open: bool

    def __repr__(self) -> str:
        """Show the message's type and its identity."""
        return f"<Context {type(self.message).__qualname__} {self.message_id}>"

    @property
    def message_id(self) -> str:
        """The id of the message: a UUIDv7, or what it was delivered with."""
        return trace_of(self).message_id

    @property
    def correlation_id(self) -> str:
        """The id of the story: that of the message which began it, or what a request named; equal in all it caused."""
        return trace_of(self).correlation_id

    @property
    def causation_id(self) -> str | None:
        """The id of the message whose handler sent or emitted this one; None at the beginning."""
        return trace_of(self).causation_id

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the message came with; of one that was sent in this process those of its trace, if any."""
        return trace_of(self).headers

    @property
    def attempt(self) -> int:
        """Which try this delivery is, from 1."""
        return trace_of(self).attempt

    def emit(self, event: Any) -> None:
        """Tell that something has happened.

        A local event's handlers run after this handler, in its transaction. A published event, and one with durable
        handlers, is encoded now and saved with the transaction. Raises `EncodingError` when it cannot be encoded or
        its key cannot be used, `QueryViolation` in a query, and `MisuseError` for what is no event; nothing is saved
        then.
        """
        if not self.open:
            raise OutsideHandler(
                f"{type(event).__qualname__} was emitted after the handling of {type(self.message).__qualname__} had "
                "ended. Emit before the handler returns, or use `await app.emit(event)`."
            )
        if self.plan.kind is Kind.QUERY:
            raise QueryViolation(
                f"{type(event).__qualname__} was emitted while the query {type(self.message).__qualname__} was "
                "handled. Queries change nothing: make it a command."
            )
        plan = self.app.plans.get(type(event))
        if plan is None or plan.kind is not Kind.EVENT:
            plan = self._plan_of_unhandled(event)
        route = saved = None
        if plan.codec is not None:
            route = plan.route(event)
            if route is not None or plan.durable:
                saved = transaction_of(self).save(plan, event, route, self)
        if self.app.heard is not None:
            self.app.heard(event, self, saved)
        if route is not None:
            return
        if plan.local or plan.concurrent:
            if self.queue is None:
                self.queue = []
            self.queue.append((plan, event, self))

    def _plan_of_unhandled(self, event: Any) -> Plan:
        """Return the plan of an event that nobody here handles; what is no event would be lost without a word."""
        if isinstance(event, type):
            raise MisuseError(f"{event.__qualname__} is a class. Emit an object of it: {event.__qualname__}(...).")
        kind = type(event)
        if issubclass(kind, Request) or kind in self.app.plans:
            raise MisuseError(
                f"{kind.__qualname__} is no event, so it cannot be emitted. Send it: `await context.send(...)`."
            )
        if kind.__module__ == "builtins":
            cure = "Emit an object of a class of yours: `class OrderPlaced(cqrs.Event)`."
            raise MisuseError(f"'{kind.__qualname__}' is no event, so it cannot be emitted. {cure}")
        plan = self.app.plan_of(kind)  # kept, so that this is told once
        if not plan.publishable:
            log.warning(
                "%s was emitted, and nobody hears of it: it has no handler here and is not published. Decorate a "
                "handler with @cqrs.event_handler, or the event with @cqrs.integration_event(topic=...).",
                kind.__qualname__,
            )
        return plan

    @overload
    def send(self, message: Command[Reply] | Query[Reply]) -> Awaitable[Reply]: ...
    @overload
    def send(self, message: object) -> Awaitable[Any]: ...
    def send(self, message: Any) -> Awaitable[Any]:
        """Send a command, query or event that joins the running transaction; returns its reply."""
        return self.app.send(message)

    @property
    def root(self) -> Context:
        """The context that owns the transaction which this one joined."""
        context = self
        while context.parent is not None and context.parent.app is self.app:
            context = context.parent
        return context


def trace_of(context: Context) -> Trace:
    """Return the identity of the context's message, drawn when it is first asked for."""
    if context.trace is None:
        context.trace = trace_of(context.parent).caused() if context.parent is not None else new_trace()
    return context.trace


def transaction_of(context: Context) -> Unit:
    """Return the unit of work that the context belongs to, opened on first use."""
    while context.unit is None and context.parent is not None and context.parent.app is context.app:
        context = context.parent
    if context.unit is None:
        context.unit = context.app.begin(context)
    return context.unit
