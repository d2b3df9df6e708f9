from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import OperationalError

import cqrs
from cqrs.outbox import Counts
from tests.unit.outbox.support import run_sql, storage_of


class Happened(cqrs.Event):
    order: str | None = "o1"
    name: str = ""


class Shop:
    """An application whose handler refuses what it is told to, and whose relay works when told."""

    def __init__(self, database: str, **wishes: object) -> None:
        self.seen: list[str] = []
        self.refused: set[str] = set()
        registry = cqrs.Registry()
        registry.integration_event(topic="orders", key="order")(Happened)

        @registry.event_handler(name="receive")
        async def receive(event: Happened) -> None:
            if event.name in self.refused:
                raise ValueError(f"no {event.name}")
            self.seen.append(event.name)

        options = {"retry": cqrs.Retry(attempts=1), **wishes}
        self.app = cqrs.bootstrap(registry=registry, name="shop", database=database, relay=False, **options)

    async def emit(self, *names: str, order: str | None = "o1") -> None:
        for name in names:
            await self.app.emit(Happened(order=order, name=name))

    async def relay(self) -> None:
        """Deliver all that can be delivered now."""
        relay = storage_of(self.app).relay
        while await relay.relay_outbox() or await relay.relay_due():
            pass

    async def bury(self, *names: str, order: str | None = "o1") -> None:
        """Let events die."""
        self.refused |= set(names)
        await self.emit(*names, order=order)
        await self.relay()
        self.refused -= set(names)


@pytest.fixture
def shop(database: str) -> Shop:
    return Shop(database)


# Counting


async def test_nothing_is_counted_where_nothing_was_saved(shop: Shop):
    async with shop.app as app:
        assert await app.outbox.counts() == Counts(outbox=0, waiting=0, dead=0, scheduled=0)


