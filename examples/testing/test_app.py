"""Tests that wait for what they caused: none sleeps, none needs a server."""

from contextlib import AbstractAsyncContextManager

import pytest

from cqrs.testing import Harness
from examples.testing.app import BuyTicket, SeatTakenError, ShowCancelled, TicketBought, TicketRefunded, TicketsOf
from examples.testing.conftest import Letterbox

BoxOffice = AbstractAsyncContextManager[Harness]
ADA = BuyTicket(show="Hamlet", seat=1, email="ada@example.com")
BOB = BuyTicket(show="Hamlet", seat=1, email="bob@example.com")


async def test_a_ticket_is_mailed_and_published(box_office: BoxOffice, letterbox: Letterbox) -> None:
    async with box_office as t:
        await t.send(ADA)
        assert letterbox.mails == [("ada@example.com", "Hamlet, seat 1")]
        assert t.assert_published(TicketBought, seat=1).key == "Hamlet"
        assert await t.send(TicketsOf(show="Hamlet")) == [1]


async def test_a_seat_is_sold_once(box_office: BoxOffice, letterbox: Letterbox) -> None:
    async with box_office as t:
        await t.send(ADA)
        with pytest.raises(SeatTakenError):
            await t.send(BOB)
        t.assert_not_emitted(TicketBought, email="bob@example.com")  # it was rolled back with its command
        assert len(letterbox.mails) == 1


async def test_a_mail_is_tried_again_in_an_hour(box_office: BoxOffice, letterbox: Letterbox) -> None:
    letterbox.failures = 2
    async with box_office as t:
        await t.send(ADA)
        assert len(letterbox.mails) == 1
        assert [(each.handler, each.number, each.dead) for each in t.failures] == [
            ("mail_ticket", 1, False),
            ("mail_ticket", 2, False),
        ]


async def test_a_mail_that_nobody_takes_is_a_dead_letter(box_office: BoxOffice, letterbox: Letterbox) -> None:
    letterbox.failures = 3
    async with box_office as t:
        await t.send(ADA)
        assert letterbox.mails == []
        assert t.failures[-1].dead
        await t.app.outbox.replay()
        await t.settle()
        assert len(letterbox.mails) == 1


async def test_a_cancelled_show_is_refunded_once(box_office: BoxOffice) -> None:
    async with box_office as t:
        await t.send(ADA)
        for _ in range(2):  # brokers deliver at least once
            await t.receive(ShowCancelled(show="Hamlet"), event_id="7f3c")
        assert [event for event in t.emitted if isinstance(event, TicketRefunded)] == [
            TicketRefunded(show="Hamlet", seat=1)
        ]
