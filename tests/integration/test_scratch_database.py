"""What every test on a server relies on: a database of its own, of which nothing is left."""

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from tests.servers import empty_database, scratch_database, server

pytestmark = pytest.mark.services


# PgBouncer keeps whoever asks for a database that is not there waiting for minutes: it is looked for in the list.
THE_LIST = {"postgresql": "SELECT datname FROM pg_database", "mysql": "SHOW DATABASES"}


def engine_of(variable: str, url: str) -> AsyncEngine:
    options = {"prepared_statement_cache_size": 0, "statement_cache_size": 0} if variable == "PGBOUNCER_URL" else {}
    return create_async_engine(url, poolclass=NullPool, connect_args=options)


@pytest.mark.parametrize("variable", ["POSTGRES_URL", "POSTGRES_LOGICAL_URL", "PGBOUNCER_URL", "MYSQL_URL"])
async def test_a_scratch_database_is_dropped_although_somebody_has_a_transaction_open(variable: str):
    async with scratch_database(server(variable)) as url:
        somebody = await engine_of(variable, url).connect()
        await somebody.execute(sa.text("CREATE TABLE thing (id int)"))
        await somebody.execute(sa.text("INSERT INTO thing VALUES (1)"))
    await somebody.invalidate()
    await somebody.close()

    async with engine_of(variable, server(variable)).connect() as connection:
        databases = await connection.scalars(sa.text(THE_LIST[connection.dialect.name]))
        assert sa.make_url(url).database not in databases.all()


async def test_a_scratch_database_serves_psycopg_too():
    url = sa.make_url(server("POSTGRES_URL")).set(drivername="postgresql+psycopg")
    async with scratch_database(url.render_as_string(hide_password=False)) as scratch:
        engine = create_async_engine(scratch)
        async with engine.connect() as connection:
            assert await connection.scalar(sa.text("SELECT current_database()")) == sa.make_url(scratch).database
        await engine.dispose()


WHAT_IS_THERE = """
SELECT 'schema', nspname, pg_get_userbyid(nspowner), nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'
UNION ALL SELECT 'relation', relname, '', '' FROM pg_class WHERE oid >= 16384
UNION ALL SELECT 'type', typname, '', '' FROM pg_type WHERE oid >= 16384
UNION ALL SELECT 'publication', pubname, '', '' FROM pg_publication
UNION ALL SELECT 'setting', unnest(setconfig), '', ''
    FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database()
UNION ALL SELECT 'connection', pid::text, '', '' FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
ORDER BY 1, 2
"""
LEFT_BEHIND = (
    "CREATE TABLE thing (id serial)",
    "CREATE TYPE mood AS ENUM ('well')",
    "CREATE SCHEMA own",
    "CREATE TABLE own.thing (id int)",
    "CREATE PUBLICATION things FOR ALL TABLES",
    "DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 4096', current_database()); END$$",
)


async def what_is_there(url: str) -> list[tuple[str, ...]]:
    async with engine_of("POSTGRES_URL", url).connect() as connection:
        return [tuple(row) for row in await connection.execute(sa.text(WHAT_IS_THERE))]


async def test_an_empty_database_is_used_again_and_is_then_as_a_new_one():
    async with scratch_database(server("POSTGRES_URL")) as url:
        new = await what_is_there(url)
    async with empty_database(server("POSTGRES_URL")) as first:
        somebody = await engine_of("POSTGRES_URL", first).connect()
        for statement in LEFT_BEHIND:
            await somebody.execute(sa.text(statement))
        await somebody.commit()
        await somebody.execute(sa.text("SELECT * FROM own.thing"))
        there = {kind for kind, *_ in await what_is_there(first)}
    await somebody.invalidate()
    await somebody.close()
    assert there == {"schema", "relation", "type", "publication", "setting", "connection"}
    async with empty_database(server("POSTGRES_URL")) as second:
        assert second == first
        assert await what_is_there(second) == new


async def test_who_asks_for_an_empty_database_meanwhile_gets_another():
    async with empty_database(server("POSTGRES_URL")) as one, empty_database(server("POSTGRES_URL")) as other:
        assert one != other
