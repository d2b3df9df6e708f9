from cqrs.testing.story import Attempt, How, Told
from cqrs.testing.tree import LINES, WIDTH, tree


def test_nothing_is_said_to_be_nothing():
    assert tree([]) == "nothing happened"


def test_of_a_long_story_the_beginning_is_shown():
    shown = tree([Told(number, How.SENT) for number in range(LINES + 5)]).splitlines()
    assert len(shown) == LINES + 1
    assert shown[-1] == "... and 5 lines more"


def test_a_long_message_fits_into_its_line():
    [shown] = tree([Told("x" * 1000, How.SENT, exists=True)]).splitlines()
    assert shown == f"sent {repr('x' * 1000)[: WIDTH - 3]}..."


def test_a_handler_that_has_not_ended_is_still_at_work():
    told = Told(1, How.SENT, exists=True)
    told.attempts.append(Attempt("order", 1, 1))
    assert tree([told]) == "sent 1\n  order - still at work"


def test_alternating_errors_are_told_apart():
    told = Told(1, How.SENT, exists=True)
    told.attempts += [
        Attempt("order", 1, number, error=error, ended=True)
        for number, error in enumerate([ValueError("a"), ValueError("a"), KeyError(), ValueError("a\nb")], 1)
    ]
    assert tree([told]).splitlines()[1] == (
        "  order - failed at attempts 1 to 2: ValueError: a; failed at attempt 3: KeyError; "
        "failed at attempt 4: ValueError: a"
    )
