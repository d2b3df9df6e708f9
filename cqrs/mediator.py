"""The one way in: `send` finds a message's plan, runs it in a context, and settles what the handlers left.

It has never heard of SQL: what is saved goes to the `Unit` of the root context.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, overload

from cqrs.context import Context, Trace, Unit, close_context, current, open_context, running, transaction_of
from cqrs.errors import MisuseError, NotHandled, QueryViolation
from cqrs.events import Event
from cqrs.plan import Plan, event_plan
from cqrs.registry import Kind, Middleware, Publication

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncSession

    from cqrs.context import Call
    from cqrs.messages import Command, Query, Reply
    from cqrs.outbox import Outbox
    from cqrs.signature import Handler

log = logging.getLogger(__name__)

Send = Callable[[Any], Awaitable[Any]]


class Storage(Protocol):
    """Where a mediator's transactions happen, and what relays that which they saved; opened with the application."""

    @property
    def outbox(self) -> Outbox:
        """What was saved and has not ended."""
        ...

    def begin(self, context: Context) -> Unit:
        """Open the unit of work of a root context. Raises `NotOpen` outside `async with app`."""
        ...

    def adopt(self, session: AsyncSession) -> Unit:
        """Return a unit within a transaction that the caller began and will commit."""
        ...

    def deliver_to(self, handler: Handler, message_id: str) -> Unit:
        """Return a unit in which this handler's inbox row says that it has taken this message."""
        ...

    async def __aenter__(self) -> Self:
        """Open connections, check the schema, and begin to relay."""
        ...

    async def __aexit__(self, *exception: object) -> None:
        """Finish what is in flight within the grace period, and close."""
        ...

    async def drain(self, timeout: float) -> None:
        """Wait until what this process emitted has ended."""
        ...


