import pytest

from cqrs.outbox.troubles import Troubles


def test_what_ails_several_lanes_is_told_once(caplog: pytest.LogCaptureFixture):
    troubles = Troubles()
    for lane in ("outbox", "look", "outbox"):
        troubles.add(lane, ConnectionError("connection is closed"))
    troubles.end("outbox")
    troubles.end("look")
    assert caplog.messages == [
        "The relay's lane 'outbox' has a fault and goes on trying: connection is closed",
        "The relay's lane 'look' has a fault and goes on trying: connection is closed",
        "The relay works again after 3 faults.",
    ]


def test_a_lane_that_works_when_all_do_says_nothing(caplog: pytest.LogCaptureFixture):
    Troubles().end("outbox")
    assert caplog.messages == []
