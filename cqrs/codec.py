"""Events to bytes and back, and the envelope that carries them; the only module that knows the wire's names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID
from zlib import crc32

import pydantic
from pydantic_core import PydanticSerializationError, SchemaValidator, core_schema, to_json

from cqrs.errors import DecodingError, EncodingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

    from cqrs.context import Trace

ID_LIMIT = KEY_LIMIT = 255
HANDLER_LIMIT = 191
TOPIC_LIMIT = 249
"""How many characters of a key, of a handler's name and of a topic fit into the tables."""
KEYS = str, UUID, int
"""What a key may be."""
FAULTS_TOLD = 5
"""How many of a body's faults an error names."""
BROKER = "broker"
"""The destination of rows that go to the message broker; every other destination is a handler's name."""
FOLDED = "headers"
"""The header in which Debezium sends the column of that name: all headers that have no column of their own."""

_TEXTS = SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.str_schema()))
_BYTES = SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.bytes_schema()))
"""Read saved headers as text, and as brokers want them. A `TypeAdapter` is a call more for each row of a relay."""


class Envelope(NamedTuple):
    """An encoded event on its way to one destination.

    `saved` are the headers that are saved with it: the JSON object of text that stands in the database, or as they were
    received; `payload` is the event's JSON and passes through relay and broker untouched. Headers are read when they
    are asked for, which raises `DecodingError` where somebody edited them into nonsense: most of what passes through a
    relay needs them in one form only, or in none.
    """

    message_id: str
    destination: str
    topic: str
    key: str | None
    type: str
    saved: str | Mapping[str, str]
    payload: bytes
    attempt: int = 1
    parked: bool = False
    """Whether its key is parked: no other row waits for this delivery to end."""

    @property
    def strand(self) -> tuple[str, str, str]:
        """Return what order is kept within: destination, topic and key; an event without a key stands alone."""
        return self.destination, self.topic, self.key if self.key is not None else self.message_id

    def share(self, number: int) -> int:
        """Return in which of so many shares its topic and key are; without a key its id takes the key's place."""
        _, topic, key = self.strand
        return crc32(f"{topic}\0{key}".encode()) % number

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that are saved with it."""
        return dict(self._headers)

    @property
    def saved_text(self) -> str:
        """Return `headers` as they stand in the database."""
        return self.saved if isinstance(self.saved, str) else headers_text(self.saved)

    @property
    def wire_headers(self) -> dict[str, str]:
        """Return all headers as brokers carry them: CloudEvents 1.0 in binary mode beside our own.

        It adds to `headers` the attributes that have columns of their own.
        """
        return {"ce_id": self.message_id, "ce_type": self.type, **self._headers}

    @property
    def _headers(self) -> Mapping[str, str]:
        return headers_of(self.saved) if isinstance(self.saved, str) else self.saved

    @property
    def encoded_headers(self) -> list[tuple[str, bytes]]:
        """Return `wire_headers` encoded, in pairs."""
        saved = _encoded_headers_of(self.saved_text)
        return [("ce_id", self.message_id.encode()), ("ce_type", self.type.encode()), *saved.items()]


def saved_headers(trace: Trace, source: str) -> dict[str, str]:
    """Return the headers that are saved with an event of this trace, emitted by the application `source`."""
    headers = {
        "ce_specversion": "1.0",
        "ce_source": source,
        "ce_time": _timestamp(),
        "content-type": "application/json",
        "correlation_id": trace.correlation_id,
        **trace.headers,
    }
    if trace.causation_id is not None:
        headers["causation_id"] = trace.causation_id
    return headers


def _timestamp() -> str:
    """Return the time as Debezium writes a timestamp with time zone, so that `ce_time` is the same from both."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def key_text(value: object, event: str) -> str | None:
    """Render a key as the wire has it; `event` names it in the error.

    Raises `EncodingError` for what is no str, UUID or int, is longer than 255 characters, holds a NUL, or ends with a
    space: the rules of every database, so that an application can move from one to another.
    """
    if value is None:
        return None
    if not isinstance(value, KEYS) or isinstance(value, bool):
        raise EncodingError(f"The key of {event} is a {type(value).__name__}. A key is a str, a UUID or an int.")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EncodingError(f"The key of {event} holds half a surrogate pair, which is no text. Remove it.") from None
    if "\0" in text:
        raise EncodingError(f"The key of {event} holds a NUL character, which databases refuse. Remove it.")
    if text.endswith(" "):
        raise EncodingError(f"The key of {event} ends with a space, which MySQL does not tell apart. Strip it.")
    if len(text) > KEY_LIMIT:
        raise EncodingError(
            f"The key of {event} has {len(text)} characters. A key has at most {KEY_LIMIT}: "
            "use the id of what must stay in order."
        )
    return text


