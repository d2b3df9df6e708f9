"""The floor against a model of PostgreSQL's transactions: it may hide no row that will still be visible."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cqrs.outbox import floor as module
from cqrs.outbox.floor import Floor, Snapshot

SLOTS = (0, 1)
LIMIT = 2


@dataclass
class Server:
    """Transaction ids, ids of rows, and who sees what: as much of PostgreSQL as the floor relies on."""

    next_xid: int = 1
    last_id: int = 0
    running: set[int] = field(default_factory=set)
    committed: set[int] = field(default_factory=set)
    rows: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each id that was not deleted its slot and its transaction."""

    def begin(self) -> int:
        xid, self.next_xid = self.next_xid, self.next_xid + 1
        self.running.add(xid)
        return xid

    def snapshot(self) -> Snapshot:
        """What runs is listed only below the first id that follows all that have ended: later ones may run unlisted."""
        ended = set(range(1, self.next_xid)) - self.running
        below = max(ended, default=0) + 1
        return Snapshot(below, frozenset(xid for xid in self.running if xid < below))

    def visible(self, slot: int) -> list[int]:
        return sorted(i for i, (where, xid) in self.rows.items() if where == slot and xid in self.committed)


class FloorModel(RuleBasedStateMachine):
    """Writers that stay open for as long as they like, and one lane that claims in two statements."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.floor = Floor()
        self.writers: list[int] = []
        self.seen: set[int] = set()

    @rule()
    def begin(self):
        self.writers.append(self.server.begin())

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), slot=st.sampled_from(SLOTS), count=st.integers(1, 4))
    def insert(self, data, slot, count):
        writer = data.draw(st.sampled_from(self.writers))
        for _ in range(count):
            self.server.last_id += 1
            self.server.rows[self.server.last_id] = (slot, writer)

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), commits=st.booleans())
    def end(self, data, commits):
        writer = data.draw(st.sampled_from(self.writers))
        self.writers.remove(writer)
        self.server.running.remove(writer)
        if commits:
            self.server.committed.add(writer)
        else:
            self.server.rows = {i: row for i, row in self.server.rows.items() if row[1] != writer}

    @rule(
        slots=st.sets(st.sampled_from(SLOTS), min_size=1),
        patient=st.booleans(),
        between=st.integers(0, 2),
        returned=st.sets(st.integers(0, 30), max_size=4),
    )
    def claim(self, slots, patient, between, returned):
        """Lock, let others act between the statements, read, and delete what was read but for what comes back."""
        last = self.server.last_id
        floor = self.floor = self.floor.fresh(last)
        for _ in range(between):
            self.writers.append(self.server.begin())
        own = None
        while True:
            snapshot = self.server.snapshot()
            found = {slot: [i for i in self.server.visible(slot) if i > floor.slots.get(slot, 0)] for slot in slots}
            if own is None:
                self.writers.append(self.server.begin())  # begins after the snapshot, and before the own id is drawn
                own = self.server.begin()
            if not floor.falls(snapshot):
                break
        read = {slot: ids[:LIMIT] for slot, ids in found.items()}
        module.PATIENCE = 1000.0 if patient else 0.0
        floor.learn(snapshot, own, last, slots, {slot: ids[0] for slot, ids in read.items() if ids})
        ended = {}
        for slot, ids in read.items():
            for number in set(ids) - returned:
                del self.server.rows[number]
            if ids:
                ended[slot] = min([max(ids), *(number - 1 for number in returned.intersection(ids))])
        self.server.running.remove(own)
        self.server.committed.add(own)
        floor.rise(ended)

    @invariant()
    def no_row_that_is_visible_now_lies_hidden(self):
        """A read would show it, or show that an open transaction has ended and fall back below it."""
        snapshot = self.server.snapshot()
        copy = self.floor.copy()
        while copy.falls(snapshot):
            pass
        for slot in SLOTS:
            assert all(number > copy.slots.get(slot, 0) for number in self.server.visible(slot))

    @invariant()
    def what_is_safe_hides_nothing_that_may_come(self):
        for slot, least in self.floor.safe().items():
            assert all(number > least for number, (where, _) in self.server.rows.items() if where == slot)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", module.PATIENCE)


TestFloorModel = pytest.mark.slow(FloorModel.TestCase)
TestFloorModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def learned(floor: Floor, last: int, *, own: int = 10, running: tuple[int, ...] = ()) -> Floor:
    floor.learn(Snapshot(own, frozenset(running)), own, last, SLOTS, {})
    return floor


def test_a_snapshot_is_read_as_postgresql_writes_it():
    assert Snapshot.of("3:9:4,7") == Snapshot(9, frozenset({4, 7}))
    assert Snapshot.of("9:9:") == Snapshot(9, frozenset())


def test_a_first_read_teaches_nothing_yet():
    assert learned(Floor(), 5).slots == {}


def test_a_second_read_raises_the_floor_to_what_stood_before_it():
    assert learned(learned(Floor(), 5), 8).slots == {0: 5, 1: 5}


def test_rows_that_are_left_keep_the_floor_below_them():
    floor = learned(Floor(), 5)
    floor.learn(Snapshot(11, frozenset()), 11, 8, SLOTS, {0: 3})
    assert floor.slots == {0: 2, 1: 5}


def test_slots_that_were_not_read_to_their_end_do_not_rise():
    floor = learned(Floor(), 5)
    floor.learn(Snapshot(11, frozenset()), 11, 8, [0], {})
    assert floor.slots == {0: 5}


def test_what_was_read_and_is_gone_raises_the_floor():
    floor = learned(Floor(), 5)
    floor.learn(Snapshot(11, frozenset()), 11, 8, SLOTS, {0: 3})
    floor.rise({0: 4})
    assert floor.slots == {0: 4, 1: 5}


def test_what_was_read_above_the_candidate_does_not_raise_the_floor_over_it():
    floor = learned(Floor(), 5)
    floor.learn(Snapshot(11, frozenset()), 11, 8, SLOTS, {0: 3})
    floor.rise({0: 7})
    assert floor.slots == {0: 5, 1: 5}


def test_what_was_read_before_the_candidate_counts_raises_nothing():
    floor = learned(learned(Floor(), 5), 8)
    floor.learn(Snapshot(12, frozenset({11})), 13, 9, SLOTS, {0: 7})
    floor.learn(Snapshot(12, frozenset({11})), 14, 9, SLOTS, {0: 7})
    floor.rise({0: 9})
    assert floor.slots == {0: 6, 1: 8}


def test_a_transaction_that_has_just_begun_is_waited_for():
    floor = learned(Floor(), 5, running=(4,))
    assert learned(floor, 8, own=11, running=(4,)).slots == {}


def test_a_transaction_that_stays_open_holds_up_no_floor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    floor = learned(Floor(), 5, running=(4,))
    assert learned(floor, 8, own=11, running=(4,)).slots == {0: 5, 1: 5}
    assert floor.safe() == {0: 0, 1: 0}


def test_the_end_of_a_transaction_that_stayed_open_makes_the_floor_fall(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    floor = learned(learned(Floor(), 5, running=(4,)), 8, own=11, running=(4,))
    assert floor.falls(Snapshot(12, frozenset()))
    assert floor.slots == {0: 0, 1: 0}
    assert not floor.falls(Snapshot(12, frozenset()))


def test_a_sequence_that_went_back_is_another_server():
    assert learned(learned(Floor(), 5), 8).fresh(3).slots == {}


def test_a_floor_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch):
    floor = learned(learned(Floor(), 5), 8)
    monkeypatch.setattr(module, "REMEMBERED", -1.0)
    assert floor.fresh(9).slots == {}


def test_a_copy_rises_on_its_own():
    floor = learned(learned(Floor(), 5), 8)
    learned(floor.copy(), 20, own=12)
    assert floor.slots == {0: 5, 1: 5}
