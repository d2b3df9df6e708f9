"""Reads a handler's signature, once: what it handles, what it needs, and everything that is wrong with it.

The only module that looks at the annotations of handlers.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_type_hints

from cqrs.annotations import bare, base_argument, class_of, fits, is_message, members, reply_type, show
from cqrs.errors import Problem
from cqrs.events import Event
from cqrs.injection import Dependency, Source, handle_with, inject
from cqrs.messages import Command, Query
from cqrs.options import wrong_options
from cqrs.registry import HandlerRecord, Kind, source_of
from cqrs.retry import OnDead, Policies, policies
from cqrs.sources import POSITIONAL, Injector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from cqrs.context import Call

MAKERS: dict[Kind, str] = {kind: f"@cqrs.{kind}_handler" for kind in Kind}


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
    needs: tuple[Dependency, ...] = ()
    """What it is given beside the message, and where that comes from."""
    reply: Any = Any
    """The type of what it returns, as its message promises or its annotation says."""
    group: int = 1
    """How many messages one transaction may deliver."""
    connects: bool = False
    """Whether it is given the connection of its transaction, which begins before it is called."""


def read(
    record: HandlerRecord, injector: Injector, problems: list[Problem], script: str
) -> list[tuple[type, Handler | None]]:
    """Return a handler for each message type that the record takes, None in place of one that is unusable.

    What is wrong is added to `problems`. `script` is the name that the module `__main__` goes by.
    """
    return _Reading(record, injector, problems, script).result()


def path_of(target: Any) -> str:
    """Return the dotted path of a function or class."""
    return f"{target.__module__}.{target.__qualname__}"


def name_of(record: HandlerRecord, script: str) -> str:
    """Return the handler's name in tables and logs: `module:qualname`, or what it was named."""
    return record.options.get("name") or f"{_module_of(record, script)}:{_qualname(record.target)}"


