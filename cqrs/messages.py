"""Commands, queries and replies: the messages that are sent and answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

import pydantic
from typing_extensions import TypeVar

Reply = TypeVar("Reply", covariant=True, default=Any)


class Message(pydantic.BaseModel):
    """The base of the toolkit's own message types: an immutable pydantic model."""

    model_config = pydantic.ConfigDict(frozen=True)


class Request(Message):
    """A message that has exactly one handler and a reply."""


class Command(Request, Generic[Reply]):
    """A request to change something, answered by a `Reply`. `Command[None]` has no answer."""


class Query(Request, Generic[Reply]):
    """A request to read something, answered by a `Reply`. Its handler changes nothing."""


class Response(pydantic.BaseModel):
    """A reply whose fields are also reached as a dict: `reply.data["user_id"]`."""

    if TYPE_CHECKING:

        @property
        def data(self) -> dict[str, Any]:
            """The reply's fields as a dict of Python values."""
            ...

    else:

        def __getattr__(self, name: str) -> Any:
            # Here, and not as a property: a reply may have a field `data` without pydantic's warning of a shadow.
            if name == "data":
                return self.model_dump()
            return super().__getattr__(name)
