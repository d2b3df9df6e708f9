import pytest
from sqlalchemy.exc import OperationalError

from cqrs.outbox.faults import is_absence, is_transient


class DriverError(Exception):
    def __init__(self, *args: object, sqlstate: str | None = None) -> None:
        super().__init__(*args)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (DriverError("deadlock", sqlstate="40P01"), True),
        (DriverError("could not serialize", sqlstate="40001"), True),
        (DriverError(1213, "Deadlock found"), True),
        (DriverError(1205, "Lock wait timeout exceeded"), True),
        (DriverError("unique", sqlstate="23505"), False),
        (DriverError(1062, "Duplicate entry"), False),
        (DriverError(), False),
    ],
)
def test_a_deadlock_is_told_from_other_errors(error: DriverError, transient: bool):
    assert is_transient(OperationalError("insert", {}, error)) is transient
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("error", "absent"),
    [
        (ConnectionRefusedError("connect"), True),
        (TimeoutError(), True),
        (DriverError("the server shuts down", sqlstate="57P01"), True),
        (DriverError("the connection was lost", sqlstate="08006"), True),
        (DriverError("too many connections", sqlstate="53300"), True),
        (DriverError(2003, "Can't connect"), True),
        (DriverError(1040, "Too many connections"), True),
        (DriverError("no such table", sqlstate="42P01"), False),
        (DriverError("statement timeout", sqlstate="57014"), False),
        (DriverError(1146, "no such table"), False),
        (DriverError("200"), False),
        (TypeError("2003"), False),
    ],
)
def test_a_database_that_is_out_of_reach_is_told_from_one_that_refuses(error: Exception, absent: bool):
    assert is_absence(error) is absent
    assert is_absence(OperationalError("select", {}, error)) is absent


def test_a_lost_connection_is_absence_whatever_the_driver_called_it():
    assert is_absence(OperationalError("select", {}, DriverError(), connection_invalidated=True))
