"""What there is to say of an application, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A function or class of the user's, and where it is."""

    name: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a handler is given beside its message, and what provides it."""

    parameter: str
    type: str
    provider: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How often and when a delivery that failed with such an error is tried; durations in seconds."""

    error: str
    attempts: int | None
    first: float
    factor: float
    longest: float
    jitter: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A handler of one message, and everything that happens around its call."""

    name: str
    where: str
    why: str
    transaction: str
    background: bool
    middlewares: tuple[Code, ...]
    """From the outside inwards: the application's, around the transaction, then the handler's own, within it."""
    needs: tuple[Need, ...]
    emits: tuple[str, ...]
    """The events that the handler's own code names; what it emits through others is not seen."""
    retry: tuple[Policy, ...]
    on_dead: str | None
    timeout: float | None
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a published event goes, or where it is consumed from."""

    topic: str | None
    """None where each event says its own."""
    key: str | None
    name: str
    carrier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A type of message, and who handles it."""

    name: str
    type: str
    kind: str
    where: str
    reply: str | None
    route: Route | None
    consumed: bool
    """Whether this application consumes it from the broker."""
    handlers: tuple[Handler, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """An application as it is wired."""

    name: str
    database: str | None
    broker: str | None
    carrier: str
    relay: bool
    ordering: str
    prefix: str
    schema: str | None
    slots: int
    modules: tuple[str, ...]
    messages: tuple[Message, ...]
