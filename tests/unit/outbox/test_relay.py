import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cqrs.codec import Envelope
from cqrs.errors import DecodingError, PublishError
from cqrs.outbox import circuits
from cqrs.outbox.dialect import Nothing
from cqrs.outbox.publisher import Failed, Fate, Outcome, Publisher, Unavailable
from cqrs.outbox.relay import Pace, Relay
from cqrs.outbox.rows import Claimed, Probe, Verdict, View
from tests.unit.outbox.support import until

QUIET = Pace(idle=1000.0, lease=1000.0, grace=10.0)


class Lost(Exception):
    """What the fake store's connection fails with."""


class Killed(BaseException):
    """No fault that a lane survives."""


class FakeStore:
    """A store of lists, and its only lane: what is claimed is gone, what is settled is noted."""

    def __init__(self) -> None:
        self.outbox: deque[Claimed] = deque()
        self.parked: deque[Claimed] = deque()
        self.next_due: float | None = None
        self.faults: deque[Exception] = deque()
        self.views: list[View] = []
        self.busy = False
        self.claims = 0
        self.due_claims = 0
        self.probes = 0
        self.renewals = 0
        self.closed = 0
        self.settled: list[tuple[list[int], list[Verdict]]] = []
        self.settled_due: list[tuple[list[int], list[Verdict], list[int]]] = []
        self.claiming: Callable[[], None] = lambda: None

    def lane(self, owner: str, lease: float) -> Any:
        return self

    def floors(self, view: View) -> Mapping[int, int]:
        return {}

    async def close(self) -> None:
        self.closed += 1

    async def probe(self, view: View, floors: Mapping[int, int]) -> Probe:
        self.probes += 1
        return Probe(bool(self.outbox), 0.0 if self.parked else self.next_due)

    async def claim(self, view: View, limit: int) -> Any:
        self.claims += 1
        self.views.append(view)
        if self.faults:
            raise self.faults.popleft()
        rows = [row for row in self.outbox if shows(view, row)][:limit]
        for row in rows:
            self.outbox.remove(row)
        self.claiming()
        await asyncio.sleep(0)
        if self.busy:
            return Nothing.BUSY
        return FakeClaim(self, rows, self.settle) if rows else Nothing.IDLE

    async def retry(self, view: View, limit: int) -> Any:
        self.due_claims += 1
        rows = [row for row in self.parked if shows(view, row)]
        for row in rows:
            self.parked.remove(row)
        return FakeClaim(self, rows, self.settle_due) if rows else None

    async def keep(self) -> None:
        self.renewals += 1

    async def settle(self, done: Sequence[Claimed], failed: Sequence[Verdict], _: Sequence[Claimed]) -> None:
        self.settled.append(([row.id for row in done], list(failed)))

    async def settle_due(self, done: Sequence[Claimed], failed: Sequence[Verdict], returned: Sequence[Claimed]) -> None:
        self.settled_due.append(([row.id for row in done], list(failed), [row.id for row in returned]))


def shows(view: View, row: Claimed) -> bool:
    if row.envelope is None:
        return True
    destination, topic = row.envelope.destination, row.envelope.topic
    shown = destination in view.destinations and (destination, topic) not in view.without
    return shown and view.topic in (None, topic)


class FakeClaim:
    def __init__(self, store: FakeStore, rows: Sequence[Claimed], settle: Any, held_back: int = 0) -> None:
        self.rows = rows
        self.held_back = held_back
        self.settle = settle
        self._store = store

    async def keep(self) -> None:
        await self._store.keep()


class FakePublisher:
    """A publisher that says what it is told to, and notes what it was given."""

    def __init__(self, publish: Callable[[list[str]], Awaitable[Sequence[Outcome]]] | None = None) -> None:
        self.batches: list[list[str]] = []
        self._publish = publish

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        ids = [envelope.message_id for envelope in envelopes]
        self.batches.append(ids)
        return [Fate.DELIVERED] * len(ids) if self._publish is None else await self._publish(ids)


def row(number: int, *, destination: str = "handler", attempts: int = 0) -> Claimed:
    envelope = Envelope(f"event-{number}", destination, "orders", "a", "Happened", "{}", b"{}", attempts + 1)
    return Claimed(number, 0, envelope)


def unreadable(number: int) -> Claimed:
    readable = row(number)
    return readable._replace(envelope=readable.envelope._replace(saved="no JSON"))


