import asyncio
from typing import Any

import pytest

from cqrs.cli import rows
from cqrs.cli.locate import load
from tests.unit.cli.support import run, run_json, shop
from tests.unit.conftest import WritePackage
from tests.unit.outbox.support import storage_of

RECEIPT = ".orders:send_receipt"


@pytest.fixture
def target(package: WritePackage, database: str) -> str:
    """An application in which 'bad' and 'badly' died, a second 'bad' waits behind the first, and 'tea' is ready."""
    target = f"{package(shop(database, 'relay=False'))}.main:app"
    asyncio.run(fill(target))
    return target


async def fill(target: str) -> None:
    app: Any = load(target)
    place_order = next(message for message in app.plans if message.__name__ == "PlaceOrder")
    async with app:
        relay = storage_of(app).relay
        for sku in ("bad", "bad", "badly"):
            await app.send(place_order(sku=sku))
            while await relay.relay_outbox() or await relay.relay_due():
                pass
        await app.send(place_order(sku="tea"))


def keys(target: str, *arguments: object) -> list[str]:
    return [row["key"] for row in run_json("outbox", "list", target, *arguments)]


def states(target: str) -> list[tuple[str, str]]:
    return [(row["key"], row["state"]) for row in run_json("outbox", "list", target)]


# Looking


def test_stats_count_rows_by_destination(target: str):
    (backlog,) = run_json("outbox", "stats", target)
    assert backlog["destination"].endswith(RECEIPT)
    assert [backlog[state] for state in ("ready", "waiting", "dead", "scheduled")] == [1, 1, 2, 0]
    header, line = run("outbox", "stats", target).stdout.splitlines()
    assert header.split() == ["DESTINATION", "READY", "WAITING", "DEAD", "SCHEDULED", "OLDEST"]
    assert line.split()[1:5] == ["1", "1", "2", "0"]


def test_an_empty_outbox_says_so(package: WritePackage, database: str):
    target = f"{package(shop(database))}.main:app"
    assert run("outbox", "stats", target).stdout == "Nothing is in the outbox.\n"
    assert run("outbox", "list", target).stdout == "There is nothing.\n"
    assert run_json("outbox", "stats", target) == []


def test_rows_are_listed_with_their_states(target: str):
    assert states(target) == [("bad", "dead"), ("bad", "waiting"), ("badly", "dead"), ("tea", "ready")]
    lines = run("outbox", "list", target).stdout.splitlines()
    assert lines[0].split() == ["SEQ", "STATE", "EVENT", "TYPE", "KEY", "DESTINATION", "ATTEMPTS", "SAVED", "ERROR"]
    assert lines[1].endswith("ValueError: no receipt for bad")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--state", "ready"], ["tea"]),
        (["--state", "dead"], ["bad", "badly"]),
        (["--state", "scheduled"], []),
        (["--key", "bad"], ["bad", "bad"]),
        (["--topic", "nothing"], []),
        (["--limit", 1], ["bad", "tea"]),
    ],
)
def test_rows_are_chosen_by_their_values(target: str, arguments: list[object], found: list[str]):
    assert keys(target, *arguments) == found


def test_an_event_is_shown_whole(target: str):
    (ready,) = run_json("outbox", "list", target, "--state", "ready")
    text = run("outbox", "show", target, ready["event_id"]).stdout
    assert 'body         {"order_id":"tea"}' in text
    assert "headers      ce_specversion: 1.0" in text
    assert run_json("outbox", "show", target, ready["event_id"]) == [ready]


def test_an_event_that_is_not_there_ends_with_1(target: str):
    error = run("outbox", "show", target, "nothing", code=1).stderr
    assert error == (
        "Error: No event 'nothing' is in the outbox: it was delivered, discarded, or never saved. "
        "`cqrs outbox list` has the ids, under EVENT.\n"
    )


def test_dead_letters_are_listed(target: str):
    assert [row["key"] for row in run_json("dead", "list", target)] == ["bad", "badly"]
    assert [row["key"] for row in run_json("dead", "list", target, "--key", "badly")] == ["badly"]


def test_a_dead_letter_is_shown_with_its_error(target: str):
    (seq, *_) = [row["seq"] for row in run_json("dead", "list", target)]
    assert "ValueError: no receipt for bad" in run("dead", "show", target, seq).stdout


def test_a_number_that_is_no_dead_letters_ends_with_1(target: str):
    assert "No dead letter has the number 999." in run("dead", "show", target, 999, code=1).stderr


# Acting


@pytest.mark.parametrize(
    ("arguments", "number", "left"),
    [
        (["--all"], 2, []),
        (["--key", "bad"], 1, ["badly"]),
        (["--destination", "nobody"], 0, ["bad", "badly"]),
    ],
)
def test_dead_letters_are_replayed_by_filter_or_all(target: str, arguments: list[object], number: int, left: list[str]):
    assert run_json("dead", "replay", target, *arguments, code=int(not number)) == {"replayed": number}
    assert [key for key, state in states(target) if state == "dead"] == left


def test_single_dead_letters_are_replayed_by_number(target: str):
    first, _ = [row["seq"] for row in run_json("dead", "list", target)]
    assert run("dead", "replay", target, first).stdout == "1 dead letter replayed.\n"
    assert states(target)[0] == ("bad", "waiting")


def test_what_is_discarded_is_gone_and_what_waited_goes_on(target: str):
    assert run("dead", "discard", target, "--all", "--yes").stdout == "2 dead letters discarded.\n"
    (waiting, _) = run_json("outbox", "list", target)
    assert waiting["key"] == "bad"
    assert waiting["next_attempt_at"] is not None


@pytest.mark.parametrize("command", [["replay"], ["discard", "--yes"]])
@pytest.mark.parametrize("chosen", [[], ["1", "--all"], ["--key", "bad", "--all"]])
def test_which_dead_letters_has_to_be_said_in_one_way(target: str, command: list[str], chosen: list[str]):
    error = run("dead", *command, target, *chosen, code=2).stderr
    assert "Say which dead letters: their numbers, or filters, or --all." in error


def test_nothing_is_discarded_unasked_where_nobody_can_be_asked(target: str):
    assert "Nobody is here to be asked, so pass --yes." in run("dead", "discard", target, "--all", code=2).stderr
    assert len(run_json("dead", "list", target)) == 2


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 1, 2), ("", 1, 2)])
def test_a_person_is_asked_before_discarding(
    target: str, answer: str, code: int, left: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rows, "somebody_is_there", lambda: True)
    done = run("dead", "discard", target, "--all", code=code, input=f"{answer}\n")
    assert "Discard 2 dead letters for good? [y/N]" in done.stderr
    assert len(run_json("dead", "list", target)) == left


def test_an_application_without_a_database_has_no_outbox(package: WritePackage):
    name = package({"main.py": "import cqrs\n\napp = cqrs.bootstrap(registry=cqrs.Registry(), name='shop')\n"})
    assert run("outbox", "stats", f"{name}.main:app", code=1).stderr == (
        "Error: Application 'shop' has no database, so it has no outbox.\n"
    )
