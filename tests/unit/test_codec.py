import contextlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, Optional
from uuid import UUID

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cqrs
from cqrs.codec import Codec, Envelope, headers_text, key_text, received_headers, saved_headers
from cqrs.context import Trace
from tests.unit.support import RecordingPublisher


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(pydantic.BaseModel):
    sku: str
    price: Decimal
    tags: tuple[str, ...] = ()


class Placed(cqrs.Event):
    model_config = pydantic.ConfigDict(extra="forbid")

    order_id: UUID
    at: datetime
    on: date
    took: timedelta
    opens: time
    note: Optional[str] = None  # noqa: UP045 - the older spelling is what is tested
    lines: list[Line]
    by_sku: dict[str, int]
    colour: Colour
    kind: Literal["web", "shop"] = "web"
    customer: str = pydantic.Field(alias="customerName")
    total: int | float
    raw: bytes = b""

    @pydantic.computed_field
    @property
    def count(self) -> int:
        return len(self.lines)


FEW = settings(max_examples=40, deadline=None)  # these build large values

texts = st.text()  # all of Unicode that is text: NUL, combining marks, astral planes; no lone surrogates
moments = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 - the limits hold for aware and for naive ones
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.just(UTC) | st.none(),
)
lines = st.builds(Line, sku=texts, price=st.decimals(allow_nan=False, allow_infinity=False), tags=st.tuples(texts))
placed = st.builds(
    Placed,
    order_id=st.uuids(),
    at=moments,
    on=st.dates(),
    took=st.timedeltas(min_value=timedelta(days=-10_000), max_value=timedelta(days=10_000)),
    opens=st.times(),
    note=st.none() | texts,
    lines=st.lists(lines, max_size=3),
    by_sku=st.dictionaries(texts, st.integers(), max_size=3),
    colour=st.sampled_from(Colour),
    kind=st.sampled_from(["web", "shop"]),
    customerName=texts,
    total=st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    raw=texts.map(str.encode),
)


@FEW
@given(event=placed)
def test_an_event_comes_back_as_it_was(event: Placed):
    codec = Codec(Placed)
    back = codec.decode(codec.encode(event))
    assert back == event
    assert type(back.total) is type(event.total)


@FEW
@given(event=placed)
def test_the_body_is_utf8_json(event: Placed):
    body = json.loads(Codec(Placed).encode(event).decode())
    assert body["customerName"] == event.customer
    assert "count" not in body


@dataclass(frozen=True)
class Shipped:
    order_id: UUID
    weight: Decimal | None
    stops: list[str]


@FEW
@given(
    event=st.builds(
        Shipped, st.uuids(), st.none() | st.decimals(allow_nan=False, allow_infinity=False), st.lists(texts)
    )
)
def test_a_dataclass_comes_back_as_it_was(event: Shipped):
    codec = Codec(Shipped)
    assert codec.decode(codec.encode(event)) == event


@given(payload=st.builds(Line, sku=texts, price=st.just(Decimal(1))), key=st.none() | texts, topic=texts)
def test_a_notification_comes_back_with_its_payload_and_its_id(payload: Line, key: str | None, topic: str):
    codec = Codec(cqrs.NotificationEvent[Line])
    event = cqrs.NotificationEvent[Line](payload=payload, key=key, topic=topic)
    back = codec.decode(codec.encode(event))
    assert back == event
    assert isinstance(back.payload, Line)


class Measured(cqrs.Event):
    value: float
    name: str = "scale"


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinity_comes_back_or_is_refused_at_once(value: float):
    codec = Codec(Measured)
    try:
        body = codec.encode(Measured(value=value))
    except cqrs.EncodingError as error:
        assert "field 'value' of Measured" in str(error)  # noqa: PT017 - either of two outcomes is right
    else:
        assert codec.decode(body).value == value


# What cannot be written


class Bag(cqrs.Event):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    number: int = 1
    anything: Any = None
    raw: bytes = b""
    text: str = ""


def test_a_field_that_cannot_be_written_is_named():
    with pytest.raises(cqrs.EncodingError) as caught:
        Codec(Bag).encode(Bag(anything=object()))
    assert str(caught.value).startswith("field 'anything' of Bag cannot be written as JSON: ")
    assert str(caught.value).endswith(". Give it a type that pydantic serialises.")


