import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url

from cqrs import migrations
from cqrs.outbox import sqlite
from cqrs.outbox.dialect import Claim
from cqrs.outbox.rows import Counts
from cqrs.outbox.settings import record
from cqrs.outbox.store import Store
from tests.contract.store import (
    LEASE,
    NOTHING,
    OpenStore,
    StoreContract,
    add,
    claim,
    due,
    keep,
    letter,
    numbers,
    park,
    refused,
    relays,
    settle,
    view,
)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the tables and nothing in them, to be copied."""
    file = tmp_path_factory.mktemp("store") / "migrated.db"
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        migrations.migrate(connection)
    engine.dispose()
    return file


async def take_over(store: Store) -> tuple[Claim, Claim]:
    """Return a claim of a retry whose lease ran out, and that of the relay which took it over."""
    await add(store, letter(1))
    await park(store, 0.0)
    old = await relays(store).lane("old").retry(view(), 100)
    store.ahead += LEASE + 1
    new = await relays(store).lane("new").retry(view(), 100)
    assert old is not None
    assert new is not None
    return old, new


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    async def open_store(self, migrated: Path, tmp_path: Path) -> AsyncIterator[OpenStore]:
        file = shutil.copy(migrated, tmp_path / "store.db")
        async with AsyncExitStack() as stack:

            async def open_store(slots: int) -> Store:
                writers, readers = sqlite.connect(make_url(f"sqlite+aiosqlite:///{file}"))
                stack.push_async_callback(writers.dispose)
                stack.push_async_callback(readers.dispose)
                store = Store(sqlite.SQLite(), writers, readers, slots=slots)
                await record(store, {"slots": str(slots)})
                return store

            yield open_store

    # Leases

    async def test_a_relay_may_claim_its_own_slots_again(self, store: Store):
        await add(store, letter(1))
        await claim(store, "one")
        assert numbers(await claim(store, "one")) == [1]

    async def test_a_slot_whose_lease_ran_out_is_free(self, store: Store):
        await add(store, letter(1))
        await claim(store, "one")
        store.ahead += LEASE + 1
        assert numbers(await claim(store, "two")) == [1]

    async def test_a_renewed_lease_keeps_others_away(self, store: Store):
        await add(store, letter(1))
        await claim(store, "one")
        store.ahead += LEASE - 1
        await keep(store, "one")
        store.ahead += LEASE - 1
        assert await claim(store, "two") == []

    async def test_a_slot_that_was_claimed_before_the_clock_was_put_back_is_free(self, store: Store):
        await add(store, letter(1))
        store.ahead = 3600
        await claim(store, "one")
        store.ahead = 0
        assert numbers(await claim(store, "two")) == [1]

    async def test_renewing_holds_no_slots_of_others(self, store: Store):
        await add(store, letter(1))
        await claim(store, "one")
        store.ahead += LEASE + 1
        await claim(store, "two")
        store.ahead += LEASE - 1
        await keep(store, "one")
        store.ahead += 2
        assert numbers(await claim(store, "three")) == [1]

    async def test_a_failure_in_a_slot_that_was_lost_is_left_to_its_new_owner(self, store: Store):
        await add(store, letter(1))
        (row,) = await claim(store, "one")
        store.ahead += LEASE + 1
        await claim(store, "two")
        await settle(store, "one", [], [refused(row)])
        assert await store.counts() == Counts(outbox=1, waiting=0, dead=0, scheduled=0)

    async def test_a_failure_in_a_slot_whose_lease_ran_out_is_left_although_nobody_took_it(self, store: Store):
        await add(store, letter(1))
        (row,) = await claim(store, "one")
        store.ahead += LEASE + 1
        await settle(store, "one", [], [refused(row)])
        assert await store.counts() == Counts(outbox=1, waiting=0, dead=0, scheduled=0)

    async def test_what_was_delivered_in_a_slot_that_was_lost_is_gone(self, store: Store):
        await add(store, letter(1))
        rows = await claim(store, "one")
        store.ahead += LEASE + 1
        await claim(store, "two")
        await settle(store, "one", rows, [])
        assert await store.counts() == NOTHING

    async def test_settling_gives_no_slots_of_others_back(self, store: Store):
        await add(store, letter(1))
        await claim(store, "one")
        store.ahead += LEASE + 1
        await claim(store, "two")
        await settle(store, "one", [], [])
        assert await claim(store, "three") == []

    async def test_settling_twice_changes_nothing(self, store: Store):
        await add(store, letter(1))
        (row,) = await claim(store)
        await settle(store, "one", [], [refused(row)])
        await settle(store, "one", [row], [refused(row)])
        assert await store.counts() == Counts(outbox=0, waiting=1, dead=0, scheduled=0)

    async def test_a_claimed_retry_whose_lease_ran_out_is_due_again(self, store: Store):
        _, new = await take_over(store)
        assert numbers(new.rows) == [1]

    async def test_a_renewed_retry_keeps_others_away(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        held = await relays(store).lane("one").retry(view(), 100)
        assert held is not None
        store.ahead += LEASE - 1
        await held.keep()
        store.ahead += LEASE - 1
        assert await due(store) == []

    async def test_a_renewed_retry_is_settled(self, store: Store):
        await add(store, letter(1))
        await park(store, 0.0)
        held = await relays(store).lane("one").retry(view(), 100)
        assert held is not None
        store.ahead += 1
        await held.keep()
        await held.settle(held.rows, [], [])
        assert await store.counts() == NOTHING

    async def test_a_retry_that_was_taken_over_is_not_renewed(self, store: Store):
        old, new = await take_over(store)
        await old.keep()
        await new.settle(new.rows, [], [])
        assert await store.counts() == NOTHING

    @pytest.mark.parametrize("end", ["done", "failed", "returned"])
    async def test_a_retry_that_was_taken_over_is_not_settled(self, store: Store, end: str):
        old, new = await take_over(store)
        ends: dict[str, Sequence[Any]] = {"done": (), "failed": (), "returned": ()}
        ends[end] = [refused(old.rows[0], None)] if end == "failed" else old.rows
        await old.settle(ends["done"], ends["failed"], ends["returned"])
        await new.settle([], [refused(new.rows[0], None)], [])
        assert await store.counts() == Counts(outbox=0, waiting=0, dead=1, scheduled=0)