def three_attempts(destination: str, error: BaseException, failures: int) -> tuple[float | None, bool]:
    return (None if failures >= 3 else 30.0), True


def make_relay(store: FakeStore, publishers: dict[str, Publisher], pace: Pace = QUIET, **options: Any) -> Relay:
    fake: Any = store
    return Relay(fake, publishers, pace=pace, **{"end": three_attempts, **options})


@asynccontextmanager
async def relaying(relay: Relay) -> AsyncIterator[Relay]:
    relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


def answering(*outcomes: Outcome) -> FakePublisher:
    async def publish(ids: list[str]) -> Sequence[Outcome]:
        return outcomes

    return FakePublisher(publish)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


# One batch of the outbox


async def test_an_empty_outbox_is_no_batch(store: FakeStore):
    assert await make_relay(store, {"handler": FakePublisher()}).relay_outbox() is False
    assert store.settled == []


async def test_what_was_delivered_is_settled_as_done(store: FakeStore):
    store.outbox += [row(1), row(2)]
    assert await make_relay(store, {"handler": FakePublisher()}).relay_outbox() is True
    assert store.settled == [([1, 2], [])]


async def test_what_was_not_sent_is_neither_done_nor_failed(store: FakeStore):
    store.outbox += [row(1), row(2)]
    await make_relay(store, {"handler": answering(Fate.DELIVERED, Fate.NOT_SENT)}).relay_outbox()
    assert store.settled == [([1], [])]


async def test_a_batch_of_which_nothing_was_sent_is_no_batch(store: FakeStore):
    store.outbox += [row(1)]
    assert await make_relay(store, {"handler": answering(Fate.NOT_SENT)}).relay_outbox() is False
    assert store.settled == [([], [])]


async def test_rows_that_were_held_back_alone_are_a_batch(store: FakeStore):
    async def claim(*_: Any, **__: Any) -> FakeClaim:
        return FakeClaim(store, (), store.settle, 3)

    store.claim = claim
    assert await make_relay(store, {"handler": FakePublisher()}).relay_outbox() is True


async def test_what_failed_waits_as_long_as_its_policy_says(store: FakeStore):
    store.outbox += [row(1)]
    await make_relay(store, {"handler": answering(Failed(ValueError("no")))}).relay_outbox()
    ((done, (verdict,)),) = store.settled
    assert (done, verdict.row.id, verdict.wait, verdict.blocks) == ([], 1, 30.0, True)


async def test_the_policy_is_asked_with_destination_error_and_failures(store: FakeStore):
    asked, error = [], ValueError("no")

    def end(*question: Any) -> tuple[float | None, bool]:
        asked.append(question)
        return 1.0, False

    store.outbox += [row(1, attempts=4)]
    await make_relay(store, {"handler": answering(Failed(error))}, end=end).relay_outbox()
    assert asked == [("handler", error, 5)]
    assert store.settled[0][1][0].blocks is False


async def test_the_last_attempt_that_fails_is_the_end(store: FakeStore):
    store.outbox += [row(1, attempts=2)]
    await make_relay(store, {"handler": answering(Failed(ValueError("no")))}).relay_outbox()
    assert store.settled[0][1][0].wait is None


async def test_a_final_failure_is_the_end_at_the_first_attempt(store: FakeStore):
    store.outbox += [row(1)]
    await make_relay(store, {"handler": answering(Failed(ValueError("no"), final=True))}).relay_outbox()
    assert store.settled[0][1][0].wait is None


async def test_a_failure_keeps_its_traceback(store: FakeStore):
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("no")
    store.outbox += [row(1)]
    await make_relay(store, {"handler": answering(Failed(caught.value))}).relay_outbox()
    kept = store.settled[0][1][0].error
    assert kept.startswith("Traceback")
    assert kept.endswith("ValueError: invalid literal for int() with base 10: 'no'\n")


async def test_of_a_long_error_the_end_is_kept(store: FakeStore):
    store.outbox += [row(1)]
    await make_relay(store, {"handler": answering(Failed(ValueError("x" * 10_000 + " the end")))}).relay_outbox()
    kept = store.settled[0][1][0].error
    assert len(kept) == 4000
    assert kept.endswith("the end\n")


