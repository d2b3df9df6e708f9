"""Decorators write down what they saw; nothing here looks at a signature or decides anything."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict, TypeVar, Unpack, overload

from cqrs.errors import MisuseError
from cqrs.events import Event
from cqrs.messages import Request

if TYPE_CHECKING:
    from cqrs.context import Call, Context
    from cqrs.retry import OnDead, Policies, Retry

Target = TypeVar("Target", bound=Callable[..., Any])
Published = TypeVar("Published", bound=type)


class Middleware(Protocol):
    """A coroutine function around a handler: `return await call_next(message, context)` goes on inwards."""

    def __call__(self, message: Any, context: Context, call_next: Call) -> Awaitable[Any]:
        """Answer the message, as a rule by awaiting `call_next(message, context)`."""
        ...


class Kind(StrEnum):
    """What a handler handles; it decides how many there may be and what comes back."""

    COMMAND = "command"
    QUERY = "query"
    EVENT = "event"


class HandlerOptions(TypedDict, total=False):
    """Options of every handler."""

    name: str
    middlewares: tuple[Middleware, ...]


class EventOptions(HandlerOptions, total=False):
    """Options of event handlers. `timeout` in seconds, for a delivery in the background."""

    durable: bool
    concurrent: bool
    retry: Retry | Policies
    on_dead: OnDead
    timeout: float
    group: int


@dataclass(frozen=True, slots=True)
class HandlerRecord:
    """A handler as its decorator saw it, or as it was bound to `message`."""

    kind: Kind
    target: Callable[..., Any]
    options: EventOptions = field(default_factory=EventOptions, hash=False)
    message: type | None = None

    @property
    def module(self) -> str:
        """The dotted name of the module that defines the handler."""
        return str(self.target.__module__)


@dataclass(frozen=True, slots=True)
class Publication:
    """Where a published event goes: its name on the wire, its topic, and the field (or property) that is its key."""

    event: type
    name: str
    topic: str
    key: str | None


class Registry:
    """What decorators wrote down: handlers in order, and published events by type.

    Two applications of one process, tests and reusable packages each have one of their own; everybody else uses
    `cqrs.default_registry` through the module's decorators, which are its methods.
    """

    def __init__(self) -> None:
        self.handlers: list[HandlerRecord] = []
        self.publications: dict[type, Publication] = {}

    @overload
    def command_handler(self, target: Target, /) -> Target: ...
    @overload
    def command_handler(self, /, **options: Unpack[HandlerOptions]) -> Callable[[Target], Target]: ...
    def command_handler(self, target: Any = None, /, **options: Any) -> Any:
        """Register the one handler of a command: a coroutine function, or a class with `handle`.

        The annotation of the first parameter names the command; every further parameter is injected by its
        annotation. `name` stands in tables and logs, `middlewares` run around this handler, within its transaction.
        """
        return self._write_down(Kind.COMMAND, target, options)

    @overload
    def query_handler(self, target: Target, /) -> Target: ...
    @overload
    def query_handler(self, /, **options: Unpack[HandlerOptions]) -> Callable[[Target], Target]: ...
    def query_handler(self, target: Any = None, /, **options: Any) -> Any:
        """Register the one handler of a query. Its session is never committed, and it may neither emit nor command."""
        return self._write_down(Kind.QUERY, target, options)

    @overload
    def event_handler(self, target: Target, /) -> Target: ...
    @overload
    def event_handler(self, /, **options: Unpack[EventOptions]) -> Callable[[Target], Target]: ...
    def event_handler(self, target: Any = None, /, **options: Any) -> Any:
        """Register one of any number of handlers of an event.

        Of a local event it runs in the emitting command's transaction; with `durable=True`, and always for a published
        event, it runs in the background in a transaction of its own, retried by `retry` and given at most `timeout`
        seconds; `on_dead` says whether a dead letter holds back its key (`"block"`) or not (`"skip"`).
        `concurrent=True` lets local handlers run side by side; they may not touch the session.

        `group=50` delivers up to so many messages in one transaction, each still once in its effects in the database.
        When one of a group fails, all are rolled back and delivered one by one, so effects elsewhere may repeat.
        """
        return self._write_down(Kind.EVENT, target, options)

    def integration_event(
        self, topic: str, *, key: str | None = None, name: str | None = None
    ) -> Callable[[Published], Published]:
        """Declare an event as published to `topic`: saved in the outbox, delivered by the broker.

        Events of equal `key` (the name of a field or property; a str, UUID or int) are delivered in the order of
        their commits. `name` is the event's name on the wire, for ever; by default the class's.
        """
        given: Any = topic
        if isinstance(given, type):
            raise MisuseError(
                f"{given.__qualname__} ({source_of(given)}) is published to no topic. "
                'Name it: @cqrs.integration_event(topic="orders") above the class.'
            )

        def decorate(event: Published) -> Published:
            self.publications[event] = Publication(event, name or event.__name__, topic, key)
            return event

        return decorate

    def bind(self, kind: Kind, message: type, target: Callable[..., Any]) -> None:
        """Register a handler for a message named outright, whatever its annotations say."""
        self.handlers.append(HandlerRecord(kind, target, message=message))

    def _write_down(self, kind: Kind, target: Any, options: Any) -> Any:
        if isinstance(target, type) and issubclass(target, (Request, Event)):
            raise MisuseError(
                f"{target.__qualname__} is a message, and @cqrs.{kind}_handler is for its handler. Write it without an "
                f"argument; the handler's first parameter names the message: `message: {target.__name__}`."
            )

        def decorate(target: Target) -> Target:
            self.handlers.append(HandlerRecord(kind, target, options))
            return target

        return decorate if target is None else decorate(target)


@dataclass(frozen=True, slots=True)
class Binder:
    """What a mapper function is given: `lambda m: m.bind(CreateUser, CreateUserHandler)`."""

    kind: Kind
    registry: Registry

    def bind(self, message: type, handler: Callable[..., Any]) -> Self:
        """Bind a message to its handler; calls can be chained."""
        self.registry.bind(self.kind, message, handler)
        return self


def source_of(target: Any) -> str:
    """Return `file:line` of a function or class, or its module where that is unknown."""
    code = getattr(target, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    module = sys.modules.get(getattr(target, "__module__", ""))
    file = getattr(module, "__file__", None)
    if file is None:
        return str(getattr(target, "__module__", "unknown"))
    line = getattr(target, "__firstlineno__", None) or _class_line(target)
    return f"{file}:{line}" if line else str(file)


def _class_line(target: Any) -> int | None:
    """Return the first line of a method of the class: cheap, where reading the source again is not."""
    methods = (getattr(vars(target).get(name), "__code__", None) for name in ("handle", "__init__"))
    return next((code.co_firstlineno for code in methods if code is not None), None)


default_registry = Registry()
command_handler = default_registry.command_handler
query_handler = default_registry.query_handler
event_handler = default_registry.event_handler
integration_event = default_registry.integration_event
