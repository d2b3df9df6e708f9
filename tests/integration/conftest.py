from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import cqrs
from tests.servers import empty_database, server

SERVERS = {"PostgreSQL": "POSTGRES_URL", "MariaDB": "MYSQL_URL"}


@pytest.fixture
def registry() -> cqrs.Registry:
    return cqrs.Registry()


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"


@pytest.fixture(params=["SQLite", *(pytest.param(name, marks=pytest.mark.services) for name in SERVERS)])
async def each_database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database that has no tables yet, of each kind."""
    if request.param == "SQLite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
        return
    async with empty_database(server(SERVERS[request.param])) as url:
        yield url