async def test_a_row_over_whose_headers_a_publisher_stumbles_is_dead_and_the_others_stay(store: FakeStore):
    async def stumble(_: list[str]) -> list[Outcome]:
        raise DecodingError("no JSON")

    store.outbox += [row(1), unreadable(2), row(3)]
    with pytest.raises(DecodingError):
        await make_relay(store, {"handler": FakePublisher(stumble)}).relay_outbox()
    ((done, (verdict,)),) = store.settled
    assert (done, verdict.row.id, verdict.wait) == ([], 2, None)
    assert "The saved headers are not a JSON object of text" in verdict.error


async def test_each_publisher_gets_the_rows_of_its_destinations_in_order(store: FakeStore):
    local, broker = FakePublisher(), FakePublisher()
    store.outbox += [row(1, destination="x"), row(2, destination="broker"), row(3, destination="y"), row(4)]
    publishers: dict[str, Publisher] = {"x": local, "y": local, "handler": local, "broker": broker}
    await make_relay(store, publishers).relay_outbox()
    assert (local.batches, broker.batches) == ([["event-1", "event-3", "event-4"]], [["event-2"]])
    assert store.settled == [([1, 2, 3, 4], [])]


async def test_outcomes_of_several_publishers_find_their_rows(store: FakeStore):
    store.outbox += [row(1, destination="x"), row(2, destination="broker"), row(3, destination="x")]
    publishers: dict[str, Publisher] = {
        "x": answering(Failed(ValueError("no")), Fate.NOT_SENT),
        "broker": answering(Fate.DELIVERED),
    }
    await make_relay(store, publishers).relay_outbox()
    ((done, (verdict,)),) = store.settled
    assert (done, verdict.row.id) == ([2], 1)


async def test_a_publisher_that_raises_gives_its_slots_back_and_nothing_is_done(store: FakeStore):
    async def publish(ids: list[str]) -> Sequence[Outcome]:
        raise Lost

    store.outbox += [row(1)]
    with pytest.raises(Lost):
        await make_relay(store, {"handler": FakePublisher(publish)}).relay_outbox()
    assert store.settled == [([], [])]


@pytest.mark.parametrize("others", [0, 1])
async def test_a_publisher_that_lets_out_a_cancellation_of_its_own_has_a_fault(store: FakeStore, others: int):
    async def publish(ids: list[str]) -> Sequence[Outcome]:
        raise asyncio.CancelledError

    store.outbox += [row(1), *(row(2, destination="broker") for _ in range(others))]
    publishers: dict[str, Publisher] = {"handler": FakePublisher(publish), "broker": answering(Fate.DELIVERED)}
    with pytest.raises(asyncio.CancelledError):
        await make_relay(store, publishers).relay_outbox()
    assert store.settled == [([2] * others, [])]


async def test_a_publisher_that_miscounts_is_told_and_costs_no_other_its_outcomes(store: FakeStore):
    store.outbox += [row(1, destination="broker"), row(2)]
    publishers: dict[str, Publisher] = {"broker": answering(), "handler": answering(Fate.DELIVERED)}
    with pytest.raises(PublishError, match="FakePublisher returned 0 outcomes for 1 envelopes"):
        await make_relay(store, publishers).relay_outbox()
    assert store.settled == [([2], [])]


async def test_slots_are_kept_while_another_publisher_still_works_although_one_has_raised(store: FakeStore):
    release, working = asyncio.Event(), []

    async def fail(ids: list[str]) -> Sequence[Outcome]:
        raise Lost

    async def work(ids: list[str]) -> Sequence[Outcome]:
        working.extend(ids)
        try:
            await release.wait()
        finally:
            working.clear()
        return [Fate.DELIVERED]

    async def settle(*_: Any) -> None:
        at_settling.extend(working)

    at_settling: list[str] = []
    store.settle = settle
    store.outbox += [row(1, destination="x"), row(2, destination="broker")]
    relay = make_relay(store, {"broker": FakePublisher(work), "x": FakePublisher(fail)})
    task = asyncio.create_task(relay.relay_outbox())
    for _ in range(10):
        await asyncio.sleep(0)
    release.set()
    await asyncio.gather(task, return_exceptions=True)
    assert at_settling == []


