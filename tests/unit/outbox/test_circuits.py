import logging

import pytest

import cqrs
from cqrs.codec import Envelope
from cqrs.outbox import circuits as module
from cqrs.outbox.circuits import Circuits
from cqrs.outbox.publisher import Fate, Outcome, Unavailable
from cqrs.outbox.rows import View

DOWN = Unavailable(ConnectionError("no leader"))
GONE = Unavailable(ConnectionError("refused"), everything=True)
ORDERS = ("broker", "orders")
BROKER = ("broker", None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def letter(topic: str = "orders") -> Envelope:
    return Envelope("event-1", "broker", topic, "a", "Happened", "{}", b"{}")


def learn(circuits: Circuits, outcome: Outcome, topic: str = "orders") -> None:
    circuits.learn([letter(topic)], [outcome])


def test_everything_is_in_reach_at_first():
    circuits = Circuits(["handler"])
    assert circuits.view(["broker", "handler"]) == View(("broker", "handler"), skipping=frozenset({"handler"}))
    assert circuits.pause is None


@pytest.mark.usefixtures("clock")
def test_a_topic_that_is_out_of_reach_is_left_alone():
    circuits = Circuits()
    learn(circuits, DOWN)
    assert circuits.view(["broker", "handler"]) == View(("broker", "handler"), frozenset({ORDERS}))


@pytest.mark.usefixtures("clock")
def test_a_broker_that_is_out_of_reach_is_left_alone():
    circuits = Circuits()
    learn(circuits, GONE)
    assert circuits.view(["broker", "handler"]) == View(("handler",))


def test_what_is_out_of_reach_is_tried_after_its_pause(clock: list[float]):
    circuits = Circuits()
    learn(circuits, DOWN)
    assert circuits.due() == []
    assert circuits.pause == module.FIRST_PAUSE
    clock[0] += module.FIRST_PAUSE
    assert circuits.due() == [ORDERS]
    assert circuits.trial(ORDERS) == View(("broker",), topic="orders")
    assert circuits.trial(BROKER) == View(("broker",))


def test_each_failed_trial_doubles_the_pause_up_to_the_longest(clock: list[float]):
    circuits = Circuits()
    pauses = []
    for _ in range(8):
        learn(circuits, DOWN)
        assert circuits.pause is not None
        pauses.append(circuits.pause)
        clock[0] += circuits.pause
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


@pytest.mark.usefixtures("clock")
def test_many_envelopes_of_a_batch_are_one_failure():
    circuits = Circuits()
    circuits.learn([letter()] * 50, [DOWN] * 50)
    assert circuits.pause == module.FIRST_PAUSE


@pytest.mark.parametrize("outcome", [Fate.DELIVERED, cqrs.Failed(ValueError("no"))])
@pytest.mark.usefixtures("clock")
def test_an_answer_of_the_topic_closes_its_circuit(outcome: Outcome):
    circuits = Circuits()
    learn(circuits, DOWN)
    learn(circuits, outcome)
    assert circuits.pause is None


@pytest.mark.usefixtures("clock")
def test_an_answer_of_any_topic_closes_the_brokers_circuit():
    circuits = Circuits()
    learn(circuits, GONE)
    learn(circuits, Fate.DELIVERED, topic="stock")
    assert circuits.pause is None


@pytest.mark.usefixtures("clock")
def test_what_was_not_sent_says_nothing():
    circuits = Circuits()
    learn(circuits, DOWN)
    learn(circuits, Fate.NOT_SENT)
    assert circuits.pause is not None


def test_each_change_is_told_once(clock: list[float], caplog: pytest.LogCaptureFixture):
    circuits = Circuits()
    for _ in range(3):
        learn(circuits, DOWN)
        clock[0] += 10.0
    learn(circuits, Fate.DELIVERED)
    learn(circuits, Fate.DELIVERED)
    assert [(found.levelno, found.getMessage()) for found in caplog.records] == [
        (
            logging.ERROR,
            "The topic 'orders' of 'broker' is out of reach; its rows wait and nothing else does: no leader",
        ),
        (logging.WARNING, "The topic 'orders' of 'broker' is in reach again after 3 failures."),
    ]


def test_without_a_row_to_try_the_next_one_is_the_trial(clock: list[float], caplog: pytest.LogCaptureFixture):
    circuits = Circuits()
    learn(circuits, DOWN)
    clock[0] += 10.0
    circuits.half_open(ORDERS)
    assert circuits.view(["broker"]) == View(("broker",))
    learn(circuits, DOWN)
    assert circuits.pause == 2 * module.FIRST_PAUSE
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("clock")
def test_the_trial_that_was_waited_for_closes_the_circuit(caplog: pytest.LogCaptureFixture):
    circuits = Circuits()
    learn(circuits, DOWN)
    circuits.half_open(ORDERS)
    learn(circuits, Fate.DELIVERED)
    assert "in reach again" in caplog.text
