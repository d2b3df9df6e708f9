"""What every store must do with what a consumer parks; part of `store.StoreContract`."""

from collections.abc import Sequence

import pytest
from sqlalchemy import insert, null, select

from cqrs.codec import Envelope
from cqrs.outbox import admission
from cqrs.outbox.admission import Admission
from cqrs.outbox.parked import held_back
from cqrs.outbox.rows import Claimed, Verdict, View
from cqrs.outbox.store import Store

HANDLER = "handler"


def row(number: int, key: str | None = "a", *, destination: str = HANDLER, topic: str = "orders") -> Claimed:
    envelope = Envelope(f"m{number}", destination, topic, key, "Happened", "{}", b'{"n":1}')
    return Claimed(number, 3, envelope)


def failure(claimed: Claimed, *, wait: float | None = 60.0, blocks: bool = True) -> Verdict:
    return Verdict(claimed, "it failed", wait, blocks)


async def parked(store: Store) -> list[tuple[str, str, bool]]:
    """Return id, state and whether it is due some time, in order."""
    table = store.tables.parked
    async with store.readers.connect() as connection:
        found = await connection.execute(select(table).order_by(table.c.seq))
        return [(each.event_id, each.state, each.next_attempt_at is not None) for each in found]


async def park_at_once(store: Store, envelopes: Sequence[Envelope]) -> None:
    """Park what may be many in one statement, each the first of its key."""
    parking = insert(store.tables.parked).values(source_id=null(), created_at=store.now(), **held_back())
    async with store.short.begin() as connection:
        await connection.execute(parking, [store.values(envelope) for envelope in envelopes])


def ids(rows: Sequence[Claimed]) -> list[str]:
    return [each.envelope.message_id for each in rows]


def with_body(claimed: Claimed, body: bytes) -> Claimed:
    return claimed._replace(envelope=claimed.envelope._replace(payload=body))


