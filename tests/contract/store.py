"""What every store must do: the suite that the test class of each database inherits."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from sqlalchemy import text, update

from cqrs.codec import BROKER, Envelope
from cqrs.errors import DecodingError
from cqrs.outbox.dialect import Claim, Lane, Nothing
from cqrs.outbox.rows import DEAD, Claimed, Counts, Probe, Verdict, View
from cqrs.outbox.settings import record
from cqrs.outbox.store import Store
from tests.contract.admission import AdmissionContract, park_at_once

OpenStore = Callable[[int], Awaitable[Store]]

LEASE = 10.0
NOTHING = Counts(outbox=0, waiting=0, dead=0, scheduled=0)


def letter(number: int, key: str | None = "a", *, destination: str = "handler", topic: str = "orders") -> Envelope:
    headers = '{"ce_source":"shop","note":"größe"}'
    return Envelope(f"event-{number}", destination, topic, key, "Happened", headers, f"{number}".encode())


async def add(store: Store, *letters: Envelope) -> None:
    async with store.writers.begin() as connection:
        await connection.run_sync(store.add, letters)


class Relays:
    """The lanes of relays on a store, by their owner, each with what it has claimed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lanes: dict[str, Lane] = {}
        self.claims: dict[str, Claim] = {}

    def lane(self, owner: str) -> Lane:
        return self._lanes.setdefault(owner, self._store.lane(owner, LEASE))

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.close()


_relays: dict[int, Relays] = {}


def relays(store: Store) -> Relays:
    return _relays.setdefault(id(store), Relays(store))


def view(destination: str = "handler", skipping: Sequence[str] = ()) -> View:
    return View((destination,), skipping=frozenset(skipping))


async def claim(
    store: Store, owner: str = "one", *, skipping: Sequence[str] = (), limit: int = 100, destination: str = "handler"
) -> list[Claimed]:
    """Claim the first rows, in the order of their ids; those that were held back meanwhile are not among them."""
    found = await relays(store).lane(owner).claim(view(destination, skipping), limit)
    if isinstance(found, Nothing):
        return []
    relays(store).claims[owner] = found
    if not found.rows:
        await found.settle([], [], [])
    return sorted(found.rows, key=lambda row: row.id)


async def settle(
    store: Store,
    owner: str = "one",
    done: Sequence[Claimed] = (),
    failed: Sequence[Verdict] = (),
    returned: Sequence[Claimed] = (),
) -> None:
    await relays(store).claims[owner].settle(done, failed, returned)


async def keep(store: Store, owner: str = "one") -> None:
    await relays(store).claims[owner].keep()


async def due(
    store: Store,
    owner: str = "retries",
    *,
    skipping: Sequence[str] = (),
    destination: str = "handler",
    limit: int = 100,
) -> list[Claimed]:
    """Claim retries that are due; what this owner claimed before is handed back."""
    await give_back(store, owner)
    found = await relays(store).lane(owner).retry(view(destination, skipping), limit)
    if found is None:
        return []
    relays(store).claims[owner] = found
    return list(found.rows)


async def give_back(store: Store, owner: str) -> None:
    held = relays(store).claims.pop(owner, None)
    if held is not None:
        await held.settle([], [], held.rows)


async def end_retries(
    store: Store, done: Sequence[Claimed] = (), failed: Sequence[Verdict] = (), returned: Sequence[Claimed] = ()
) -> None:
    await relays(store).claims.pop("retries").settle(done, failed, returned)


def refused(row: Claimed, wait: float | None = 30.0, *, blocks: bool = True, error: str = "Boom: no") -> Verdict:
    return Verdict(row, error, wait, blocks)


def numbers(rows: Sequence[Claimed]) -> list[int]:
    return [int(row.envelope.payload) for row in rows if row.envelope is not None]


async def park(store: Store, wait: float | None = 30.0, *, blocks: bool = True, skipping: Sequence[str] = ()) -> None:
    """Let the first row of the outbox fail."""
    first, *_ = await claim(store, skipping=skipping)
    await settle(store, "one", [], [refused(first, wait, blocks=blocks)])


OTHER_STRANDS = [
    letter(2, "b"),
    letter(2, "A"),
    letter(2, "a "),
    letter(2, None),
    letter(2, topic="stock"),
    letter(2, topic="Orders"),
]
"""Rows that are not of the strand of `letter(1)`."""


