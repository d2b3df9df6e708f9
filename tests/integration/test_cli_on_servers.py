"""The `db` commands on real servers, whose tables have what SQLite's have not."""

import asyncio

import pytest

from tests.servers import empty_database, server
from tests.unit.cli.support import run, run_json

pytestmark = pytest.mark.services


@pytest.mark.parametrize("variable", ["POSTGRES_URL", "MYSQL_URL"])
@pytest.mark.parametrize("options", [[], ["--prefix", "own_"]])
async def test_check_is_content_with_what_upgrade_makes(variable: str, options: list[str]):
    async with empty_database(server(variable)) as url:
        place = ["--url", url, *options]
        assert (await asyncio.to_thread(run_json, "db", "upgrade", *place)) == {"before": 0, "number": 1}
        done = await asyncio.to_thread(run, "db", "check", *place)
        assert done.stdout == "The tables have number 1 and are as they should be.\n"
