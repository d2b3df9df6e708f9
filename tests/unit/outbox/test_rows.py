import pytest

from cqrs.codec import Envelope
from cqrs.outbox.rows import Claimed, Verdict, View, by_slot, claimed, retried

HEADERS = '{"note":"grün"}'


def saved(number: int, last: object = None) -> tuple[object, ...]:
    return (number, 3, f"event-{number}", "broker", "orders", "a", "Happened", HEADERS, b"{}", last)


def envelope(number: int, attempt: int = 1, *, parked: bool = False) -> Envelope:
    return Envelope(f"event-{number}", "broker", "orders", "a", "Happened", HEADERS, b"{}", attempt, parked)


def test_rows_of_the_outbox_come_with_their_place():
    assert claimed([saved(7, "(0,1)")]) == [Claimed(7, 3, envelope(7), "(0,1)")]


def test_parked_rows_come_with_their_attempts():
    (row,) = retried([saved(7, 2)])
    assert row == Claimed(7, 3, envelope(7, 3, parked=True))
    assert row.attempts == 2


def test_a_row_keeps_its_order_within_destination_topic_and_key():
    (row,) = claimed([saved(7)])
    assert row.strand == ("broker", "orders", "a")


def test_of_no_rows_there_are_none():
    assert claimed([]) == []


def test_an_attempt_counts_unless_it_was_given_up_for_want_of_time():
    (row,) = retried([saved(1, 2)])
    assert Verdict(row, "no", 1.0, blocks=True).attempts == 3
    assert Verdict(row, "late", 0.0, blocks=True, counts=False).attempts == 2


def test_ids_are_found_by_their_slot():
    rows = [Claimed(number, slot, envelope(number)) for number, slot in ((1, 0), (2, 5), (3, 0))]
    assert by_slot(rows) == {0: [1, 3], 5: [2]}


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        (View(("a", "b")), View(("a",)), True),
        (View(("a",)), View(("a", "b")), False),
        (View(("a",)), View(("a",), frozenset({("a", "t")})), True),
        (View(("a",), frozenset({("a", "t")})), View(("a",)), False),
        (View(("a",)), View(("a",), topic="t"), True),
        (View(("a",), topic="t"), View(("a",)), False),
        (View(("a",), topic="t"), View(("a",), topic="u"), False),
    ],
)
def test_a_wide_view_covers_a_narrow_one(wide: View, narrow: View, covers: bool):
    assert wide.covers(narrow) is covers