class StoreContract(AdmissionContract):
    """A subclass gives the fixture `open_store`: a coroutine function from a number of slots to a store of them.

    Stores of one test share one database; it is empty at first.
    """

    @pytest.fixture(autouse=True)
    async def hand_back(self, open_store: OpenStore) -> AsyncIterator[None]:
        """Close the lanes of a test before its stores."""
        yield
        for found in _relays.values():
            await found.close()
        _relays.clear()

    @pytest.fixture
    async def store(self, open_store: OpenStore) -> Store:
        """A store whose rows are all in one slot, so that one claim takes them all."""
        return await open_store(1)

    # Saving

    async def test_a_row_is_claimed_as_it_was_added(self, store: Store):
        await add(store, letter(1, "größe"))
        (row,) = await claim(store)
        assert row.envelope == letter(1, "größe")

    async def test_a_row_without_a_key_is_claimed_without_one(self, store: Store):
        await add(store, letter(1, None))
        (row,) = await claim(store)
        assert row.envelope == letter(1, None)

    async def test_rows_of_a_transaction_that_was_rolled_back_never_existed(self, store: Store):
        async with store.writers.connect() as connection:
            await connection.run_sync(store.add, [letter(1)])
            await connection.rollback()
        assert await store.counts() == NOTHING

    @pytest.mark.parametrize("number", [1, 3, 20])
    async def test_rows_may_be_a_transactions_last(self, store: Store, number: int):
        letters = [
            letter(1, "größe\\'")._replace(payload=b"\0\xff'\\"),
            *(letter(n, None) for n in range(2, number + 1)),
        ]
        async with store.writers.begin() as connection:
            await connection.execute(text("SELECT 1"))
            await connection.run_sync(lambda last: store.add(last, letters, last=True))
        assert [row.envelope for row in await claim(store)] == letters

    async def test_the_last_rows_of_a_transaction_that_was_rolled_back_never_existed(self, store: Store):
        async with store.writers.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await connection.run_sync(lambda last: store.add(last, [letter(1)], last=True))
            await connection.rollback()
            await connection.execute(text("SELECT 1"))
            await connection.commit()
        assert await store.counts() == NOTHING

    async def test_rows_are_claimed_in_the_order_in_which_they_were_added(self, store: Store):
        await add(store, letter(3), letter(1))
        await add(store, letter(2))
        assert numbers(await claim(store)) == [3, 1, 2]

    async def test_a_row_that_is_added_when_the_table_is_empty_again_has_a_higher_id(self, store: Store):
        await add(store, letter(1))
        before = await claim(store)
        await settle(store, "one", before, [])
        await add(store, letter(2))
        (after,) = await claim(store)
        assert after.id > before[0].id

    async def test_rows_of_one_topic_and_key_share_a_slot_whatever_their_destination(self, open_store: OpenStore):
        store = await open_store(16)
        slots = {store.slot_of(letter(number, destination=f"h{number}")) for number in range(20)}
        assert len(slots) == 1

    async def test_rows_without_a_key_spread_over_the_slots(self, open_store: OpenStore):
        store = await open_store(16)
        assert {store.slot_of(letter(number, None)) for number in range(400)} == set(range(16))

    # Claiming

    async def test_an_empty_outbox_gives_no_claim(self, store: Store):
        assert await relays(store).lane("one").claim(view(), 100) is Nothing.IDLE

    async def test_rows_of_destinations_that_are_not_asked_for_are_left_alone(self, store: Store):
        await add(store, letter(1, destination="other"), letter(2))
        assert numbers(await claim(store)) == [2]

    async def test_a_slot_whose_rows_are_all_for_others_is_not_taken(self, store: Store):
        await add(store, letter(1, destination="other"))
        assert await relays(store).lane("one").claim(view(), 100) is Nothing.IDLE

    async def test_a_claim_has_no_more_rows_than_asked_for(self, store: Store):
        await add(store, *(letter(number) for number in range(5)))
        assert numbers(await claim(store, limit=2)) == [0, 1]

    async def test_a_claimed_slot_is_no_other_relays(self, store: Store):
        await add(store, letter(1))
        await claim(store, "one")
        assert await claim(store, "two") == []

    async def test_a_relay_takes_half_of_the_slots_that_have_work(self, open_store: OpenStore):
        store = await open_store(16)
        await add(store, *(letter(number, None) for number in range(400)))
        rows = await claim(store, limit=400)
        assert len({row.slot for row in rows}) == 8

    async def test_relays_share_the_slots_and_get_different_rows(self, open_store: OpenStore):
        store = await open_store(16)
        await add(store, *(letter(number, None) for number in range(400)))
        claims = [await claim(store, owner, limit=400) for owner in ("one", "two", "three")]
        assert [len({row.slot for row in rows}) for rows in claims] == [8, 4, 2]
        slots = [row.slot for rows in claims for row in rows]
        assert len(set(slots)) == 14

    async def test_a_row_whose_headers_cannot_be_read_is_claimed_as_any_other(self, store: Store):
        await add(store, letter(1))
        await self.spoil_headers(store)
        (row,) = await claim(store)
        with pytest.raises(DecodingError, match="The saved headers"):
            row.envelope.wire_headers  # noqa: B018 - reading is what is tested

    async def spoil_headers(self, store: Store) -> None:
        async with store.writers.begin() as connection:
            await connection.execute(update(store.tables.outbox).values(headers="no JSON"))
            await connection.execute(update(store.tables.parked).values(headers="no JSON"))

    # Settling

    async def test_delivered_rows_are_gone(self, store: Store):
        await add(store, letter(1), letter(2))
        await settle(store, "one", await claim(store), [])
        assert await store.counts() == NOTHING

    async def test_settling_gives_the_slots_back(self, store: Store):
        await add(store, letter(1), letter(2))
        await settle(store, "one", (await claim(store, "one"))[:1], [])
        assert numbers(await claim(store, "two")) == [2]

    async def test_what_was_not_sent_stays_where_it_is_without_an_attempt(self, store: Store):
        await add(store, letter(1))
        await claim(store)
        await settle(store, "one", [], [])
        (row,) = await claim(store)
        assert (row.attempts, row.envelope) == (0, letter(1))

    async def test_a_batch_of_any_size_is_settled_at_once(self, store: Store):
        await add(store, *(letter(number) for number in range(1001)))
        await settle(store, "one", await claim(store, limit=1001), [])
        assert await store.counts() == NOTHING

    async def test_a_row_that_failed_waits(self, store: Store):
        await add(store, letter(1))
        await park(store)
        assert await store.counts() == Counts(outbox=0, waiting=1, dead=0, scheduled=0)

    async def test_a_row_that_failed_for_the_last_time_is_dead(self, store: Store):
        await add(store, letter(1))
        await park(store, None)
        assert await store.counts() == Counts(outbox=0, waiting=0, dead=1, scheduled=0)

    async def test_a_dead_row_keeps_all_that_it_had_and_its_error(self, store: Store):
        await add(store, letter(1))
        await park(store, None)
        (row,) = await store.parked.find({"state": DEAD}, 10)
        kept = (row.event_id, row.destination, row.topic, row.message_key, row.type, row.payload)
        assert kept == ("event-1", "handler", "orders", "a", "Happened", b"1")
        assert (row.attempts, row.error) == (1, "Boom: no")

    # Holding back

    async def test_a_row_behind_one_that_waits_is_held_back(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store)
        found = await relays(store).lane("one").claim(view(), 100)
        assert not isinstance(found, Nothing)
        assert (list(found.rows), found.held_back) == ([], 1)
        await found.settle([], [], [])
        assert await store.counts() == Counts(outbox=0, waiting=2, dead=0, scheduled=0)

    async def test_a_row_behind_a_dead_one_is_held_back(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None)
        assert await claim(store) == []
        assert await store.counts() == Counts(outbox=0, waiting=1, dead=1, scheduled=0)

    async def test_a_row_behind_a_dead_one_that_does_not_block_goes_on(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None, blocks=False)
        assert numbers(await claim(store, skipping=["handler"])) == [2]

    @pytest.mark.parametrize("other", OTHER_STRANDS, ids=lambda other: f"{other.topic}-{other.key}")
    async def test_rows_of_another_strand_are_not_held_back(self, store: Store, other: Envelope):
        await add(store, letter(1), other)
        await park(store, None)
        assert numbers(await claim(store)) == [2]

    async def test_rows_of_the_key_for_another_destination_are_not_held_back(self, store: Store):
        await add(store, letter(1), letter(2, destination="other"))
        await park(store, None)
        assert numbers(await claim(store, destination="other")) == [2]

    async def test_rows_without_a_key_do_not_hold_back_each_other(self, store: Store):
        await add(store, letter(1, None), letter(2, None))
        await park(store, None)
        assert numbers(await claim(store)) == [2]

    async def test_many_parked_keys_hold_back_their_rows(self, store: Store):
        await park_at_once(store, [letter(number, f"k{number}") for number in range(450)])
        await add(store, *(letter(number, f"k{number}") for number in range(450)))
        assert await claim(store, limit=450) == []
        assert await store.counts() == Counts(outbox=0, waiting=900, dead=0, scheduled=0)

    async def test_a_row_that_is_held_back_is_not_due(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None)
        await claim(store)
        store.ahead += 1000
        assert await due(store) == []

    # Retrying

    async def test_a_row_is_due_when_its_wait_is_over(self, store: Store):
        await add(store, letter(1))
        await park(store, 30.0)
        assert await due(store) == []
        store.ahead += 31
        assert numbers(await due(store)) == [1]

    async def test_a_retry_knows_which_attempt_it_is(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        (row,) = await due(store)
        assert row.envelope is not None
        assert (row.attempts, row.envelope.attempt) == (1, 2)

    async def test_a_dead_row_is_never_due(self, store: Store):
        await add(store, letter(1))
        await park(store, None)
        store.ahead += 10_000
        assert await due(store) == []

    async def test_retries_for_destinations_that_are_not_asked_for_are_left_alone(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        assert await due(store, destination="other") == []

    async def test_no_more_retries_are_claimed_than_asked_for(self, store: Store):
        await add(store, letter(1, "a"), letter(2, "b"))
        await park(store, 0.0)
        await park(store, 0.0)
        assert len(await due(store, limit=1)) == 1

    async def test_a_claimed_retry_is_no_other_relays(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        await due(store, "one")
        assert await due(store, "two") == []

    async def test_a_retry_that_was_delivered_is_gone(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        rows = await due(store)
        await end_retries(store, rows, [], [])
        assert await store.counts() == NOTHING

    async def test_a_retry_that_failed_again_waits_again(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        (row,) = await due(store)
        await end_retries(store, [], [refused(row, 30.0, error="Boom: again")], [])
        assert await due(store) == []
        store.ahead += 31
        (row,) = await due(store)
        assert row.attempts == 2

    async def test_a_retry_keeps_its_last_error(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        (row,) = await due(store)
        await end_retries(store, [], [refused(row, None, error="Boom: again")], [])
        (row,) = await store.parked.find({}, 10)
        assert row.error == "Boom: again"

    async def test_a_retry_that_was_not_tried_is_due_at_once_without_an_attempt(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        rows = await due(store)
        await end_retries(store, [], [], rows)
        (row,) = await due(store)
        assert row.attempts == 1

    async def test_a_delivered_retry_makes_the_next_of_its_key_due(self, store: Store):
        await add(store, letter(1), letter(2), letter(3))
        await park(store, 0.0)
        await claim(store)
        rows = await due(store)
        assert numbers(rows) == [1]
        await end_retries(store, rows, [], [])
        rows = await due(store)
        assert numbers(rows) == [2]
        await end_retries(store, rows, [], [])
        assert numbers(await due(store)) == [3]

    async def test_a_row_that_was_held_back_begins_with_its_first_attempt(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, 0.0)
        await claim(store)
        rows = await due(store)
        await end_retries(store, rows, [], [])
        (row,) = await due(store)
        assert row.envelope == letter(2)._replace(parked=True)

    async def test_a_retry_that_dies_holds_back_the_next_of_its_key(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, 0.0)
        await claim(store)
        (row,) = await due(store)
        await end_retries(store, [], [refused(row, None)], [])
        store.ahead += 1000
        assert await due(store) == []

    async def test_a_retry_that_dies_without_blocking_lets_the_next_of_its_key_go_on(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, 0.0)
        await claim(store)
        (row,) = await due(store, skipping=["handler"])
        await end_retries(store, [], [refused(row, None, blocks=False)], [])
        assert numbers(await due(store)) == [2]

    async def test_a_retry_that_cannot_be_read_lets_the_next_of_its_key_go_on_when_it_dies_without_blocking(
        self, store: Store
    ):
        await add(store, letter(1))
        await park(store, 0.0)
        await self.spoil_headers(store)
        await add(store, letter(2))
        await claim(store)
        (row,) = await due(store, skipping=["handler"])
        await end_retries(store, [], [refused(row, None, blocks=False)], [])
        assert numbers(await due(store)) == [2]

    async def test_a_delivered_retry_lets_nothing_pass_a_dead_row_that_blocks(self, store: Store):
        await add(store, letter(1), letter(2), letter(3))
        first, second, _ = await claim(store)
        await settle(store, "one", [], [refused(first, 0.0), refused(second, None)])
        await claim(store)
        rows = await due(store)
        assert numbers(rows) == [1]
        await end_retries(store, rows)
        store.ahead += 1000
        assert await due(store) == []

    async def test_a_delivered_retry_lets_what_follows_pass_a_dead_row_that_does_not_block(self, store: Store):
        await add(store, letter(1), letter(2), letter(3))
        first, second, *_ = await claim(store, skipping=["handler"])
        await settle(store, "one", [], [refused(first, 0.0), refused(second, None, blocks=False)])
        await claim(store, skipping=["handler"])
        await end_retries(store, await due(store, skipping=["handler"]))
        assert numbers(await due(store)) == [3]

    async def test_a_discarded_row_lets_nothing_pass_another_dead_row_that_blocks(self, store: Store):
        await add(store, letter(1), letter(2), letter(3))
        first, second, _ = await claim(store)
        await settle(store, "one", [], [refused(first, None), refused(second, None)])
        await claim(store)
        dead, *_ = await self.seqs(store)
        await store.parked.discard([dead])
        assert await due(store) == []

    async def test_the_end_of_a_keys_last_retry_lets_the_outbox_go_on(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        rows = await due(store)
        await end_retries(store, rows, [], [])
        await add(store, letter(2))
        assert numbers(await claim(store)) == [2]

    # What is to do

    async def test_an_empty_database_has_nothing_to_do(self, store: Store):
        assert await relays(store).lane("looks").probe(view("handler"), {}) == Probe(outbox=False, due=None)

    async def test_a_probe_tells_that_there_are_rows(self, store: Store):
        await add(store, letter(1))
        assert await relays(store).lane("looks").probe(view("handler"), {}) == Probe(outbox=True, due=None)

    async def test_a_probe_does_not_look_at_rows_of_others(self, store: Store):
        await add(store, letter(1), letter(2, destination="other"))
        await park(store)
        assert await relays(store).lane("looks").probe(view("third"), {}) == Probe(outbox=False, due=None)

    async def test_a_probe_tells_the_time_until_the_first_retry(self, store: Store):
        await add(store, letter(1, "a"), letter(2, "b"))
        await park(store, 500.0)
        await park(store, 100.0)
        store.ahead += 50
        found = await relays(store).lane("looks").probe(view("handler"), {})
        assert found.due is not None
        assert 0.0 < found.due <= 50.1

    async def test_a_retry_that_is_overdue_is_due_in_no_time(self, store: Store):
        await add(store, letter(1))
        await park(store, 1.0)
        store.ahead += 5
        found = await relays(store).lane("looks").probe(view("handler"), {})
        assert found.due is not None
        assert found.due <= 0

    async def test_dead_rows_are_nothing_to_do(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None)
        await claim(store)
        assert await relays(store).lane("looks").probe(view("handler"), {}) == Probe(outbox=False, due=None)

    # The inbox

    async def take(self, store: Store, handler: str, *message_ids: str) -> bool:
        async with store.writers.begin() as connection:
            return await connection.run_sync(store.inbox.take, handler, message_ids)

    async def test_a_message_is_taken_once(self, store: Store):
        assert await self.take(store, "handler", "event-1")
        assert not await self.take(store, "handler", "event-1")

    async def test_each_handler_takes_a_message_for_itself(self, store: Store):
        assert await self.take(store, "handler", "event-1")
        assert await self.take(store, "other", "event-1")
        assert await self.take(store, "handler", "event-2")
        assert await self.take(store, "Handler", "event-1")

    async def test_a_message_whose_transaction_was_rolled_back_was_not_taken(self, store: Store):
        async with store.writers.connect() as connection:
            await connection.run_sync(store.inbox.take, "handler", ["event-1"])
            await connection.rollback()
        assert not await store.inbox.has_taken("handler", "event-1")

    async def test_several_messages_are_taken_together(self, store: Store):
        assert await self.take(store, "handler", "event-2", "event-1", "event-3")
        for message_id in ("event-1", "event-2", "event-3"):
            assert await store.inbox.has_taken("handler", message_id)

    async def test_several_messages_are_refused_when_one_of_them_was_taken_before(self, store: Store):
        await self.take(store, "handler", "event-2")
        assert not await self.take(store, "handler", "event-1", "event-2")

    async def test_several_messages_are_refused_when_one_of_them_is_among_them_twice(self, store: Store):
        assert not await self.take(store, "handler", "event-1", "event-1")

    @pytest.mark.parametrize("message_id", ["it's", "back\\slash", "$1 :name %s ?", "żółć 🐘", "'); DELETE FROM x; --"])
    async def test_an_id_may_have_any_characters(self, store: Store, message_id: str):
        assert await self.take(store, "handler's \\ $1", message_id)
        assert await store.inbox.has_taken("handler's \\ $1", message_id)
        assert not await self.take(store, "handler's \\ $1", message_id)

    async def test_the_inbox_says_whether_a_handler_has_taken_a_message(self, store: Store):
        await self.take(store, "handler", "event-1")
        assert await store.inbox.has_taken("handler", "event-1")
        assert not await store.inbox.has_taken("other", "event-1")
        assert not await store.inbox.has_taken("handler", "event-2")

    async def test_the_inbox_says_which_of_many_messages_were_taken_by_whom(self, store: Store):
        await self.take(store, "handler", "event-1")
        await self.take(store, "other", "event-900")
        await self.take(store, "third", "event-2")
        asked = [*(letter(number) for number in range(900)), letter(900, destination="other")]
        assert await store.inbox.taken(asked) == {
            ("handler", "event-1"),
            ("other", "event-900"),
        }

    async def test_of_no_messages_none_was_taken(self, store: Store):
        assert await store.inbox.taken([]) == set()

    # Looking

    async def test_parked_rows_are_found_by_their_columns_the_oldest_first(self, store: Store):
        await add(store, letter(1, "a"), letter(2, "b"), letter(3, "c"))
        for _ in range(3):
            await park(store, None)
        assert [row.event_id for row in await store.parked.find({}, 2)] == ["event-1", "event-2"]
        assert [row.event_id for row in await store.parked.find({"message_key": "c"}, 2)] == ["event-3"]

    async def test_what_has_not_ended_is_told_with_its_state(self, store: Store):
        await add(store, letter(1, "a"), letter(2, "b"), letter(3, "c"), letter(4, "d"))
        await park(store, None)
        await park(store, 30.0)
        first, *_ = await claim(store)
        await settle(store, "one", [first], [])
        found = await store.unended([f"event-{number}" for number in range(1000)])
        assert sorted(row[:4] for row in found) == [
            ("event-1", "Happened", "handler", "dead"),
            ("event-2", "Happened", "handler", "waiting"),
            ("event-4", "Happened", "handler", "waiting"),
        ]

    async def test_what_was_parked_is_told_with_its_error(self, store: Store):
        await add(store, letter(1, "a"), letter(2, "b"))
        await park(store, None)
        found = await store.unended(["event-1", "event-2"])
        assert {row.event_id: row.error is None for row in found} == {"event-1": False, "event-2": True}

    async def test_only_what_is_asked_for_is_told(self, store: Store):
        await add(store, letter(1))
        assert await store.unended(["event-2"]) == []
        assert await store.unended([]) == []

    async def test_an_event_is_told_for_each_destination_that_it_waits_for(self, store: Store):
        await add(store, letter(1), letter(1, destination="other"))
        assert sorted(row.destination for row in await store.unended(["event-1"])) == ["handler", "other"]

    async def test_rows_that_nobody_serves_are_counted_by_destination(self, store: Store):
        await add(store, letter(1), letter(2, "b"), letter(3, destination="other"), letter(4, destination=BROKER))
        await park(store, 30.0)
        assert await store.unserved([BROKER]) == [("handler", 2), ("other", 1)]

    async def test_dead_rows_wait_for_nobody(self, store: Store):
        await add(store, letter(1))
        await park(store, None)
        assert await store.unserved([]) == []

    async def test_young_rows_may_still_be_served(self, store: Store):
        await add(store, letter(1))
        assert await store.unserved([], 900.0) == []
        store.ahead += 901
        assert await store.unserved([], 900.0) == [("handler", 1)]

    # Replaying

    async def seqs(self, store: Store) -> list[int]:
        return [row.seq for row in await store.parked.find({"state": DEAD}, 1000)]

    async def test_a_replayed_row_is_due_at_once_with_all_attempts_before_it(self, store: Store):
        await add(store, letter(1))
        await park(store, None)
        assert await store.parked.replay(await self.seqs(store), ()) == 1
        (row,) = await due(store)
        assert (row.attempts, row.envelope) == (0, letter(1)._replace(parked=True))

    async def test_only_dead_rows_are_replayed(self, store: Store):
        await add(store, letter(1))
        await park(store, 30.0)
        (row,) = await store.parked.find({}, 1)
        assert await store.parked.replay([row.seq, row.seq + 1], ()) == 0
        assert await due(store) == []

    async def test_a_replayed_row_goes_before_what_it_held_back(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None)
        await claim(store)
        await store.parked.replay(await self.seqs(store), ())
        rows = await due(store)
        assert numbers(rows) == [1]
        await end_retries(store, rows, [], [])
        assert numbers(await due(store)) == [2]

    async def test_a_replayed_row_that_held_back_nothing_joins_the_tail_of_its_key(self, store: Store):
        await add(store, letter(1), letter(2), letter(3))
        await park(store, None, blocks=False)
        await park(store, 0.0, blocks=False, skipping=["handler"])
        await claim(store, skipping=["handler"])
        await store.parked.replay(await self.seqs(store), ["handler"])
        order = []
        for _ in range(3):
            rows = await due(store)
            order += numbers(rows)
            await end_retries(store, rows, [], [])
        assert order == [2, 3, 1]

    async def test_several_rows_of_a_key_are_replayed_one_after_the_other(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None, blocks=False)
        await park(store, None, blocks=False, skipping=["handler"])
        assert await store.parked.replay(await self.seqs(store), ["handler"]) == 2
        rows = await due(store)
        assert numbers(rows) == [1]
        await end_retries(store, rows, [], [])
        assert numbers(await due(store)) == [2]

    @pytest.mark.parametrize("skipping", [(), ("handler",)])
    async def test_rows_without_a_key_are_replayed_side_by_side(self, store: Store, skipping: tuple[str, ...]):
        await add(store, letter(1, None), letter(2, None))
        await park(store, None)
        await park(store, None)
        assert await store.parked.replay(await self.seqs(store), skipping) == 2
        assert sorted(numbers(await due(store))) == [1, 2]

    # Discarding

    async def test_a_discarded_row_is_gone(self, store: Store):
        await add(store, letter(1))
        await park(store, None)
        assert await store.parked.discard(await self.seqs(store)) == 1
        assert await store.counts() == NOTHING

    async def test_only_dead_rows_are_discarded(self, store: Store):
        await add(store, letter(1))
        await park(store, 30.0)
        (row,) = await store.parked.find({}, 1)
        assert await store.parked.discard([row.seq]) == 0
        assert await store.counts() == Counts(outbox=0, waiting=1, dead=0, scheduled=0)

    async def test_a_discarded_row_lets_the_next_of_its_key_go_on(self, store: Store):
        await add(store, letter(1), letter(2), letter(3))
        await park(store, None)
        await claim(store)
        await store.parked.discard(await self.seqs(store))
        assert numbers(await due(store)) == [2]

    async def test_a_discarded_row_lets_the_outbox_go_on(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None)
        await store.parked.discard(await self.seqs(store))
        assert numbers(await claim(store)) == [2]

    async def test_a_discarded_row_with_unreadable_headers_lets_the_next_of_its_key_go_on(self, store: Store):
        await add(store, letter(1))
        await park(store, None)
        await self.spoil_headers(store)
        await add(store, letter(2))
        await claim(store)
        await store.parked.discard(await self.seqs(store))
        assert numbers(await due(store)) == [2]

    async def test_heads_that_nothing_stands_before_are_woken(self, store: Store):
        await add(store, letter(1), letter(2), letter(3))
        await park(store, None)
        await claim(store)
        async with store.writers.begin() as connection:
            await connection.execute(text("DELETE FROM cqrs_parked WHERE state = 'dead'"))
        await store.parked.wake_heads(())
        assert numbers(await due(store)) == [2]

    async def test_heads_behind_a_dead_row_that_blocks_are_not_woken(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None)
        await claim(store)
        await store.parked.wake_heads(())
        assert await due(store) == []

    async def test_heads_behind_a_dead_row_that_blocks_no_longer_are_woken(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None)
        await claim(store)
        await store.parked.wake_heads(["handler"])
        assert numbers(await due(store)) == [2]

    # Retention

    async def test_inbox_rows_are_forgotten_when_their_time_has_passed(self, store: Store):
        await self.take(store, "handler", "old")
        store.ahead += 100
        await self.take(store, "handler", "young")
        assert await store.inbox.forget(inbox=50, dead=None) == 1
        assert not await store.inbox.has_taken("handler", "old")
        assert await store.inbox.has_taken("handler", "young")

    async def test_no_more_is_forgotten_at_once_than_the_limit(self, store: Store):
        for number in range(3):
            await self.take(store, "handler", f"event-{number}")
        store.ahead += 100
        assert await store.inbox.forget(inbox=50, dead=None, limit=2) == 2
        assert await store.inbox.forget(inbox=50, dead=None, limit=2) == 1
        assert await store.inbox.forget(inbox=50, dead=None, limit=2) == 0

    async def test_dead_letters_are_kept_unless_asked(self, store: Store):
        await add(store, letter(1, None))
        await park(store, None)
        store.ahead += 10**9
        assert await store.inbox.forget(inbox=50, dead=None) == 0
        assert (await store.counts()).dead == 1

    @pytest.mark.parametrize(("key", "skipping"), [(None, ()), ("a", ("handler",))])
    async def test_dead_letters_that_hold_back_nothing_are_forgotten_when_asked(
        self, store: Store, key: str | None, skipping: tuple[str, ...]
    ):
        await add(store, letter(1, key))
        await park(store, None)
        store.ahead += 100
        assert await store.inbox.forget(inbox=500, dead=50, skipping=skipping) == 1
        assert await store.counts() == NOTHING

    async def test_a_dead_letter_that_blocks_its_key_is_never_forgotten(self, store: Store):
        await add(store, letter(1), letter(2))
        await park(store, None)
        store.ahead += 10**6
        assert await store.inbox.forget(inbox=1, dead=1) == 0
        assert await claim(store) == []

    async def test_young_dead_letters_are_kept(self, store: Store):
        await add(store, letter(1, None))
        await park(store, None)
        store.ahead += 40
        assert await store.inbox.forget(inbox=500, dead=50) == 0

    async def test_rows_that_wait_are_never_forgotten(self, store: Store):
        await add(store, letter(1, None), letter(2, "b"))
        await park(store, 30.0)
        store.ahead += 10**6
        assert await store.inbox.forget(inbox=1, dead=1, skipping=["handler"]) == 0

    # Settings

    async def test_settings_are_recorded_once(self, open_store: OpenStore):
        store = await open_store(1)
        first = await record(store, {"application": "shop", "slots": "1"})
        second = await record(store, {"application": "other", "carrier": "relay"})
        assert first["application"] == second["application"] == "shop"
        assert (await record(store, {}))["carrier"] == "relay"

    async def test_the_settings_tell_the_schemas_number(self, store: Store):
        assert (await record(store, {}))["schema"] == "1"

    async def test_a_store_of_another_number_of_slots_changes_none(self, open_store: OpenStore):
        await open_store(2)
        other = await open_store(5)
        found = await record(other, {"slots": "5"})
        assert found["slots"] == "2"
        async with other.readers.connect() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM cqrs_slot"))).scalar() == 2

    # The clock

    async def test_rows_are_dated_by_the_clock_of_the_store(self, store: Store):
        await add(store, letter(1))
        store.ahead += 1000
        await add(store, letter(2))
        store.ahead -= 1000
        assert await store.unserved([], 0.0) == [("handler", 1)]