async def test_a_lease_is_renewed_while_a_batch_is_published(store: FakeStore):
    async def publish(ids: list[str]) -> Sequence[Outcome]:
        await until(lambda: store.renewals >= 2)
        return [Fate.DELIVERED]

    store.outbox += [row(1)]
    await make_relay(store, {"handler": FakePublisher(publish)}, Pace(lease=0.02)).relay_outbox()
    assert store.settled == [([1], [])]


async def test_a_lease_that_cannot_be_renewed_does_not_end_the_batch(store: FakeStore):
    tries = []

    async def renew(*_: Any) -> None:
        tries.append(1)
        raise Lost

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        await until(lambda: len(tries) >= 2)
        return [Fate.DELIVERED]

    store.keep = renew
    store.outbox += [row(1)]
    await make_relay(store, {"handler": FakePublisher(publish)}, Pace(lease=0.02)).relay_outbox()
    assert store.settled == [([1], [])]


# One batch of retries


async def test_without_retries_there_is_no_batch(store: FakeStore):
    assert await make_relay(store, {"handler": FakePublisher()}).relay_due() is False
    assert store.settled_due == []


async def test_retries_are_settled_as_delivered_failed_or_returned(store: FakeStore):
    store.parked += [row(1), row(2), row(3)]
    outcomes = answering(Fate.DELIVERED, Failed(ValueError("no")), Fate.NOT_SENT)
    assert await make_relay(store, {"handler": outcomes}).relay_due() is True
    ((done, (verdict,), returned),) = store.settled_due
    assert (done, verdict.row.id, returned) == ([1], 2, [3])


# What is told


async def test_a_failure_is_told_in_one_line(store: FakeStore, caplog: pytest.LogCaptureFixture):
    store.outbox += [row(1)]
    await make_relay(store, {"handler": answering(Failed(ValueError("no stock")))}).relay_outbox()
    assert [(found.levelname, found.getMessage()) for found in caplog.records] == [
        ("WARNING", "Happened event-1 to handler failed, tried again in 30.0 s: ValueError: no stock")
    ]


async def test_a_death_is_told_in_one_line(store: FakeStore, caplog: pytest.LogCaptureFixture):
    store.outbox += [row(1, attempts=2)]
    await make_relay(store, {"handler": answering(Failed(ValueError("no stock")))}).relay_outbox()
    assert [(found.levelname, found.getMessage()) for found in caplog.records] == [
        ("ERROR", "Happened event-1 to handler is dead at attempt 3: ValueError: no stock")
    ]


async def test_a_delivery_is_told_to_who_drains(store: FakeStore):
    relay = make_relay(store, {"handler": FakePublisher()})
    store.outbox += [row(1)]
    await relay.relay_outbox()
    assert relay.settled.is_set()


# Lanes


async def test_a_started_relay_delivers_what_is_there(store: FakeStore):
    store.outbox += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher()})):
        await until(lambda: store.settled == [([1], [])])


async def test_a_wake_up_makes_an_idle_lane_look(store: FakeStore):
    async with relaying(make_relay(store, {"handler": FakePublisher()})) as relay:
        await until(lambda: store.claims == 1 and store.probes == 1)
        store.outbox += [row(1)]
        relay.wake()
        await until(lambda: store.settled == [([1], [])])


async def test_a_wake_up_while_the_lane_looks_is_not_lost(store: FakeStore):
    relay = make_relay(store, {"handler": FakePublisher()})

    def save_too_late() -> None:
        store.claiming = lambda: None
        store.outbox.append(row(1))
        relay.wake()

    store.claiming = save_too_late
    async with relaying(relay):
        await until(lambda: store.settled == [([1], [])])


async def test_a_wake_up_while_the_lane_publishes_is_not_lost(store: FakeStore):
    async def publish(ids: list[str]) -> Sequence[Outcome]:
        if ids == ["event-1"]:
            store.outbox.append(row(2))
            relay.wake()
        return [Fate.NOT_SENT] if ids == ["event-1"] else [Fate.DELIVERED]

    relay = make_relay(store, {"handler": FakePublisher(publish)})
    store.outbox += [row(1)]
    async with relaying(relay):
        await until(lambda: ([2], []) in store.settled)


async def test_an_idle_relay_finds_what_no_wake_up_told_it(store: FakeStore):
    async with relaying(make_relay(store, {"handler": FakePublisher()}, Pace(idle=0.01))):
        await until(lambda: store.claims == 1)
        store.outbox += [row(1)]
        await until(lambda: store.settled == [([1], [])])


