import math
from traceback import format_exception

import pytest
from sqlalchemy.exc import IntegrityError

from cqrs.codec import Envelope
from cqrs.outbox.publisher import Failed
from cqrs.outbox.rows import Claimed
from cqrs.outbox.verdicts import Judge, cause_of


def raised(error: Exception, cause: Exception | None = None) -> str:
    """Return a traceback as rows keep it."""
    with pytest.raises(type(error)) as caught:
        fail(error, cause)
    return "".join(format_exception(caught.value))


def fail(error: Exception, cause: Exception | None) -> None:
    if cause is None:
        raise error
    try:
        raise cause
    except type(cause) as first:
        raise error from first


def test_the_cause_of_a_traceback_is_the_line_that_names_the_exception():
    assert cause_of(raised(ValueError("no stock"))) == "ValueError: no stock"


def test_what_an_exception_says_behind_its_first_line_is_left_out():
    error = IntegrityError("insert", {}, Exception("duplicate key"))
    assert cause_of(raised(error)) == "sqlalchemy.exc.IntegrityError: (builtins.Exception) duplicate key"


def test_of_a_chain_the_last_exception_is_the_cause():
    assert cause_of(raised(RuntimeError("second\nand more"), ValueError("first"))) == "RuntimeError: second"


@pytest.mark.parametrize("text", ["It was given up.", "It was given up.\nTwice.", ""])
def test_a_text_without_a_traceback_is_its_first_line(text: str):
    assert cause_of(text) == text.partition("\n")[0]


ROW = Claimed(1, 0, Envelope("m1", "handler", "orders", "a", "Happened", "{}", b"{}"))


def test_a_policy_that_fails_itself_is_replaced_by_the_default(caplog: pytest.LogCaptureFixture):
    def end(destination: str, error: BaseException, failures: int) -> tuple[float | None, bool]:
        raise TypeError("a mistake in a policy")

    verdict = Judge(end).judge(ROW, Failed(ValueError("no")))
    assert verdict is not None
    assert verdict.wait is not None
    assert "ValueError: no" in verdict.error
    assert "a mistake in a policy" in caplog.text


def test_no_policy_puts_off_a_retry_further_than_databases_have_dates():
    verdict = Judge(lambda *_: (math.inf, True)).judge(ROW, Failed(ValueError("no")))
    assert verdict is not None
    assert verdict.wait == 366 * 86400
