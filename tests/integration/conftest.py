from pathlib import Path

import pytest

import cqrs


@pytest.fixture
def registry() -> cqrs.Registry:
    return cqrs.Registry()


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
