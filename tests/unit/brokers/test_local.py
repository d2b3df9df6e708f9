import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest

import cqrs
from cqrs.brokers.local import Local
from cqrs.codec import Codec, headers_text
from cqrs.context import Trace
from cqrs.outbox import Failed, Fate


class Happened(cqrs.Event):
    name: str


class Looked(cqrs.Event):
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def look_up(cls, name: str) -> str:
        return {"tea": "Tea"}[name]


class FakeApplication:
    """An application whose handlers are functions of the message and its trace."""

    def __init__(
        self,
        handle: Callable[[Any, Trace], Any],
        *,
        timeout: float | None = None,
        event: type[cqrs.Event] = Happened,
        **wishes: Any,
    ) -> None:
        self.handle = handle
        self.already: set[tuple[str, str]] = set()
        self.stopping = False
        deliveries: Any = {
            ("handler", "Happened"): (SimpleNamespace(group=1, timeout=timeout), SimpleNamespace(codec=Codec(event)))
        }
        application: Any = self
        self.publisher = Local(application, deliveries, taken=self.taken, stopping=lambda: self.stopping, **wishes)

    async def taken(self, envelopes: Sequence[cqrs.Envelope]) -> set[tuple[str, str]]:
        return self.already

    def series(self) -> Any:
        return nullcontext(self)

    async def unit(self, handler: Any, message_id: str) -> None: ...

    async def release(self) -> None: ...

    async def deliver(self, handler: Any, plan: Any, message: Any, trace: Trace, begin: Any) -> None:
        await self.handle(message, trace)


def letter(
    number: int = 1,
    key: str | None = None,
    *,
    destination: str = "handler",
    kind: str = "Happened",
    headers: dict[str, str] | None = None,
    payload: bytes = b'{"name":"tea"}',
    attempt: int = 1,
) -> cqrs.Envelope:
    saved = headers_text(headers or {})
    return cqrs.Envelope(f"event-{number}", destination, "orders", key, kind, saved, payload, attempt)


async def test_a_handler_gets_the_event_that_was_saved():
    seen = []

    async def handle(message: Happened, trace: Trace) -> None:
        seen.append(message)

    await FakeApplication(handle).publisher.publish([letter()])
    assert seen == [Happened(name="tea")]


async def test_a_handler_is_given_the_trace_that_was_saved():
    seen = []

    async def handle(message: Happened, trace: Trace) -> None:
        seen.append(trace)

    headers = {"correlation_id": "story", "causation_id": "command", "traceparent": "00-1-2-01"}
    await FakeApplication(handle).publisher.publish([letter(headers=headers, attempt=3)])
    (trace,) = seen
    assert (trace.message_id, trace.correlation_id, trace.causation_id) == ("event-1", "story", "command")
    assert (trace.attempt, trace.headers["traceparent"], trace.headers["ce_type"]) == (3, "00-1-2-01", "Happened")


async def test_an_event_without_a_correlation_begins_one():
    seen = []

    async def handle(message: Happened, trace: Trace) -> None:
        seen.append(trace)

    await FakeApplication(handle).publisher.publish([letter()])
    assert (seen[0].correlation_id, seen[0].causation_id) == ("event-1", None)


async def test_what_the_inbox_holds_counts_as_delivered():
    seen = []

    async def handle(message: Happened, trace: Trace) -> None:
        seen.append(trace.message_id)

    app = FakeApplication(handle)
    app.already = {("handler", "event-1"), ("other", "event-2")}
    assert await app.publisher.publish([letter(1), letter(2)]) == [Fate.DELIVERED] * 2
    assert seen == ["event-2"]


async def test_the_exception_of_a_handler_is_the_outcome():
    error = ValueError("no")

    async def handle(message: Happened, trace: Trace) -> None:
        raise error

    (outcome,) = await FakeApplication(handle).publisher.publish([letter()])
    assert outcome == Failed(error, final=False)


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        (letter(payload=b"no JSON"), "The body cannot be read back as Happened"),
        (letter(payload=b'{"name": 1}'), "The body cannot be read back as Happened"),
        (letter(payload=b"\xff"), "The body cannot be read back as Happened"),
    ],
)
async def test_what_cannot_be_read_back_has_failed_for_good(spoiled: cqrs.Envelope, reason: str):
    async def handle(message: Happened, trace: Trace) -> None: ...

    (outcome,) = await FakeApplication(handle).publisher.publish([spoiled])
    assert isinstance(outcome, Failed)
    assert outcome.final
    assert isinstance(outcome.error, cqrs.DecodingError)
    assert reason in str(outcome.error)


async def test_a_mistake_in_a_validator_fails_its_message_alone():
    """pydantic makes no validation error of what is no ValueError."""

    async def handle(message: Looked, trace: Trace) -> None: ...

    app = FakeApplication(handle, event=Looked)
    batch = [letter(1, "a", payload=b'{"name":"milk"}'), letter(2, "a"), letter(3, "b")]
    failed, *others = await app.publisher.publish(batch)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, KeyError)
    assert not failed.final
    assert others == [Fate.NOT_SENT, Fate.DELIVERED]


