import json

import pytest

from cqrs.codec import Envelope
from cqrs.errors import DecodingError
from cqrs.outbox.rows import Claimed, Verdict, View, by_slot, claimed


def saved(number: int, last: object = None, headers: str = '{"note":"grün"}') -> tuple[object, ...]:
    return (number, 3, f"event-{number}", "broker", "orders", "a", "Happened", headers, b"{}", last)


def envelope(number: int, attempt: int = 1, *, parked: bool = False) -> Envelope:
    headers = {"note": "grün"}
    return Envelope(f"event-{number}", "broker", "orders", "a", "Happened", headers, b"{}", attempt, parked)


def test_rows_of_the_outbox_come_with_their_place():
    (row,) = claimed([saved(7, "(0,1)")], places=True)
    assert row == Claimed(7, 3, envelope(7), None, 0, ("broker", "orders", "a"), "(0,1)")


def test_parked_rows_come_with_their_attempts():
    (row,) = claimed([saved(7, 2)])
    assert row == Claimed(7, 3, envelope(7, 3, parked=True), None, 2, ("broker", "orders", "a"), None)


@pytest.mark.parametrize("headers", ["no JSON", "[]", "", "{}, {}", '{"a": "b"}}'])
def test_an_unreadable_row_comes_with_the_reason_and_spoils_no_other(headers: str):
    rows = claimed([saved(1), saved(2, headers=headers), saved(3)], places=True)
    assert [row.envelope for row in rows] == [envelope(1), None, envelope(3)]
    assert isinstance(rows[1].fault, DecodingError)
    assert rows[1].lane == ("broker", "orders", "a")


def test_headers_that_are_no_text_are_made_text():
    (row,) = claimed([saved(1, headers=json.dumps({"tries": 3}))], places=True)
    assert row.envelope is not None
    assert row.envelope.headers == {"tries": "3"}


def test_of_no_rows_there_are_none():
    assert claimed([]) == []


def test_an_attempt_counts_unless_it_was_given_up_for_want_of_time():
    (row,) = claimed([saved(1, 2)])
    assert Verdict(row, "no", 1.0, blocks=True).attempts == 3
    assert Verdict(row, "late", 0.0, blocks=True, counts=False).attempts == 2


def test_ids_are_found_by_their_slot():
    rows = [Claimed(1, 0, None), Claimed(2, 5, None), Claimed(3, 0, None)]
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
