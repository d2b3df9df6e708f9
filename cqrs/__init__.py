"""CQRS and messaging: decorated handlers, one transaction a command, events that arrive once in effect.

Every name loads its module at its first use, so that `import cqrs` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cqrs import events, migrations
    from cqrs.bootstrap import callable_module as bootstrap
    from cqrs.codec import Envelope
    from cqrs.context import Call, Context
    from cqrs.errors import (
        CommitUnknown,
        ConfigurationError,
        CqrsError,
        DatabaseUnreachable,
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
        PublishError,
        QueryViolation,
        SchemaError,
        TransactionMisuse,
    )
    from cqrs.events import Event, NotificationEvent
    from cqrs.handlers import EventHandler, RequestHandler
    from cqrs.mediator import EventMediator, Mediator, RequestMediator
    from cqrs.messages import Command, Query, Request, Response
    from cqrs.outbox import Failed, Fate, Publisher, Unavailable
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
    from cqrs.running import current_session
    from cqrs.schema import metadata

_MODULES = {
    "codec": ("Envelope",),
    "context": ("Call", "Context"),
    "errors": (
        "CommitUnknown",
        "ConfigurationError",
        "CqrsError",
        "DatabaseUnreachable",
        "DecodingError",
        "DrainTimeout",
        "EncodingError",
        "EventCycle",
        "ForeignTask",
        "MisuseError",
        "NotHandled",
        "NotOpen",
        "OutsideHandler",
        "Problem",
        "PublishError",
        "QueryViolation",
        "SchemaError",
        "TransactionMisuse",
    ),
    "events": ("Event", "NotificationEvent"),
    "handlers": ("EventHandler", "RequestHandler"),
    "mediator": ("EventMediator", "Mediator", "RequestMediator"),
    "messages": ("Command", "Query", "Request", "Response"),
    "outbox": ("Failed", "Fate", "Publisher", "Unavailable"),
    "registry": (
        "Middleware",
        "Registry",
        "command_handler",
        "default_registry",
        "event_handler",
        "integration_event",
        "query_handler",
    ),
    "retry": ("Retry",),
    "running": ("current_session",),
    "schema": ("metadata",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Call",
    "Command",
    "CommitUnknown",
    "ConfigurationError",
    "Context",
    "CqrsError",
    "DatabaseUnreachable",
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
    "PublishError",
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
    "Unavailable",
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


def __getattr__(name: str) -> Any:
    if name in ("bootstrap", "events", "migrations"):
        return import_module(f"cqrs.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'cqrs' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"cqrs.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return __all__
