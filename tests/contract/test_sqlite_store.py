import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from cqrs import migrations
from cqrs.outbox import sqlite
from cqrs.outbox.store import Store
from tests.contract.store import OpenStore, StoreContract


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the tables and nothing in them, to be copied."""
    file = tmp_path_factory.mktemp("store") / "migrated.db"
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        migrations.migrate(connection)
    engine.dispose()
    return file


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    async def open_store(self, migrated: Path, tmp_path: Path) -> AsyncIterator[OpenStore]:
        file = shutil.copy(migrated, tmp_path / "store.db")
        async with AsyncExitStack() as stack:

            async def open_store(slots: int) -> Store:
                writers, readers = sqlite.connect(make_url(f"sqlite+aiosqlite:///{file}"))
                stack.push_async_callback(writers.dispose)
                stack.push_async_callback(readers.dispose)
                store = Store(writers, readers, slots=slots)
                await store.record({"slots": str(slots)})
                return store

            yield open_store
