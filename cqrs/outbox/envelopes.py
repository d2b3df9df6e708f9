"""What an event is saved as: one envelope for the broker, or one for each handler that it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from cqrs.codec import BROKER, Envelope, headers_text, key_text, saved_headers
from cqrs.context import trace_of
from cqrs.errors import EncodingError

if TYPE_CHECKING:
    from cqrs.context import Context
    from cqrs.plan import Plan, Route


def envelopes_of(
    plan: Plan, event: Any, route: Route | None, context: Context, *, source: str, publishes: bool
) -> list[Envelope]:
    """Return the envelopes of an event, encoded now; a notification is told its id.

    Raises `EncodingError` where it cannot be encoded, has a key that cannot be used, or would reach nobody.
    """
    destinations = [handler.name for handler in plan.handlers if handler.durable or (route and not publishes)]
    if route and publishes:
        destinations = [BROKER]
    if route and not destinations:
        raise EncodingError(
            f"{plan.name} is published to '{route.topic}', but there is neither a broker nor a handler of it. "
            "Give bootstrap a broker, or decorate a handler of it."
        )
    name, topic, key = (route.name, route.topic, route.key) if route else (plan.name, plan.name, None)
    trace = trace_of(context).caused()
    if plan.notification:
        event.event_id = UUID(trace.message_id)
    assert plan.codec is not None  # noqa: S101 - what is saved has one
    payload = plan.codec.encode(event)
    headers = headers_text(saved_headers(trace, source))
    text = key_text(key, plan.name)
    return [Envelope(trace.message_id, where, topic, text, name, headers, payload) for where in destinations]