def take_at_most(longest: float, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a store take bodies of so many bytes."""

    async def longest_body(*_: object) -> float:
        return longest

    monkeypatch.setattr(admission, "SHORT", 4)
    monkeypatch.setattr(store.dialect, "longest_body", longest_body)


class AdmissionContract:
    async def test_where_nothing_is_parked_everything_may_be_delivered(self, store: Store):
        free, held = await Admission(store, ()).look([row(1), row(2, None)])
        assert (ids(free), ids(held)) == (["m1", "m2"], [])

    async def test_what_failed_is_parked_with_its_bytes_and_its_error(self, store: Store):
        await Admission(store, ()).park([failure(row(1))], [])
        [letter] = await store.parked.find({}, 10)
        assert (letter.payload, letter.error, letter.attempts) == (b'{"n":1}', "it failed", 1)

    async def test_a_body_that_the_database_does_not_take_is_left_out(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        take_at_most(100, store, monkeypatch)
        large = with_body(row(2), b"x" * 101)
        await Admission(store, ()).park([failure(row(1, "b")), failure(large)], [])
        other, letter = await store.parked.find({}, 10)
        assert (other.payload, other.error) == (b'{"n":1}', "it failed")
        assert letter.payload == b""
        assert letter.error is not None
        assert letter.error.startswith("Its body of 101 bytes is not kept here, since the database takes 100 at most")
        assert letter.error.endswith("it failed")
        assert await parked(store) == [("m1", "waiting", True), ("m2", "dead", False)]

    async def test_such_a_body_is_left_out_in_its_place_of_what_waits(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        take_at_most(100, store, monkeypatch)
        large = with_body(row(3), b"x" * 101)
        assert await Admission(store, ()).park([failure(row(1))], [row(2), large, row(4)]) == []
        assert [(event, state) for event, state, _ in await parked(store)] == [
            ("m1", "waiting"),
            ("m2", "waiting"),
            ("m3", "dead"),
            ("m4", "waiting"),
        ]

    async def test_such_a_body_of_a_handler_that_skips_holds_back_nothing(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        take_at_most(100, store, monkeypatch)
        large = with_body(row(1), b"x" * 101)
        await Admission(store, (HANDLER,)).park([failure(large, blocks=False), failure(row(2))], [])
        assert await parked(store) == [("m1", "dead", False), ("m2", "waiting", True)]

    async def test_the_longest_body_is_parked(self, store: Store):
        async with store.short.begin() as connection:
            longest = await store.dialect.longest_body(connection)
        body = b"'" * int(min(longest, 10_000_000))
        await Admission(store, ()).park([failure(with_body(row(1), body))], [])
        [letter] = await store.parked.find({}, 10)
        assert letter.payload == body

    async def test_what_follows_of_a_parked_key_has_to_wait_and_nothing_else(self, store: Store):
        admission = Admission(store, ())
        await admission.park([failure(row(1))], [])
        others = [row(3, "b"), row(4, None), row(5, destination="other"), row(6, topic="other")]
        free, held = await admission.look([row(2), *others])
        assert (ids(free), ids(held)) == (["m3", "m4", "m5", "m6"], ["m2"])

    async def test_what_waits_is_due_only_after_what_it_waits_behind(self, store: Store):
        admission = Admission(store, ())
        await admission.park([failure(row(1))], [])
        assert await admission.park([], [row(2), row(3)]) == []
        assert await parked(store) == [("m1", "waiting", True), ("m2", "waiting", False), ("m3", "waiting", False)]

    async def test_of_two_failures_of_a_key_the_second_one_waits_behind_the_first(self, store: Store):
        await Admission(store, ()).park([failure(row(1)), failure(row(2))], [])
        assert await parked(store) == [("m1", "waiting", True), ("m2", "waiting", False)]

    async def test_what_nothing_holds_back_any_more_is_returned(self, store: Store):
        assert ids(await Admission(store, ()).park([], [row(1)])) == ["m1"]
        assert await parked(store) == []

    async def test_a_redelivered_message_that_is_parked_is_neither_delivered_nor_parked_again(self, store: Store):
        admission = Admission(store, ())
        await admission.park([failure(row(1)), failure(row(2, None))], [])
        assert await admission.look([row(1), row(2, None)]) == ([], [])
        await admission.park([failure(row(1)), failure(row(2, None))], [])
        assert [event for event, *_ in await parked(store)] == ["m1", "m2"]

    async def test_a_dead_message_that_blocks_holds_back_its_key(self, store: Store):
        admission = Admission(store, ())
        await admission.park([failure(row(1), wait=None)], [])
        free, held = await admission.look([row(2)])
        assert (ids(free), ids(held)) == ([], ["m2"])

    async def test_a_dead_message_of_a_handler_that_skips_holds_back_nothing(self, store: Store):
        admission = Admission(store, [HANDLER])
        await admission.park([failure(row(1), wait=None, blocks=False)], [])
        free, held = await admission.look([row(2)])
        assert (ids(free), ids(held)) == (["m2"], [])
        assert await parked(store) == [("m1", "dead", False)]

    async def test_the_relay_finds_what_a_consumer_has_parked(self, store: Store):
        await Admission(store, ()).park([failure(row(1), wait=0.0)], [row(2)])
        lane = store.lane("me", 10.0)
        claim = await lane.retry(View((HANDLER,)), 10)
        assert claim is not None
        assert ids(claim.rows) == ["m1"]
        await claim.settle(claim.rows, [], [])
        await lane.close()
        assert await parked(store) == [("m2", "waiting", True)]

    async def test_hundreds_of_keys_fit_into_a_look(self, store: Store):
        admission = Admission(store, ())
        await park_at_once(store, [row(number, f"k{number}").envelope for number in range(900)])
        free, held = await admission.look([row(1000 + number, f"k{number}") for number in range(1000)])
        assert (len(free), len(held)) == (100, 900)
