import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from cqrs.codec import Envelope
from cqrs.consuming import Consumer
from cqrs.errors import DecodingError
from cqrs.outbox import Failed, Fate
from cqrs.outbox.publisher import Outcome
from cqrs.outbox.rows import Claimed, Verdict
from cqrs.outbox.verdicts import Judge
from cqrs.reading import Arrival, Received
from tests.unit.outbox.support import until


class FakeParking:
    """Parked rows in a list; `away` while the database does not answer."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.away: Exception | None = None
        self.freed: set[str] = set()
        self.dead: list[str] = []

    def _strands(self) -> set[str]:
        return {key for _, key in self.rows if key}

    async def look(self, rows: Sequence[Claimed]) -> tuple[list[Claimed], list[Claimed]]:
        if self.away is not None:
            raise self.away
        new = [row for row in rows if (row.envelope.message_id, row.envelope.key) not in self.rows]
        parked = [row for row in new if row.envelope.key in self._strands()]
        return [row for row in new if row not in parked], parked

    async def park(self, failed: Sequence[Verdict], held: Sequence[Claimed]) -> list[Claimed]:
        self.dead += [verdict.row.envelope.message_id for verdict in failed if verdict.wait is None]
        back = [row for row in held if row.envelope.key in self.freed]
        self.rows = [(event, key) for event, key in self.rows if key not in self.freed]
        for row in [*(verdict.row for verdict in failed), *(row for row in held if row not in back)]:
            self.rows.append((row.envelope.message_id, row.envelope.key or ""))
        return back


class FakeReader:
    """Reads `id:key` as a message for one handler, and what begins with `poison` as poison."""

    plans: ClassVar[Any] = {}

    def read(self, received: Received) -> list[Arrival]:
        message_id, _, key = received.body.decode().partition(":")
        envelope = Envelope(message_id, "handler", received.topic, key or None, "Happened", "{}", b"{}")
        return [Arrival(envelope, DecodingError("no event") if message_id.startswith("poison") else None)]


class Scene:
    """A consumer over fakes; `answer` decides what becomes of each message that is delivered."""

    def __init__(self, answer: Callable[[str], Outcome] = lambda _: Fate.DELIVERED, *, patience: float = 60.0) -> None:
        self.answer = answer
        self.delivered: list[str] = []
        self.parking = FakeParking()
        self.told = 0
        reader: Any = FakeReader()
        self.consumer = Consumer(
            reader,
            self.deliver,
            self.parking,
            Judge(lambda destination, error, failures: (1.0, True)),
            slot_of=lambda envelope: 0,
            parked=self.tell,
            is_absence=lambda error: isinstance(error, OSError),
            patience=patience,
        )

    def tell(self) -> None:
        self.told += 1

    async def deliver(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        outcomes: list[Outcome] = [Fate.NOT_SENT] * len(envelopes)
        stuck = set()
        for index, envelope in enumerate(envelopes):
            if envelope.strand not in stuck:
                outcomes[index] = self.answer(envelope.message_id)
                if outcomes[index] is Fate.DELIVERED:
                    self.delivered.append(envelope.message_id)
                else:
                    stuck.add(envelope.strand)
        return outcomes

    @property
    def dead(self) -> list[str]:
        return self.parking.dead

    async def take(self, *messages: str) -> bool:
        return await self.consumer.take([Received("topic", None, {}, text.encode()) for text in messages])


def failing(*ids: str) -> Callable[[str], Outcome]:
    return lambda message_id: Failed(ValueError("no")) if message_id in ids else Fate.DELIVERED


async def test_a_batch_ends_when_every_message_has_been_delivered():
    scene = Scene()
    assert await scene.take("1:a", "2:b", "3")
    assert scene.delivered == ["1", "2", "3"]
    assert scene.parking.rows == []


async def test_what_fails_is_parked_and_what_follows_of_its_key_waits_behind_it():
    scene = Scene(failing("1"))
    assert await scene.take("1:a", "2:b", "3:a", "4:a", "5:b")
    assert scene.delivered == ["2", "5"]
    assert scene.parking.rows == [("1", "a"), ("3", "a"), ("4", "a")]
    assert scene.told


async def test_a_message_of_a_parked_key_waits_without_being_tried():
    scene = Scene()
    scene.parking.rows = [("0", "a")]
    assert await scene.take("1:a")
    assert scene.delivered == []
    assert scene.parking.rows == [("0", "a"), ("1", "a")]


async def test_a_message_whose_key_has_drained_meanwhile_is_delivered():
    scene = Scene()
    scene.parking.rows, scene.parking.freed = [("0", "a")], {"a"}
    assert await scene.take("1:a", "2:a")
    assert scene.delivered == ["1", "2"]


async def test_a_message_that_is_parked_already_is_left_there():
    scene = Scene()
    scene.parking.rows = [("1", "a")]
    assert await scene.take("1:a")
    assert scene.parking.rows == [("1", "a")]


async def test_poison_is_parked_without_being_delivered():
    scene = Scene()
    assert await scene.take("poison1:a", "2:b")
    assert scene.delivered == ["2"]
    assert scene.parking.rows == [("poison1", "a")]


async def test_poison_does_not_overtake_what_came_before_it():
    scene = Scene(failing("1"))
    assert await scene.take("1:a", "poison2:a", "3:a")
    assert scene.parking.rows == [("1", "a"), ("poison2", "a"), ("3", "a")]


async def test_poison_after_what_was_delivered_is_parked():
    scene = Scene()
    assert await scene.take("1:a", "poison2:a", "3:a")
    assert scene.delivered == ["1"]
    assert scene.parking.rows == [("poison2", "a"), ("3", "a")]


async def test_what_has_not_begun_in_time_is_parked_in_order():
    scene = Scene(lambda _: Fate.NOT_SENT, patience=0.0)
    assert await scene.take("1:a", "2:a", "3:b")
    assert [event for event, key in scene.parking.rows if key == "a"] == ["1", "2"]
    assert ("3", "b") in scene.parking.rows


async def test_what_cannot_be_read_is_dead_at_once_also_when_it_is_late():
    scene = Scene(patience=0.0)
    assert await scene.take("poison1:a", "2:b")
    assert scene.dead == ["poison1"]


async def test_a_message_that_came_twice_in_a_batch_is_one():
    scene = Scene(failing("1"), patience=0.0)
    assert await scene.take("1:a", "1:a", "2:a", "2:a")
    assert scene.parking.rows == [("1", "a"), ("2", "a")]


async def test_while_the_database_is_away_nothing_ends_and_then_everything_does(caplog: pytest.LogCaptureFixture):
    scene = Scene()
    scene.parking.away = OSError("connection refused")
    taking = asyncio.create_task(scene.take("1:a"))
    await until(lambda: scene.consumer.fault is not None)
    assert scene.consumer.fault == "the database does not answer: connection refused"
    assert not taking.done()
    scene.parking.away = None
    assert await taking
    assert scene.delivered == ["1"]
    assert scene.consumer.fault is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ConnectionError("refused"), "the database does not answer: refused"),
        (TypeError("no such table"), "looking for parked keys failed with TypeError: no such table"),
    ],
)
async def test_what_holds_up_consuming_is_told_by_its_name(
    caplog: pytest.LogCaptureFixture, error: Exception, fault: str
):
    scene = Scene()
    scene.parking.away = error
    taking = asyncio.create_task(scene.take("1:a"))
    await until(lambda: scene.consumer.fault is not None)
    assert scene.consumer.fault == fault
    assert not taking.done()
    scene.parking.away = None
    assert await taking
    assert [record.getMessage() for record in caplog.records] == [
        f"Nothing is consumed, as {fault.partition(':')[0]}; it is tried again: {error}",
        "Consuming goes on.",
    ]


async def test_what_holds_up_consuming_is_told_anew_when_it_changes(caplog: pytest.LogCaptureFixture):
    scene = Scene()
    scene.parking.away = ConnectionError("refused")
    taking = asyncio.create_task(scene.take("1:a"))
    await until(lambda: scene.consumer.fault is not None)
    scene.parking.away = TypeError("no such table")
    await until(lambda: "TypeError" in (scene.consumer.fault or ""))
    scene.parking.away = None
    assert await taking
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR, logging.WARNING]


async def test_a_fault_of_delivering_ends_nothing_and_says_where_it_was(caplog: pytest.LogCaptureFixture):
    broken = True

    def answer(message_id: str) -> Outcome:
        if broken:
            raise KeyError("a mistake")
        return Fate.DELIVERED

    scene = Scene(answer)
    taking = asyncio.create_task(scene.take("1:a"))
    await until(lambda: scene.consumer.fault is not None)
    assert scene.consumer.fault == "delivering failed with KeyError: 'a mistake'"
    assert "a mistake" in caplog.text.partition("Traceback")[2]
    broken = False
    assert await taking
    assert scene.delivered == ["1"]


async def test_a_fault_of_reading_ends_nothing():
    scene = Scene()
    taking = asyncio.create_task(scene.consumer.take([Received("topic", None, {}, b"\xff")]))
    await until(lambda: scene.consumer.fault is not None)
    assert "reading what was received failed with UnicodeDecodeError" in (scene.consumer.fault or "")
    await scene.consumer.stop(grace=5.0)
    assert not await taking


async def test_a_batch_that_is_stopped_has_not_ended():
    scene = Scene()
    scene.parking.away = OSError("connection refused")
    taking = asyncio.create_task(scene.take("1:a"))
    await until(lambda: scene.consumer.fault is not None)
    await scene.consumer.stop(grace=5.0)
    assert not await taking
    assert scene.delivered == []


async def test_after_a_stop_nothing_begins_until_it_is_resumed():
    scene = Scene()
    await scene.consumer.stop(grace=0.0)
    assert not await scene.take("1:a")
    scene.consumer.resume()
    assert await scene.take("1:a")
    assert scene.delivered == ["1"]


async def test_a_stop_waits_no_longer_than_the_grace_period():
    scene = Scene()
    scene.parking.away = OSError("connection refused")
    taking = asyncio.create_task(scene.take("1:a"))
    await until(lambda: scene.consumer.fault is not None)
    await scene.consumer.stop(grace=0.0)
    assert not await taking
