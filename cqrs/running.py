"""What runs in each task: contexts opened and closed, and the transaction kept to the task that runs it.

The only module that knows of tasks.
"""

from __future__ import annotations

import asyncio
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cqrs.context import Context, transaction_of
from cqrs.errors import EventCycle, ForeignTask, OutsideHandler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncSession

    from cqrs.context import Application, Trace
    from cqrs.plan import Plan

CHAIN_LIMIT = 100
"""How many messages may cause each other before it is taken for a cycle."""


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
