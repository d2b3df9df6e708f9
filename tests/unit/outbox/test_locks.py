import pytest

from cqrs.outbox import locks
from cqrs.outbox.locks import Appetite

SLOTS = 8


def rows(*slots: int, size: int = 100) -> list[tuple[object, ...]]:
    return [(number, slot, "e", "broker", "t", "k", "X", "{}", b"x" * size, None) for number, slot in enumerate(slots)]


def fed(appetite: Appetite, limit: int, *slots: int, size: int = 100) -> Appetite:
    most, each = appetite.portions(limit, SLOTS)
    appetite.learn(rows(*slots, size=size), most, each)
    return appetite


def test_the_first_claim_is_small():
    assert Appetite().portions(1000, SLOTS) == (locks.CAREFUL, 13)


def test_small_rows_make_for_larger_claims_step_by_step():
    appetite = Appetite()
    found = []
    for _ in range(3):
        fed(appetite, 1000, *([0, 1, 2, 3, 4, 5, 6, 7] * 125))
        found.append(appetite.portions(1000, SLOTS)[0])
    assert found == [400, 1000, 1000]


def test_large_rows_make_for_smaller_claims_at_once():
    appetite = fed(fed(Appetite(), 1000, *([0] * 1000)), 1000, *([0] * 4), size=4 * 1024 * 1024)
    assert appetite.portions(1000, SLOTS)[0] == 4


def test_a_claim_has_one_row_however_large_it_is():
    appetite = fed(Appetite(), 1000, 0, size=locks.MOST_BYTES * 2)
    assert appetite.portions(1000, SLOTS) == (1, 1)


def test_a_claim_of_nothing_is_no_reason_for_anything():
    assert fed(Appetite(), 1000).portions(1000, SLOTS) == (400, 50)


@pytest.fixture
def sized(monkeypatch: pytest.MonkeyPatch) -> Appetite:
    """An appetite that knows that rows are small."""
    monkeypatch.setattr(locks, "CAREFUL", 10_000)
    return Appetite()


def test_slots_share_a_claim_evenly(sized: Appetite):
    assert sized.portions(1000, SLOTS) == (1000, 125)


def test_few_slots_with_many_rows_are_read_deeper(sized: Appetite):
    fed(sized, 1000, *([0] * 125))
    assert sized.portions(1000, SLOTS) == (1000, 250)
    fed(sized, 1000, *([0] * 250))
    assert sized.portions(1000, SLOTS) == (1000, 500)


def test_a_slot_that_had_fewer_rows_is_not_read_deeper(sized: Appetite):
    fed(sized, 1000, *([0] * 20))
    assert sized.portions(1000, SLOTS) == (1000, 125)


def test_many_slots_with_many_rows_are_read_evenly_again(sized: Appetite):
    fed(sized, 1000, *([0] * 125))
    fed(sized, 1000, *([0, 1, 2, 3] * 250))
    assert sized.portions(1000, SLOTS) == (1000, 125)