async def test_rows_on_their_way_waiting_and_dead_are_counted(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        await shop.emit("two")
        await shop.relay()
        await shop.emit("three", order="o2")
        assert await app.outbox.counts() == Counts(outbox=1, waiting=1, dead=1, scheduled=0)


# Looking


async def test_a_dead_letter_tells_all_about_its_event(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        (letter,) = await app.outbox.dead()
    assert (letter.destination, letter.topic, letter.key, letter.type) == ("receive", "orders", "o1", "Happened")
    assert (letter.payload, letter.attempts) == (b'{"order":"o1","name":"one"}', 1)
    assert letter.error.endswith("ValueError: no one\n")
    assert timedelta(minutes=-1) < datetime.now(UTC) - letter.created_at < timedelta(minutes=5)


async def test_dead_letters_come_the_oldest_first(shop: Shop):
    async with shop.app as app:
        await shop.bury("one", order="o1")
        await shop.bury("two", order="o2")
        assert [letter.key for letter in await app.outbox.dead()] == ["o1", "o2"]


async def test_no_more_dead_letters_come_than_asked_for(shop: Shop):
    async with shop.app as app:
        await shop.bury("one", "two", order=None)
        assert len(await app.outbox.dead(limit=1)) == 1


async def test_dead_letters_are_chosen_by_equal_values(shop: Shop):
    async with shop.app as app:
        await shop.bury("one", order="o1")
        await shop.bury("two", order="o2")
        one, two = await app.outbox.dead()
        assert await app.outbox.dead(key="o2") == [two]
        assert await app.outbox.dead(seq=one.seq) == [one]
        assert await app.outbox.dead(event_id=two.event_id, type="Happened", topic="orders") == [two]
        assert await app.outbox.dead(destination="other") == []


async def test_what_waits_is_no_dead_letter(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        await shop.emit("two")
        await shop.relay()
        assert len(await app.outbox.dead()) == 1


@pytest.mark.parametrize("act", ["dead", "replay", "discard"])
async def test_choosing_by_what_there_is_not_is_refused(shop: Shop, act: str):
    async with shop.app as app:
        await shop.bury("one")
        with pytest.raises(TypeError) as caught:
            await getattr(app.outbox, act)(state="waiting", id=1)
        assert str(caught.value) == (
            "Parked rows have no id, state; choose by destination, event_id, key, seq, topic, type"
        )
        assert (await app.outbox.counts()).dead == 1


# Replaying


async def test_a_replayed_event_is_delivered(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        assert await app.outbox.replay() == 1
        await shop.relay()
        assert shop.seen == ["one"]


async def test_replaying_wakes_the_relay(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        look = storage_of(app).relay._awake["look"]
        look.clear()
        await app.outbox.replay()
        assert look.is_set()


async def test_a_replayed_event_that_fails_again_is_dead_again(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        shop.refused = {"one"}
        await app.outbox.replay()
        await shop.relay()
        (letter,) = await app.outbox.dead()
        assert letter.attempts == 1


async def test_only_the_chosen_events_are_replayed(shop: Shop):
    async with shop.app as app:
        await shop.bury("one", order="o1")
        await shop.bury("two", order="o2")
        assert await app.outbox.replay(key="o2") == 1
        await shop.relay()
        assert shop.seen == ["two"]


async def test_a_replayed_event_goes_before_what_it_held_back(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        await shop.emit("two", "three")
        await shop.relay()
        assert shop.seen == []
        await app.outbox.replay()
        await shop.relay()
        assert shop.seen == ["one", "two", "three"]


async def test_events_without_a_key_are_replayed_together(shop: Shop):
    async with shop.app as app:
        await shop.bury("one", "two", "three", order=None)
        assert await app.outbox.replay() == 3
        await shop.relay()
        assert sorted(shop.seen) == ["one", "three", "two"]


async def test_many_events_are_replayed_at_once(shop: Shop):
    async with shop.app as app:
        await shop.bury("one", order=None)
        copies = "event_id, destination, topic, type, headers, payload, slot, created_at"
        await run_sql(
            str(storage_of(app).store.writers.url),
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) "
            f"INSERT INTO cqrs_parked ({copies}, state, attempts) SELECT {copies}, 'dead', 1 FROM cqrs_parked, n",
        )
        assert await app.outbox.replay() == 901


async def test_a_skipped_event_that_is_replayed_goes_to_the_tail_of_its_key(database: str):
    shop = Shop(database, on_dead="skip", retry=cqrs.Retry(attempts=2, first=100.0))
    async with shop.app as app:
        shop.refused = {"one", "two"}
        await shop.emit("one")
        await shop.relay()
        storage_of(app).store.ahead += 101
        await shop.relay()
        await shop.emit("two", "three")
        await shop.relay()
        assert await app.outbox.counts() == Counts(outbox=0, waiting=2, dead=1, scheduled=0)
        shop.refused = set()
        await app.outbox.replay()
        storage_of(app).store.ahead += 101
        await shop.relay()
        assert shop.seen == ["two", "three", "one"]


async def test_a_skipped_event_with_nothing_behind_it_is_replayed_at_once(database: str):
    shop = Shop(database, on_dead="skip")
    async with shop.app as app:
        await shop.bury("one")
        await shop.emit("two")
        await shop.relay()
        assert shop.seen == ["two"]
        await app.outbox.replay()
        await shop.relay()
        assert shop.seen == ["two", "one"]


async def test_nothing_to_replay_is_no_error(shop: Shop):
    async with shop.app as app:
        assert await app.outbox.replay() == 0


# Discarding


async def test_a_discarded_event_is_gone_for_good(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        assert await app.outbox.discard() == 1
        await shop.relay()
        assert (shop.seen, await app.outbox.dead()) == ([], [])


async def test_a_discarded_event_lets_go_on_what_it_held_back(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        await shop.emit("two", "three")
        await shop.relay()
        await app.outbox.discard()
        await shop.relay()
        assert shop.seen == ["two", "three"]


async def test_only_the_chosen_events_are_discarded(shop: Shop):
    async with shop.app as app:
        await shop.bury("one", order="o1")
        await shop.bury("two", order="o2")
        assert await app.outbox.discard(key="o1") == 1
        assert [letter.key for letter in await app.outbox.dead()] == ["o2"]


async def test_what_waits_is_not_discarded(shop: Shop):
    async with shop.app as app:
        await shop.bury("one")
        await shop.emit("two")
        await shop.relay()
        assert await app.outbox.discard() == 1
        assert (await app.outbox.counts()).waiting == 1


# What is in the way


class Deadlock(Exception):
    def __init__(self) -> None:
        super().__init__(1213, "Deadlock found when trying to get lock")


@pytest.mark.parametrize(("deadlocks", "ends"), [(1, True), (4, True), (5, False)])
async def test_a_deadlock_with_a_relay_is_tried_again_and_told_at_last(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, deadlocks: int, ends: bool
):
    async with shop.app as app:
        await shop.bury("one")
        parked = storage_of(app).store.parked
        discard, left = parked.discard, iter(range(deadlocks))

        async def deadlocked(seqs: Sequence[int], skipping: Collection[str]) -> int:
            if next(left, None) is not None:
                raise OperationalError("delete", {}, Deadlock())
            return await discard(seqs, skipping)

        monkeypatch.setattr(parked, "discard", deadlocked)
        if ends:
            assert await app.outbox.discard() == 1
        else:
            with pytest.raises(OperationalError, match="Deadlock found"):
                await app.outbox.discard()
