"""The `db` commands on real servers, whose tables have what SQLite's have not."""

import asyncio

import pytest

from tests.servers import empty_database, server
from tests.unit.cli.support import run, run_json
from tests.unit.outbox.support import run_sql

pytestmark = pytest.mark.services


@pytest.mark.parametrize("variable", ["POSTGRES_URL", "MYSQL_URL"])
@pytest.mark.parametrize("options", [[], ["--prefix", "own_"]])
async def test_check_is_content_with_what_upgrade_makes(variable: str, options: list[str]):
    async with empty_database(server(variable)) as url:
        place = ["--url", url, *options]
        assert (await asyncio.to_thread(run_json, "db", "upgrade", *place)) == {"before": 0, "number": 1}
        done = await asyncio.to_thread(run, "db", "check", *place)
        assert done.stdout == "The tables have number 1 and are as they should be.\n"


async def test_upgrade_and_check_work_in_a_schema_of_their_own():
    async with empty_database(server("POSTGRES_URL")) as url:
        place = ["--url", url, "--schema", "messaging"]
        missing = await asyncio.to_thread(run, "db", "upgrade", *place, code=4)
        assert missing.stderr == (
            "Error: There is no schema 'messaging'. Make it, as a user who may: CREATE SCHEMA messaging.\n"
        )
        await run_sql(url, "CREATE SCHEMA messaging")
        assert (await asyncio.to_thread(run_json, "db", "upgrade", *place)) == {"before": 0, "number": 1}
        done = await asyncio.to_thread(run, "db", "check", *place)
        assert done.stdout == "The tables have number 1 and are as they should be.\n"
        done = await asyncio.to_thread(run, "db", "check", "--url", url, code=1)
        assert done.stdout.startswith("The tables have no number, and this version needs 1.")