@pytest.mark.parametrize(
    ("values", "field"),
    [({"raw": b"\xff"}, "raw"), ({"text": "\ud800"}, "text"), ({"anything": [{"deep": object()}]}, "anything")],
    ids=["bytes", "surrogate", "nested"],
)
def test_each_kind_of_field_that_cannot_be_written_is_named(values: dict[str, Any], field: str):
    with pytest.raises(cqrs.EncodingError, match=f"field '{field}' of Bag cannot be written as JSON"):
        Codec(Bag).encode(Bag.model_construct(**values))


def test_a_dataclasss_field_that_cannot_be_written_is_named():
    @dataclass
    class Crate:
        number: int
        content: Any

    with pytest.raises(cqrs.EncodingError, match=r"field 'content' of .*Crate cannot be written as JSON"):
        Codec(Crate).encode(Crate(1, object()))


def test_pydantics_error_is_kept_as_the_cause():
    with pytest.raises(cqrs.EncodingError) as caught:
        Codec(Bag).encode(Bag(anything=object()))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"value": "heavy"}', b'{"name": "no value"}', b"\xff\xfe", b'{"value": NaN}x']
)
def test_a_body_that_cannot_be_read_back_is_refused_with_the_reason(body: bytes):
    with pytest.raises(cqrs.DecodingError, match="The body cannot be read back as Measured: "):
        Codec(Measured).decode(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{}", "value: Field required"),
        (b'{"value": "secret"}', "value: Input should be a valid number, unable to parse string as a number"),
        (b"[]", "Input should be an object"),
    ],
)
def test_what_is_wrong_with_a_body_is_told_in_a_line_without_what_it_holds(body: bytes, reason: str):
    with pytest.raises(cqrs.DecodingError) as caught:
        Codec(Measured).decode(body)
    assert str(caught.value) == f"The body cannot be read back as Measured: {reason}"


def test_of_many_faults_the_first_are_told():
    event = pydantic.create_model("Wide", **{f"field_{number}": (int, ...) for number in range(9)})
    with pytest.raises(cqrs.DecodingError) as caught:
        Codec(event).decode(b"{}")
    assert str(caught.value).count("Field required") == 5
    assert str(caught.value).endswith("; ...")


@given(body=st.binary())
def test_any_bytes_are_read_or_refused_but_nothing_else(body: bytes):
    with contextlib.suppress(cqrs.DecodingError):
        Codec(Measured).decode(body)


def test_fields_that_a_newer_version_added_are_left_alone():
    assert Codec(Measured).decode(b'{"value": 1.5, "unit": "kg"}') == Measured(value=1.5)


# Keys


@given(key=st.text(st.characters(exclude_characters="\0 ", exclude_categories=["Cs"]), max_size=255))
def test_a_text_is_its_own_key(key: str):
    assert key_text(key, "Placed") == key


@given(key=st.uuids())
def test_a_uuid_is_written_as_usual(key: UUID):
    assert key_text(key, "Placed") == str(key)


@given(key=st.integers(-(10**20), 10**20))
def test_a_number_is_written_in_decimal(key: int):
    assert key_text(key, "Placed") == str(key)


def test_no_key_is_no_key():
    assert key_text(None, "Placed") is None


def test_a_key_of_255_characters_is_the_longest():
    assert key_text("ä" * 255, "Placed") == "ä" * 255
    with pytest.raises(cqrs.EncodingError) as caught:
        key_text("ä" * 256, "Placed")
    assert str(caught.value) == (
        "The key of Placed has 256 characters. A key has at most 255: use the id of what must stay in order."
    )


def test_a_key_with_a_nul_is_refused():
    with pytest.raises(cqrs.EncodingError) as caught:
        key_text("a\0b", "Placed")
    assert str(caught.value) == "The key of Placed holds a NUL character, which databases refuse. Remove it."


def test_a_key_that_ends_with_a_space_is_refused():
    with pytest.raises(cqrs.EncodingError, match="The key of OrderPlaced ends with a space"):
        key_text("7 ", "OrderPlaced")


