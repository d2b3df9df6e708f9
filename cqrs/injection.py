"""How a handler is called: its dependencies fetched, its class made, and nothing inspected on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cqrs.context import Call, Context

Provider = Callable[[], Any]
"""Returns a dependency, or an awaitable of it."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a dependency comes from: a provider of the container, or a function of the running context."""

    get: Callable[..., Any]
    of_context: bool = False
    plain: bool = False
    """Whether what it returns is never to be awaited."""
    awaited: bool = False
    """Whether what it returns is to be awaited, always."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """A parameter and its source."""

    name: str
    source: Source
    by_position: bool = True
    wanted: Any = None
    """The type that was asked for, as it was annotated."""


# Written out and compiled once a handler, as dataclasses are: a loop over sources costs as much as the whole send.
_CALL = """
def call(message, context):
    {fetched}
    if {plain}:
        return function({passed})
    return when_awaited(message, ({values}))
"""
_AWAITING_CALL = """
async def call(message, context):
    {fetched}
    answer = function({passed}) if {plain} else when_awaited(message, ({values}))
    return await answer if is_awaitable(answer) else answer
"""
_INVOKE = """
def invoke(message, {parameters}):
    return function({passed})
"""


def inject(function: Callable[..., Any], dependencies: Sequence[Dependency], *, takes_message: bool = True) -> Call:
    """Return a call of the function with its message and its dependencies.

    A dependency that turns out to be awaitable is awaited, every time: providers may become asynchronous.
    """
    if not dependencies:
        return (lambda message, _context: function(message)) if takes_message else (lambda *_: function())
    plain: set[type] = set()
    namespace: dict[str, Any] = {"function": function, "plain": plain, "is_awaitable": is_awaitable}

    async def call_awaited(message: Any, values: Sequence[Any]) -> Any:
        answer = namespace["invoke"](message, *[await value if is_awaitable(value) else value for value in values])
        return await answer if is_awaitable(answer) else answer

    def when_awaited(message: Any, values: Sequence[Any]) -> Any:
        if any(is_awaitable(value) for value in values):
            return call_awaited(message, values)
        plain.update(type(value) for value in values)
        return namespace["invoke"](message, *values)

    namespace["when_awaited"] = when_awaited
    namespace.update({f"get{index}": dependency.source.get for index, dependency in enumerate(dependencies)})
    exec(_source_code(dependencies, takes_message=takes_message), namespace)  # noqa: S102 - of our own making alone
    call: Call = namespace["call"]
    return call


def _source_code(dependencies: Sequence[Dependency], *, takes_message: bool) -> str:
    values = [f"value{index}" for index in range(len(dependencies))]
    sources = [
        f"{'await ' * d.source.awaited}get{index}({'context' * d.source.of_context})"
        for index, d in enumerate(dependencies)
    ]
    passed = [v if d.by_position else f"{d.name}={v}" for v, d in zip(values, dependencies, strict=True)]
    provided = [v for v, d in zip(values, dependencies, strict=True) if not (d.source.plain or d.source.awaited)]
    awaits = any(dependency.source.awaited for dependency in dependencies)
    return f"{_AWAITING_CALL if awaits else _CALL}{_INVOKE}".format(
        fetched="; ".join(f"{value} = {source}" for value, source in zip(values, sources, strict=True)),
        plain=" and ".join(f"type({value}) in plain" for value in provided) or "True",
        values="".join(f"{value}, " for value in values),
        parameters=", ".join(values),
        passed=", ".join(["message"] * takes_message + passed),
    )


def handle_with(make: Callable[[Any, Context], Any], *, reads_events: bool) -> Call:
    """Return a call of a handler class: a new object, its `handle`, then the events that it collected."""

    async def call(message: Any, context: Context) -> Any:
        handler = make(message, context)
        if is_awaitable(handler):
            handler = await handler
        reply = await handler.handle(message)
        if reads_events:
            for event in handler.events:
                context.emit(event)
        return reply

    return call


def is_awaitable(value: Any) -> bool:
    """Whether a dependency has to be awaited; `inspect.isawaitable` would cost ten times as much."""
    return hasattr(type(value), "__await__")
