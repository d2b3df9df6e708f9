import pytest
from sqlalchemy.exc import OperationalError

from cqrs.outbox.faults import is_transient


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
