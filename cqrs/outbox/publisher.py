"""The port through which the relay delivers, and what it is told of each envelope."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cqrs.codec import Envelope


class Fate(Enum):
    """The end of one envelope that is not a failure."""

    DELIVERED = "delivered"
    NOT_SENT = "not sent"
    """Not begun, or given up without a result: it stays where it is, and no attempt is counted."""
    OVERDUE = "overdue"
    """Begun, and given up at the claim's deadline: its key is parked, and no attempt is counted."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An envelope that was refused. `final` says that no retry can help: it is dead at once."""

    error: BaseException
    final: bool = False


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The topic of an envelope, or with `everything` the whole broker, is out of reach; the envelope is not to blame.

    It stays where it is and no attempt is counted. The relay leaves the topic (the destination) alone for a while.
    """

    error: BaseException
    everything: bool = False


Outcome = Fate | Failed | Unavailable


class Publisher(Protocol):
    """Delivers envelopes to one kind of destination."""

    async def open(self) -> None:
        """Connect. Called once, before anything is published."""
        ...

    async def close(self) -> None:
        """Finish or give up what is in flight, and disconnect."""
        ...

    async def publish(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        """Deliver, and return one outcome an envelope, in their order.

        `DELIVERED` is said only of what was acknowledged. Envelopes of one strand are delivered in the order given, and
        after the first that is not delivered the rest of its strand is `NOT_SENT`; strands do not wait for each other.
        `Failed` is said of an envelope that was refused, `Unavailable` where its topic or the broker cannot be
        reached. It does not retry and raises nothing but cancellation: the relay decides what comes next.
        """
        ...


@runtime_checkable
class Naming(Publisher, Protocol):
    """A publisher whose broker does not take every topic; `bootstrap` asks it."""

    def refusal(self, topic: str) -> str | None:
        """Return what a topic has to be called, where the broker will never have one of this name."""
        ...


@runtime_checkable
class Pingable(Publisher, Protocol):
    """A publisher that can also say whether its broker is in reach; `/readyz` asks it."""

    async def ping(self) -> None:
        """Raise `PublishError`, with the reason, where the broker does not answer."""
        ...
