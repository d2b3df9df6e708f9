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
    from collections.abc import Callable, Generator, Iterable, Mapping

CORRELATION = (b"x-correlation-id", b"x-request-id")
"""The headers that name a story, the first one that is there and usable."""
PARENT, STATE, BAGGAGE = b"traceparent", b"tracestate", b"baggage"
READ = frozenset((*CORRELATION, PARENT, STATE, BAGGAGE))
LIMITS = {STATE: 512, BAGGAGE: 8192}
CORRELATION_LIMIT = 128
TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
PRINTABLE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where messages come from: the id of their story, and the W3C trace headers that travel with them."""

    correlation_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


NOWHERE = Origin()
teller: ContextVar[Callable[[], Origin] | None] = ContextVar("cqrs_origin", default=None)
"""Tells the origin when somebody asks: most requests are answered without."""


def origin() -> Origin:
    """Return where messages come from that are sent here; nowhere outside of a request."""
    tell = teller.get()
    return NOWHERE if tell is None else tell()


@contextmanager
def coming_from(found: Origin) -> Generator[None]:
    """Let messages that are sent inside the block belong to this story."""
    token = teller.set(lambda: found)
    try:
        yield
    finally:
        teller.reset(token)


def origin_of(headers: Iterable[tuple[bytes, bytes]]) -> Origin:
    """Return what the headers of a request say; they are pairs with names in lower case, as ASGI has them.

    What is malformed or too long is left out, as if it had not come: headers are anybody's, and they would be saved and
    published with every event.
    """
    found = {name: text for name, text in headers if name in READ}
    if not found:
        return NOWHERE
    named = (found[name] for name in CORRELATION if name in found)
    correlation = next((text.decode() for text in named if _is_usable(text, CORRELATION_LIMIT)), None)
    traced = {}
    if TRACEPARENT.fullmatch(found.get(PARENT, b"")):
        traced["traceparent"] = found[PARENT].decode()
    for name, limit in LIMITS.items():
        if name in found and _is_usable(found[name], limit) and (name is not STATE or traced):
            traced[name.decode()] = found[name].decode()
    return Origin(correlation, traced)


def _is_usable(text: bytes, limit: int) -> bool:
    return len(text) <= limit and PRINTABLE.fullmatch(text) is not None
