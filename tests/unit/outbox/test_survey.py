from cqrs.outbox.rows import Unended
from cqrs.outbox.survey import describe

TRACEBACK = """Traceback (most recent call last):
  File "shop.py", line 7, in receive
    raise ValueError("no stock")
ValueError: no stock
"""


def test_rows_are_described_by_type_id_destination_and_state():
    assert describe([Unended("event-1", "Happened", "handler", "waiting", None)]) == [
        "- Happened event-1 to handler: waiting"
    ]


def test_what_has_failed_is_described_with_its_error():
    assert describe([Unended("event-1", "Happened", "handler", "dead", TRACEBACK)]) == [
        "- Happened event-1 to handler: dead (ValueError: no stock)"
    ]
