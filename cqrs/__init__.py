"""CQRS and messaging: decorated handlers, one transaction a command, events that arrive once in effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cqrs import bootstrap, events
from cqrs.context import Context, current_session
from cqrs.errors import (
    CommitUnknown,
    ConfigurationError,
    CqrsError,
    DecodingError,
    DrainTimeout,
    EncodingError,
    EventCycle,
    ForeignTask,
    MisuseError,
    NotHandled,
    NotOpen,
    OutsideHandler,
    Problem,
    QueryViolation,
    SchemaError,
    TransactionMisuse,
)
from cqrs.events import Event, NotificationEvent
from cqrs.handlers import EventHandler, RequestHandler
from cqrs.mediator import EventMediator, Mediator, RequestMediator
from cqrs.messages import Command, Query, Request, Response
from cqrs.registry import (
    Middleware,
    Registry,
    command_handler,
    default_registry,
    event_handler,
    integration_event,
    query_handler,
)
from cqrs.retry import Retry

if TYPE_CHECKING:
    from cqrs import migrations
    from cqrs.codec import Envelope
    from cqrs.outbox import Failed, Fate, Publisher
    from cqrs.schema import metadata

__all__ = [
    "Command",
    "CommitUnknown",
    "ConfigurationError",
    "Context",
    "CqrsError",
    "DecodingError",
    "DrainTimeout",
    "EncodingError",
    "Envelope",
    "Event",
    "EventCycle",
    "EventHandler",
    "EventMediator",
    "Failed",
    "Fate",
    "ForeignTask",
    "Mediator",
    "Middleware",
    "MisuseError",
    "NotHandled",
    "NotOpen",
    "NotificationEvent",
    "OutsideHandler",
    "Problem",
    "Publisher",
    "Query",
    "QueryViolation",
    "Registry",
    "Request",
    "RequestHandler",
    "RequestMediator",
    "Response",
    "Retry",
    "SchemaError",
    "TransactionMisuse",
    "bootstrap",
    "command_handler",
    "current_session",
    "default_registry",
    "event_handler",
    "events",
    "integration_event",
    "metadata",
    "migrations",
    "query_handler",
]

_LATE = {
    "Envelope": ("cqrs.codec", "Envelope"),
    "Failed": ("cqrs.outbox", "Failed"),
    "Fate": ("cqrs.outbox", "Fate"),
    "Publisher": ("cqrs.outbox", "Publisher"),
    "metadata": ("cqrs.schema", "metadata"),
    "migrations": ("cqrs.migrations", None),
}
"""Names that load SQLAlchemy or Alembic, at their first use only."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'cqrs' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LATE[name]
    found = import_module(module)
    return found if attribute is None else getattr(found, attribute)
