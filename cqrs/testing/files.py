"""The temporary file of a test: the tables are made once, and copied from then on."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine

from cqrs import migrations


@cache
def empty_file(prefix: str) -> bytes:
    """Return a SQLite file with the toolkit's tables, and nothing in them: to migrate takes longer than most tests."""
    with tempfile.TemporaryDirectory(prefix="cqrs-") as folder:
        file = Path(folder) / "empty.db"
        engine = create_engine(f"sqlite:///{file}")
        with engine.begin() as connection:
            migrations.migrate(connection, prefix=prefix)
        engine.dispose()
        return file.read_bytes()
