"""Describes an application from its plans and its blueprint: the one description that every tool shows.

It needs neither a database nor a broker, and no part of it holds a password.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cqrs.annotations import show
from cqrs.description import Application, Code, Handler, Message, Need, Policy, Route
from cqrs.registry import HandlerRecord, Kind, source_of
from cqrs.scan import script_name
from cqrs.signature import name_of, path_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cqrs import signature
    from cqrs.checks import Blueprint, Wishes
    from cqrs.injection import Dependency
    from cqrs.mediator import Mediator
    from cqrs.plan import Plan
    from cqrs.retry import Policies

_ORDER = {kind: place for place, kind in enumerate(Kind)}


def describe(app: Mediator) -> Application:
    """Return what there is to know of an application. It need not be open."""
    blueprint = blueprint_of(app)
    wishes = blueprint.wishes
    plans = plans_of(app)
    emitting = {plan.message: plan.message.__qualname__ for plan in plans if plan.kind is Kind.EVENT}
    describing = _Describing(blueprint, emitting)
    return Application(
        name=app.name,
        database=shown_database(wishes.database),
        broker=shown_broker(wishes.broker),
        carrier=wishes.carrier,
        relay=wishes.relay,
        ordering=wishes.ordering,
        prefix=wishes.prefix,
        schema=wishes.schema,
        slots=wishes.slots,
        modules=tuple(blueprint.found.modules),
        messages=tuple(describing.message(plan) for plan in plans),
    )


def blueprint_of(app: Mediator) -> Blueprint:
    """Return what an application was made of. Raises `TypeError` for one that `bootstrap` has not made."""
    if app.blueprint is None:
        raise TypeError(f"Application '{app.name}' was not made by cqrs.bootstrap, so that it cannot be described.")
    return app.blueprint


def plans_of(app: Mediator) -> list[Plan]:
    """Return the plans of all messages that an application handles or publishes: commands, queries, events, by name."""
    found = blueprint_of(app).found
    own = [event for event in found.publications if found.has(event, app.plans)]
    plans = [app.plan_of(message) for message in dict.fromkeys([*app.plans, *own])]
    return sorted(plans, key=lambda plan: (_ORDER[plan.kind], plan.message.__qualname__, path_of(plan.message)))


class _Describing:
    """What the descriptions of single messages are made from."""

    def __init__(self, blueprint: Blueprint, emitting: Mapping[type, str]) -> None:
        script = script_name()
        self._blueprint = blueprint
        self._wishes: Wishes = blueprint.wishes
        self._records = {name_of(record, script): record for record in blueprint.found.records}
        self._around = tuple(map(_code, blueprint.middlewares))
        self._emitting = emitting
        self._providers = _named_providers(blueprint.container)

    def message(self, plan: Plan) -> Message:
        """Return the description of a message."""
        route = self._route(plan)
        consumed = route is not None and bool(plan.handlers) and self._wishes.broker is not None
        return Message(
            name=plan.message.__qualname__,
            type=path_of(plan.message),
            kind=plan.kind,
            where=source_of(plan.message),
            reply=None if plan.kind is Kind.EVENT else show(plan.handlers[0].reply),
            route=route,
            consumed=consumed,
            handlers=tuple(self._handler(handler, plan) for handler in plan.handlers),
        )

    def _route(self, plan: Plan) -> Route | None:
        if plan.kind is not Kind.EVENT or not plan.publishable:
            return None
        key = plan.publication.key if plan.publication is not None else "key"
        return Route(topic=plan.topic, key=key, name=plan.name, carrier=self._carrier())

    def _carrier(self) -> str:
        if self._wishes.carrier == "log":
            return "the database's log"
        return "the broker" if self._wishes.broker is not None else "this application's relay"

    def _handler(self, handler: signature.Handler, plan: Plan) -> Handler:
        record = self._records[handler.name]
        background = plan.kind is Kind.EVENT and (handler.durable or plan.publishable)
        return Handler(
            name=handler.name,
            where=handler.where,
            why=_why(record, plan, self._blueprint.found.modules),
            transaction=_transaction(handler, plan, background=background),
            background=background,
            middlewares=(*self._around, *map(_code, record.options.get("middlewares", ()))),
            needs=tuple(map(self._need, handler.needs)),
            emits=tuple(self._emits(record.target, plan.message)),
            retry=_policies(handler.retry or {}, self._wishes.retry) if background else (),
            on_dead=(handler.on_dead or self._wishes.on_dead) if background else None,
            timeout=handler.timeout,
            group=handler.group,
        )

    def _need(self, need: Dependency) -> Need:
        source = need.source.get
        if need.source.of_context:
            provider = "what is running"
        else:
            provider = self._providers.get(id(source)) or f"{_code(source).name} ({_code(source).where})"
        return Need(parameter=need.name, type=show(need.wanted), provider=provider)

    def _emits(self, target: Any, message: type) -> Iterable[str]:
        """Return the names of the events that the code of a handler names, other than the one that it takes."""
        functions = [target] if not isinstance(target, type) else list(vars(target).values())
        named = {name: function for function in functions for name in _names_in(function)}
        found = [getattr(function, "__globals__", {}).get(name) for name, function in named.items()]
        events = {each for each in found if isinstance(each, type) and each in self._emitting and each is not message}
        return sorted(self._emitting[event] for event in events)


def _names_in(function: Any) -> Sequence[str]:
    return getattr(getattr(function, "__code__", None), "co_names", ())


def _why(record: HandlerRecord, plan: Plan, modules: Sequence[str]) -> str:
    if record.message is not None:
        return f"it was bound to {plan.message.__qualname__} by a mapper"
    scanned = f" in {record.module}, which was scanned" if record.module in modules else ""
    return f"its first parameter is {plan.message.__qualname__}, and it is decorated as {record.kind} handler{scanned}"


def _transaction(handler: signature.Handler, plan: Plan, *, background: bool) -> str:
    if plan.kind is Kind.QUERY:
        return "a session that is never committed"
    if plan.kind is Kind.COMMAND:
        return "one for the command, with the events that it emits and their local handlers"
    if not background:
        side = ", beside other handlers and without a session" if handler.concurrent else ""
        return f"that of the command that emits the event{side}"
    shared = f", shared by up to {handler.group} deliveries" if handler.group > 1 else ""
    return f"one of its own on delivery{shared}, with an inbox row so that it happens once"


def _policies(own: Policies, default: Policies) -> tuple[Policy, ...]:
    """Return the policies that hold for a handler: its own, then the application's for other errors."""
    rules = [*own.items(), *((error, retry) for error, retry in default.items() if error not in own)]
    return tuple(
        Policy(
            error=error.__qualname__,
            attempts=retry.attempts,
            first=retry.first,
            factor=retry.factor,
            longest=retry.longest,
            jitter=retry.jitter,
        )
        for error, retry in rules
    )