class Mediator:
    """An application: it sends messages to their handlers, saves what they emit, and delivers it.

    Made by `cqrs.bootstrap`; used as `async with app`, which opens and closes what was configured, in order.
    """

    def __init__(
        self,
        name: str,
        plans: Mapping[type, Plan],
        publications: Sequence[Mapping[type, Publication]],
        *,
        middlewares: Sequence[Middleware] = (),
        resources: Sequence[Any] = (),
    ) -> None:
        self.name = name
        self.plans = dict(plans)
        self.storage: Storage | None = None
        self._publications = publications
        self._middlewares = middlewares
        self._resources = resources
        self._opened: AsyncExitStack | None = None
        self._sends: dict[type, Send] = _Sends(self._make_send)

    async def __aenter__(self) -> Self:
        """Open what was configured: the container's resources, the storage, the relay."""
        if self._opened is not None:
            raise MisuseError(f"Application '{self.name}' is open already. Enter it once, where the process starts.")
        async with AsyncExitStack() as stack:
            for resource in (*self._resources, self.storage):
                if resource is not None:
                    await stack.enter_async_context(resource)
            self._opened = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take no new work, finish what is in flight within the grace period, and close in reverse order."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.__aexit__(kind, error, traceback)

    @overload
    def send(self, message: Command[Reply] | Query[Reply]) -> Awaitable[Reply]: ...
    @overload
    def send(self, message: Event) -> Awaitable[None]: ...
    @overload
    def send(self, message: object) -> Awaitable[Any]: ...
    def send(self, message: Any) -> Awaitable[Any]:
        """Send a message to its handlers; returns the reply, or None of an event.

        A command or query runs in one transaction, committed after its handler and the handlers of the local events;
        an exception rolls it back and arrives unchanged. Inside a handler it joins the running transaction. An event
        is delivered here and now, to each handler in a transaction of its own, and where it carries an `event_id`
        each handler takes it once; it is never published. Raises `NotHandled` for a command or query without a
        handler, `ForeignTask` in a task that a running handler started.
        """
        return self._sends[type(message)](message)

    async def emit(self, event: Any, session: AsyncSession | None = None) -> None:
        """Save an event outside a handler, in a transaction of its own or in that of the given session.

        With a session nothing is committed here: the event exists when the session commits. Handlers of a local event
        run at once, in the same transaction. Inside a handler it is the same as `context.emit`.
        """
        here = running(self)
        if here is not None:
            here.emit(event)
            return
        context = open_context(self, event_plan(type(event), None), event, None, None)
        try:
            if session is not None:
                context.unit = self._storage().adopt(session)
            context.emit(event)
            await _settle(context)
        except BaseException:
            await _abandon(context)
            raise
        finally:
            close_context(context)

    @property
    def outbox(self) -> Outbox:
        """What was saved and has not ended: counts, dead letters, replay, discard. Needs a database."""
        return self._storage().outbox

    async def drain(self, timeout: float = 30.0) -> None:
        """Wait until all that this process emitted, and what that caused here, has ended.

        Raises `DrainTimeout` after so many seconds, or at once when only dead letters are left; it lists what is
        waiting, dead or scheduled.
        """
        if self.storage is not None:
            await self.storage.drain(timeout)

    def plan_of(self, message: type) -> Plan:
        """Return the plan of a message type; for an event that nobody here handles an empty one."""
        plan = self.plans.get(message)
        if plan is None:
            publication = next((found[message] for found in self._publications if message in found), None)
            plan = self.plans[message] = event_plan(message, publication)
        return plan

    def begin(self, context: Context) -> Unit:
        """Open the unit of work of a root context."""
        return self._storage().begin(context)

    async def deliver(self, handler: Handler, plan: Plan, message: Any, trace: Trace) -> None:
        """Hand a message to one handler in a transaction of its own, once for its message id.

        A message that the handler has taken before is left alone. Raises what the handler raises, after rolling back.
        """
        context = open_context(self, plan, message, None, trace)
        try:
            if self.storage is not None:
                context.unit = self.storage.deliver_to(handler, trace.message_id)
            await _around(self._middlewares, partial(_attempt, handler.call))(message, context)
        finally:
            close_context(context)

    def _storage(self) -> Storage:
        if self.storage is None:
            raise MisuseError(
                f"Application '{self.name}' has no database, so it has no session and saves no events. "
                'Give it one: cqrs.bootstrap(database="sqlite+aiosqlite:///app.db").'
            )
        return self.storage

    def _make_send(self, message: type) -> Send:
        plan = self.plans.get(message)
        if plan is None and not issubclass(message, Event):
            raise NotHandled(message, self.name)
        plan = plan or self.plan_of(message)
        if plan.kind is Kind.EVENT:
            return partial(self._send_event, plan)
        handler = plan.handlers[0]
        if self._middlewares:
            return _sender(self, plan, _around(self._middlewares, partial(_attempt, handler.call)), None)
        return _sender(self, plan, handler.call, handler.bare)

    async def _send_event(self, plan: Plan, event: Any) -> None:
        parent = running(self)
        if parent is not None:
            await _join(self, plan, event, parent)
            return
        trace = _received_trace(event)
        failures = []
        for handler in plan.handlers:
            try:
                await self._take(handler, plan, event, trace)
            except Exception as error:  # noqa: BLE001 - each handler has its own end; all are raised below
                failures.append(error)
        if len(failures) > 1:
            raise ExceptionGroup(f"{len(failures)} handlers of {plan.name} failed", failures)
        if failures:
            raise failures[0]

    async def _take(self, handler: Handler, plan: Plan, event: Any, trace: Trace | None) -> None:
        if trace is not None:
            await self.deliver(handler, plan, event, trace)
            return
        context = open_context(self, plan, event, None, None)
        try:
            await _around(self._middlewares, partial(_attempt, handler.call))(event, context)
        finally:
            close_context(context)


class _Sends(dict[type, Send]):
    """How each message type is sent; made at its first use, a plain look-up afterwards."""

    def __init__(self, make: Callable[[type], Send]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, message: type) -> Send:
        send = self[message] = self._make(message)
        return send


def _sender(app: Mediator, plan: Plan, call: Call, bare: Callable[[Any], Awaitable[Any]] | None) -> Send:
    """Return the coroutine function behind `send` for one command or query: the hot path, so nothing in it twice."""

    async def send(message: Any) -> Any:
        if current.get() is not None and (parent := running(app)) is not None:
            return await _join(app, plan, message, parent)
        context: Any = Context()  # Any: a type checker takes the None of here for lasting
        context.app = app
        context.plan = plan
        context.message = message
        context.parent = context.queue = context.unit = context.trace = None
        context.open = True
        context.token = current.set(context)
        try:
            reply = await (call(message, context) if bare is None else bare(message))
            if context.queue is not None or context.unit is not None:
                await _settle(context)
        except BaseException:
            if context.unit is not None:
                await _abandon(context)
            raise
        finally:
            context.open = False
            current.reset(context.token)
        return reply

    return send


