"""How envelopes look where a broker has neither keys nor partitions: a header and a routing key in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cqrs.codec import Envelope


def keyed_headers(envelope: Envelope) -> dict[str, str]:
    """Return the headers with the key among them, as CloudEvents' extension `partitionkey`."""
    headers = dict(envelope.wire_headers)
    if envelope.key is not None:
        headers["ce_partitionkey"] = envelope.key
    return headers


def routing_key(envelope: Envelope, slots: int) -> str:
    """Return `<event name>.<slot>`: what a queue binds to for some events, or for some of the keys."""
    return f"{envelope.type}.{envelope.share(slots):02d}"


def unroutable(exchange: str, key: str) -> str:
    """Say that a message had no queue to go to, and what helps."""
    return (
        f"No queue is bound to exchange '{exchange}' for routing key '{key}'. Bind one, with the key '#' for "
        "everything, or start a consumer that does."
    )
