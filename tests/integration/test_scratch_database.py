"""What every test on a server relies on: a database of its own, of which nothing is left."""

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from tests.servers import scratch_database, server

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
