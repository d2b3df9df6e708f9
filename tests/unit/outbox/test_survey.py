from cqrs.outbox.survey import describe


def test_rows_are_described_by_type_id_destination_and_state():
    assert describe([("event-1", "Happened", "handler", "dead")]) == ["- Happened event-1 to handler: dead"]
