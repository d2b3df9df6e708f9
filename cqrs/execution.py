"""How messages run in their contexts: joining a transaction, the handlers of local events, the end of it all."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from cqrs.context import Context, Unit, transaction_of
from cqrs.errors import MisuseError, QueryViolation
from cqrs.registry import Kind
from cqrs.running import close_context, open_context, running_here

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from cqrs.context import Call
    from cqrs.plan import Plan, Route
    from cqrs.registry import Middleware
    from cqrs.signature import Handler


def around(middlewares: Sequence[Middleware], call: Call) -> Call:
    """Return the call with middlewares around it, the first outermost."""
    for middleware in reversed(middlewares):
        call = partial(middleware, call_next=call)
    return call


async def attempt(call: Call, message: Any, context: Context) -> Any:
    """Handle a message in a transaction of its own; what middlewares of the application go around, and may repeat."""
    try:
        reply = await call(message, context)
        await settle(context)
    except BaseException:
        await abandon(context)
        raise
    return reply


async def settle(context: Context) -> None:
    """Run the handlers of local events, then commit."""
    if context.queue is not None:
        await run_local_handlers(context)
    unit, context.unit = context.unit, None
    if unit is not None:
        await unit.commit()


async def abandon(context: Context) -> None:
    """Undo everything; a further attempt starts with nothing."""
    context.queue = None
    unit, context.unit = context.unit, None
    if unit is not None:
        await unit.rollback()


async def end(context: Context) -> None:
    """End the root context of a send; what was not committed is undone."""
    context.open = False
    if context.unit is not None:
        await abandon(context)


async def join(plan: Plan, message: Any, parent: Context) -> Any:
    """Handle a message inside the running transaction, with the events that it emits."""
    if parent.plan.kind is Kind.QUERY and plan.kind is not Kind.QUERY:
        raise QueryViolation(
            f"The {plan.kind} {type(message).__qualname__} was sent while the query "
            f"{type(parent.message).__qualname__} was handled. Queries change nothing: make it a command."
        )
    context = open_context(parent.app, plan, message, parent)
    try:
        reply = None
        for handler in plan.handlers:
            reply = await handler.call(message, context)
        await run_local_handlers(context)
    except BaseException:
        root = parent.root
        if root.unit is not None and plan.kind is not Kind.QUERY:
            root.unit.doom(message)
        raise
    finally:
        close_context(context)
    return reply if plan.kind is not Kind.EVENT else None


async def run_local_handlers(context: Context) -> None:
    """Run the handlers of the local events that were emitted, and of those that these emit, breadth first."""
    waiting, context.queue = context.queue or [], None
    here = running_here()
    for plan, event, emitter in waiting:  # grows while it is walked
        inner = open_context(context.app, plan, event, emitter, here=here)
        inner.queue = waiting
        try:
            for handler in plan.local:
                await (handler.call(event, inner) if handler.bare is None else handler.bare(event))
            if plan.concurrent:
                await _run_side_by_side(inner, plan.concurrent)
        finally:
            close_context(inner, here)


async def _run_side_by_side(context: Context, handlers: Sequence[Handler]) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            for handler in handlers:
                tasks.create_task(_run_apart(context, handler))
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def _run_apart(context: Context, handler: Handler) -> None:
    here = open_context(context.app, context.plan, context.message, context, trace=context.trace)
    here.unit, here.queue = _Apart(context, handler), context.queue
    try:
        await handler.call(context.message, here)
    finally:
        close_context(here)


class _Apart(Unit):
    """What a handler that runs beside others has of the transaction: it saves events, but has no session."""

    def __init__(self, context: Context, handler: Handler) -> None:
        self._context = context
        self._handler = handler

    @property
    def session(self) -> AsyncSession:
        raise self._misuse("session")

    async def connect(self) -> AsyncConnection:
        raise self._misuse("connection")

    def _misuse(self, what: str) -> MisuseError:
        return MisuseError(
            f"{self._handler.name} ({self._handler.where}) is concurrent, so it may not use the {what}: a {what} "
            "serves one task. Remove concurrent=True, or leave the database to another handler."
        )

    @property
    def already_taken(self) -> bool:
        return False

    def save(self, plan: Plan, event: Any, route: Route | None, context: Context) -> str:
        return transaction_of(self._context).save(plan, event, route, context)

    def doom(self, message: Any) -> None:
        transaction_of(self._context).doom(message)

    async def commit(self) -> None:
        """Leave the end to the transaction that it is a part of."""

    async def rollback(self) -> None:
        """Leave the end to the transaction that it is a part of."""