async def test_retries_that_are_due_are_delivered(store: FakeStore):
    store.parked += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher()})):
        await until(lambda: [found[0] for found in store.settled_due] == [[1]])


async def test_a_look_finds_retries_that_have_become_due(store: FakeStore):
    async with relaying(make_relay(store, {"handler": FakePublisher()})) as relay:
        await until(lambda: store.probes == 1)
        store.parked += [row(1)]
        relay.look()
        await until(lambda: [found[0] for found in store.settled_due] == [[1]])


async def test_a_retry_is_looked_for_when_it_becomes_due(store: FakeStore):
    store.next_due = 0.01
    async with relaying(make_relay(store, {"handler": FakePublisher()})):
        await until(lambda: store.probes == 1)
        store.parked += [row(1)]
        await until(lambda: [found[0] for found in store.settled_due] == [[1]])


async def test_a_failure_makes_the_relay_look_when_its_retry_is_due(store: FakeStore):
    async with relaying(make_relay(store, {"handler": answering(Failed(ValueError("no")))})) as relay:
        await until(lambda: store.probes == 1)
        store.outbox += [row(1)]
        relay.wake()
        await until(lambda: store.probes == 2)


async def test_retries_do_not_hold_up_the_outbox(store: FakeStore):
    release = asyncio.Event()

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        if ids == ["event-1"]:
            await release.wait()
        return [Fate.DELIVERED]

    store.parked += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher(publish)})) as relay:
        await until(lambda: store.due_claims == 1)
        store.outbox += [row(2)]
        relay.wake()
        await until(lambda: store.settled == [([2], [])])
        release.set()


# Out of reach


async def test_what_is_out_of_reach_counts_no_attempt(store: FakeStore):
    store.outbox += [row(1)]
    await make_relay(store, {"handler": answering(Unavailable(Lost()))}).relay_outbox()
    assert store.settled == [([], [])]


async def test_a_topic_that_is_out_of_reach_is_not_claimed(store: FakeStore):
    relay = make_relay(store, {"handler": answering(Unavailable(Lost()))})
    store.outbox += [row(1)]
    await relay.relay_outbox()
    await relay.relay_outbox()
    assert [view.without for view in store.views] == [frozenset(), frozenset({("handler", "orders")})]


async def test_without_any_destination_in_reach_nothing_is_claimed(store: FakeStore):
    relay = make_relay(store, {"handler": answering(Unavailable(Lost(), everything=True))})
    store.outbox += [row(1)]
    await relay.relay_outbox()
    assert await relay.relay_outbox() is False
    assert await relay.relay_due() is False
    assert (store.claims, store.due_claims) == (1, 0)


async def test_what_is_in_reach_again_is_delivered(store: FakeStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(circuits, "FIRST_PAUSE", 0.001)
    refusals = [Unavailable(Lost("no leader"))] * 3

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        if refusals:
            store.outbox.append(row(1))
            return [refusals.pop()]
        return [Fate.DELIVERED] * len(ids)

    store.outbox += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher(publish)})):
        await until(lambda: ([1], []) in store.settled)