def test_a_key_that_is_no_unicode_text_is_refused():
    with pytest.raises(cqrs.EncodingError, match="The key of Placed"):
        key_text("a\ud800", "Placed")


@pytest.mark.parametrize(
    ("key", "shown"), [(True, "bool"), (False, "bool"), (1.5, "float"), (b"k", "bytes"), (("a", 1), "tuple")]
)
def test_a_key_of_another_type_is_refused(key: object, shown: str):
    with pytest.raises(cqrs.EncodingError) as caught:
        key_text(key, "Placed")
    assert str(caught.value) == f"The key of Placed is a {shown}. A key is a str, a UUID or an int."


# Headers


def letter(saved: str) -> Envelope:
    return Envelope("m1", "broker", "orders", "o1", "OrderPlaced", saved, b"{}")


@given(headers=st.dictionaries(texts, texts))
def test_headers_come_back_as_they_were(headers: dict[str, str]):
    assert letter(headers_text(headers)).headers == headers


@given(headers=st.dictionaries(texts, texts))
def test_encoded_headers_are_those_of_the_wire(headers: dict[str, str]):
    envelope = letter(headers_text(headers))
    decoded = {name: value.decode() for name, value in envelope.encoded_headers}
    assert decoded == envelope.wire_headers


@pytest.mark.parametrize("saved", ['{"tries":3}', ' {"tries" : "3"}'])
def test_headers_that_are_no_text_are_made_text(saved: str):
    assert letter(saved).headers == {"tries": "3"}
    assert ("tries", b"3") in letter(saved).encoded_headers


@pytest.mark.parametrize("read", ["headers", "wire_headers", "encoded_headers"])
@pytest.mark.parametrize("saved", ["", "{", "[]", "1", "null", '"text"', "{}, {}"])
def test_headers_that_somebody_broke_are_refused(saved: str, read: str):
    with pytest.raises(cqrs.DecodingError, match="The saved headers are not a JSON object of text"):
        getattr(letter(saved), read)


# The wire: names are for ever


def test_the_headers_of_an_event_are_exactly_these():
    trace = Trace(
        "0197-message",
        "0197-correlation",
        "0197-cause",
        {
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "tracestate": "a=b",
            "baggage": "c=d",
        },
    )
    headers = headers_text(saved_headers(trace, "shop"))
    envelope = Envelope("0197-message", "broker", "orders", "o1", "OrderPlaced", headers, b"{}")
    wire = envelope.wire_headers
    assert datetime.fromisoformat(wire.pop("ce_time")).utcoffset() == timedelta(0)
    assert wire == {
        "ce_id": "0197-message",
        "ce_type": "OrderPlaced",
        "ce_specversion": "1.0",
        "ce_source": "shop",
        "content-type": "application/json",
        "correlation_id": "0197-correlation",
        "causation_id": "0197-cause",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "baggage": "c=d",
    }


def test_an_event_that_nothing_caused_has_no_causation():
    assert "causation_id" not in saved_headers(Trace("m", "m"), "shop")


def test_the_time_is_that_of_rfc_3339_in_microseconds():
    text = saved_headers(Trace("m", "m"), "shop")["ce_time"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert pydantic.TypeAdapter(pydantic.AwareDatetime).validate_json(f'"{text}"').utcoffset() == timedelta(0)


async def test_a_published_event_goes_out_as_its_own_json_under_its_name_topic_and_key(
    registry: cqrs.Registry, database: str
):
    @registry.integration_event(topic="orders", key="order_id", name="order.placed")
    class OrderPlaced(cqrs.Event):
        order_id: UUID
        at: datetime
        total: Decimal

    class PlaceOrder(cqrs.Command[str]):
        pass

    order_id = UUID("018f3f5e-7c3a-7000-8000-000000000001")

    @registry.command_handler
    async def place_order(command: PlaceOrder, context: cqrs.Context) -> str:
        context.emit(
            OrderPlaced(order_id=order_id, at=datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC), total=Decimal("9.90"))
        )
        return context.message_id

    broker = RecordingPublisher()
    async with cqrs.bootstrap(registry=registry, database=database, broker=broker, name="shop") as app:
        command_id = await app.send(PlaceOrder())
        await app.drain()
    (envelope,) = broker.envelopes
    assert (envelope.topic, envelope.key, envelope.type) == ("orders", str(order_id), "order.placed")
    assert envelope.payload == (
        b'{"order_id":"018f3f5e-7c3a-7000-8000-000000000001","at":"2026-02-03T04:05:06Z","total":"9.90"}'
    )
    assert UUID(envelope.message_id).version == 7
    wire = envelope.wire_headers
    assert datetime.fromisoformat(wire.pop("ce_time")).utcoffset() == timedelta(0)
    assert wire == {
        "ce_id": envelope.message_id,
        "ce_type": "order.placed",
        "ce_specversion": "1.0",
        "ce_source": "shop",
        "content-type": "application/json",
        "correlation_id": command_id,
        "causation_id": command_id,
    }


