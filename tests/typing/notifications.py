"""Notifications keep the type of their payload."""

from datetime import datetime
from typing import assert_type
from uuid import UUID

import pydantic

import cqrs


class UserCreated(pydantic.BaseModel):
    user_id: str


class SignedUp(cqrs.NotificationEvent[UserCreated]):
    topic: str = "users"


def the_fields_of_a_notification(event: cqrs.NotificationEvent[UserCreated]) -> None:
    assert_type(event.payload, UserCreated)
    assert_type(event.payload.user_id, str)
    assert_type(event.event_id, UUID)
    assert_type(event.event_timestamp, datetime)
    assert_type(event.event_name, str)
    assert_type(event.topic, str)
    assert_type(event.key, str | None)


def how_a_notification_is_made() -> None:
    payload = UserCreated(user_id="u1")
    assert_type(
        cqrs.NotificationEvent[UserCreated](payload=payload, topic="users"), cqrs.NotificationEvent[UserCreated]
    )
    assert_type(cqrs.NotificationEvent(payload=payload), cqrs.NotificationEvent[UserCreated])
    assert_type(SignedUp(payload=payload, key="u1").payload, UserCreated)
    cqrs.NotificationEvent[UserCreated](payload=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@cqrs.event_handler
async def on_user(event: cqrs.NotificationEvent[UserCreated]) -> None:
    assert_type(event.payload.user_id, str)


def a_notification_is_an_event(event: SignedUp, context: cqrs.Context) -> None:
    plain: cqrs.Event = event
    context.emit(plain)
