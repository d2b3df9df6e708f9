"""What is known while a message is handled, and who may use its transaction.

Every `send` and every delivery opens one `Context`; the one at the root owns the transaction, those of nested sends
and of local events join it. The running context is found through a context variable, one `Running` a task.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, overload

from uuid_utils.compat import uuid7

from cqrs.errors import EventCycle, ForeignTask, OutsideHandler, QueryViolation
from cqrs.registry import Kind

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from cqrs.messages import Command, Query, Reply
    from cqrs.plan import Plan

Call = Callable[[Any, "Context"], Awaitable[Any]]
"""A message and its context in, the reply out: handlers with all they need, and what middlewares go on with."""

TRACED = ("traceparent", "tracestate", "baggage")
CHAIN_LIMIT = 100


class Unit(Protocol):
    """The unit of work of a root context: what it saves takes effect with `commit`, or not at all."""

    @property
    def session(self) -> AsyncSession:
        """The session of the transaction, connected at its first use."""
        ...

    def save(self, plan: Plan, event: Any, context: Context) -> None:
        """Encode a published or durable event; its rows are inserted right before COMMIT."""
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

    def plan_of(self, message: type) -> Plan:
        """Return the plan of a message type; for an event that nobody handles an empty one."""
        ...

    def begin(self, context: Context) -> Unit:
        """Open the unit of work of a root context."""
        ...

    def send(self, message: Any) -> Awaitable[Any]:
        """Send a message; inside a handler it joins the running transaction."""
        ...


@dataclass(frozen=True, slots=True)
class Trace:
    """A message's identity and its place in the story: ids as text, and the W3C trace headers that travel on."""

    message_id: str
    correlation_id: str
    causation_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 1

    def caused(self) -> Trace:
        """Return the trace of a new message that this one causes."""
        headers = {name: self.headers[name] for name in TRACED if name in self.headers}
        return Trace(str(uuid7()), self.correlation_id, self.message_id, headers)


def new_trace() -> Trace:
    """Return the trace of a message that nothing here caused; it begins a correlation of its own."""
    message_id = str(uuid7())
    return Trace(message_id, message_id)


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
        """The id of the message that began the story; equal in everything that it caused."""
        return trace_of(self).correlation_id

    @property
    def causation_id(self) -> str | None:
        """The id of the message whose handler sent or emitted this one; None at the beginning."""
        return trace_of(self).causation_id

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the message came with; empty for one that was sent in this process."""
        return trace_of(self).headers

    @property
    def attempt(self) -> int:
        """Which try this delivery is, from 1."""
        return trace_of(self).attempt

    def emit(self, event: Any) -> None:
        """Tell that something has happened.

        A local event's handlers run after this handler, in its transaction. A published event, and one with durable
        handlers, is encoded now and saved with the transaction. Raises `EncodingError` when it cannot be encoded or
        its key cannot be used, and `QueryViolation` in a query; nothing is saved then.
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
        plan = self.app.plans.get(type(event)) or self.app.plan_of(type(event))
        if plan.codec is not None:
            if plan.is_saved(event):
                transaction_of(self).save(plan, event, self)
            if plan.route(event) is not None:
                return
        if plan.local or plan.concurrent:
            if self.queue is None:
                self.queue = []
            self.queue.append((plan, event, self))

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


@dataclass(frozen=True, slots=True)
class Unopened:
    """In place of a context that nobody has asked for yet: most handlers finish without one."""

    app: Application
    plan: Plan


class Running:
    """What runs in one task: the innermost context, or None between two sends."""

    # Kept by the task for all its sends, because setting a context variable costs as much as a plain send.
    __slots__ = ("context", "inherited", "loop", "message", "task")

    context: Context | Unopened | None
    message: Any
    """The message of an unopened context."""
    inherited: Running | None
    """What ran in the task that started this one, if anything did."""
    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[Any] | None
    """None when the task is done: it holds this object, and the cycle would keep both."""

    def forget(self, _task: asyncio.Task[Any]) -> None:
        """Let go of the task."""
        self.task = None

    def opened(self) -> Context | None:
        """Return the innermost context, opened if it was not yet."""
        found = self.context
        if isinstance(found, Unopened):
            found = self.context = _make_context(found.app, found.plan, self.message)
        return found