class _Reading:
    """The reading of one record: what it handles, what it needs, and everything that is wrong with it."""

    def __init__(self, record: HandlerRecord, injector: Injector, problems: list[Problem], script: str) -> None:
        self.record = record
        self.target: Any = record.target
        self.injector = injector
        self.problems = problems
        self.where = source_of(record.target)
        self.path = f"{_module_of(record, script)}.{_qualname(self.target)}"
        self.name = name_of(record, script)
        self.is_class = isinstance(self.target, type)
        self.needs_nothing = False
        self.needs: tuple[Dependency, ...] = ()

    def result(self) -> list[tuple[type, Handler | None]]:
        """Return a handler for each message type that the record takes; None in place of one that is unusable."""
        function = getattr(self.target, "handle", None) if self.is_class else self.target
        if function is None and hasattr(self.record.message, "handle"):
            bound = _qualname(self.record.message)
            cure = f"Bind the message first: bind({_qualname(self.target)}, {bound})."
            self._problem(f"it was bound as the handler of {bound}", cure)
            return []
        if function is None:
            self._problem("a handler class needs `async def handle(self, message)`", "Add it.")
            return []
        hints = self._hints(function)
        parameters = self._parameters(function)
        if hints is None or not parameters or not self._message_comes_first(parameters[0], hints):
            return []
        messages = self._messages(parameters[0], hints)
        self._check_kind(messages)
        self._check_reply(messages, hints)
        usable = self._is_coroutine_function(function) and self._options_are_usable()
        call = self._call(parameters[1:], hints)
        reply = next((found for found in map(reply_type, messages) if found is not Any), hints.get("return", Any))
        handler = self._handler(call, reply) if usable and call is not None else None
        return [(message, handler) for message in messages]

    def _handler(self, call: Call, reply: Any) -> Handler:
        options = self.record.options
        for middleware in reversed(options.get("middlewares", ())):
            call = partial(middleware, call_next=call)
        retry = options.get("retry")
        return Handler(
            self.name,
            call,
            self.where,
            bare=self.target if self.needs_nothing and not options.get("middlewares") else None,
            durable=options.get("durable", False),
            concurrent=options.get("concurrent", False),
            retry=None if retry is None else policies(retry),
            on_dead=options.get("on_dead"),
            timeout=options.get("timeout"),
            needs=self.needs,
            reply=reply,
            group=options.get("group", 1),
            connects=any(need.source.awaited for need in self.needs),
        )

    def _problem(self, what: str, cure: str) -> None:
        self.problems.append(Problem(f"{self.path}: {what}", cure, self.where))

    def _answers_once(self) -> bool:
        return not inspect.isasyncgenfunction(getattr(self.target, "handle", self.target))

    def _is_coroutine_function(self, function: Callable[..., Any]) -> bool:
        if inspect.isasyncgenfunction(function):
            self._problem("an async generator is a streaming handler, which this version cannot run", "Return a list.")
        elif not inspect.iscoroutinefunction(function):
            cure = "Make it `async def` and call blocking code through `await asyncio.to_thread(...)`."
            self._problem("a handler is a coroutine function, this one is a plain function", cure)
        return inspect.iscoroutinefunction(function)

    def _options_are_usable(self) -> bool:
        wrong = list(wrong_options(self.record))
        for problem in wrong:
            self._problem(problem.what, problem.cure)
        return not wrong

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
        if not parameters or parameters[0].kind not in POSITIONAL:
            self._problem(
                "the first parameter of a handler is its message, and there is none", "Add `message: YourMessage`."
            )
            return []
        return parameters

    def _message_comes_first(self, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> bool:
        annotation = bare(hints.get(parameter.name))
        if annotation not in self.injector.from_context:
            return True
        what = f"its first parameter is '{parameter.name}: {show(annotation)}', where the message belongs"
        self._problem(what, "Put the message first; everything else follows in any order.")
        return False

    def _messages(self, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> list[type]:
        annotation = bare(hints.get(parameter.name, base_argument(self.target)))
        bound = self.record.message
        if annotation is None and bound is None:
            cure = "Annotate it with the message's class; the annotation decides what the handler is for."
            self._problem(f"its first parameter '{parameter.name}' has no annotation", cure)
            return []
        wanted = members(annotation) if self.record.kind is Kind.EVENT else [annotation]
        messages: list[Any] = [class_of(member) for member in wanted]
        if bound is not None:
            if all(isinstance(message, type) and not issubclass(bound, message) for message in messages):
                self._problem(
                    f"it was bound to {path_of(bound)}, but handles {show(annotation)}", "Bind it to the latter."
                )
            return [bound]
        if not all(is_message(message) for message in messages):
            cure = "Use a class of its own: a cqrs.Command, Query or Event, another pydantic model, or a dataclass."
            self._problem(f"its first parameter '{parameter.name}: {show(annotation)}' is no message class", cure)
            return []
        return messages

    def _check_kind(self, messages: Sequence[type]) -> None:
        kinds = {Command: Kind.COMMAND, Query: Kind.QUERY, Event: Kind.EVENT}
        for message in messages:
            expected = next((kind for base, kind in kinds.items() if issubclass(message, base)), self.record.kind)
            if expected is not self.record.kind:
                ours, theirs = (f"an {k}" if k is Kind.EVENT else f"a {k}" for k in (self.record.kind, expected))
                what = f"it is {ours} handler, but {path_of(message)} is {theirs}"
                self._problem(what, f"Decorate it with {MAKERS[expected]}.")

    def _check_reply(self, messages: Sequence[type], hints: Mapping[str, Any]) -> None:
        if "return" not in hints or self.record.kind is Kind.EVENT or not self._answers_once():
            return
        for message in messages:
            promised = reply_type(message)
            if promised is not Any and not fits(bare(hints["return"]), promised):
                what = f"it returns {show(hints['return'])}, but {path_of(message)} promises {show(promised)}"
                self._problem(what, "Make the two agree: callers see the type that the message promises.")

    def _call(self, further: Sequence[inspect.Parameter], hints: Mapping[str, Any]) -> Call | None:
        if not self.is_class:
            dependencies = self._dependencies(further, hints)
            self.needs_nothing = dependencies == []
            return None if dependencies is None else inject(self.target, dependencies)
        if any(parameter.default is parameter.empty for parameter in further):
            self._problem("`handle` takes the message alone", "Ask for dependencies in `__init__`.")
            return None
        make = self._maker()
        return None if make is None else handle_with(make, reads_events=hasattr(self.target, "events"))

    def _maker(self) -> Call | None:
        """Return what makes the handler object: the container's provider of it, or its class with its dependencies."""
        try:
            provider = self.injector.container.provider(self.target, ())
        except LookupError as error:
            self._problem(str(error.args[0]), "Remove one of them.")
            return None
        if provider is not None:
            self.needs = (Dependency("self", Source(provider), wanted=self.target),)
            return inject(provider, (), takes_message=False)
        init = self.target.__init__
        if not inspect.isfunction(init):
            return inject(self.target, (), takes_message=False)
        hints = self._hints(init)
        if hints is None:
            return None
        dependencies = self._dependencies(list(inspect.signature(init).parameters.values())[1:], hints)
        return None if dependencies is None else inject(self.target, dependencies, takes_message=False)

    def _dependencies(
        self, parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any]
    ) -> list[Dependency] | None:
        """Return the parameters' sources; None when one of them has none."""
        found, complete = self.injector.dependencies(parameters, hints, self._problem)
        self.needs = tuple(found)
        return found if complete else None


def _module_of(record: HandlerRecord, script: str) -> str:
    return script if record.module == "__main__" else record.module


def _qualname(target: Any) -> str:
    return str(getattr(target, "__qualname__", target))
