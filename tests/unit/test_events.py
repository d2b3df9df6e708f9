from datetime import UTC, datetime, timedelta
from uuid import UUID

import pydantic
import pytest

import cqrs
from cqrs.events import notification_name


class UserCreated(pydantic.BaseModel):
    user_id: str


class OrderPlaced(cqrs.Event):
    order_id: str


class SignedUp(cqrs.NotificationEvent[UserCreated]):
    topic: str = "users"


class Renamed(cqrs.NotificationEvent[UserCreated]):
    event_name: str = "user.renamed"


def test_an_event_cannot_be_changed():
    event = OrderPlaced(order_id="o1")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        event.order_id = "o2"


def test_the_events_module_has_the_same_event():
    assert cqrs.events.Event is cqrs.Event


def test_a_notification_is_an_event():
    assert issubclass(cqrs.NotificationEvent, cqrs.Event)


def test_a_notification_draws_an_id_that_sorts_by_time():
    ids = [cqrs.NotificationEvent[UserCreated](payload=UserCreated(user_id="u1")).event_id for _ in range(20)]
    assert all(isinstance(event_id, UUID) and event_id.version == 7 for event_id in ids)
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_a_notifications_time_is_now_and_aware():
    event = cqrs.NotificationEvent[UserCreated](payload=UserCreated(user_id="u1"))
    assert event.event_timestamp.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - event.event_timestamp) < timedelta(minutes=1)


def test_a_notification_is_named_after_its_payload():
    assert cqrs.NotificationEvent[UserCreated](payload=UserCreated(user_id="u1")).event_name == "UserCreated"


def test_a_notification_without_a_payload_type_is_named_after_its_class():
    assert cqrs.NotificationEvent(payload={"user_id": "u1"}).event_name == "NotificationEvent"


def test_a_notification_of_a_class_of_its_own_is_named_after_it():
    assert SignedUp(payload=UserCreated(user_id="u1")).event_name == "SignedUp"


def test_a_notifications_class_may_give_its_name_and_topic():
    assert Renamed(payload=UserCreated(user_id="u1")).event_name == "user.renamed"
    assert SignedUp(payload=UserCreated(user_id="u1")).topic == "users"


def test_an_instance_overrides_its_classs_name_and_topic():
    event = Renamed(payload=UserCreated(user_id="u1"), event_name="user.changed", topic="people")
    assert (event.event_name, event.topic) == ("user.changed", "people")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (SignedUp, "SignedUp"),
        (Renamed, "user.renamed"),
        (cqrs.NotificationEvent[UserCreated], "UserCreated"),
        (cqrs.NotificationEvent, "NotificationEvent"),
    ],
)
def test_the_name_of_a_class_of_notifications_is_that_of_its_instances(
    kind: type[cqrs.NotificationEvent[UserCreated]], name: str
):
    assert notification_name(kind) == kind(payload=UserCreated(user_id="u1")).event_name == name


def test_a_notification_has_no_key_unless_it_is_given_one():
    payload = UserCreated(user_id="u1")
    assert cqrs.NotificationEvent[UserCreated](payload=payload).key is None
    assert cqrs.NotificationEvent[UserCreated](payload=payload, key="u1").key == "u1"


def test_a_notification_checks_its_payload():
    with pytest.raises(pydantic.ValidationError, match="user_id"):
        cqrs.NotificationEvent[UserCreated](payload={})
