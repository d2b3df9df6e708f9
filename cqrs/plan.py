"""Every message type's plan, made once at bootstrap: which handlers, and how each is called.

The only module that looks at signatures and annotations. What it finds wrong it adds to a list of problems, so that
bootstrap can report everything together.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union, get_args, get_origin, get_type_hints

from cqrs.codec import Codec
from cqrs.errors import EncodingError, Problem
from cqrs.events import NotificationEvent, notification_name
from cqrs.handlers import EventHandler, RequestHandler
from cqrs.messages import Command, Query, Request
from cqrs.registry import EventOptions, HandlerRecord, Kind, Publication, source_of
from cqrs.retry import OnDead, Policies, policies

if TYPE_CHECKING:
    from cqrs.context import Call, Context

Provider = Callable[[], Any]
"""Returns a dependency, or an awaitable of it."""

MAKERS: dict[Kind, str] = {kind: f"@cqrs.{kind}_handler" for kind in Kind}
KNOWN_OPTIONS: dict[Kind, frozenset[str]] = {
    Kind.COMMAND: frozenset({"name", "middlewares"}),
    Kind.QUERY: frozenset({"name", "middlewares"}),
    Kind.EVENT: EventOptions.__optional_keys__,
}


class Resolver(Protocol):
    """Finds what a container provides; asked once a parameter, at bootstrap."""

    def provider(self, wanted: type, marks: Sequence[object]) -> Provider | None:
        """Return the provider of a type, or of the mark (in `Annotated`, or as default) that names one.

        Returns None when nothing provides it; raises `LookupError` with the reason when it cannot be decided.
        """


@dataclass(frozen=True, slots=True)
class Injector:
    """Where parameters come from: what the running context has, then the container."""

    from_context: Mapping[type, Callable[[Context], Any]]
    container: Resolver


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A handler ready to be called: its dependencies are injected and its middlewares around it."""

    name: str
    """`module:qualname`, or the name it was given: its identity in tables and logs."""
    call: Call
    where: str
    bare: Callable[[Any], Awaitable[Any]] | None = None
    """The function itself, where it needs nothing but the message and has no middlewares: one call less a send."""
    durable: bool = False
    concurrent: bool = False
    retry: Policies | None = None
    on_dead: OnDead | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where one published event goes."""

    name: str
    topic: str
    key: object


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All that is known of one message type."""

    message: type
    kind: Kind
    handlers: tuple[Handler, ...]
    publication: Publication | None = None
    notification: bool = False
    codec: Codec | None = None

    @property
    def name(self) -> str:
        """The event's name on the wire and in tables."""
        if self.publication is not None:
            return self.publication.name
        return notification_name(self.message) if self.notification else self.message.__name__

    @property
    def publishable(self) -> bool:
        """Whether events of this type can be published."""
        return self.publication is not None or self.notification

    def route(self, event: Any) -> Route | None:
        """Return where this event is published, or None when it is local."""
        if (publication := self.publication) is not None:
            key = getattr(event, publication.key) if publication.key else None
            return Route(publication.name, publication.topic, key)
        if self.notification and event.topic:
            return Route(event.event_name, event.topic, event.key)
        return None

    def is_saved(self, event: Any) -> bool:
        """Whether emitting this event writes to the outbox."""
        return self.publication is not None or any(h.durable for h in self.handlers) or bool(self.notification and event.topic)

    def is_local(self, event: Any) -> bool:
        """Whether handlers of this event run in the emitting command's transaction."""
        published = self.publication is not None or (self.notification and event.topic)
        return not published and not all(h.durable for h in self.handlers)


def make_plans(
    records: Iterable[HandlerRecord],
    publications: Mapping[type, Publication],
    injector: Injector,
    problems: list[Problem],
    script: str = "__main__",
) -> dict[type, Plan]:
    """Return the plan of every message that the records handle; what is wrong is added to `problems`."""
    handlers: dict[type, list[tuple[HandlerRecord, Handler]]] = {}
    for record in dict.fromkeys(records):
        reading = _Reading(record, injector, problems, script)
        for message, handler in reading.result():
            handlers.setdefault(message, []).append((record, handler))
    _refuse_shared_names(handlers, problems)
    return {message: _make_plan(message, found, publications, problems) for message, found in handlers.items()}


