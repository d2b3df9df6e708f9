"""What a received message is: its event's name, its id, its headers and body, whoever wrote it.

It knows CloudEvents in binary and in structured mode, bodies of python-cqrs, and plain JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json, to_json
from uuid_utils import uuid7

from cqrs.codec import KEY_LIMIT, Envelope, fits, fitting_id
from cqrs.errors import DecodingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cqrs.plan import Plan

log = logging.getLogger(__name__)

STRUCTURED = "application/cloudevents+json"
TEXTUAL = ("", "application/octet-stream", "text/plain")
"""Content types that say nothing against JSON."""
NAMES = ("event_name", "eventName")
IDS = ("event_id", "eventId")
SNAKE = {"eventId": "event_id", "eventName": "event_name", "eventTimestamp": "event_timestamp"}
OWN = ("ce_id", "ce_type", "message_id", "type")
"""Headers that an envelope has fields for, and what RabbitMQ's properties add."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message as a broker hands it over.

    `place` names where the broker keeps it, if it is the same at every delivery: it stands in for a missing id.
    """

    topic: str
    key: bytes | str | None
    headers: Mapping[str, str]
    body: bytes
    place: str | None = None


class Arrival(NamedTuple):
    """A received message for one handler, and why nobody can read it, if so."""

    envelope: Envelope
    fault: DecodingError | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of a message so far."""

    name: str
    """Empty where nothing says it."""
    message_id: str
    headers: Mapping[str, str]
    body: bytes
    fault: DecodingError | None = None


@dataclass(slots=True)
class Reader:
    """Tells of a message for which of this application's handlers it is. `plans` are those of consumed events."""

    plans: Mapping[str, Mapping[str, Plan]]
    """By topic and name."""
    _ignored: set[tuple[str, str]] = field(default_factory=set)

    def read(self, received: Received) -> list[Arrival]:
        """Return the message for each of its handlers: none where this application does not know the event's name.

        What cannot be read is for the same handlers, with the reason; where nothing says which event it is, for every
        handler of the topic.
        """
        plans = self.plans.get(received.topic, {})
        found = _read(received, plans)
        if found.name and found.name not in plans:
            self._tell_ignored(received.topic, found.name)
            return []
        key = fitting_key(found.headers.get("ce_partitionkey") if received.key is None else received.key)
        return [
            Arrival(_envelope(received.topic, key, found, handler.name), found.fault)
            for plan in ([plans[found.name]] if found.name else plans.values())
            for handler in plan.handlers
        ]

    def _tell_ignored(self, topic: str, name: str) -> None:
        if (topic, name) not in self._ignored:
            self._ignored.add((topic, name))
            log.info("Events named '%s' on '%s' are left alone: this application has no handler of them.", name, topic)


def fitting_key(key: bytes | str | None) -> str | None:
    """Return a key as the tables keep it: a foreign one that does not fit by its hash."""
    if key is None:
        return None
    raw = key if isinstance(key, bytes) else key.encode(errors="surrogatepass")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return f"sha256:{sha256(raw).hexdigest()}"
    return text if fits(text, KEY_LIMIT) else f"sha256:{sha256(raw).hexdigest()}"


def _envelope(topic: str, key: str | None, found: _Found, handler: str) -> Envelope:
    saved = {name: value for name, value in found.headers.items() if name not in OWN}
    return Envelope(fitting_id(found.message_id), handler, topic, key, found.name, saved, found.body)


def _read(received: Received, plans: Mapping[str, Plan]) -> _Found:
    headers = received.headers
    name, message_id = headers.get("ce_type", ""), headers.get("ce_id")
    if name and name not in plans:
        return _Found(name, "", headers, b"")
    try:
        if _media_type(headers) == STRUCTURED:
            return _read_structured(received)
        if name and message_id:
            return _Found(name, message_id, headers, received.body)
        return _read_foreign(received, plans)
    except DecodingError as fault:
        return _Found(name, _some_id(received), headers, received.body, fault)


def _media_type(headers: Mapping[str, str]) -> str:
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in TEXTUAL and not media.endswith(("/json", "+json")):
        raise DecodingError(f"The content type is '{media}'. This application reads events that are JSON.")
    return media


def _some_id(received: Received) -> str:
    """Return an id for what cannot be read: the same one at a second delivery, if anything is."""
    return received.headers.get("ce_id") or received.headers.get("message_id") or received.place or str(uuid7())


def _read_structured(received: Received) -> _Found:
    """Read an event whose attributes are in the body, beside its data."""
    event = _object(received.body)
    missing = [name for name in ("id", "type", "data") if event.get(name) in (None, "")]
    if missing:
        raise DecodingError(f"The body is no CloudEvent of {STRUCTURED}: it has no '{missing[0]}'.")
    attributes = {f"ce_{name}": str(value) for name, value in event.items() if name != "data" and value is not None}
    return _Found(str(event["type"]), str(event["id"]), {**received.headers, **attributes}, to_json(event["data"]))


def _read_foreign(received: Received, plans: Mapping[str, Plan]) -> _Found:
    """Read a message whose name or id is in its body, in a property, or nowhere."""
    headers, body = received.headers, _object(received.body)
    name = headers.get("ce_type") or _first(body, NAMES) or headers.get("type")
    if name is None and len(plans) == 1:
        [name] = plans
    if name is None:
        raise DecodingError(
            "Nothing says which event this is: it has no header ce_type and no event_name in its body, and this "
            f"application handles {', '.join(sorted(plans))} from '{received.topic}'."
        )
    if name not in plans:
        return _Found(name, "", headers, b"")
    payload = _adapted(received.body, body, plans[name])
    message_id = headers.get("ce_id") or _first(body, IDS) or headers.get("message_id") or received.place
    if not message_id:
        text = (
            "It has no id, so a second delivery could not be told from the first: it needs a header ce_id, a "
            "message_id, or an event_id in its body."
        )
        return _Found(name, _some_id(received), headers, payload, DecodingError(text))
    return _Found(name, message_id, headers, payload)


def _adapted(raw: bytes, body: Mapping[str, Any], plan: Plan) -> bytes:
    """Return the body as the event's own JSON, where python-cqrs wrote it."""
    if not _first(body, IDS) or not _first(body, NAMES) or "payload" not in body:
        return raw
    if plan.notification:
        renamed = {SNAKE.get(field, field): value for field, value in body.items()}
        return raw if renamed == body else to_json(renamed)
    return to_json(body["payload"])


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = from_json(body)
    except ValueError as error:
        raise DecodingError(f"The body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise DecodingError(f"The body is JSON, but a {type(found).__name__}; an event is an object.")
    return found


def _first(body: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((str(body[name]) for name in names if body.get(name)), None)