class Codec:
    """One event type's way to JSON and back. Round trips are exact for what pydantic can serialise."""

    def __init__(self, event: type) -> None:
        self.event = event

    @cached_property
    def _adapter(self) -> pydantic.TypeAdapter[Any]:
        # An unbound TypeVar in a bare generic (NotificationEvent without its payload) reads back as plain JSON.
        return pydantic.TypeAdapter(self.event)

    def check(self) -> None:
        """Raise `EncodingError` when the type's schema says that it cannot be written as JSON and read back."""
        try:
            written = self._adapter.json_schema(mode="serialization")
            read = self._adapter.json_schema(mode="validation")
        except pydantic.PydanticUserError as error:
            raise EncodingError(str(error.message).splitlines()[0]) from None
        missing = sorted(set(read.get("required", ())) - set(written.get("properties", ())))
        if "properties" in written and missing:
            raise EncodingError(f"it reads {', '.join(map(repr, missing))}, which is written under another name")

    def schema(self, ref_template: str) -> dict[str, Any]:
        """Return the JSON schema of what is written."""
        return self._adapter.json_schema(mode="serialization", by_alias=True, ref_template=ref_template)

    def encode(self, event: Any) -> bytes:
        """Return the event's JSON, which was read back once: what is saved can be delivered.

        Raises `EncodingError` naming the field that cannot be written, or not be read back as it was.
        """
        try:
            payload = self._adapter.serializer.to_json(event, by_alias=True, round_trip=True)
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            name = self.event.__qualname__
            field = self._culprit(event)
            place = f"field '{field}' of {name}" if field else name
            raise EncodingError(
                f"{place} cannot be written as JSON: {error}. Give it a type that pydantic serialises."
            ) from error
        try:
            self._adapter.validator.validate_json(payload)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            field = _field(first)
            place = f"field '{field}' of {self.event.__qualname__}" if field else self.event.__qualname__
            raise EncodingError(f"{place} cannot be read back from its own JSON: {first['msg']}") from None
        return payload

    def decode(self, payload: bytes) -> Any:
        """Return the event of a JSON body. Raises `DecodingError` with the reason."""
        try:
            return self._adapter.validator.validate_json(payload)
        except pydantic.ValidationError as error:
            raise DecodingError(f"The body cannot be read back as {self.event.__qualname__}: {_told(error)}") from None
        except ValueError as error:
            raise DecodingError(f"The body cannot be read back as {self.event.__qualname__}: {error}") from None

    def _culprit(self, event: Any) -> str | None:
        fields = getattr(self.event, "model_fields", None) or getattr(self.event, "__dataclass_fields__", {})
        for field in fields:
            try:
                self._adapter.dump_json(event, include={field})
            except (PydanticSerializationError, UnicodeEncodeError):
                return str(field)
        return None


def _told(error: pydantic.ValidationError) -> str:
    """Return the first faults of a body in one line, without what it held."""
    faults = error.errors()
    told = [f"{_field(fault)}: {fault['msg']}".removeprefix(": ") for fault in faults[:FAULTS_TOLD]]
    return "; ".join([*told, *(["..."] if len(faults) > FAULTS_TOLD else [])])


def _field(fault: ErrorDetails) -> str:
    return ".".join(map(str, fault["loc"]))


def fits(text: str, limit: int) -> bool:
    """Whether every database keeps a text as it is: PostgreSQL takes no NUL, MySQL no difference in a last space."""
    return len(text) <= limit and "\0" not in text and not text.endswith(" ")


def fitting_id(message_id: str) -> str:
    """Return a message's id as the tables keep it: a foreign one that does not fit by its hash."""
    return message_id if fits(message_id, ID_LIMIT) else sha256(message_id.encode()).hexdigest()


def received_headers(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """Return a received message's headers as `Envelope.wire_headers` had them, whichever way the message came.

    Debezium sends what has no column of its own in one header, `headers`, as JSON. That is unfolded, and comes before
    headers of the same name: it is what the application saved. A header of that name that somebody else gave another
    meaning stays as it is. Of headers that come several times the last one counts.
    """
    found = {name: value.decode(errors="replace") for name, value in headers if value is not None}
    if FOLDED not in found:
        return found
    try:
        saved = headers_of(found[FOLDED])
    except DecodingError:
        return found
    del found[FOLDED]
    return found | saved


def headers_text(headers: Mapping[str, str]) -> str:
    """Return headers as the outbox saves them."""
    try:
        return to_json(headers).decode()
    except PydanticSerializationError:  # half a surrogate pair, which the database refuses by its own name
        return json.dumps(headers, ensure_ascii=False)


def headers_of(text: str) -> dict[str, str]:
    """Read saved headers. Raises `DecodingError` when somebody edited them into nonsense."""
    try:
        headers: dict[str, str] = _TEXTS.validate_json(text)
    except ValueError:
        return _loosely_read(text)
    return headers


def _encoded_headers_of(text: str) -> dict[str, bytes]:
    try:
        headers: dict[str, bytes] = _BYTES.validate_json(text)
    except ValueError:
        return {name: value.encode() for name, value in _loosely_read(text).items()}
    return headers


def _loosely_read(text: str) -> dict[str, str]:
    """Read headers that somebody wrote by hand: what is no text, or half a surrogate pair, is made text."""
    try:
        headers = json.loads(text)
        return {_whole(str(name)): _whole(str(value)) for name, value in headers.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise DecodingError(f"The saved headers are not a JSON object of text: {error}") from None


def _whole(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
