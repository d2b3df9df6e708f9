from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

import cqrs
from cqrs.brokers.local import Local
from cqrs.codec import Codec
from cqrs.context import Trace
from tests.contract.publisher import PublisherContract


class Happened(cqrs.Event):
    name: str


class FakeApplication:
    """An application whose only handler notes what it is given."""

    final = False

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.seen: list[str] = []
        self.stopping = False
        self.last = ""
        deliveries: Any = {
            ("handler", "Happened"): (SimpleNamespace(group=1, timeout=None), SimpleNamespace(codec=Codec(Happened)))
        }
        application: Any = self
        self.publisher = Local(application, deliveries, taken=self.taken, stopping=lambda: self.stopping)

    async def taken(self, envelopes: Sequence[cqrs.Envelope]) -> set[tuple[str, str]]:
        return set()

    def series(self) -> Any:
        return nullcontext(self)

    async def unit(self, handler: Any, message_id: str) -> None: ...

    async def release(self) -> None: ...

    async def deliver(self, handler: Any, plan: Any, message: Any, trace: Trace, begin: Any) -> None:
        if trace.message_id == self.last:
            self.stopping = True
        if trace.message_id in self.refused:
            raise ValueError("refused")
        self.seen.append(trace.message_id)

    async def arrived(self) -> list[str]:
        return self.seen

    def stop_at(self, message_id: str) -> None:
        self.last = message_id


class TestLocalPublisher(PublisherContract):
    @pytest.fixture
    async def bench(self) -> FakeApplication:
        found = FakeApplication()
        await found.publisher.open()
        return found
