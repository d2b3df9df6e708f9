"""Every message type's plan, made once at bootstrap: which handlers, where its events go, how they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cqrs.codec import TOPIC_LIMIT, Codec
from cqrs.errors import EncodingError, Problem
from cqrs.events import NotificationEvent, notification_name
from cqrs.messages import Request
from cqrs.registry import HandlerRecord, Kind, Publication, source_of
from cqrs.signature import Handler, name_of, path_of, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cqrs.sources import Injector


class Route(NamedTuple):
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
    local: tuple[Handler, ...] = ()
    """Of a local event: the handlers that run in the emitting command's transaction, one after the other."""
    concurrent: tuple[Handler, ...] = ()
    """Of a local event: those that run there side by side, after the others."""
    codec: Codec | None = None
    """None where events of this type are never saved."""

    @property
    def name(self) -> str:
        """The event's name on the wire and in tables."""
        if self.publication is not None:
            return self.publication.name
        return notification_name(self.message) if self.notification else self.message.__name__

    @property
    def topic(self) -> str | None:
        """Where events of this type are published, as far as the class says; None of a local event."""
        if self.publication is not None:
            return self.publication.topic
        return (self.message.model_fields["topic"].default or None) if self.notification else None  # type: ignore[attr-defined]

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

    @property
    def durable(self) -> bool:
        """Whether there are handlers that wait in the outbox, also for an event that is not published."""
        return len(self.handlers) > len(self.local) + len(self.concurrent)


@dataclass(frozen=True, slots=True)
class Found:
    """A handler that was found for a message; None where its record is unusable, which a problem says."""

    record: HandlerRecord
    name: str
    handler: Handler | None


def make_plans(
    records: Iterable[HandlerRecord],
    publications: Mapping[type, Publication],
    injector: Injector,
    problems: list[Problem],
    script: str = "__main__",
) -> dict[type, Plan]:
    """Return the plan of every message that the records handle; what is wrong is added to `problems`."""
    found: dict[type, list[Found]] = {}
    for record in dict.fromkeys(records):
        for message, handler in read(record, injector, problems, script):
            found.setdefault(message, []).append(Found(record, name_of(record, script), handler))
    _refuse_shared_names(found, problems)
    return {message: _make_plan(message, handlers, publications, problems) for message, handlers in found.items()}


def event_plan(event: type, publication: Publication | None, handlers: Sequence[Handler] = ()) -> Plan:
    """Return the plan of an event; also of one that nobody here handles."""
    local = [handler for handler in handlers if not handler.durable]
    notification = issubclass(event, NotificationEvent)
    saved = publication is not None or notification or len(local) < len(handlers)
    return Plan(
        event,
        Kind.EVENT,
        tuple(handlers),
        publication,
        notification,
        local=tuple(handler for handler in local if not handler.concurrent),
        concurrent=tuple(handler for handler in local if handler.concurrent),
        codec=Codec(event) if saved else None,
    )


def check_publication(publication: Publication, problems: list[Problem]) -> None:
    """Add what is wrong with a published event: it is none, cannot be encoded, or has no such topic or key."""
    event: Any = publication.event
    where = source_of(event)
    if not isinstance(event, type) or issubclass(event, Request):
        cure = "Publish a class of its own, which says what has happened: `class OrderPlaced(cqrs.Event)`."
        problems.append(Problem(f"{path_of(event)} is no event, and only events are published", cure, where))
        return
    _check_encoding(event, problems)
    topic: Any = publication.topic
    if not isinstance(topic, str) or not 0 < len(topic) <= TOPIC_LIMIT:
        cure = f'Pass a text of at most {TOPIC_LIMIT} characters: topic="orders".'
        problems.append(Problem(f"{path_of(event)}: topic={topic!r} cannot be", cure, where))
    if publication.key and not _has_attribute(event, publication.key):
        cure = "Name one of the event's fields or properties."
        problems.append(Problem(f"{path_of(event)} has no '{publication.key}' to be its key", cure, where))


def _check_encoding(event: type, problems: list[Problem]) -> None:
    try:
        Codec(event).check()
    except EncodingError as error:
        cure = "Give every field a type that pydantic can write and read."
        what = f"{path_of(event)} cannot be written as JSON and read back: {error}"
        problems.append(Problem(what, cure, source_of(event)))


def _make_plan(
    message: type, found: Sequence[Found], publications: Mapping[type, Publication], problems: list[Problem]
) -> Plan:
    kinds = {each.record.kind for each in found}
    handlers = [each.handler for each in found if each.handler is not None]
    kind = found[0].record.kind
    if len(kinds) > 1 or (kind is not Kind.EVENT and len(found) > 1):
        places = ", ".join(f"{each.name} ({source_of(each.record.target)})" for each in found)
        what = f"{path_of(message)} has {len(found)} {' and '.join(sorted(kinds))} handlers, expected one: {places}"
        problems.append(Problem(what, "Keep one, or make it an event if several should hear of it."))
    if kind is not Kind.EVENT:
        return Plan(message, kind, tuple(handlers[:1]))
    plan = event_plan(message, publications.get(message), handlers)
    if plan.codec is not None and plan.publication is None:
        _check_encoding(message, problems)
    for handler in handlers:
        if handler.concurrent and (handler.durable or plan.publication is not None):
            what = (
                f"{handler.name} is concurrent, but is delivered in the background, where every handler is on its own"
            )
            problems.append(Problem(what, "Remove concurrent=True.", handler.where))
    return plan


def _refuse_shared_names(found: Mapping[type, Sequence[Found]], problems: list[Problem]) -> None:
    owners: dict[str, HandlerRecord] = {}
    for handlers in found.values():
        for each in handlers:
            owner = owners.setdefault(each.name, each.record)
            if owner.target is not each.record.target:
                places = f"{source_of(owner.target)} and {source_of(each.record.target)}"
                what = f"Two handlers are named '{each.name}': {places}"
                problems.append(
                    Problem(what, "Give one of them a name of its own with name=...; names stand in tables.")
                )


def _has_attribute(event: type, name: str) -> bool:
    fields = getattr(event, "model_fields", {}) or getattr(event, "__dataclass_fields__", {})
    return name in fields or hasattr(event, name) or name in getattr(event, "__annotations__", {})
