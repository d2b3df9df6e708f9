from tests.faults.checker import Findings, Mark, check

ONE, TWO, THREE = (Mark("a", number, f"a{number}") for number in (1, 2, 3))
OTHER = Mark("b", 1, "b1")
LOOSE = Mark("", 0, "loose")
COMMITTED = [ONE, TWO, THREE, OTHER, LOOSE]


def found(delivered: list[Mark], effects: list[Mark] = COMMITTED, most: int = 0) -> Findings:
    return check(COMMITTED, delivered, effects, most_duplicates=most)


def test_what_is_delivered_as_it_was_committed_is_right():
    findings = found([ONE, LOOSE, TWO, OTHER, THREE])
    assert findings == Findings(committed=5, delivered=5)


def test_other_keys_may_come_in_any_order():
    assert found([OTHER, ONE, TWO, THREE, LOOSE]).violations == []


def test_a_lost_message_is_found():
    findings = found([ONE, THREE, OTHER, LOOSE])
    assert findings.lost == 1
    assert findings.violations == ["1 x was lost: a 2"]


def test_a_lost_message_without_a_key_is_found():
    assert found([ONE, TWO, THREE, OTHER]).violations == ["1 x was lost: no key 0"]


def test_an_inversion_is_found():
    findings = found([TWO, ONE, THREE, OTHER, LOOSE])
    assert findings.inversions == 1
    assert findings.violations == ["1 x overtook one before it: a 1"]


def test_a_message_behind_its_successor_is_found_though_its_successor_is_repeated():
    assert found([ONE, THREE, TWO, THREE, OTHER, LOOSE], most=1).inversions == 1


def test_a_batch_that_comes_again_is_no_inversion():
    findings = found([ONE, TWO, ONE, TWO, THREE, OTHER, LOOSE], most=2)
    assert (findings.inversions, findings.duplicates, findings.violations) == (0, 2, [])


def test_too_many_duplicates_are_found():
    findings = found([ONE, TWO, ONE, TWO, THREE, OTHER, LOOSE], most=1)
    assert findings.violations == ["2 duplicates, where the faults explain at most 1"]


def test_an_event_of_a_command_that_was_rolled_back_is_found():
    findings = found([*COMMITTED, Mark("a", 4, "never")])
    assert findings.phantoms == 1
    assert findings.violations == ["1 x was delivered and never committed: a 4"]


def test_an_effect_that_happens_again_is_found():
    findings = found(COMMITTED, [*COMMITTED, TWO])
    assert findings.repeated == 1
    assert findings.violations == ["1 x took effect again: a2"]


def test_an_effect_that_does_not_happen_is_found():
    findings = found(COMMITTED, [ONE, THREE, OTHER, LOOSE])
    assert findings.missing == 1
    assert findings.violations == ["1 x took no effect: a 2"]


def test_effects_out_of_order_are_found():
    findings = found(COMMITTED, [TWO, ONE, THREE, OTHER, LOOSE])
    assert findings.violations == ["1 x took effect before one of its key that comes first: a 1"]


def test_a_history_with_a_gap_is_no_witness():
    history = [ONE, THREE]
    findings = check(history, history, history, most_duplicates=0)
    assert findings.violations == ["1 x was committed, and a number of its key is missing: a 3"]
