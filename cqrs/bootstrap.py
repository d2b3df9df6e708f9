"""The composition root: the only module that knows all others, and where everything is decided, once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast

from cqrs.checks import NO_DATABASE, Blueprint, Found, Wishes, check, is_number
from cqrs.codec import BROKER
from cqrs.context import Context, transaction_of
from cqrs.deliveries import deliveries_of
from cqrs.errors import ConfigurationError, Problem
from cqrs.mediator import Mediator
from cqrs.plan import make_plans
from cqrs.registry import Binder, Kind, Middleware, Registry, default_registry
from cqrs.retry import OnDead, Policies, Retry, policies
from cqrs.scan import scan as scan_packages
from cqrs.scan import script_name
from cqrs.signature import Injector, Resolver

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

    from cqrs.consuming import Consumer
    from cqrs.outbox.database import Database
    from cqrs.outbox.publisher import Publisher
    from cqrs.outbox.storage import Storage

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
    return compose(Blueprint(wishes, _with_bound(found, binders), container, tuple(middlewares)))


def compose(blueprint: Blueprint) -> Mediator:
    """Return the application of a blueprint: that of `bootstrap`, or another one's with parts exchanged.

    Raises one `ConfigurationError` that lists everything that is wrong with the wiring.
    """
    wishes, found = blueprint.wishes, blueprint.found
    problems = list(found.problems)
    problems.extend(
        Problem(
            f"middlewares={middleware!r} cannot be called", "Pass `async def middleware(message, context, call_next)`."
        )
        for middleware in cast("Sequence[Any]", blueprint.middlewares)
        if not callable(middleware)
    )
    resolver = _resolver(blueprint.container, problems)
    from_context: dict[type, Callable[[Context], Any]] = {
        Context: lambda context: context,
        Mediator: lambda context: context.app,
    }
    connected = _database(wishes, problems)
    publisher = _publisher(wishes, problems)
    cures = {"AsyncSession": NO_DATABASE}
    if wishes.database is not None:
        from sqlalchemy.ext.asyncio import AsyncSession

        from_context[AsyncSession] = lambda context: transaction_of(context).session
    injector = Injector(from_context, resolver, cures)
    plans = make_plans(found.records, found.publications, injector, problems, script_name())
    check(wishes, found, plans, problems)
    if problems:
        raise ConfigurationError(sorted(problems, key=str))
    resources = [resolver] if hasattr(resolver, "__aenter__") else []
    app = Mediator(
        wishes.name,
        plans,
        [registry.publications for registry in (*found.registries, default_registry)],
        middlewares=blueprint.middlewares,
        resources=resources,
        blueprint=blueprint,
    )
    if connected is not None:
        app.storage = _storage(app, wishes, connected, publisher)
    return app


# What the application has


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


def _with_bound(found: Found, mappers: Iterable[tuple[Kind, Mapper | None]]) -> Found:
    bound = Registry()
    for kind, mapper in mappers:
        if mapper is not None:
            mapper(Binder(kind, bound))
    decorated = {record.target: record for record in found.records}
    targets = {record.target for record in bound.handlers}
    kept = [record for record in found.records if record.target not in targets]
    mapped = [
        replace(record, options=decorated[record.target].options) if record.target in decorated else record
        for record in bound.handlers
    ]
    return replace(found, records=[*kept, *mapped])


def _default_name(paths: Sequence[str], caller: str) -> str:
    module = next(iter(paths), None) or (script_name() if caller == "__main__" else caller)
    return module.partition(".")[0]


def _resolver(container: Any, problems: list[Problem]) -> Resolver:
    if container is None or isinstance(container, Mapping):
        from cqrs.integrations.mapping import MappingResolver

        return MappingResolver(container or {}, problems)
    if not isinstance(getattr(container, "providers", None), Mapping):
        from cqrs.integrations.mapping import MappingResolver

        what = (
            f"container={container!r} is neither a dependency-injector container nor a mapping from types to factories"
        )
        problems.append(Problem(what, "Pass Container() or {Orders: make_orders}."))
        return MappingResolver({}, problems)
    from cqrs.integrations.dependency_injector import ContainerResolver

    return ContainerResolver(container)


# What it stands on


def _database(wishes: Wishes, problems: list[Problem]) -> Database | None:
    if wishes.database is None:
        if wishes.broker is not None:
            what, cure = "There is a broker, but no database to save events in", "Give bootstrap a database."
            problems.append(Problem(what, cure))
        return None
    from cqrs.outbox.database import connect

    database = connect(wishes.database, problems, prefix=wishes.prefix, schema=wishes.schema, migrate=wishes.migrate)
    if database is not None and not database.dialect.carries_log:
        wrong = [
            name
            for name, asked in (("carrier='log'", wishes.carrier == "log"), ("listen_url=", wishes.listen_url))
            if asked
        ]
        problems.extend(Problem(f"{name} needs PostgreSQL", "Leave it out.") for name in wrong)
    return database


def _publisher(wishes: Wishes, problems: list[Problem]) -> Publisher | None:
    if wishes.broker is None:
        return None
    from cqrs.brokers.urls import connect, from_object
    from cqrs.outbox.relay import Pace

    find = connect if isinstance(wishes.broker, str) else from_object
    pace = Pace(lease=wishes.lease) if is_number(wishes.lease, 0.001) else Pace()
    return find(wishes.broker, problems, slots=wishes.slots, timeout=pace.deadline)


def _storage(app: Mediator, wishes: Wishes, database: Database, publisher: Publisher | None) -> Storage:
    from cqrs.brokers.local import Local
    from cqrs.consuming import Consumer
    from cqrs.outbox.admission import Admission
    from cqrs.outbox.relay import Pace
    from cqrs.outbox.storage import Keeping, Storage
    from cqrs.outbox.store import Store
    from cqrs.outbox.verdicts import Judge
    from cqrs.reading import Reader

    store = Store(
        database.dialect,
        database.writers,
        database.readers,
        prefix=database.prefix,
        schema=database.schema,
        slots=wishes.slots,
        strict=wishes.ordering == "strict",
        logged=wishes.carrier == "log",
    )
    pace = Pace(lease=wishes.lease, grace=wishes.grace, **database.dialect.pace)
    deliveries = deliveries_of(app.plans.values(), retry=wishes.retry, on_dead=wishes.on_dead)
    local = Local(
        app,
        deliveries.by_name,
        taken=store.inbox.taken,
        stopping=lambda: storage.relay.stopping,
        patience=pace.deadline if database.dialect.locks else None,
    )
    publishers: dict[str, Publisher] = dict.fromkeys(deliveries.handlers, local)
    if publisher is not None:
        publishers[BROKER] = publisher
    storage = Storage(
        wishes.name,
        database,
        store,
        publishers=publishers,
        handlers=list(deliveries.handlers),
        end=deliveries.end,
        skipping=deliveries.skipping,
        publishes=wishes.publishes,
        relays=wishes.relay,
        pace=pace,
        keeping=Keeping(inbox=wishes.inbox_retention, dead=wishes.dead_retention),
        listen_url=wishes.listen_url,
    )

    def make_consumer() -> Consumer:
        receiving = Local(
            app,
            deliveries.by_name,
            taken=store.inbox.taken,
            stopping=lambda: consumer.stopping,
            patience=pace.deadline,
            lead=0.5,
        )
        consumer = Consumer(
            Reader(deliveries.by_topic),
            receiving.publish,
            Admission(store, deliveries.skipping),
            Judge(deliveries.end),
            slot_of=store.slot_of,
            parked=storage.relay.look,
        )
        return consumer

    if publisher is not None:
        app.make_consumer = make_consumer
        app.consume = partial(_consume, app, publisher, wishes)
    return storage


def _consume(app: Mediator, publisher: Publisher, wishes: Wishes) -> AbstractAsyncContextManager[Consumer]:
    from cqrs.integrations.faststream import consumption

    assert app.make_consumer is not None  # noqa: S101 - where there is a publisher
    return consumption(publisher, app.make_consumer(), name=wishes.name, grace=wishes.grace)


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
