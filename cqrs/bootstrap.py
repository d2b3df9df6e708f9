"""What a user calls: collects the handlers and the wishes, of which `cqrs.composition` makes the application."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from cqrs.checks import Blueprint, Found, Wishes
from cqrs.composition import compose
from cqrs.errors import Problem
from cqrs.registry import Binder, Kind, Middleware, Registry, default_registry
from cqrs.retry import OnDead, Policies, Retry, policies
from cqrs.scan import scan as scan_packages
from cqrs.scan import script_name

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

    from cqrs.mediator import Mediator
    from cqrs.outbox.publisher import Publisher

Mapper = Callable[[Binder], object]
Scanned = str | Registry


def bootstrap(
    scan: Scanned | Iterable[Scanned] | None = None,
    *,
    name: str | None = None,
    registry: Registry | None = None,
    container: Any = None,
    database: str | AsyncEngine | async_sessionmaker[AsyncSession] | None = None,
    broker: str | Publisher | Any = None,
    middlewares: Sequence[Middleware] = (),
    commands_mapper: Mapper | None = None,
    queries_mapper: Mapper | None = None,
    domain_events_mapper: Mapper | None = None,
    exclude: Sequence[str] = (),
    relay: bool = True,
    listen_url: str | None = None,
    carrier: Literal["relay", "log"] = "relay",
    migrate: bool = False,
    schema: str | None = None,
    prefix: str = "cqrs_",
    ordering: Literal["commit", "strict"] = "commit",
    on_dead: OnDead = "block",
    retry: Retry | Policies = Retry(),  # noqa: B008 - frozen
    slots: int = 16,
    lease: float = 10.0,
    grace: float = 10.0,
    inbox_retention: float = 14 * 86400.0,
    dead_retention: float | None = None,
) -> Mediator:
    """Return the application that the decorated handlers make up, ready to be opened with `async with`.

    `scan` names packages whose modules are imported, and registries; the application has the handlers in them, and
    those of the calling module. Without it, it has all that the registry holds. `container` is a dependency-injector
    container or a mapping from types to factories. `database` is a URL, an `AsyncEngine` or an `async_sessionmaker`,
    `broker` a URL, a `Publisher` or a FastStream broker.
    `broker=None` delivers published events to this application's own handlers, unless `carrier="log"` leaves them to
    the database's log, from which Debezium takes them to the broker.

    Durations are in seconds: `lease` is how long a relay's claim lasts without a sign of life, `grace` how long
    closing waits for what is in flight, `inbox_retention` how long a redelivery is recognised, `dead_retention` how
    long dead letters are kept (None: for ever).

    Raises one `ConfigurationError` that lists everything that is wrong with the wiring.
    """
    caller = sys._getframe(1).f_globals.get("__name__", "__main__")  # noqa: SLF001 - who asks decides the name
    wanted = [scan] if isinstance(scan, str | Registry) else list(scan or ())
    paths = [path for path in wanted if isinstance(path, str)]
    scanned = [found for found in wanted if isinstance(found, Registry)]
    found = _collect(paths, scanned, registry, exclude, caller)
    binders = (
        (Kind.COMMAND, commands_mapper),
        (Kind.QUERY, queries_mapper),
        (Kind.EVENT, domain_events_mapper),
    )
    wishes = Wishes(
        _default_name(paths, caller) if name is None else name,
        database,
        broker,
        relay,
        listen_url,
        carrier,
        migrate,
        schema,
        prefix,
        ordering,
        on_dead,
        policies(retry),
        slots,
        lease,
        grace,
        inbox_retention,
        dead_retention,
    )
    return compose(Blueprint(wishes, _with_bound(found, binders), container, _several(middlewares)))


def _collect(
    paths: Sequence[str], scanned: Sequence[Registry], registry: Registry | None, exclude: Sequence[str], caller: str
) -> Found:
    registries = list(scanned)
    if registry is not None or paths or not registries:
        registries.insert(0, registry or default_registry)
    problems: list[Problem] = []
    modules = scan_packages(paths, problems, exclude)
    reached = {*modules, caller} if paths else None
    records = [
        record
        for found in registries
        for record in found.handlers
        if reached is None or found is not registries[0] or record.module in reached
    ]
    if paths and not problems and not any(record.module in modules for record in records):
        looked = ", ".join(modules) or "no module at all"
        cure = "Decorate handlers with @cqrs.command_handler, query_handler or event_handler in one of its modules."
        problems.append(Problem(f"Scanning {', '.join(map(repr, paths))} found no handler; imported: {looked}", cure))
    return Found(records, modules, registries, problems, narrowed=bool(paths))


def _with_bound(found: Found, mappers: Iterable[tuple[Kind, Any]]) -> Found:
    bound = Registry()
    for kind, mapper in mappers:
        if callable(mapper):
            mapper(Binder(kind, bound))
        elif mapper is not None:
            cure = "Pass a function: lambda m: m.bind(CreateUser, CreateUserHandler)."
            found.problems.append(Problem(f"The mapper of {kind} handlers, {mapper!r}, cannot be called", cure))
    decorated = {record.target: record for record in found.records}
    targets = {record.target for record in bound.handlers}
    kept = [record for record in found.records if record.target not in targets]
    mapped = [
        replace(record, options=decorated[record.target].options) if record.target in decorated else record
        for record in bound.handlers
    ]
    return replace(found, records=[*kept, *mapped])


def _several(middlewares: Any) -> Any:
    """Return them as a tuple; what is none is refused later, with all else."""
    return tuple(middlewares) if isinstance(middlewares, Iterable) else middlewares


def _default_name(paths: Sequence[str], caller: str) -> str:
    module = next(iter(paths), "").partition(".")[0]
    return module or (script_name() if caller == "__main__" else caller).partition(".")[0]


class _Callable(ModuleType):
    """The module itself, callable: `cqrs.bootstrap(...)` and `cqrs.bootstrap.bootstrap(...)` are the same."""

    __call__ = staticmethod(bootstrap)

    if TYPE_CHECKING:
        bootstrap = staticmethod(bootstrap)


sys.modules[__name__].__class__ = _Callable

if TYPE_CHECKING:
    callable_module = _Callable(__name__)
    """What type checkers see as `cqrs.bootstrap`."""
__all__ = ["bootstrap"]
