"""What a request from outside says of its story, for the messages that are sent while it is answered.

The only place where a message's identity comes from something that is no message.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

CORRELATION = ("x-correlation-id", "x-request-id")
"""The headers that name a story, the first one that is there and usable."""
CORRELATION_LIMIT = 128
TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
LIMITS = {"tracestate": 512, "baggage": 8192}
PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where messages come from: the id of their story, and the W3C trace headers that travel with them."""

    correlation_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


origin: ContextVar[Origin | None] = ContextVar("cqrs_origin", default=None)


@contextmanager
def coming_from(found: Origin) -> Generator[Origin]:
    """Let messages that are sent inside the block belong to this story."""
    token = origin.set(found)
    try:
        yield found
    finally:
        origin.reset(token)


def origin_of(headers: Mapping[str, str]) -> Origin:
    """Return what the headers of a request say, by their names in lower case.

    What is malformed or too long is left out, as if it had not come: headers are anybody's, and they would be saved and
    published with every event.
    """
    named = (headers.get(name, "") for name in CORRELATION)
    correlation = next((text for text in named if _is_usable(text, CORRELATION_LIMIT)), None)
    traced = {}
    if TRACEPARENT.fullmatch(parent := headers.get("traceparent", "")) and not parent.startswith("ff"):
        traced["traceparent"] = parent
    for name, limit in LIMITS.items():
        text = headers.get(name, "")
        if _is_usable(text, limit) and (name != "tracestate" or traced):
            traced[name] = text
    return Origin(correlation, traced)


def _is_usable(text: str, limit: int) -> bool:
    return len(text) <= limit and PRINTABLE.fullmatch(text) is not None
