"""The one way in: `send` finds a message's plan, runs it in a context, and settles what the handlers left.

It has never heard of SQL: what is saved goes to the `Unit` of the root context.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, overload

from cqrs.context import Context, Trace
from cqrs.errors import MisuseError, NotHandled, NotOpen
from cqrs.events import Event
from cqrs.execution import abandon, around, attempt, end, join, settle
from cqrs.plan import Plan, event_plan
from cqrs.registry import Kind, Middleware, Publication
from cqrs.running import Unopened, close_context, current_task, innermost, open_context, running, running_here

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncSession

    from cqrs.checks import Blueprint
    from cqrs.consuming import Consumer
    from cqrs.context import Call, Unit
    from cqrs.messages import Command, Query, Reply
    from cqrs.outbox import Outbox
    from cqrs.outbox.group import Group
    from cqrs.outbox.series import Series
    from cqrs.signature import Handler


Begin = Callable[[], Awaitable["Unit"]]
"""Opens the unit of work of a delivery."""


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

    async def has_taken(self, handler: Handler, message_id: str) -> bool:
        """Whether the inbox says that this handler has taken this message before."""
        ...

    def series(self) -> Series:
        """Return what gives units to deliveries that follow one another in one task, to be entered."""
        ...

    def group(self, handler: Handler, message_ids: Sequence[str]) -> Group:
        """Return one transaction in which a handler takes several messages, to be entered."""
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


class Intake(Protocol):
    """How messages come from the broker to an application."""

    def consumer(self) -> Consumer:
        """Return a consumer that nobody feeds yet."""
        ...

    def open(self) -> AbstractAsyncContextManager[Consumer]:
        """Feed a consumer from the application's broker."""
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
        blueprint: Blueprint | None = None,
    ) -> None:
        self.name = name
        self.blueprint = blueprint
        self.plans = dict(plans)
        self.storage: Storage | None = None
        self.heard: Callable[[Any, Context, str | None], None] | None = None
        self.consumer: Consumer | None = None
        """What consumes, while `consuming()` is entered."""
        self.intake: Intake | None = None
        """How messages come from the broker; None without one."""
        self._publications = publications
        self._middlewares = middlewares
        self._resources = resources
        self._opened: AsyncExitStack | None = None
        self._paths: dict[type, _Path] = {}

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

    @property
    def is_open(self) -> bool:
        """Whether it was opened and has not been closed."""
        return self._opened is not None

    @overload
    async def send(self, message: Command[Reply] | Query[Reply]) -> Reply: ...
    @overload
    async def send(self, message: Event) -> None: ...
    @overload
    async def send(self, message: object) -> Any: ...
    async def send(self, message: Any) -> Any:
        """Send a message to its handlers; returns the reply, or None of an event.

        A command or query runs in one transaction, committed after its handler and the handlers of the local events;
        an exception rolls it back and arrives unchanged. Inside a handler it joins the running transaction. An event
        is delivered here and now, to each handler in a transaction of its own, and where it carries an `event_id`
        each handler takes it once; it is never published. Raises `NotHandled` for a command or query without a
        handler, `ForeignTask` in a task that a running handler started.
        """
        try:
            path = self._paths[type(message)]
        except KeyError:
            path = self._paths[type(message)] = self._find_path(message)
        here: Any = running.get()  # Any: a type checker takes what is set below for lasting
        if here is None or here.context is not None or here.task is not current_task(here.loop):
            parent = innermost(self)
            if parent is not None:
                return await join(path.plan, message, parent)
            here = running_here()
        # The hot path: a handler that asks for nothing gets its context only when somebody asks for it.
        if path.bare is not None and here.context is None:
            here.context, here.message = path.unopened, message
            try:
                reply = await path.bare(message)
                if here.context is not path.unopened:
                    await settle(here.opened())
                return reply
            finally:
                asked, here.context = here.context, None
                if isinstance(asked, Context):
                    await end(asked)
        context = open_context(self, path.plan, message, here.opened(), here=here)
        try:
            reply = await path.call(message, context)
            if context.queue is not None or context.unit is not None:
                await settle(context)
            return reply
        finally:
            here.context = context.outer
            await end(context)

    async def emit(self, event: Any, session: AsyncSession | None = None) -> None:
        """Save an event outside a handler, in a transaction of its own or in that of the given session.

        With a session nothing is committed here: the event exists when the session commits. Handlers of a local event
        run at once, in the same transaction. Inside a handler it is the same as `context.emit`.
        """
        here = innermost(self)
        if here is not None:
            here.emit(event)
            return
        context = open_context(self, event_plan(type(event), None), event)
        try:
            if session is not None:
                context.unit = self._storage().adopt(session)
            context.emit(event)
            await settle(context)
        except BaseException:
            await abandon(context)
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
        waiting, dead or scheduled, and `NotOpen` outside `async with app` where there is a database.
        """
        if self.storage is not None:
            if self._opened is None:
                raise NotOpen(self.name)
            await self.storage.drain(timeout)

    @asynccontextmanager
    async def consuming(self) -> AsyncGenerator[None]:
        """Consume the published events that this application handles, inside `async with app`.

        A message is acknowledged once each of its handlers has committed, or has it parked in the database. A broker
        out of reach is tried again. Without a broker there is nothing to consume: the relay delivers. Leaving waits
        within the grace period for what is at work. Raises `NotOpen` outside `async with app`.
        """
        if self._opened is None:
            raise NotOpen(self.name)
        if self.consumer is not None:
            raise MisuseError(f"Application '{self.name}' consumes already. Enter `consuming()` once a process.")
        if self.intake is None:
            yield
            return
        async with self.intake.open() as consumer:
            self.consumer = consumer
            try:
                yield
            finally:
                self.consumer = None

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

    def series(self) -> Series:
        """Return what gives units to deliveries that follow one another in one task, to be entered."""
        return self._storage().series()

    def group(self, handler: Handler, message_ids: Sequence[str]) -> Group:
        """Return one transaction in which a handler takes several messages, to be entered: each is then delivered."""
        return self._storage().group(handler, message_ids)

    async def deliver(self, handler: Handler, plan: Plan, message: Any, trace: Trace, begin: Begin) -> None:
        """Hand a message to one handler, in the unit of work that `begin` opens, once for its message id.

        A message that the handler has taken before is left alone. Raises what the handler raises, after rolling back.
        """
        units: list[Unit] = []

        async def take(message: Any, context: Context) -> Any:
            context.unit = await begin()
            units.append(context.unit)
            return await attempt(handler.call, message, context)

        context = open_context(self, plan, message, trace=trace)
        try:
            await around(self._middlewares, take)(message, context)
        except Exception:
            if not any(unit.already_taken for unit in units):
                raise
        finally:
            close_context(context)

    def _storage(self) -> Storage:
        if self.storage is None:
            raise MisuseError(
                f"Application '{self.name}' has no database, so it has no session and saves no events. "
                'Give it one: cqrs.bootstrap(database="sqlite+aiosqlite:///app.db").'
            )
        return self.storage

    def _find_path(self, message: Any) -> _Path:
        kind = type(message)
        if isinstance(message, type):
            raise MisuseError(f"{message.__qualname__} is a class. Send an object of it: {message.__qualname__}(...).")
        plan = self.plans.get(kind)
        if plan is None and not issubclass(kind, Event):
            raise NotHandled(kind, self.name)
        plan = plan or self.plan_of(kind)
        if plan.kind is Kind.EVENT:
            return _Path(plan, lambda event, _: self._send_event(plan, event), None, Unopened(self, plan))
        handler = plan.handlers[0]
        if self._middlewares:
            call = around(self._middlewares, partial(attempt, handler.call))
            return _Path(plan, call, None, Unopened(self, plan))
        return _Path(plan, handler.call, handler.bare, Unopened(self, plan))

    async def _send_event(self, plan: Plan, event: Any) -> None:
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
        if trace is not None and self.storage is not None:
            if not await self.storage.has_taken(handler, trace.message_id):
                async with self.storage.series() as series:
                    await self.deliver(handler, plan, event, trace, partial(series.unit, handler, trace.message_id))
            return
        context = open_context(self, plan, event, trace=trace)
        try:
            await around(self._middlewares, partial(attempt, handler.call))(event, context)
        finally:
            close_context(context)


@dataclass(frozen=True, slots=True)
class _Path:
    """How messages of one type are sent."""

    plan: Plan
    call: Call
    bare: Callable[[Any], Awaitable[Any]] | None
    unopened: Unopened


def _received_trace(event: Any) -> Trace | None:
    """Return the trace of an event that carries its id, so that its handlers take it once."""
    event_id = getattr(event, "event_id", None)
    return None if event_id is None else Trace(str(event_id), str(event_id))


RequestMediator = Mediator
EventMediator = Mediator