async def test_a_publisher_that_raises_says_of_nothing_that_it_is_in_reach_again(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(circuits, "FIRST_PAUSE", 0.0)
    batches: list[list[str]] = []

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        batches.append(ids)
        if len(batches) == 1:
            return [Unavailable(Lost())]
        raise DecodingError("no JSON")

    relay = make_relay(store, {"handler": FakePublisher(publish)})
    store.outbox += [row(1)]
    await relay.relay_outbox()
    store.outbox += [unreadable(2)]
    with pytest.raises(DecodingError):
        await relay._try_circuits()
    assert batches == [["event-1"], ["event-2"]]
    assert relay._circuits.view(["handler"]).without == {("handler", "orders")}


async def test_a_trial_takes_one_row_of_what_is_out_of_reach(store: FakeStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(circuits, "FIRST_PAUSE", 0.001)
    batches: list[list[str]] = []

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        batches.append(ids)
        if len(batches) == 1:
            store.outbox.extend([row(1), row(2)])
            return [Unavailable(Lost())] * len(ids)
        return [Fate.DELIVERED] * len(ids)

    store.outbox += [row(1), row(2)]
    async with relaying(make_relay(store, {"handler": FakePublisher(publish)})):
        await until(lambda: ([2], []) in store.settled)
    assert batches == [["event-1", "event-2"], ["event-1"], ["event-2"]]


async def test_what_was_overdue_is_parked_without_an_attempt(store: FakeStore):
    store.outbox += [row(1)]
    await make_relay(store, {"handler": answering(Fate.OVERDUE)}).relay_outbox()
    ((_, (verdict,)),) = store.settled
    assert (verdict.wait, verdict.attempts, verdict.blocks) == (0.0, 0, True)


async def test_a_lane_looks_again_soon_while_others_work_on_all_slots(store: FakeStore):
    store.busy = True
    async with relaying(make_relay(store, {"handler": FakePublisher()})):
        await until(lambda: store.claims >= 3)


async def test_a_stop_closes_the_lanes(store: FakeStore):
    async with relaying(make_relay(store, {"handler": FakePublisher()})):
        await until(lambda: store.claims == 1)
    assert store.closed > 0


# Faults


async def test_a_lane_survives_faults_and_tells_them_once(store: FakeStore, caplog: pytest.LogCaptureFixture):
    store.faults += [Lost("connection is closed")] * 3
    store.outbox += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher()})) as relay:
        while store.faults:
            relay.wake()
            await asyncio.sleep(0)
        relay.wake()
        await until(lambda: store.settled == [([1], [])])
    told = [found.getMessage() for found in caplog.records if found.levelname == "ERROR"]
    assert told == ["The relay's lane 'outbox' has a fault and goes on trying: connection is closed"]


async def test_a_lane_tries_again_by_itself_after_a_fault(store: FakeStore):
    store.faults += [Lost("connection is closed")]
    store.outbox += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher()})):
        await until(lambda: store.settled == [([1], [])])


async def test_a_lane_that_has_work_again_says_so(store: FakeStore, caplog: pytest.LogCaptureFixture):
    store.faults += [Lost("connection is closed")]
    store.outbox += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher()})):
        await until(lambda: "The relay works again after 1 faults." in caplog.messages)


async def test_a_lane_that_works_again_but_has_no_work_says_so(store: FakeStore, caplog: pytest.LogCaptureFixture):
    store.faults += [Lost("connection is closed")]
    async with relaying(make_relay(store, {"handler": FakePublisher()})):
        await until(lambda: store.claims == 2)
        await until(lambda: "The relay works again after 1 faults." in caplog.messages, 1.0)


async def test_a_fault_after_a_recovery_is_told_again(store: FakeStore, caplog: pytest.LogCaptureFixture):
    store.faults += [Lost("first")]
    store.outbox += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher()})) as relay:
        await until(lambda: store.settled == [([1], [])])
        store.faults += [Lost("second")]
        store.outbox += [row(2)]
        relay.wake()
        await until(lambda: ([2], []) in store.settled)
    told = [found.getMessage() for found in caplog.records if found.levelno == logging.ERROR]
    assert [line.rpartition(": ")[2] for line in told] == ["first", "second"]


async def test_a_publisher_that_raises_does_not_end_its_lane(store: FakeStore):
    failures = [Lost("no broker")]

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        if failures:
            store.outbox.append(row(1))
            raise failures.pop()
        return [Fate.DELIVERED]

    store.outbox += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher(publish)})):
        await until(lambda: ([1], []) in store.settled)


# Stopping


async def test_a_stop_lets_what_is_in_flight_finish(store: FakeStore):
    begun, release = asyncio.Event(), asyncio.Event()

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        begun.set()
        await release.wait()
        return [Fate.DELIVERED]

    store.outbox += [row(1)]
    relay = make_relay(store, {"handler": FakePublisher(publish)})
    relay.start()
    await begun.wait()
    stop = asyncio.create_task(relay.stop())
    await until(lambda: relay.stopping)
    release.set()
    await stop
    assert store.settled == [([1], [])]


async def test_nothing_is_claimed_after_a_stop(store: FakeStore):
    begun, release = asyncio.Event(), asyncio.Event()

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        begun.set()
        store.outbox.append(row(2))
        await release.wait()
        return [Fate.DELIVERED]

    store.outbox += [row(1)]
    relay = make_relay(store, {"handler": FakePublisher(publish)})
    relay.start()
    await begun.wait()
    stop = asyncio.create_task(relay.stop())
    await until(lambda: relay.stopping)
    release.set()
    await stop
    assert [found.id for found in store.outbox] == [2]