def event_plan(event: type, publication: Publication | None, handlers: Sequence[Handler] = ()) -> Plan:
    """Return the plan of an event; also of one that nobody here handles."""
    notification = issubclass(event, NotificationEvent)
    saved = publication is not None or notification or any(handler.durable for handler in handlers)
    return Plan(event, Kind.EVENT, tuple(handlers), publication, notification, Codec(event) if saved else None)


def check_publication(publication: Publication, problems: list[Problem]) -> None:
    """Add what is wrong with a published event: it cannot be encoded, or has no such key."""
    event = publication.event
    where = source_of(event)
    try:
        Codec(event).check()
    except EncodingError as error:
        cure = "Give every field a type that pydantic can write and read."
        problems.append(Problem(f"{_path(event)} cannot be written as JSON and read back: {error}", cure, where))
    if publication.key and not _has_attribute(event, publication.key):
        cure = "Name one of the event's fields or properties."
        problems.append(Problem(f"{_path(event)} has no '{publication.key}' to be its key", cure, where))


def _make_plan(
    message: type,
    found: Sequence[tuple[HandlerRecord, Handler]],
    publications: Mapping[type, Publication],
    problems: list[Problem],
) -> Plan:
    kinds = {record.kind for record, _ in found}
    handlers = [handler for _, handler in found]
    kind = found[0][0].kind
    if len(kinds) > 1 or (kind is not Kind.EVENT and len(found) > 1):
        places = ", ".join(f"{handler.name} ({handler.where})" for handler in handlers)
        what = f"{_path(message)} has {len(found)} {' and '.join(sorted(kinds))} handlers, expected one: {places}"
        problems.append(Problem(what, "Keep one, or make it an event if several should hear of it."))
    if kind is not Kind.EVENT:
        return Plan(message, kind, tuple(handlers[:1]))
    plan = event_plan(message, publications.get(message), handlers)
    if plan.codec is not None and plan.publication is None:
        check_publication(Publication(message, plan.name, "", None), problems)
    for handler in handlers:
        if handler.concurrent and (handler.durable or plan.publication is not None):
            what = f"{handler.name} is concurrent, but is delivered in the background, where every handler is on its own"
            problems.append(Problem(what, "Remove concurrent=True.", handler.where))
    return plan


def _refuse_shared_names(handlers: Mapping[type, Sequence[tuple[HandlerRecord, Handler]]], problems: list[Problem]) -> None:
    owners: dict[str, HandlerRecord] = {}
    for found in handlers.values():
        for record, handler in found:
            owner = owners.setdefault(handler.name, record)
            if owner is not record and owner.target is not record.target:
                what = f"Two handlers are named '{handler.name}': {source_of(owner.target)} and {handler.where}"
                problems.append(Problem(what, "Give one of them a name of its own with name=...; names stand in tables."))


