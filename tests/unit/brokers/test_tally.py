from cqrs.brokers.tally import Tally
from cqrs.outbox import Failed, Fate, Unavailable
from tests.contract.publisher import letter, letters, shape

FAILED = Failed(ValueError("no"))
GONE = Unavailable(ConnectionError("gone"))


def test_what_has_no_end_was_not_sent():
    tally = Tally(letters("123"))
    assert (tally.outcomes, tally.open) == ([Fate.NOT_SENT] * 3, {0, 1, 2})


def test_what_comes_after_a_stop_in_its_strand_is_held():
    tally = Tally([letter("1", "a"), letter("2", "a"), letter("3", "b"), letter("4", None), letter("5", None)])
    tally.stop(0, FAILED)
    tally.stop(3, FAILED)
    assert [tally.is_held(index) for index in (1, 2, 4)] == [True, False, False]
    assert tally.open == {2, 4}


def test_giving_up_ends_the_first_of_each_strand_and_none_that_is_held():
    tally = Tally([letter("1", "a"), letter("2", "a"), letter("3", "b"), letter("4", "b"), letter("5", None)])
    tally.stop(0, FAILED)
    tally.give_up([1, 2, 3, 4], GONE)
    assert shape(tally.outcomes) == ["failed", "not sent", "unavailable", "not sent", "unavailable"]
    assert tally.open == set()


def test_what_is_open_is_told_by_topic_in_order():
    tally = Tally(letters("123"))
    tally.settle([1], Fate.DELIVERED)
    assert tally.by_topic() == {"orders": [0, 2]}


def test_a_strand_is_a_key_of_a_topic_or_a_message_without_one():
    tally = Tally([letter("1", "a"), letter("2", None), letter("3", "a"), letter("4", None)])
    assert [list(strand) for strand in tally.by_strand(range(4))] == [[0, 2], [1], [3]]


def test_silent_is_what_nothing_was_heard_of():
    tally = Tally(letters("12"))
    assert tally.is_silent()
    tally.settle([1], Fate.DELIVERED)
    assert not tally.is_silent()
