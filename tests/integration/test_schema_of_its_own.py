"""An application whose tables are in a schema of their own, made by a revision in an Alembic project of the user's."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

import cqrs
from tests.servers import scratch_database, server
from tests.unit.outbox.support import run_sql

pytestmark = pytest.mark.services

MAIN = """
import cqrs

app = cqrs.bootstrap(name="shop", database="{url}", schema="{schema}")
"""


class Place(cqrs.Command[None]):
    order_id: str


class Placed(cqrs.Event):
    order_id: str


@pytest.fixture(params=["POSTGRES_URL", "MYSQL_URL"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    """A database, and the name of a schema beside its default one; on MySQL that is another database."""
    url = server(request.param)
    async with scratch_database(url) as database:
        if request.param == "POSTGRES_URL":
            await run_sql(database, "CREATE SCHEMA messaging")
            yield database, "messaging"
        else:
            async with scratch_database(url) as other:
                yield database, str(sa.make_url(other).database)


def call(folder: Path, program: str, *arguments: str) -> str:
    command = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_a_revision_makes_the_tables_and_an_application_works_on_them(place: tuple[str, str], tmp_path: Path):
    url, schema = place
    (tmp_path / "main.py").write_text(MAIN.format(url=url, schema=schema))
    call(tmp_path, "alembic", "init", "--template", "async", "migrations")
    config = tmp_path / "alembic.ini"
    config.write_text(config.read_text().replace("driver://user:pass@localhost/dbname", url))
    call(tmp_path, "cqrs", "db", "revision", "main:app")
    call(tmp_path, "alembic", "upgrade", "head")
    right = "The tables have number 1 and are as they should be.\n"
    assert call(tmp_path, "cqrs", "db", "check", "main:app") == right
    assert call(tmp_path, "cqrs", "db", "check", "--url", url, "--schema", schema) == right

    registry, seen = cqrs.Registry(), []
    registry.integration_event(topic="orders", key="order_id")(Placed)

    @registry.command_handler
    async def place_order(command: Place, session: AsyncSession, context: cqrs.Context) -> None:
        await session.execute(sa.select(1))
        context.emit(Placed(order_id=command.order_id))

    @registry.event_handler(retry=cqrs.Retry(first=0.01))
    async def receive(event: Placed, session: AsyncSession, context: cqrs.Context) -> None:
        await session.execute(sa.select(1))
        seen.append((event.order_id, context.attempt))
        if event.order_id == "bad" and context.attempt == 1:
            raise ConnectionError("no route")

    async with cqrs.bootstrap(registry=registry, name="shop", database=url, schema=schema) as app:
        await app.send(Place(order_id="good"))
        await app.send(Place(order_id="bad"))
        await app.drain()
        assert (await app.outbox.counts()).dead == 0
    assert sorted(seen) == [("bad", 1), ("bad", 2), ("good", 1)]
    assert await run_sql(url, f"SELECT count(*) FROM {schema}.cqrs_inbox") == [2]

    call(tmp_path, "alembic", "downgrade", "base")
    left = sa.text("SELECT count(*) FROM information_schema.tables WHERE table_schema = :schema")
    assert await run_sql(url, str(left.bindparams(schema=schema).compile(compile_kwargs={"literal_binds": True}))) == [
        0
    ]