async def test_what_the_handler_does_not_take_here_may_be_taken_elsewhere():
    """During a rolling deploy another process may know what this one does not."""

    async def handle(message: Happened, trace: Trace) -> None: ...

    (outcome,) = await FakeApplication(handle).publisher.publish([letter(kind="Renamed")])
    assert isinstance(outcome, Failed)
    assert not outcome.final
    assert str(outcome.error) == "handler does not handle events named 'Renamed'."


async def test_a_body_that_cannot_be_read_back_holds_back_its_key_alone():
    async def handle(message: Happened, trace: Trace) -> None: ...

    batch = [letter(1, "a", payload=b"no JSON"), letter(2, "a"), letter(3, "b")]
    outcomes = await FakeApplication(handle).publisher.publish(batch)
    assert isinstance(outcomes[0], Failed)
    assert outcomes[1:] == [Fate.NOT_SENT, Fate.DELIVERED]


async def test_a_handler_that_hangs_has_failed_after_its_timeout():
    async def handle(message: Happened, trace: Trace) -> None:
        await asyncio.Event().wait()

    (outcome,) = await FakeApplication(handle, timeout=0.01).publisher.publish([letter()])
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, TimeoutError)
    assert not outcome.final


async def test_a_handler_that_hangs_does_not_hold_up_others():
    release = asyncio.Event()

    async def handle(message: Happened, trace: Trace) -> None:
        if trace.message_id == "event-1":
            await release.wait()
        else:
            release.set()

    outcomes = await FakeApplication(handle).publisher.publish([letter(1, "a"), letter(2, "b")])
    assert outcomes == [Fate.DELIVERED] * 2


async def hang_for_tea(message: Happened, trace: Trace) -> None:
    if message.name == "tea":
        await asyncio.Event().wait()


async def test_what_is_at_work_when_patience_ends_is_overdue_and_what_follows_is_not_sent():
    app = FakeApplication(hang_for_tea, patience=0.05)
    batch = [letter(1, "a"), letter(2, "a"), letter(3, "b", payload=b'{"name":"coffee"}')]
    assert await app.publisher.publish(batch) == [Fate.OVERDUE, Fate.NOT_SENT, Fate.DELIVERED]


async def test_a_handler_whose_timeout_is_shorter_than_patience_has_failed():
    app = FakeApplication(hang_for_tea, patience=60.0, timeout=0.01)
    (outcome,) = await app.publisher.publish([letter()])
    assert isinstance(outcome, Failed)


async def test_a_retry_is_not_given_up_when_patience_ends():
    app = FakeApplication(hang_for_tea, patience=0.01, timeout=0.1)
    (outcome,) = await app.publisher.publish([letter()._replace(parked=True)])
    assert isinstance(outcome, Failed)


async def test_a_timeout_that_a_handler_raises_itself_is_its_failure():
    async def handle(message: Happened, trace: Trace) -> None:
        raise TimeoutError("of its own")

    outcomes = await FakeApplication(handle, patience=60.0).publisher.publish([letter(1, "a"), letter(2, "b")])
    assert [str(outcome.error) for outcome in outcomes if isinstance(outcome, Failed)] == ["of its own"] * 2


async def test_a_handler_that_is_cancelled_from_within_has_failed():
    async def handle(message: Happened, trace: Trace) -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        task.cancel()
        await task

    (outcome,) = await FakeApplication(handle).publisher.publish([letter()])
    assert isinstance(outcome, Failed)


async def test_a_handler_that_is_cancelled_from_within_takes_no_others_with_it():
    async def handle(message: Happened, trace: Trace) -> None:
        if trace.message_id == "event-0":
            raise asyncio.CancelledError

    batch = [letter(number, f"k{number}") for number in range(40)]
    app = FakeApplication(handle)
    app.publisher._strands = 1
    assert (await app.publisher.publish(batch))[1:] == [Fate.DELIVERED] * 39


async def test_no_more_handlers_run_side_by_side_than_there_are_strands():
    running, most = 0, 0

    async def handle(message: Happened, trace: Trace) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await FakeApplication(handle).publisher.publish([letter(number) for number in range(100)])
    assert most == 16


async def test_cancelling_the_publisher_cancels_the_handlers():
    begun, ended = asyncio.Event(), []

    async def handle(message: Happened, trace: Trace) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(trace.message_id)

    task = asyncio.create_task(FakeApplication(handle).publisher.publish([letter()]))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["event-1"]


async def test_nothing_is_begun_once_it_is_to_stop():
    async def handle(message: Happened, trace: Trace) -> None: ...

    app = FakeApplication(handle)
    app.stopping = True
    assert await app.publisher.publish([letter(1, "a"), letter(2, "b")]) == [Fate.NOT_SENT] * 2


async def test_opening_and_closing_need_nothing():
    async def handle(message: Happened, trace: Trace) -> None: ...

    publisher = FakeApplication(handle).publisher
    await publisher.open()
    await publisher.close()
