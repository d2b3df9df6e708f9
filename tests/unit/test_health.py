import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

import cqrs
from cqrs.health import CLOSED, Health, State, examine
from cqrs.outbox import Fate
from tests.unit.support import RecordingPublisher


class PingedPublisher(RecordingPublisher):
    """A broker that is in reach, or not, or says nothing."""

    error: BaseException | None = None
    silent = False
    closed = False

    async def ping(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        self.closed = True


class StuckPublisher(PingedPublisher):
    """A broker that takes nothing for the time being."""

    async def publish(self, envelopes: Sequence[cqrs.Envelope]) -> Sequence[Fate]:
        return [Fate.NOT_SENT] * len(envelopes)


@pytest.fixture
def broker() -> PingedPublisher:
    return PingedPublisher()


@pytest.fixture
def app(registry: cqrs.Registry, database: str, broker: PingedPublisher) -> cqrs.Mediator:
    return cqrs.bootstrap(registry=registry, database=database, broker=broker)


def states(found: Health) -> dict[str, str]:
    return {name: check.state.value for name, check in found.checks.items()}


async def test_an_application_without_a_database_has_nothing_to_look_at(registry: cqrs.Registry):
    found = await examine(cqrs.bootstrap(registry=registry))
    assert found.is_ready
    assert found.figures == {"status": "ready", "checks": {}}


async def test_all_is_well_with_an_open_application(app: cqrs.Mediator):
    async with app:
        found = await examine(app)
    assert found.is_ready
    assert states(found) == {"database": "ok", "schema": "ok", "broker": "ok", "lag": "ok"}
    assert all(0 <= check.seconds < 2 for check in found.checks.values())


async def test_a_broker_out_of_reach_says_why(app: cqrs.Mediator, broker: PingedPublisher):
    broker.error = cqrs.PublishError("The broker is out of reach: no route.")
    async with app:
        found = await examine(app)
    assert not found.is_ready
    assert found.figures["status"] == "not ready"
    assert found.figures["checks"]["broker"]["reason"] == "The broker is out of reach: no route."


async def test_a_check_that_may_fail_is_told_and_does_not_count(app: cqrs.Mediator, broker: PingedPublisher):
    broker.error = cqrs.PublishError("The broker is out of reach: no route.")
    async with app:
        found = await examine(app, despite=["broker"])
    assert found.is_ready
    assert found.figures["checks"]["broker"]["state"] == "failed"


async def test_a_check_that_there_is_not_cannot_be_left_out(app: cqrs.Mediator):
    with pytest.raises(
        ValueError, match="There is no check weather; there are database, schema, broker, lag, consuming"
    ):
        await examine(app, despite=["weather"])


async def test_what_hangs_is_given_up(app: cqrs.Mediator, broker: PingedPublisher):
    broker.silent = True
    async with app:
        found = await examine(app, timeout=0.05)
    assert found.checks["broker"].reason == "no answer within 0.05 s"
    assert states(found) | {"broker": "failed"} == states(found)


async def test_an_error_that_nobody_foresaw_is_logged_and_not_shown(
    app: cqrs.Mediator, broker: PingedPublisher, caplog: pytest.LogCaptureFixture
):
    broker.error = RuntimeError("password=secret")
    async with app:
        found = await examine(app)
    assert found.checks["broker"].reason == "see the log of the process"
    assert "The check of the broker failed." in caplog.text


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"broker": None}, "events are delivered here"),
        ({"broker": PingedPublisher(), "relay": False}, "others relay"),
        ({"broker": RecordingPublisher()}, "its publisher has no ping"),
    ],
)
async def test_a_broker_that_nobody_can_ask_here_does_not_count(
    registry: cqrs.Registry, database: str, wishes: dict[str, Any], reason: str
):
    async with cqrs.bootstrap(registry=registry, database=database, **wishes) as app:
        found = await examine(app)
    assert found.is_ready
    assert (found.checks["broker"].state, found.checks["broker"].reason) == (State.UNUSED, reason)


async def test_another_schema_says_what_to_run(app: cqrs.Mediator):
    async with app:
        async with app.storage.store.writers.begin() as connection:
            await connection.execute(sa.text("UPDATE cqrs_settings SET value = '99' WHERE name = 'schema'"))
        found = await examine(app)
    assert states(found) | {"schema": "failed"} == states(found)
    assert "pip install --upgrade cqrs-toolkit" in found.checks["schema"].reason


async def test_a_database_out_of_reach_is_named_without_its_password(registry: cqrs.Registry):
    app = cqrs.bootstrap(registry=registry, database="postgresql+asyncpg://me:secret@127.0.0.1:1/shop")
    found = await examine(app)
    assert states(found) == {"database": "failed", "schema": "failed", "broker": "unused", "lag": "failed"}
    assert found.checks["database"].reason.startswith(
        "postgresql+asyncpg://me:***@127.0.0.1:1/shop cannot be connected"
    )
    assert "secret" not in str(found.figures)


async def test_an_application_that_is_not_open_is_looked_at_and_left_closed(
    app: cqrs.Mediator, broker: PingedPublisher
):
    async with app:
        pass
    broker.closed = False
    found = await examine(app)
    assert states(found) == {"database": "ok", "schema": "ok", "broker": "ok", "lag": "ok"}
    assert broker.closed
    assert app.storage.store.writers.pool.checkedin() == 0


async def test_a_publisher_that_cannot_be_asked_is_not_closed_either(registry: cqrs.Registry, database: str):
    class Unopened(RecordingPublisher):
        async def close(self) -> None:
            raise AssertionError("nobody has opened it")

    found = await examine(cqrs.bootstrap(registry=registry, database=database, broker=Unopened()))
    assert found.checks["broker"].state is State.UNUSED


async def test_the_lag_is_that_of_the_oldest_event_that_waits(registry: cqrs.Registry, database: str):
    @registry.integration_event(topic="asked", key="number")
    class Asked(cqrs.Event):
        number: int

    async with cqrs.bootstrap(registry=registry, database=database, broker=StuckPublisher()) as app:
        assert (await examine(app, max_lag=60)).is_ready
        for number in range(3):
            await app.emit(Asked(number=number))
        app.storage.store.ahead = 100.0
        found = await examine(app, max_lag=60)
        told = await examine(app)
    assert found.checks["lag"].state is State.FAILED
    assert found.checks["lag"].reason.startswith("the oldest saved event has waited for 100.")
    assert told.checks["lag"].state is State.OK


async def test_a_consumer_that_is_at_work_is_well_and_one_that_cannot_says_why(app: cqrs.Mediator):
    @dataclass
    class Consumer:
        fault: str | None

    async with app:
        app.consumer = Consumer(None)  # all that is asked of it
        assert (await examine(app)).checks["consuming"].state is State.OK
        app.consumer = Consumer("the database is away: [parameters: secret]")
        assert (await examine(app)).checks["consuming"].reason == "the database is away"


def test_an_application_that_nobody_has_opened_is_not_ready():
    assert CLOSED.figures["checks"]["application"]["reason"] == "it is not open"
    assert not CLOSED.is_ready
