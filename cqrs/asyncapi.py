"""An application's AsyncAPI 3.0 document: what it publishes and consumes, where, and how it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cqrs.codec import Codec
from cqrs.describe import describe, plans_of
from cqrs.signature import path_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cqrs.description import Application, Message
    from cqrs.mediator import Mediator
    from cqrs.plan import Plan

PROTOCOLS = {"kafka": "kafka", "kafka+ssl": "kafka-secure", "amqp": "amqp", "amqps": "amqps"}
TEXT = {"type": "string"}
HEADERS: dict[str, Any] = {
    "ce_id": {**TEXT, "description": "The message's id: of two with the same id one is a repetition."},
    "ce_source": {**TEXT, "description": "The application that emitted it."},
    "ce_specversion": {"const": "1.0"},
    "ce_time": {**TEXT, "format": "date-time"},
    "content-type": {"const": "application/json"},
    "correlation_id": {**TEXT, "description": "The same for everything that one request has caused."},
    "causation_id": {**TEXT, "description": "The id of the message that caused this one."},
    "traceparent": {**TEXT, "description": "W3C Trace Context."},
    "tracestate": TEXT,
    "baggage": TEXT,
}
REQUIRED = ["ce_id", "ce_type", "ce_source", "ce_specversion", "ce_time", "content-type", "correlation_id"]


def asyncapi(app: Mediator, *, version: str = "1.0.0") -> dict[str, Any]:
    """Return the document of an application. It need not be open.

    An event is published if a handler's own code names it, or if nobody here handles it; it is consumed if it is
    handled here and comes from a broker.
    """
    described = describe(app)
    routed = [message for message in described.messages if message.route is not None]
    plans = {path_of(plan.message): plan for plan in plans_of(app)}
    schemas: dict[str, Any] = {}
    messages = {_id(message): _message(message, plans[message.type], schemas) for message in routed}
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": described.name, "version": version},
        "defaultContentType": "application/json",
        "servers": _servers(described),
        "channels": _channels(routed),
        "operations": _operations(described, routed),
        "components": {"messages": messages, "schemas": schemas},
    }
    return {name: part for name, part in document.items() if part}


def _id(message: Message) -> str:
    assert message.route is not None  # noqa: S101 - only those are asked for
    return message.route.name


def _channel(message: Message) -> str:
    assert message.route is not None  # noqa: S101 - only those are asked for
    return message.route.topic or message.route.name


def _servers(described: Application) -> dict[str, Any]:
    scheme, separator, host = (described.broker or "").partition("://")
    return {"broker": {"host": host, "protocol": PROTOCOLS.get(scheme, scheme)}} if separator else {}


def _channels(messages: Iterable[Message]) -> dict[str, Any]:
    channels: dict[str, Any] = {}
    for message in messages:
        address = message.route.topic if message.route is not None else None
        channel = channels.setdefault(_channel(message), {"address": address, "messages": {}})
        channel["messages"][_id(message)] = {"$ref": f"#/components/messages/{_pointer(_id(message))}"}
    return channels


def _operations(described: Application, messages: Iterable[Message]) -> dict[str, Any]:
    emitted = {name for message in described.messages for handler in message.handlers for name in handler.emits}
    operations: dict[str, Any] = {}
    for message in messages:
        if message.name in emitted or not message.handlers:
            _add_operation(operations, "send", "publish", message)
        if message.consumed:
            _add_operation(operations, "receive", "consume", message)
    return operations


def _add_operation(operations: dict[str, Any], action: str, verb: str, message: Message) -> None:
    channel = f"#/channels/{_pointer(_channel(message))}"
    new = {"action": action, "channel": {"$ref": channel}, "messages": []}
    operation = operations.setdefault(f"{verb}.{_channel(message)}", new)
    operation["messages"].append({"$ref": f"{channel}/messages/{_pointer(_id(message))}"})


def _message(message: Message, plan: Plan, schemas: dict[str, Any]) -> dict[str, Any]:
    name = _id(message)
    schema = Codec(plan.message).schema(f"#/components/schemas/{_pointer(name)}.{{model}}")
    for inner, definition in schema.pop("$defs", {}).items():
        schemas[f"{name}.{inner}"] = definition
    schemas[name] = schema
    described: dict[str, Any] = {
        "name": name,
        "title": message.name,
        "contentType": "application/json",
        "correlationId": {"location": "$message.header#/correlation_id"},
        "headers": {
            "type": "object",
            "properties": {"ce_type": {"const": name}, **HEADERS},
            "required": REQUIRED,
        },
        "payload": {"$ref": f"#/components/schemas/{_pointer(name)}"},
    }
    key = message.route.key if message.route is not None else None
    if key is not None:
        described["bindings"] = {"kafka": {"key": {**TEXT, "description": f"{key}, as text"}}}
    return described


def _pointer(name: str) -> str:
    """Return a name as a JSON pointer has it."""
    return name.replace("~", "~0").replace("/", "~1")