def _code(target: Any) -> Code:
    function = target.func if isinstance(target, partial) else target
    named = function if hasattr(function, "__qualname__") else type(function)
    return Code(name=path_of(named), where=source_of(named))


def _named_providers(container: Any) -> dict[int, str]:
    """Return how a person finds the providers of a container, by their identity."""
    if hasattr(container, "providers"):
        from cqrs.integrations.dependency_injector import walk

        return {
            id(provider): f"'{name}' of the container, a {type(provider).__name__}"
            for name, provider in walk(container)
        }
    return {}


def shown_database(database: Any) -> str | None:
    """Return the place of what was given as `database=`, without what may be secret."""
    if database is None:
        return None
    from sqlalchemy import make_url

    from cqrs.outbox.database import shown

    bound = getattr(database, "kw", {}).get("bind", database)
    return shown(make_url(getattr(bound, "url", bound)))


def shown_broker(broker: Any) -> str | None:
    """Return the place of what was given as `broker=`, without what may be secret."""
    if broker is None:
        return None
    if not isinstance(broker, str):
        return f"a {type(broker).__module__.partition('.')[0]} {type(broker).__qualname__}"
    scheme, _, rest = broker.partition("://")
    host = urlsplit(f"//{rest}").netloc.rpartition("@")[2]
    return f"{scheme}://{host}"
