"""The history checker: compares what was committed with what was delivered and what took effect. Pure functions."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

SHOWN = 5
"""How many violations of a kind are shown."""


class Mark(NamedTuple):
    """One event: its key (empty: none), its number within the key, and what it alone has."""

    key: str
    number: int
    token: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What a history says; `violations` in words."""

    committed: int
    delivered: int
    lost: int = 0
    phantoms: int = 0
    inversions: int = 0
    duplicates: int = 0
    missing: int = 0
    """Effects that did not happen."""
    repeated: int = 0
    """Effects that happened again."""
    disordered: int = 0
    """Effects that happened after one of a later event of their key."""
    violations: list[str] = field(default_factory=list)


def check(
    committed: Sequence[Mark],
    delivered: Sequence[Mark],
    effects: Sequence[Mark],
    *,
    most_duplicates: int | None,
) -> Findings:
    """Return what is wrong. `delivered` and `effects` are in order within a key, `committed` in any order.

    Committed numbers of a key follow each other from 1 on. Duplicates are not looked at without a bound.
    """
    known = {mark.token for mark in committed}
    first = firsts(delivered)
    lost = known - {mark.token for mark in first}
    phantoms = [mark for mark in first if mark.token not in known]
    overtaken = inversions(first)
    duplicates = len(delivered) - len(first)
    times = Counter(mark.token for mark in effects)
    missing = known - times.keys()
    repeated = [token for token, number in times.items() if number > 1]
    strange = times.keys() - known
    disordered = inversions(firsts(effects))
    violations = [
        *_told("was lost", (mark for mark in committed if mark.token in lost)),
        *_told("was delivered and never committed", phantoms),
        *_told("overtook one before it", overtaken),
        *_told("took no effect", (mark for mark in committed if mark.token in missing)),
        *_told("took effect again", repeated),
        *_told("took effect before one of its key that comes first", disordered),
        *_told("took effect and was never committed", strange),
        *_told("was committed, and a number of its key is missing", _gaps(committed)),
    ]
    if most_duplicates is not None and duplicates > most_duplicates:
        violations.append(f"{duplicates} duplicates, where the faults explain at most {most_duplicates}")
    return Findings(
        committed=len(known),
        delivered=len(delivered),
        lost=len(lost),
        phantoms=len(phantoms),
        inversions=len(overtaken),
        duplicates=duplicates,
        missing=len(missing),
        repeated=len(repeated),
        disordered=len(disordered),
        violations=violations,
    )


def firsts(marks: Iterable[Mark]) -> list[Mark]:
    """Return each event where it was first."""
    found: dict[str, Mark] = {}
    for mark in marks:
        found.setdefault(mark.token, mark)
    return list(found.values())


def inversions(marks: Iterable[Mark]) -> list[Mark]:
    """Return the events whose first deliveries came behind one with a higher number of their key."""
    highest: dict[str, int] = defaultdict(int)
    found = []
    for mark in marks:
        if mark.key and mark.number < highest[mark.key]:
            found.append(mark)
        highest[mark.key] = max(highest[mark.key], mark.number)
    return found


def _gaps(committed: Iterable[Mark]) -> list[Mark]:
    """Return what has no predecessor: then the history itself is no witness."""
    by_key: dict[str, list[Mark]] = defaultdict(list)
    for mark in committed:
        if mark.key:
            by_key[mark.key].append(mark)
    found = []
    for marks in by_key.values():
        marks.sort(key=lambda mark: mark.number)
        found += [later for earlier, later in pairwise([Mark("", 0, ""), *marks]) if later.number != earlier.number + 1]
    return found


def _told(what: str, marks: Iterable[object]) -> list[str]:
    all_of_them = list(marks)
    if not all_of_them:
        return []
    shown = ", ".join(
        f"{mark.key or 'no key'} {mark.number}" if isinstance(mark, Mark) else str(mark) for mark in all_of_them[:SHOWN]
    )
    return [f"{len(all_of_them)} x {what}: {shown}{', ...' if len(all_of_them) > SHOWN else ''}"]
