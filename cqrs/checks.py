"""Everything that can be wrong with the wiring beyond single handlers, looked for once, at bootstrap."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cqrs.codec import HANDLER_LIMIT
from cqrs.errors import Problem
from cqrs.messages import Command, Query, Request
from cqrs.options import ON_DEAD, POLICIES, SECONDS, TEXT, are_policies, is_number, is_on_dead, is_text
from cqrs.plan import Plan, check_publication
from cqrs.registry import HandlerRecord, Middleware, Publication, Registry, default_registry, source_of

if TYPE_CHECKING:
    from cqrs.retry import OnDead, Policies
    from cqrs.signature import Handler

SLOT_LIMIT = 1024
NO_DATABASE = 'Give bootstrap one: database="sqlite+aiosqlite:///app.db".'


@dataclass(frozen=True, slots=True)
class Wishes:
    """What `bootstrap` was asked for, beyond the handlers."""

    name: str
    database: Any
    broker: Any
    relay: bool
    listen_url: str | None
    carrier: str
    migrate: bool
    schema: str | None
    prefix: str
    ordering: str
    on_dead: OnDead
    retry: Policies
    slots: int
    lease: float
    grace: float
    inbox_retention: float
    dead_retention: float | None

    @property
    def publishes(self) -> bool:
        """Whether published events are saved for a broker, whether a relay or the log carries them there."""
        return self.broker is not None or self.carrier == "log"


@dataclass(frozen=True, slots=True)
class Found:
    """What decorators and mappers wrote down, narrowed to this application."""

    records: Sequence[HandlerRecord]
    modules: Sequence[str]
    registries: Sequence[Registry]
    problems: list[Problem]
    narrowed: bool
    """Whether of the first registry only what is in these modules counts."""

    def has(self, event: type, plans: Mapping[type, Plan]) -> bool:
        """Whether an event is this application's own: handled, or declared in what it was made of."""
        narrowed = self.narrowed and event in self.registries[0].publications
        declared = any(event in registry.publications for registry in self.registries)
        return event in plans or (event.__module__ in self.modules if narrowed else declared)

    @property
    def publications(self) -> dict[type, Publication]:
        """Every declared publication that an event of this application may have."""
        registries = [default_registry, *reversed(self.registries)]
        return {event: found for registry in registries for event, found in registry.publications.items()}


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What an application is made of, kept so that tools can show it and tests can make it again with other parts."""

    wishes: Wishes
    found: Found
    container: Any
    middlewares: Sequence[Middleware]


def check(wishes: Wishes, found: Found, plans: Mapping[type, Plan], problems: list[Problem]) -> None:
    """Add what is wrong with the wiring as a whole."""
    _check_wishes(wishes, problems)
    own = own_publications(found, plans)
    for publication in own:
        check_publication(publication, problems)
        _check_destination(publication, plans, wishes, problems)
    _check_names(own, problems)
    _check_unhandled(found, plans, problems)
    for plan in plans.values():
        for handler in plan.handlers:
            _check_background(handler, plan, wishes, problems)


def _check_wishes(wishes: Wishes, problems: list[Problem]) -> None:
    from_zero = "seconds from 0"
    refused = {
        "name": (not is_text(wishes.name), TEXT),
        "slots": (
            not is_number(wishes.slots, 1, SLOT_LIMIT) or wishes.slots != int(wishes.slots),
            f"a number from 1 to {SLOT_LIMIT}",
        ),
        "on_dead": (not is_on_dead(wishes.on_dead), ON_DEAD),
        "ordering": (wishes.ordering not in ("commit", "strict"), "'commit' or 'strict'"),
        "carrier": (wishes.carrier not in ("relay", "log"), "'relay' or 'log'"),
        "prefix": (not str(wishes.prefix).isidentifier(), "letters, digits and underscores, as in 'cqrs_'"),
        "retry": (not are_policies(wishes.retry), POLICIES),
        "lease": (not is_number(wishes.lease, 0.001), SECONDS),
        "grace": (not is_number(wishes.grace, 0), from_zero),
        "inbox_retention": (not is_number(wishes.inbox_retention, 0.001), SECONDS),
        "dead_retention": (wishes.dead_retention is not None and not is_number(wishes.dead_retention, 0), from_zero),
    }
    for name, (wrong, wanted) in refused.items():
        if wrong:
            problems.append(Problem(f"{name}={getattr(wishes, name)!r} cannot be", f"Pass {wanted}."))


def own_publications(found: Found, plans: Mapping[type, Plan]) -> list[Publication]:
    """Return what this application publishes, as far as classes say it."""
    return [publication for event, publication in found.publications.items() if found.has(event, plans)]


def _check_destination(
    publication: Publication, plans: Mapping[type, Plan], wishes: Wishes, problems: list[Problem]
) -> None:
    what, where = (
        f"{publication.event.__qualname__} is published to '{publication.topic}'",
        source_of(publication.event),
    )
    if wishes.database is None:
        problems.append(Problem(f"{what}, but there is no database to save it in", NO_DATABASE, where))
    if not wishes.publishes and publication.event not in plans:
        cure = "Give bootstrap a broker, or decorate a handler of it."
        problems.append(Problem(f"{what}, but there is neither a broker nor a handler of it", cure, where))


def _check_names(own: Sequence[Publication], problems: list[Problem]) -> None:
    named: dict[str, Publication] = {}
    for publication in own:
        other = named.setdefault(publication.name, publication)
        if other is not publication:
            places = " and ".join(f"{p.event.__module__}.{p.event.__qualname__}" for p in (other, publication))
            cure = "Give one of them a name of its own: @cqrs.integration_event(name=...)."
            what = f"Two published events are named '{publication.name}': {places}"
            problems.append(Problem(what, cure, source_of(publication.event)))


def _check_unhandled(found: Found, plans: Mapping[type, Plan], problems: list[Problem]) -> None:
    bases = {Request, Command, Query}
    for name in found.modules:
        own = [
            kind
            for kind in vars(sys.modules[name]).values()
            if isinstance(kind, type) and issubclass(kind, Request) and kind.__module__ == name and kind not in bases
        ]
        for message in own:
            if message not in plans and not message.__subclasses__():
                cure = "Decorate a handler of it in a scanned module, or move the message out of what is scanned."
                problems.append(Problem(f"{name}.{message.__qualname__} has no handler", cure, source_of(message)))


def _check_background(handler: Handler, plan: Plan, wishes: Wishes, problems: list[Problem]) -> None:
    background = handler.durable or plan.publication is not None
    if handler.durable and wishes.database is None:
        cure = 'Give bootstrap one: database="sqlite+aiosqlite:///app.db".'
        problems.append(
            Problem(f"{handler.name} is durable, but there is no database to save for it", cure, handler.where)
        )
    if background and len(handler.name) > HANDLER_LIMIT:
        what = f"The handler name '{handler.name}' has {len(handler.name)} characters, at most {HANDLER_LIMIT} fit"
        problems.append(Problem(what, "Give it a shorter one with name=...", handler.where))