running: ContextVar[Running | None] = ContextVar("cqrs_running", default=None)

if sys.version_info >= (3, 12):
    current_task = asyncio.current_task
else:
    # In Python 3.11 asyncio.current_task asks for the loop, and that for the process id: as dear as the send itself.
    current_task = vars(asyncio.tasks)["_current_tasks"].get


def running_here() -> Running:
    """Return what runs in this task, made at its first use; a new task inherits a look at its parent's."""
    here = running.get()
    if here is None or here.task is not current_task(here.loop):
        inherited, here = here, Running()
        here.context = None
        here.inherited = inherited if inherited is not None and _is_busy(inherited) else None
        here.loop = asyncio.get_running_loop()
        here.task = current_task(here.loop)
        if here.task is not None:
            here.task.add_done_callback(here.forget)
        running.set(here)
    return here


def open_context(
    app: Application,
    plan: Plan,
    message: Any,
    parent: Context | None = None,
    *,
    trace: Trace | None = None,
    here: Running | None = None,
) -> Context:
    """Return a context of a nested send, a local event or a delivery, and make it the running one.

    `close_context` must follow. `here` spares the look-up of what runs in this task.
    """
    here = here or running_here()
    context = _make_context(app, plan, message)
    context.parent = parent
    context.trace = trace
    context.outer = here.opened()
    here.context = context
    if parent is not None and parent.parent is not None:
        _refuse_endless_chain(context)
    return context


def _make_context(app: Application, plan: Plan, message: Any) -> Context:
    context = Context()
    context.app = app
    context.plan = plan
    context.message = message
    context.parent = context.outer = context.queue = context.unit = context.trace = None
    context.open = True
    return context


def close_context(context: Context, here: Running | None = None) -> None:
    """End a context: what still holds it can no longer emit, and the one before it runs again."""
    context.open = False
    (here or running_here()).context = context.outer


def innermost(app: Application | None = None) -> Context | None:
    """Return the innermost running context of the application (of any, without one).

    Raises `ForeignTask` when it runs in another task, which started this one.
    """
    here = running.get()
    while here is not None:
        context = here.opened()
        while context is not None and not (app is None or context.app is app):
            context = context.parent
        if context is not None:
            if here.task is not current_task(here.loop):
                raise ForeignTask(context.message)
            return context
        here = here.inherited
    return None


def current_session() -> AsyncSession:
    """Return the session of the running handler's transaction, for repositories that a container builds.

    Raises `OutsideHandler` where no handler runs and `ForeignTask` in a task that the handler started.
    """
    context = innermost()
    if context is None:
        raise OutsideHandler(
            "cqrs.current_session() was called where no handler runs. Call it inside a handler, "
            "as `session = providers.Callable(cqrs.current_session)` in a container does."
        )
    return transaction_of(context).session


def transaction_of(context: Context) -> Unit:
    """Return the unit of work that the context belongs to, opened on first use."""
    while context.unit is None and context.parent is not None and context.parent.app is context.app:
        context = context.parent
    if context.unit is None:
        context.unit = context.app.begin(context)
    return context.unit


def _is_busy(there: Running) -> bool:
    return there.context is not None or (there.inherited is not None and _is_busy(there.inherited))


def _refuse_endless_chain(context: Context) -> None:
    depth, link = 1, context.parent
    while link is not None:
        depth, link = depth + 1, link.parent
    if depth > CHAIN_LIMIT:
        close_context(context)
        raise EventCycle(reversed([type(link.message) for link in _chain(context)]))


def _chain(context: Context | None) -> Iterator[Context]:
    while context is not None:
        yield context
        context = context.parent