async def test_what_outlasts_the_grace_period_is_cancelled_and_handed_back(store: FakeStore):
    begun, cancelled = asyncio.Event(), []

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(ids)
            raise
        return []

    store.outbox += [row(1)]
    relay = make_relay(store, {"handler": FakePublisher(publish)}, Pace(idle=1000.0, grace=0.01))
    relay.start()
    await begun.wait()
    await relay.stop()
    assert cancelled == [["event-1"]]
    assert store.settled == [([], [])]


async def test_retries_that_outlast_the_grace_period_are_handed_back(store: FakeStore):
    begun = asyncio.Event()

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        begun.set()
        await asyncio.Event().wait()
        return []

    store.parked += [row(1)]
    relay = make_relay(store, {"handler": FakePublisher(publish)}, Pace(idle=1000.0, grace=0.01))
    relay.start()
    await begun.wait()
    await relay.stop()
    assert store.settled_due == [([], [], [1])]


async def test_an_idle_relay_stops_at_once(store: FakeStore):
    relay = make_relay(store, {"handler": FakePublisher()})
    relay.start()
    await until(lambda: store.claims == 1 and store.probes == 1)
    async with asyncio.timeout(5.0):
        await relay.stop()


async def test_a_relay_that_has_a_fault_stops_at_once(store: FakeStore):
    store.faults += [Lost("gone") for _ in range(1000)]
    relay = make_relay(store, {"handler": FakePublisher()})
    relay.start()
    await until(lambda: store.claims >= 1)
    async with asyncio.timeout(5.0):
        await relay.stop()


async def test_stopping_what_was_never_started_is_harmless(store: FakeStore):
    await make_relay(store, {"handler": FakePublisher()}).stop()


async def test_stopping_twice_is_harmless(store: FakeStore):
    relay = make_relay(store, {"handler": FakePublisher()})
    relay.start()
    await relay.stop()
    await relay.stop()


async def test_a_relay_that_was_stopped_starts_again(store: FakeStore):
    relay = make_relay(store, {"handler": FakePublisher()})
    async with relaying(relay):
        await until(lambda: store.claims == 1)
    store.outbox += [row(1)]
    async with relaying(relay):
        await until(lambda: store.settled == [([1], [])])


async def test_a_kill_between_claim_and_outcome_hands_back(store: FakeStore):
    async def publish(ids: list[str]) -> Sequence[Outcome]:
        raise Killed

    store.outbox += [row(1)]
    with pytest.raises(Killed):
        await make_relay(store, {"handler": FakePublisher(publish)}).relay_outbox()
    assert store.settled == [([], [])]


def test_relays_have_owners_that_differ(store: FakeStore):
    owners = {make_relay(store, {}).owner for _ in range(10)}
    assert len(owners) == 10
    assert max(map(len, owners)) <= 64


@pytest.mark.parametrize("text", ["a NUL \0 in it", "half a pair \ud800"])
async def test_an_error_is_kept_in_words_that_every_database_takes(store: FakeStore, text: str):
    store.outbox += [row(1)]
    await make_relay(store, {"handler": answering(Failed(ValueError(text)))}).relay_outbox()
    kept = store.settled[0][1][0].error
    assert "\0" not in kept
    assert kept.encode()


async def test_a_lane_survives_a_cancellation_from_within(store: FakeStore):
    failures = [asyncio.CancelledError()]

    async def publish(ids: list[str]) -> Sequence[Outcome]:
        if failures:
            store.outbox.append(row(1))
            raise failures.pop()
        return [Fate.DELIVERED]

    store.outbox += [row(1)]
    async with relaying(make_relay(store, {"handler": FakePublisher(publish)})):
        await until(lambda: ([1], []) in store.settled)


def test_a_relay_works_in_one_event_loop_after_another(store: FakeStore):
    relay = make_relay(store, {"handler": FakePublisher()})

    async def work(number: int) -> None:
        async with relaying(relay):
            await until(lambda: store.probes > 0)
            store.outbox.append(row(number))
            relay.wake()
            await until(lambda: ([number], []) in store.settled)

    for number in (1, 2):
        asyncio.run(work(number))
        store.probes = 0
