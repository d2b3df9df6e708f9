"""Events: what has happened, told inside the application or published to others."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import pydantic
from uuid_utils.compat import uuid7

from cqrs.messages import Message

Payload = TypeVar("Payload")


class Event(Message):
    """Something that has happened, named in the past tense. Local unless it is declared as published."""


class NotificationEvent(Event, Generic[Payload]):
    """An event that carries its own id, time, name and topic around a payload.

    `topic`, `event_name` and `key` are given per instance, or per class as defaults. Emitting one with a topic
    publishes it; the id that it is saved under is written into `event_id`.
    """

    model_config = pydantic.ConfigDict(frozen=False)

    event_id: UUID = pydantic.Field(default_factory=uuid7)
    event_timestamp: datetime = pydantic.Field(default_factory=lambda: datetime.now(UTC))
    event_name: str = ""
    topic: str = ""
    key: str | None = None
    payload: Payload

    def model_post_init(self, _context: Any, /) -> None:
        """Name an event that was given no name after its payload's type, or after its own class."""
        if not self.event_name:
            self.event_name = notification_name(type(self))


def notification_name(kind: type[NotificationEvent[Any]]) -> str:
    """Return the name on the wire of a class of notifications: its default, its payload's type, or its own."""
    default = kind.model_fields["event_name"].default
    arguments = kind.__pydantic_generic_metadata__["args"]
    return str(default or (getattr(arguments[0], "__name__", "") if arguments else "") or kind.__name__)
