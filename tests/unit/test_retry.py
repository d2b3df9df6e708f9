import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqrs import Retry
from cqrs.retry import policies, policy_for

WITHOUT_JITTER = Retry(attempts=None, first=1.0, factor=3.0, longest=900.0, jitter=0.0)

retries = st.builds(
    Retry,
    attempts=st.none() | st.integers(1, 1000),
    first=st.floats(0, 1e6),
    factor=st.floats(1, 1e3),
    longest=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
)


def test_waits_grow_by_the_factor_up_to_the_longest():
    assert [WITHOUT_JITTER.wait(failures) for failures in range(1, 10)] == [1, 3, 9, 27, 81, 243, 729, 900, 900]


@given(retry=retries, failures=st.integers(1, 10_000))
def test_a_wait_stays_within_the_jitter_below_the_planned_one(retry: Retry, failures: int):
    wait = retry.wait(failures)
    if wait is None:
        assert retry.attempts is not None
        assert failures >= retry.attempts
        return
    try:
        planned = min(retry.longest, retry.first * retry.factor ** min(failures - 1, 64))
    except OverflowError:  # pragma: no cover - floats of these bounds do not overflow
        planned = retry.longest
    assert planned * (1 - retry.jitter) - 1e-9 <= wait <= planned


def test_a_wait_that_no_float_holds_is_the_longest():
    assert Retry(attempts=None, factor=1e6, jitter=0.0).wait(1000) == 900.0


def test_jitter_spreads_what_failed_together():
    assert len({Retry(jitter=0.5).wait(1) for _ in range(50)}) > 1


@given(attempts=st.integers(1, 100), failures=st.integers(1, 200))
def test_it_is_given_up_after_so_many_attempts(attempts: int, failures: int):
    assert (Retry(attempts=attempts).wait(failures) is None) == (failures >= attempts)


def test_one_attempt_gives_up_at_once():
    assert Retry(attempts=1).wait(1) is None


@pytest.mark.parametrize("failures", [1, 100, 1_000_000])
def test_without_a_number_of_attempts_it_never_gives_up(failures: int):
    assert Retry(attempts=None).wait(failures) is not None


@pytest.mark.parametrize("attempts", [0, -1])
def test_a_policy_without_a_single_attempt_is_refused(attempts: int):
    with pytest.raises(ValueError, match=rf"Retry\(attempts={attempts}\): the first try counts, so at least 1"):
        Retry(attempts=attempts)


@pytest.mark.parametrize(
    "durations", [{"first": -1.0}, {"factor": 0.5}, {"longest": -1.0}, {"jitter": -0.1}, {"jitter": 1.1}]
)
def test_durations_that_cannot_be_meant_are_refused(durations: dict[str, float]):
    with pytest.raises(ValueError, match="first and longest are at least 0, factor at least 1, jitter within 0 and 1"):
        Retry(**durations)


def test_a_policy_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="first and longest"):
        Retry(first=float("nan"))


def test_a_single_policy_holds_for_every_exception():
    retry = Retry(attempts=3)
    assert policy_for(ValueError(), policies(retry), {}) is retry


def test_the_policy_of_the_nearest_base_class_decides():
    nearest, further = Retry(attempts=2), Retry(attempts=5)
    own = {Exception: further, OSError: nearest}
    assert policy_for(ConnectionResetError(), own, {}) is nearest
    assert policy_for(ValueError(), own, {}) is further


def test_the_order_of_policies_makes_no_difference():
    nearest, further = Retry(attempts=2), Retry(attempts=5)
    for own in ({OSError: nearest, Exception: further}, {Exception: further, OSError: nearest}):
        assert policy_for(ConnectionError(), own, {}) is nearest


def test_a_handlers_policy_goes_before_the_applications():
    own, general = Retry(attempts=2), Retry(attempts=5)
    assert policy_for(ValueError(), {ValueError: own}, {ValueError: general}) is own


def test_a_handlers_single_policy_goes_before_the_applications_policy_of_a_nearer_type():
    own, general = Retry(attempts=2), Retry(attempts=5)
    assert policy_for(ValueError(), policies(own), {ValueError: general}) is own


def test_the_application_decides_what_the_handler_left_open():
    own, general = Retry(attempts=2), Retry(attempts=5)
    assert policy_for(KeyError(), {ValueError: own}, policies(general)) is general


def test_an_exception_that_no_policy_names_is_retried_by_default():
    assert policy_for(KeyError(), {ValueError: Retry(attempts=1)}, {}) == Retry()