async def test_a_notification_goes_out_under_the_id_that_its_body_has(registry: cqrs.Registry, database: str):
    broker = RecordingPublisher()
    event = cqrs.NotificationEvent[Line](payload=Line(sku="tea", price=Decimal(1)), topic="lines", key="tea")
    async with cqrs.bootstrap(registry=registry, database=database, broker=broker, name="shop") as app:
        await app.emit(event)
        await app.drain()
    (envelope,) = broker.envelopes
    body = json.loads(envelope.payload)
    assert body["event_id"] == envelope.message_id == envelope.wire_headers["ce_id"] == str(event.event_id)
    assert (envelope.topic, envelope.key, envelope.type) == ("lines", "tea", "Line")
    assert set(body) == {"event_id", "event_timestamp", "event_name", "topic", "key", "payload"}


def test_order_is_kept_within_destination_topic_and_key():
    envelope = Envelope("m1", "broker", "orders", "o1", "OrderPlaced", "{}", b"{}")
    assert envelope.strand == ("broker", "orders", "o1")


def test_an_event_without_a_key_is_in_a_strand_of_its_own():
    envelope = Envelope("m1", "broker", "orders", None, "OrderPlaced", "{}", b"{}")
    assert envelope.strand == ("broker", "orders", "m1")


TRACE = Trace("m1", "c1", "m0", {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})


def relayed(envelope: Envelope) -> list[tuple[str, bytes]]:
    return envelope.encoded_headers


def test_headers_are_the_same_from_the_relay_and_folded_into_one_header():
    saved = headers_text(saved_headers(TRACE, "läden"))
    envelope = Envelope("m1", "broker", "orders", "o1", "Bestellung☃", saved, b"{}")
    own = {"ce_id", "ce_type", "ce_specversion", "ce_source", "ce_time", "content-type"}
    logged = [(name, value) for name, value in relayed(envelope) if name in own]
    logged.append(("headers", envelope.saved_text.encode()))
    assert received_headers(relayed(envelope)) == received_headers(logged) == envelope.wire_headers


def test_what_was_saved_comes_before_what_a_connector_was_told():
    assert received_headers([("headers", b'{"ce_source":"shop"}'), ("ce_source", b"sohp")]) == {"ce_source": "shop"}


@pytest.mark.parametrize("value", [b"", b"gzip", b"[1]", b"\xff", b"[" * 100_000], ids=lambda value: str(value[:6]))
def test_a_header_of_that_name_with_another_meaning_stays(value: bytes):
    found = received_headers([("headers", value), ("ce_id", b"m1")])
    assert found == {"headers": value.decode(errors="replace"), "ce_id": "m1"}


def test_headers_of_foreign_messages_may_be_missing_repeated_or_no_text():
    assert received_headers([("a", b"1"), ("a", b"2"), ("b", None), ("c", b"\xff")]) == {"a": "2", "c": "\ufffd"}


def test_headers_with_half_a_surrogate_pair_are_text_that_databases_take():
    folded = received_headers([("headers", b'{"ce_id":"\\ud800","\\udfff":"x"}')])
    assert folded == {"ce_id": "\\ud800", "\\udfff": "x"}