async def _join(app: Mediator, plan: Plan, message: Any, parent: Context) -> Any:
    """Handle a message inside the running transaction, with the events that it emits."""
    root = parent.root
    if root.plan.kind is Kind.QUERY and plan.kind is not Kind.QUERY:
        raise QueryViolation(
            f"The {plan.kind} {plan.name} was sent while the query {type(root.message).__qualname__} was handled. "
            "Queries change nothing: make it a command."
        )
    context = open_context(app, plan, message, parent, None)
    try:
        reply = None
        for handler in plan.handlers:
            reply = await handler.call(message, context)
        await _run_local_handlers(context)
    except BaseException:
        if root.unit is not None and plan.kind is not Kind.QUERY:
            root.unit.doom(message)
        raise
    finally:
        close_context(context)
    return reply


async def _attempt(call: Call, message: Any, context: Context) -> Any:
    """Handle a message in a transaction of its own; what middlewares of the application go around, and may repeat."""
    try:
        reply = await call(message, context)
        await _settle(context)
    except BaseException:
        await _abandon(context)
        raise
    return reply


async def _settle(context: Context) -> None:
    """Run the handlers of local events, then commit."""
    await _run_local_handlers(context)
    unit, context.unit = context.unit, None
    if unit is not None:
        await unit.commit()


async def _abandon(context: Context) -> None:
    """Undo everything; a further attempt starts with nothing."""
    context.queue = None
    unit, context.unit = context.unit, None
    if unit is not None:
        await unit.rollback()


async def _run_local_handlers(context: Context) -> None:
    """Run the handlers of the local events that were emitted, and of those that these emit, breadth first."""
    if context.queue is None:
        return
    waiting = deque(context.queue)
    context.queue = None
    while waiting:
        event, emitter = waiting.popleft()
        plan = context.app.plan_of(type(event))
        local = [handler for handler in plan.handlers if not handler.durable]
        here = open_context(context.app, plan, event, emitter, None)
        try:
            for handler in local:
                if not handler.concurrent:
                    await handler.call(event, here)
            await _run_side_by_side(here, [handler for handler in local if handler.concurrent])
        finally:
            close_context(here)
        waiting.extend(here.queue or ())


async def _run_side_by_side(context: Context, handlers: Sequence[Handler]) -> None:
    if not handlers:
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            for handler in handlers:
                tasks.create_task(_run_apart(context, handler))
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def _run_apart(context: Context, handler: Handler) -> None:
    here = open_context(context.app, context.plan, context.message, context, context.trace)
    here.unit = _Apart(context, handler)
    try:
        await handler.call(context.message, here)
    finally:
        close_context(here)
    context.queue = [*(context.queue or ()), *(here.queue or ())]


class _Apart(Unit):
    """What a handler that runs beside others has of the transaction: it saves events, but has no session."""

    def __init__(self, context: Context, handler: Handler) -> None:
        self._context = context
        self._handler = handler

    @property
    def session(self) -> AsyncSession:
        raise MisuseError(
            f"{self._handler.name} ({self._handler.where}) is concurrent, so it may not use the session: a session "
            "serves one task. Remove concurrent=True, or leave the database to another handler."
        )

    def save(self, plan: Plan, event: Any, context: Context) -> None:
        transaction_of(self._context).save(plan, event, context)

    def doom(self, message: Any) -> None:
        transaction_of(self._context).doom(message)

    async def commit(self) -> None:
        """Leave the end to the transaction that it is a part of."""

    async def rollback(self) -> None:
        """Leave the end to the transaction that it is a part of."""


def _around(middlewares: Sequence[Middleware], call: Call) -> Call:
    for middleware in reversed(middlewares):
        call = partial(middleware, call_next=call)
    return call


def _received_trace(event: Any) -> Trace | None:
    """Return the trace of an event that carries its id, so that its handlers take it once."""
    event_id = getattr(event, "event_id", None)
    return None if event_id is None else Trace(str(event_id), str(event_id))


RequestMediator = Mediator
EventMediator = Mediator
