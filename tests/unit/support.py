"""What several of the unit tests say in the same words."""

from collections.abc import Sequence
from typing import Any

import pytest

import cqrs
from cqrs.outbox import Fate
from cqrs.registry import source_of


def problems(*scan: str | cqrs.Registry, **wishes: Any) -> list[str]:
    """Return the texts of everything that `bootstrap` finds wrong."""
    with pytest.raises(cqrs.ConfigurationError) as caught:
        cqrs.bootstrap(scan or None, **wishes)
    return [str(problem) for problem in caught.value.problems]


def path(target: Any) -> str:
    """Return a function or class as problems name it."""
    return f"{target.__module__}.{target.__qualname__}"


def name(target: Any) -> str:
    """Return a handler's name as tables have it."""
    return f"{target.__module__}:{target.__qualname__}"


def place(target: Any) -> str:
    """Return where a function or class is, as problems say it."""
    return source_of(target)


class RecordingPublisher:
    """A broker that takes everything and keeps it."""

    def __init__(self) -> None:
        self.envelopes: list[cqrs.Envelope] = []

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, envelopes: Sequence[cqrs.Envelope]) -> Sequence[Fate]:
        self.envelopes.extend(envelopes)
        return [Fate.DELIVERED] * len(envelopes)
