"""How a handler is called: its dependencies fetched, its class made, and nothing inspected on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cqrs.context import Call, Context

Provider = Callable[[], Any]
"""Returns a dependency, or an awaitable of it."""

Source = Callable[["Context"], Any]
"""Returns a dependency for a context, or an awaitable of it."""

Dependencies = Mapping[str, tuple[Source, bool]]
"""A parameter's source, and whether it is passed by position."""


def inject(function: Callable[..., Any], dependencies: Dependencies) -> Call:
    """Return a call of the function with its message and its dependencies.

    A dependency that turns out to be awaitable is awaited, every time: providers may become asynchronous.
    """
    if not dependencies:
        return lambda message, _context: function(message)
    sources = [source for source, _ in dependencies.values()]
    names = tuple(name for name, (_, positional) in dependencies.items() if not positional)

    def arguments(values: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        by_position = len(values) - len(names)
        return values[:by_position], dict(zip(names, values[by_position:], strict=True))

    async def call_awaited(message: Any, values: list[Any]) -> Any:
        settled = [await value if is_awaitable(value) else value for value in values]
        positional, keywords = arguments(settled)
        answer = function(message, *positional, **keywords)
        return await answer if is_awaitable(answer) else answer

    def call(message: Any, context: Context) -> Any:
        values = [source(context) for source in sources]
        for value in values:
            if is_awaitable(value):
                return call_awaited(message, values)
        if names:
            positional, keywords = arguments(values)
            return function(message, *positional, **keywords)
        return function(message, *values)

    return call


def construct(target: Callable[..., Any], dependencies: Dependencies) -> Source:
    """Return a maker of the handler object; a dependency that has to be awaited makes it awaitable."""
    call = inject(lambda _message, *values, **keywords: target(*values, **keywords), dependencies)
    if not dependencies:
        return lambda _context: target()

    return lambda context: call(None, context)


def handle_with(make: Source, *, reads_events: bool) -> Call:
    """Return a call of a handler class: a new object, its `handle`, then the events that it collected."""

    async def call(message: Any, context: Context) -> Any:
        handler = make(context)
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


def from_provider(provider: Provider) -> Source:
    """Return a provider as a source, which a context makes no difference to."""
    return lambda _context: provider()