class _Reading:
    """The reading of one record: what it handles, what it needs, and everything that is wrong with it."""

    def __init__(self, record: HandlerRecord, injector: Injector, problems: list[Problem], script: str) -> None:
        self.record = record
        self.target = record.target
        self.injector = injector
        self.problems = problems
        self.where = source_of(record.target)
        module = script if record.module == "__main__" else record.module
        self.path = f"{module}.{getattr(self.target, '__qualname__', self.target)}"
        self.name = record.options.get("name") or f"{module}:{getattr(self.target, '__qualname__', self.target)}"
        self.is_class = isinstance(self.target, type)

    def result(self) -> list[tuple[type, Handler]]:
        """Return a handler for each message type that the record takes; none when it is unusable."""
        function = self._function()
        if function is None or not self._options_are_known():
            return []
        hints = self._hints(function)
        parameters = self._parameters(function)
        if hints is None or not parameters:
            return []
        messages = self._messages(parameters[0], hints)
        call = self._call(parameters[1:], hints)
        if call is None or not messages:
            return []
        self._check_kind(messages)
        self._check_reply(messages, hints)
        return [(message, self._handler(call)) for message in messages]

    def _handler(self, call: Call) -> Handler:
        options = self.record.options
        needs_nothing = not self.is_class and call.__name__ == "call_bare" and "middlewares" not in options
        for middleware in reversed(options.get("middlewares", ())):
            call = partial(middleware, call_next=call)
        retry = options.get("retry")
        return Handler(
            self.name,
            call,
            self.where,
            durable=options.get("durable", False),
            concurrent=options.get("concurrent", False),
            retry=None if retry is None else policies(retry),
            on_dead=options.get("on_dead"),
            timeout=options.get("timeout"),
        )

    def _problem(self, what: str, cure: str) -> None:
        self.problems.append(Problem(f"{self.path}: {what}", cure, self.where))

    def _function(self) -> Callable[..., Any] | None:
        function = getattr(self.target, "handle", None) if self.is_class else self.target
        if function is None:
            self._problem("a handler class needs `async def handle(self, message)`", "Add it.")
        elif inspect.isasyncgenfunction(function):
            self._problem("an async generator is a streaming handler, which this version cannot run", "Return a list.")
        elif not inspect.iscoroutinefunction(function):
            cure = "Make it `async def` and call blocking code through `await asyncio.to_thread(...)`."
            self._problem("a handler is a coroutine function, this one is a plain function", cure)
        else:
            return function
        return None

    def _options_are_known(self) -> bool:
        unknown = sorted(set(self.record.options) - KNOWN_OPTIONS[self.record.kind])
        if unknown:
            known = ", ".join(sorted(KNOWN_OPTIONS[self.record.kind]))
            self._problem(f"{MAKERS[self.record.kind]} has no option {', '.join(unknown)}", f"There are: {known}.")
        return not unknown

    def _hints(self, function: Any) -> dict[str, Any] | None:
        try:
            return get_type_hints(function, include_extras=True)
        except Exception as error:  # noqa: BLE001 - an annotation may be any expression
            cure = "Import what annotations name at run time too, not only under TYPE_CHECKING."
            self._problem(f"its annotations cannot be resolved: {error}", cure)
            return None

    def _parameters(self, function: Callable[..., Any]) -> list[inspect.Parameter]:
        parameters = list(inspect.signature(function).parameters.values())
        if self.is_class:
            parameters = parameters[1:]
        if not parameters or parameters[0].kind not in _POSITIONAL:
            self._problem("the first parameter of a handler is its message, and there is none", "Add `message: YourMessage`.")
            return []
        return parameters

    def _messages(self, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> list[type]:
        annotation = _bare(hints.get(parameter.name, _base_argument(self.target)))
        bound = self.record.message
        if annotation is None and bound is None:
            cure = "Annotate it with the message's class; the annotation decides what the handler is for."
            self._problem(f"its first parameter '{parameter.name}' has no annotation", cure)
            return []
        wanted = _members(annotation) if self.record.kind is Kind.EVENT else [annotation]
        messages = [get_origin(member) or member for member in wanted]
        if bound is not None:
            if all(isinstance(message, type) and not issubclass(bound, message) for message in messages):
                self._problem(f"it was bound to {_path(bound)}, but handles {_show(annotation)}", "Bind it to the latter.")
            return [bound]
        if not all(_is_message(message) for message in messages):
            cure = "Use a class of its own: a cqrs.Command, Query or Event, another pydantic model, or a dataclass."
            self._problem(f"its first parameter '{parameter.name}: {_show(annotation)}' is no message class", cure)
            return []
        return messages

    def _check_kind(self, messages: Sequence[type]) -> None:
        kinds = {Command: Kind.COMMAND, Query: Kind.QUERY}
        for message in messages:
            expected = next((kind for base, kind in kinds.items() if issubclass(message, base)), self.record.kind)
            if expected is not self.record.kind:
                what = f"it is a {self.record.kind} handler, but {_path(message)} is a {expected}"
                self._problem(what, f"Decorate it with {MAKERS[expected]}.")

    def _check_reply(self, messages: Sequence[type], hints: Mapping[str, Any]) -> None:
        if "return" not in hints or self.record.kind is Kind.EVENT:
            return
        for message in messages:
            promised = _reply_type(message)
            if promised is not Any and not _fits(_bare(hints["return"]), promised):
                what = f"it returns {_show(hints['return'])}, but {_path(message)} promises {_show(promised)}"
                self._problem(what, "Make the two agree: callers see the type that the message promises.")

    def _call(self, further: Sequence[inspect.Parameter], hints: Mapping[str, Any]) -> Call | None:
        if not self.is_class:
            dependencies = self._dependencies(further, hints)
            return None if dependencies is None else inject(self.target, dependencies)
        if any(parameter.default is parameter.empty for parameter in further):
            self._problem("`handle` takes the message alone", "Ask for dependencies in `__init__`.")
            return None
        return self._class_call()

    def _class_call(self) -> Call | None:
        make = self._provided_class()
        if make is None:
            init: Any = self.target.__init__  # type: ignore[misc]  # of the class, not of an instance
            hints = self._hints(init) if inspect.isfunction(init) else {}
            if hints is None:
                return None
            parameters = list(inspect.signature(init).parameters.values())[1:] if inspect.isfunction(init) else []
            dependencies = self._dependencies(parameters, hints)
            if dependencies is None:
                return None
            make = construct(self.target, dependencies)
        return handle_with(make, reads_events=hasattr(self.target, "events"))

    def _provided_class(self) -> Callable[[Context], Any] | None:
        try:
            provider = self.injector.container.provider(self.target, ())  # type: ignore[arg-type]  # a class here
        except LookupError as error:
            self._problem(str(error), "Remove one of them.")
            return None
        return None if provider is None else _ignoring_context(provider)

    def _dependencies(
        self, parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any]
    ) -> dict[str, tuple[Callable[[Context], Any], bool]] | None:
        """Return each parameter's source and whether it is passed by position; None when one has no source."""
        found: dict[str, tuple[Callable[[Context], Any], bool]] = {}
        complete, contiguous = True, True
        for parameter in parameters:
            if parameter.kind in _VARIADIC:
                continue
            source = self._source(parameter, hints.get(parameter.name))
            if source is not None:
                found[parameter.name] = (source, contiguous and parameter.kind in _POSITIONAL)
            elif parameter.default is parameter.empty:
                complete = False
            else:
                contiguous = False
        return found if complete else None

    def _source(self, parameter: inspect.Parameter, hint: Any) -> Callable[[Context], Any] | None:
        wanted = _without_none(_bare(hint))
        kind = get_origin(wanted) or wanted
        marks = [*(get_args(hint)[1:] if get_origin(hint) is Annotated else ()), parameter.default]
        try:
            provider = self.injector.container.provider(kind if isinstance(kind, type) else object, marks)
        except LookupError as error:
            self._problem(f"parameter '{parameter.name}': {error}", "Name one: Annotated[T, Provide[\"name\"]].")
            return _nothing
        if kind in self.injector.from_context and provider is None:
            return self.injector.from_context[kind]
        if provider is not None:
            return _ignoring_context(provider)
        if parameter.default is parameter.empty:
            what = f"nothing provides '{parameter.name}' ({'not annotated' if hint is None else _show(hint)})"
            self._problem(what, "Add a provider of that type to the container, or give the parameter a default.")
        return None


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def inject(function: Callable[..., Any], dependencies: Mapping[str, tuple[Callable[[Context], Any], bool]]) -> Call:
    """Return a call of the function with its message and its dependencies; nothing is inspected per call."""
    if not dependencies:
        return lambda message, _context: function(message)
    sources = [source for source, _ in dependencies.values()]
    names = tuple(name for name, (_, positional) in dependencies.items() if not positional)

    def arguments(values: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        by_position = len(values) - len(names)
        return values[:by_position], dict(zip(names, values[by_position:], strict=True))

    async def call_awaited(message: Any, values: list[Any]) -> Any:
        settled = [await value if _is_awaitable(value) else value for value in values]
        positional, keywords = arguments(settled)
        answer = function(message, *positional, **keywords)
        return await answer if _is_awaitable(answer) else answer

    def call(message: Any, context: Context) -> Any:
        values = [source(context) for source in sources]
        for value in values:
            if _is_awaitable(value):
                return call_awaited(message, values)
        if names:
            positional, keywords = arguments(values)
            return function(message, *positional, **keywords)
        return function(message, *values)

    return call


def construct(
    target: Callable[..., Any], dependencies: Mapping[str, tuple[Callable[[Context], Any], bool]]
) -> Callable[[Context], Any]:
    """Return a maker of the handler object; a dependency that has to be awaited makes it awaitable."""
    call = inject(lambda _message, *values, **keywords: target(*values, **keywords), dependencies)
    if not dependencies:
        return lambda _context: target()

    return lambda context: call(None, context)


def handle_with(make: Callable[[Context], Any], *, reads_events: bool) -> Call:
    """Return a call of a handler class: a new object, its `handle`, then the events that it collected."""

    async def call(message: Any, context: Context) -> Any:
        handler = make(context)
        if _is_awaitable(handler):
            handler = await handler
        reply = await handler.handle(message)
        if reads_events:
            for event in handler.events:
                context.emit(event)
        return reply

    return call


def _is_awaitable(value: Any) -> bool:
    return hasattr(type(value), "__await__")


def _ignoring_context(provider: Provider) -> Callable[[Context], Any]:
    return lambda _context: provider()


def _nothing(_context: Context) -> None:
    """Stand in for a source that could not be decided; bootstrap raises before it is ever called."""


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else [annotation]


def _without_none(annotation: Any) -> Any:
    members = [member for member in _members(annotation) if member is not NoneType]
    return members[0] if len(members) == 1 else annotation


def _is_message(annotation: Any) -> bool:
    is_class = isinstance(annotation, type) and annotation.__module__ != "builtins"
    return is_class and not issubclass(annotation, dict) and annotation not in (Request, Command, Query)


def _base_argument(target: Any) -> Any:
    """Return the message in `RequestHandler[Message, Reply]` or `EventHandler[Message]`, if the class has such a base."""
    for base in getattr(target, "__orig_bases__", ()):
        if get_origin(base) in (RequestHandler, EventHandler):
            return get_args(base)[0]
    return None


def _reply_type(message: type) -> Any:
    """Return the R of a `Command[R]` or `Query[R]`; Any where none was given."""
    for base in message.__mro__:
        generic = getattr(base, "__pydantic_generic_metadata__", None) or {}
        if generic.get("origin") in (Command, Query) and generic["args"]:
            reply = generic["args"][0]
            return NoneType if reply is None else reply
    return Any


def _fits(returned: Any, promised: Any) -> bool:
    """Whether a return annotation can be what was promised; in doubt, yes: a type checker knows better."""
    if returned is Any or returned == promised or any(_fits(returned, m) for m in _members(promised) if m != promised):
        return True
    members = _members(returned)
    if len(members) > 1:
        return all(_fits(member, promised) for member in members)
    ours, theirs = get_origin(returned) or returned, get_origin(promised) or promised
    if not (isinstance(ours, type) and isinstance(theirs, type)):
        return True
    same_arguments = not (get_args(returned) and get_args(promised)) or get_args(returned) == get_args(promised)
    return issubclass(ours, theirs) and same_arguments


def _has_attribute(event: type, name: str) -> bool:
    fields = getattr(event, "model_fields", {}) or getattr(event, "__dataclass_fields__", {})
    return name in fields or hasattr(event, name) or name in getattr(event, "__annotations__", {})


def _path(target: Any) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def _show(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
