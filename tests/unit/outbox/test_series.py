from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, QueuePool, create_engine, event

from cqrs.outbox.series import Series

CONNECTS, OTHER = SimpleNamespace(connects=True), SimpleNamespace(connects=False)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A pool that lends three connections at most."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=2, max_overflow=1)
    yield engine
    engine.dispose()


def series_of(engine: Engine) -> Series:
    """Return a series whose units say what they were given."""
    given: Any = SimpleNamespace(sync_engine=engine)
    make: Any = lambda handler, message_id, series: (handler, message_id, series)  # noqa: E731
    return Series(given, make)


def lent(engine: Engine) -> int:
    pool: Any = engine.pool
    return int(pool.checkedout())


def test_the_next_delivery_gets_the_connection_that_was_left(engine: Engine):
    series = series_of(engine)
    connection = series.connect()
    with connection.begin():
        pass
    series.leave(connection)
    assert series.connect() is connection
    assert series.connect() is not connection


async def test_the_connection_is_given_back_in_the_end(engine: Engine):
    async with series_of(engine) as series:
        series.leave(series.connect())
        assert lent(engine) == 1
    assert lent(engine) == 0


async def test_a_handler_that_asks_for_the_connection_has_the_one_that_was_left(engine: Engine):
    series: Any = series_of(engine)
    series.leave(series.connect())
    assert await series.unit(CONNECTS, "m1") == (CONNECTS, "m1", series)
    assert lent(engine) == 1


async def test_another_handler_does_not_work_with_a_connection_in_hand(engine: Engine):
    series: Any = series_of(engine)
    series.leave(series.connect())
    assert await series.unit(OTHER, "m1") == (OTHER, "m1", None)
    assert lent(engine) == 0


def change(connection: Connection) -> None:
    connection.execution_options(logging_token="mine")


def begin(connection: Connection) -> None:
    connection.begin()


@pytest.mark.parametrize("do", [change, begin, Connection.invalidate])
def test_a_connection_that_is_no_longer_as_it_came_is_given_back(engine: Engine, do: Callable[[Connection], None]):
    series = series_of(engine)
    connection = series.connect()
    do(connection)
    series.leave(connection)
    assert lent(engine) == 0


def test_a_connection_that_others_may_wait_for_is_given_back(engine: Engine):
    series = series_of(engine)
    connection = series.connect()
    others = [engine.connect() for _ in range(2)]
    series.leave(connection)
    assert lent(engine) == 2
    for other in others:
        other.close()


@pytest.mark.parametrize("told", ["engine_connect", "checkout", "checkin", "reset"])
def test_where_somebody_listens_to_its_coming_and_going_a_connection_is_given_back(engine: Engine, told: str):
    event.listen(engine, told, lambda *_: None)
    series = series_of(engine)
    series.leave(series.connect())
    assert lent(engine) == 0


def test_a_pool_that_keeps_none_is_given_its_connections_back():
    closed = []
    engine = create_engine("sqlite://", poolclass=NullPool)
    event.listen(engine, "close", lambda *_: closed.append("one"))
    series = series_of(engine)
    series.leave(series.connect())
    assert closed == ["one"]
