"""What a test does with an application, which is relayed by the test itself, step by step; and what it says of it.

No relay runs in the background. What is due is delivered while a test waits for it, and when nothing is due the clock
is put forward to what is due next: so nothing sleeps, and whatever has not ended is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from uuid_utils import uuid7

from cqrs.codec import Envelope, headers_text, key_text, saved_headers
from cqrs.context import new_trace
from cqrs.errors import MisuseError
from cqrs.registry import Kind
from cqrs.testing.errors import NotEnded
from cqrs.testing.loop import save
from cqrs.testing.story import Attempt, How, Published, Story
from cqrs.testing.tree import tree

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from cqrs.events import Event
    from cqrs.mediator import Mediator
    from cqrs.messages import Command, Query, Reply
    from cqrs.outbox.storage import Storage

Message = TypeVar("Message")

SOONER = 0.001
"""Seconds by which the clock is put beyond what is due next: databases count in fractions of their own."""


class Harness:
    """An application under test: `send`, `emit` and `receive` return when all that they caused has ended.

    Ended means delivered or dead. `app` is the application itself.
    """

    def __init__(self, app: Mediator, story: Story, *, timeout: float, limit: int) -> None:
        self.app = app
        self._story = story
        self._timeout = timeout
        self._limit = limit
        self._settling = asyncio.Lock()

    # What a test does

    @overload
    async def send(self, message: Command[Reply] | Query[Reply]) -> Reply: ...
    @overload
    async def send(self, message: Event) -> None: ...
    @overload
    async def send(self, message: object) -> Any: ...
    async def send(self, message: Any) -> Any:
        """Send a message, and return its reply when all that it caused has ended.

        An exception of its handler arrives unchanged. Raises `NotEnded`, which shows the story, after `timeout` seconds
        or `limit` attempts of handlers.
        """
        self._story.sent(message)
        return await self._until_ended(self.app.send(message))

    async def emit(self, event: Any, session: AsyncSession | None = None) -> None:
        """Emit an event outside a handler, as `app.emit` does, and return when all that it caused has ended."""
        await self._until_ended(self.app.emit(event, session))

    async def receive(
        self, event: Any, *, event_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand in a published event as if a broker had delivered it, and return when all that it caused has ended.

        Each handler takes an `event_id` once, as the inbox has it; without one each call is a new event. A handler
        that fails is retried, and is found in `failures`.
        """
        await self._until_ended(self._hand_in(event, event_id, headers or {}))

    async def settle(self) -> None:
        """Return when all that was caused in another way, such as by a request to a web application, has ended."""
        await self._until_ended(asyncio.sleep(0))

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession]:
        """Open a session on the database under test, for what a test prepares or looks at; leaving it commits.

        A SQLite file has one writer: leave it before the next `send`.
        """
        storage = storage_of(self.app)
        if storage is None:
            raise MisuseError(f"Application '{self.app.name}' has no database, so there is no session.")
        from sqlalchemy.ext.asyncio import AsyncSession

        async with AsyncSession(storage.store.writers, expire_on_commit=False) as session, session.begin():
            yield session

    # What happened

    @property
    def sent(self) -> list[Any]:
        """Commands, queries and events that were sent, in their order, also by handlers."""
        return [told.message for told in self._story.told if told.how is How.SENT]

    @property
    def emitted(self) -> list[Any]:
        """Events that were emitted, local and published, in their order; without what was rolled back."""
        return [told.message for told in self._story.told if told.how is How.EMITTED and told.exists]

    @property
    def published(self) -> list[Published]:
        """What a broker would have been given, in the order of the commits; also where nobody here handles it."""
        return list(self._story.published)

    @property
    def failures(self) -> list[Attempt]:
        """Attempts of handlers that failed, in their order, whether a later one went well or not."""
        return [attempt for attempt in self._story.attempts if attempt.error is not None]

    @property
    def tree(self) -> str:
        """What caused what, as text."""
        return tree(self._story.roots)

    # What a test says of it

    def assert_sent(self, message: type[Message], /, **fields: object) -> Message:
        """Return the first message of this type that was sent with these values."""
        return self._first("sent", self.sent, message, fields)

    def assert_emitted(self, event: type[Message], /, **fields: object) -> Message:
        """Return the first event of this type that was emitted with these values."""
        return self._first("emitted", self.emitted, event, fields)

    def assert_not_emitted(self, event: type, /, **fields: object) -> None:
        """Accept no event of this type that was emitted with these values."""
        found = [each for each in self.emitted if _is_such(each, event, fields)]
        if found:
            raise AssertionError(f"{found[0]!r} was emitted.\n\n{self.tree}")

    def assert_published(self, event: type, /, **fields: object) -> Published:
        """Return what a broker would have been given of the first event of this type with these values."""
        found: object = self._first("published", [each.event for each in self.published], event, fields)
        return next(each for each in self.published if each.event is found)

    def assert_no_failures(self) -> None:
        """Accept no failed attempt of any handler."""
        if self.failures:
            raise AssertionError(f"{len(self.failures)} attempts of handlers failed.\n\n{self.tree}")

    def _first(
        self, what: str, messages: Sequence[Any], wanted: type[Message], fields: Mapping[str, object]
    ) -> Message:
        for message in messages:
            if _is_such(message, wanted, fields):
                return cast("Message", message)
        values = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        raise AssertionError(f"{wanted.__qualname__}({values}) was not {what}.\n\n{self.tree}")

    # How it ends

    async def _until_ended(self, beginning: Awaitable[Any]) -> Any:
        begun, timer = len(self._story.attempts), asyncio.timeout(self._timeout)
        try:
            async with timer:
                try:
                    reply = await beginning
                except Exception:
                    await self._relay(begun)
                    raise
                await self._relay(begun)
        except TimeoutError:
            if not timer.expired():
                raise  # the handler's own
            raise NotEnded(
                f"What the test caused has not ended after {self._timeout:g} s. Pass harness(app, timeout=...) if it "
                f"may take longer.\n\n{self.tree}"
            ) from None
        return reply

    async def _relay(self, begun: int) -> None:
        """Deliver, retry, and put the clock forward, until nothing is left that could be delivered."""
        storage = storage_of(self.app)
        if storage is None:
            return
        async with self._settling:
            while await _advance(storage):
                if len(self._story.attempts) - begun > self._limit:
                    raise NotEnded(
                        f"What the test caused does not end: it had more than {self._limit} attempts of handlers. "
                        f"Pass harness(app, limit=...) if it may have more.\n\n{self.tree}"
                    )
            self._story.take_stock(await storage.store.unended(self._story.ids))

    async def _hand_in(self, event: Any, event_id: str | None, headers: Mapping[str, str]) -> None:
        plan = self.app.plan_of(type(event))
        route = plan.route(event) if plan.kind is Kind.EVENT else None
        storage = storage_of(self.app)
        if route is None or plan.codec is None or storage is None:
            raise MisuseError(
                f"{type(event).__qualname__} is no published event, so no broker delivers it. Send or emit it."
            )
        if not plan.handlers:
            raise MisuseError(
                f"{type(event).__qualname__} has no handler in application '{self.app.name}', so it is not consumed."
            )
        message_id = event_id or str(getattr(event, "event_id", None) or uuid7())
        saved = headers_text({**saved_headers(new_trace(), "test"), **headers})
        body, key = plan.codec.encode(event), key_text(route.key, route.name)
        self._story.received(event, message_id, route)
        await save(
            storage.store,
            [
                Envelope(message_id, handler.name, route.topic, key, route.name, saved, body)
                for handler in plan.handlers
            ],
        )


def storage_of(app: Mediator) -> Storage | None:
    """Return where an application saves, if it has a database."""
    return cast("Storage | None", app.storage)


async def _advance(storage: Storage) -> bool:
    """Deliver what is due, or put the clock forward to what is due next; returns whether there was anything."""
    there = await storage.relay.probe()
    if there.outbox:
        await storage.relay.relay_outbox()
    elif there.due is not None:
        storage.store.ahead += max(0.0, there.due) + SOONER
        await storage.relay.relay_due()
    return there.outbox or there.due is not None


def _is_such(message: object, wanted: type, fields: Mapping[str, object]) -> bool:
    missing = object()
    return isinstance(message, wanted) and all(
        getattr(message, name, missing) == value for name, value in fields.items()
    )
