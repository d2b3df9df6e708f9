import json
import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqrs
from cqrs.codec import ID_LIMIT, KEY_LIMIT, fits
from cqrs.reading import Arrival, Reader, Received, fitting_key


class Shipment(cqrs.Event):
    order: str


class Shipped(cqrs.NotificationEvent[Shipment]):
    topic: str = "shipping"
    event_name: str = "Shipped"


def reader(*, placed: bool = True, notification: bool = False) -> Reader:
    """Return the reader of an application with two handlers of `OrderPlaced` and one of `OrderPaid`."""
    registry = cqrs.Registry()
    if placed:
        placed_event = registry.integration_event(topic="orders", name="OrderPlaced")(_event("OrderPlaced"))
        registry.event_handler(name="receipts")(_handler(placed_event))
        registry.event_handler(name="stock")(_handler(placed_event))
        paid = registry.integration_event(topic="orders", name="OrderPaid")(_event("OrderPaid"))
        registry.event_handler(name="books")(_handler(paid))
    else:
        registry.event_handler(name="books")(_handler(registry.integration_event(topic="orders")(_event("OrderPaid"))))
    if notification:
        registry.event_handler(name="track")(_handler(Shipped))
    app = cqrs.bootstrap(registry=registry, name="shop", database="sqlite+aiosqlite:///unused.db", broker=Nowhere())
    assert app.intake is not None
    return app.intake.consumer().reader


class Nowhere:
    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, envelopes: Any) -> list[Any]:
        return []


def _event(name: str) -> type[cqrs.Event]:
    return type(name, (cqrs.Event,), {"__annotations__": {"order": str}, "__module__": __name__})


def _handler(event: type) -> Any:
    async def handle(event: Any) -> None: ...

    handle.__annotations__["event"] = event
    return handle


def received(body: object, *, topic: str = "orders", place: str | None = "orders/0/7", **headers: str) -> Received:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("__", "-"): value for name, value in headers.items()}
    return Received(topic, b"7", named, raw, place)


def only(arrivals: list[Arrival]) -> Arrival:
    [arrival] = arrivals
    return arrival


def test_a_message_goes_to_each_handler_of_its_event():
    arrivals = reader().read(received({"order": "7"}, ce_id="m1", ce_type="OrderPlaced"))
    assert [arrival.envelope.destination for arrival in arrivals] == ["receipts", "stock"]


def test_headers_and_body_arrive_as_they_were_sent():
    message = received({"order": "7"}, ce_id="m1", ce_type="OrderPaid", correlation_id="c1")
    envelope = only(reader().read(message)).envelope
    assert (envelope.message_id, envelope.key, envelope.topic) == ("m1", "7", "orders")
    assert envelope.payload == message.body
    assert envelope.wire_headers == message.headers


def test_an_event_that_is_not_handled_here_is_left_alone_and_told_of_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    own = reader()
    assert own.read(received(b"not even JSON", ce_id="m1", ce_type="OrderLost")) == []
    assert own.read(received({}, ce_id="m2", ce_type="OrderLost")) == []
    assert caplog.messages == [
        "Events named 'OrderLost' on 'orders' are left alone: this application has no handler of them."
    ]


def test_a_structured_cloud_event_is_read():
    body = {"specversion": "1.0", "id": "m1", "type": "OrderPaid", "source": "till", "data": {"order": "7"}}
    headers = {"content__type": "application/cloudevents+json; charset=utf-8"}
    envelope = only(reader().read(received(body, **headers))).envelope
    assert (envelope.message_id, json.loads(envelope.payload)) == ("m1", {"order": "7"})
    assert envelope.headers["ce_source"] == "till"


@pytest.mark.parametrize(("partitionkey", "expected"), [("7", "7"), (None, None)])
def test_the_key_of_a_structured_cloud_event_may_be_in_its_body(partitionkey: str | None, expected: str | None):
    body = {"id": "m1", "type": "OrderPaid", "partitionkey": partitionkey, "data": {"order": "7"}}
    message = received(body, content__type="application/cloudevents+json")
    assert only(reader().read(replace(message, key=None))).envelope.key == expected


@pytest.mark.parametrize("instead", [None, ""])
@pytest.mark.parametrize("missing", ["id", "type", "data"])
def test_a_structured_cloud_event_without_what_it_needs_is_poison(missing: str, instead: str | None):
    body = {"specversion": "1.0", "id": "m1", "type": "OrderPaid", "data": {"order": "7"}, missing: instead}
    arrivals = reader().read(received(body, content__type="application/cloudevents+json"))
    assert {str(arrival.fault) for arrival in arrivals} == {
        f"The body is no CloudEvent of application/cloudevents+json: it has no '{missing}'."
    }


