"""The harness on a database of the user's own kind."""

import pytest

import cqrs
from cqrs.testing import harness
from tests.servers import empty_database, server
from tests.unit.support import RecordingPublisher

pytestmark = pytest.mark.services


class Placed(cqrs.Event):
    number: int


@pytest.mark.parametrize("broker", [None, RecordingPublisher()])
@pytest.mark.parametrize("variable", ["POSTGRES_URL", "MYSQL_URL"])
async def test_a_retry_in_an_hour_happens_at_once(variable: str, broker: RecordingPublisher | None):
    registry = cqrs.Registry()
    registry.integration_event(topic="orders", key="number")(Placed)

    @registry.event_handler(name="receipt", retry=cqrs.Retry(first=3600.0))
    async def send_receipt(event: Placed, context: cqrs.Context) -> None:
        if context.attempt < 3:
            raise ConnectionError("no route")

    async with empty_database(server(variable)) as url:
        app = cqrs.bootstrap(registry=registry, database=url, broker=broker)
        async with harness(app, database=url) as t:
            await t.emit(Placed(number=1))
            assert [(each.number, each.dead) for each in t.failures] == [(1, False), (2, False)]
            assert t.tree.endswith(
                "  receipt - failed at attempts 1 to 2: ConnectionError: no route; well at attempt 3"
            )
