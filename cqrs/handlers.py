"""The class style: handlers as classes with dependencies in `__init__`, the same machine with another spelling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

RequestType = TypeVar("RequestType", contravariant=True)
ReplyType = TypeVar("ReplyType", covariant=True)
EventType = TypeVar("EventType", contravariant=True)


class _Handler:
    @property
    def events(self) -> Sequence[Any]:
        """What happened meanwhile; read, and emitted, after `handle` has returned."""
        return ()


class RequestHandler(_Handler, ABC, Generic[RequestType, ReplyType]):
    """The handler of a command or query; a new object for every message."""

    @abstractmethod
    async def handle(self, request: RequestType) -> ReplyType:
        """Answer the request."""


class EventHandler(_Handler, ABC, Generic[EventType]):
    """A handler of an event; a new object for every message."""

    @abstractmethod
    async def handle(self, event: EventType) -> None:
        """Act on what has happened."""
