"""From a blueprint to an application: the only module that knows all others, and where all are put together, once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cqrs.checks import NO_DATABASE, Blueprint, Wishes, check, own_publications
from cqrs.codec import BROKER
from cqrs.context import Context, transaction_of
from cqrs.deliveries import Deliveries, deliveries_of
from cqrs.errors import ConfigurationError, Problem
from cqrs.injection import Source
from cqrs.mediator import Mediator
from cqrs.options import is_number, wrong_middlewares
from cqrs.plan import make_plans
from cqrs.registry import default_registry, source_of
from cqrs.scan import script_name
from cqrs.sources import Injector, Resolver

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from cqrs.brokers.local import Local
    from cqrs.consuming import Consumer
    from cqrs.outbox.database import Database
    from cqrs.outbox.publisher import Publisher
    from cqrs.outbox.relay import Pace
    from cqrs.outbox.storage import Storage
    from cqrs.outbox.store import Store
    from cqrs.registry import Publication

log = logging.getLogger(__name__)

NOT_ASYNC = (
    "If it is the transaction's, ask for AsyncSession or AsyncConnection of sqlalchemy.ext.asyncio; "
    "else add a provider of that type to the container."
)


def compose(blueprint: Blueprint) -> Mediator:
    """Return the application of a blueprint: that of `bootstrap`, or another one's with parts exchanged.

    Raises one `ConfigurationError` that lists everything that is wrong with the wiring.
    """
    wishes, found = blueprint.wishes, blueprint.found
    problems = list(found.problems)
    problems.extend(wrong_middlewares(blueprint.middlewares))
    resolver = _resolver(blueprint.container, problems)
    from_context: dict[type, Source] = {
        Context: _of_context(lambda context: context),
        Mediator: _of_context(lambda context: context.app),
    }
    connected = _database(wishes, problems)
    publisher = _publisher(wishes, problems)
    cures = {"AsyncSession": NO_DATABASE, "AsyncConnection": NO_DATABASE, "Session": NOT_ASYNC, "Connection": NOT_ASYNC}
    if wishes.database is not None:
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

        from_context[AsyncSession] = _of_context(lambda context: transaction_of(context).session)
        from_context[AsyncConnection] = Source(_connect, of_context=True, awaited=True)
    injector = Injector(from_context, resolver, cures)
    plans = make_plans(found.records, found.publications, injector, problems, script_name())
    check(wishes, found, plans, problems)
    _refuse_topics(own_publications(found, plans), publisher, problems)
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
        _store_in(app, wishes, connected, publisher)
    return app


def _connect(context: Context) -> Awaitable[AsyncConnection]:
    return transaction_of(context).connect()


def _of_context(get: Callable[[Context], Any]) -> Source:
    return Source(get, of_context=True, plain=True)


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


def _refuse_topics(publications: Sequence[Publication], publisher: Publisher | None, problems: list[Problem]) -> None:
    """Add the topics that the broker will never have."""
    if publisher is None:
        return
    from cqrs.outbox.publisher import Naming

    if isinstance(publisher, Naming):
        for each in publications:
            reason = publisher.refusal(each.topic)
            if reason is not None:
                what = f"{each.event.__qualname__} cannot be published to '{each.topic}'"
                problems.append(Problem(what, f"{reason}.", source_of(each.event)))


def _store_in(app: Mediator, wishes: Wishes, database: Database, publisher: Publisher | None) -> None:
    """Give an application its storage, and where there is a broker, the way in from there."""
    from cqrs.outbox.relay import Pace

    ground = _Ground(
        app,
        _store(wishes, database),
        deliveries_of(app.plans.values(), retry=wishes.retry, on_dead=wishes.on_dead),
        Pace(lease=wishes.lease, grace=wishes.grace, **database.dialect.pace),
    )
    storage = app.storage = _storage(ground, wishes, database, publisher)
    if publisher is not None:
        app.intake = Intake(ground, storage, publisher)


def _store(wishes: Wishes, database: Database) -> Store:
    from cqrs.outbox.store import Store

    return Store(
        database.dialect,
        database.writers,
        database.readers,
        prefix=database.prefix,
        schema=database.schema,
        slots=wishes.slots,
        strict=wishes.ordering == "strict",
        logged=wishes.carrier == "log",
    )


@dataclass(frozen=True, slots=True)
class _Ground:
    """What relaying and consuming stand on."""

    app: Mediator
    store: Store
    deliveries: Deliveries
    pace: Pace

    def local(self, stopping: Callable[[], bool], *, patience: float | None, lead: float = 1.0) -> Local:
        """Return what delivers to the application's handlers."""
        from cqrs.brokers.local import Local

        known, taken = self.deliveries.by_name, self.store.inbox.taken
        return Local(self.app, known, taken=taken, stopping=stopping, patience=patience, lead=lead)


def _storage(ground: _Ground, wishes: Wishes, database: Database, publisher: Publisher | None) -> Storage:
    from cqrs.outbox.storage import Keeping, Storage

    deliveries, pace = ground.deliveries, ground.pace
    local = ground.local(lambda: storage.relay.stopping, patience=pace.deadline if database.dialect.locks else None)
    publishers: dict[str, Publisher] = dict.fromkeys(deliveries.handlers, local)
    if publisher is not None:
        publishers[BROKER] = publisher
    storage = Storage(
        wishes.name,
        database,
        ground.store,
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
    return storage


@dataclass(frozen=True, slots=True)
class Intake:
    """How an application consumes; see `cqrs.mediator.Intake`."""

    ground: _Ground
    storage: Storage
    publisher: Publisher

    def consumer(self) -> Consumer:
        """Return a consumer that nobody feeds yet."""
        from cqrs.consuming import Consumer
        from cqrs.outbox.admission import Admission
        from cqrs.outbox.faults import is_absence
        from cqrs.outbox.verdicts import Judge
        from cqrs.reading import Reader

        store, deliveries = self.ground.store, self.ground.deliveries
        local = self.ground.local(lambda: consumer.stopping, patience=self.ground.pace.deadline, lead=0.5)
        consumer = Consumer(
            Reader(deliveries.by_topic),
            local.publish,
            Admission(store, deliveries.skipping),
            Judge(deliveries.end),
            slot_of=store.slot_of,
            parked=self.storage.relay.look,
            is_absence=is_absence,
        )
        return consumer

    def open(self) -> AbstractAsyncContextManager[Consumer]:
        """Feed a consumer from the application's broker."""
        consumer, name = self.consumer(), self.ground.app.name
        if not consumer.reader.plans:
            log.info("'%s' handles no published event, so it consumes nothing.", name)
            return nullcontext(consumer)
        from cqrs.integrations.faststream import consumption

        return consumption(self.publisher, consumer, name=name, grace=self.ground.pace.grace)