@pytest.mark.parametrize(("identifier", "name"), [("event_id", "event_name"), ("eventId", "eventName")])
def test_a_body_of_python_cqrs_is_read_by_a_handler_of_the_payload(identifier: str, name: str):
    body = {identifier: "m1", name: "OrderPaid", "topic": "orders", "payload": {"order": "7"}}
    envelope = only(reader().read(received(body))).envelope
    assert (envelope.message_id, json.loads(envelope.payload)) == ("m1", {"order": "7"})


def test_a_body_of_python_cqrs_is_read_by_a_handler_of_the_notification():
    body = {"eventId": "0199-", "eventName": "Shipped", "eventTimestamp": "2026-01-02T03:04:05Z", "payload": {}}
    envelope = only(reader(notification=True).read(received(body, topic="shipping"))).envelope
    assert json.loads(envelope.payload) == {
        "event_id": "0199-",
        "event_name": "Shipped",
        "event_timestamp": "2026-01-02T03:04:05Z",
        "payload": {},
    }


def test_without_a_name_the_only_event_of_the_topic_is_meant():
    assert only(reader(placed=False).read(received({"order": "7"}))).envelope.type == "OrderPaid"


def test_without_a_name_among_several_events_a_message_is_poison_for_every_handler_of_the_topic():
    arrivals = reader().read(received({"order": "7"}))
    assert sorted(arrival.envelope.destination for arrival in arrivals) == ["books", "receipts", "stock"]
    assert {str(arrival.fault) for arrival in arrivals} == {
        (
            "Nothing says which event this is: it has no header ce_type and no event_name in its body, and this "
            "application handles OrderPaid, OrderPlaced from 'orders'."
        )
    }


def test_without_an_id_the_place_in_the_log_is_the_id():
    assert only(reader(placed=False).read(received({"order": "7"}))).envelope.message_id == "orders/0/7"


def test_a_message_id_of_the_broker_comes_before_its_place():
    arrival = only(reader().read(received({"order": "7"}, ce_type="OrderPaid", message_id="p1")))
    assert arrival.envelope.message_id == "p1"


def test_a_message_with_neither_id_nor_place_is_poison():
    fault = only(reader().read(received({"order": "7"}, place=None, ce_type="OrderPaid"))).fault
    assert str(fault).startswith("It has no id, so a second delivery could not be told from the first")


def test_an_empty_id_is_none():
    fault = only(reader().read(received({"order": "7"}, place=None, ce_type="OrderPaid", ce_id=""))).fault
    assert str(fault).startswith("It has no id")
    assert only(reader().read(received({"order": "7"}, ce_type="OrderPaid", ce_id=""))).fault is None


@pytest.mark.parametrize("foreign", ["x" * 256, "a\0b", "a "])
def test_an_id_that_does_not_fit_into_the_tables_is_replaced_by_its_hash(foreign: str):
    ids = {
        only(reader().read(received({"order": "7"}, ce_type="OrderPaid", ce_id=given))).envelope.message_id
        for given in (foreign, foreign, foreign.strip() + "b")
    }
    assert foreign not in ids
    assert len(ids) == 2
    assert all(fits(found, ID_LIMIT) for found in ids)


@pytest.mark.parametrize("kind", ["application/xml", "application/avro"])
def test_another_content_type_than_json_is_poison(kind: str):
    message = received(b"<order/>", ce_id="m1", ce_type="OrderPaid", content__type=kind)
    arrival = only(reader().read(message))
    assert str(arrival.fault) == f"The content type is '{kind}'. This application reads events that are JSON."
    assert arrival.envelope.payload == b"<order/>"
    assert arrival.envelope.message_id == "m1"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[1]", b"7"])
def test_a_foreign_body_that_is_no_json_object_is_poison_with_its_bytes(body: bytes):
    arrival = only(reader(placed=False).read(received(body)))
    assert arrival.fault is not None
    assert arrival.envelope.payload == body


@given(st.none() | st.binary(max_size=600) | st.text(max_size=600))
def test_every_key_fits_into_the_tables(key: bytes | str | None):
    text = fitting_key(key)
    assert (text is None) == (key is None)
    if text is not None:
        assert len(text) <= KEY_LIMIT
        assert "\0" not in text
        assert not text.endswith(" ")
        text.encode()


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_keys_stay_two(one: bytes, other: bytes):
    assert (fitting_key(one) == fitting_key(other)) == (one == other)


@given(
    st.binary(max_size=200),
    st.dictionaries(st.sampled_from(["ce_id", "ce_type", "content-type", "type", "message_id"]), st.text(max_size=20)),
)
def test_whatever_arrives_is_read_or_poison(body: bytes, headers: dict[str, str]):
    for arrival in reader().read(Received("orders", b"7", headers, body, "orders/0/7")):
        assert arrival.envelope.destination in {"books", "receipts", "stock"}
        assert arrival.envelope.headers is not None
