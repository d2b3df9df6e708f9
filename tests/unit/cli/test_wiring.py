import pytest

from tests.unit.cli.support import ORDERS, run, run_json, shop
from tests.unit.conftest import WritePackage


@pytest.fixture
def target(package: WritePackage, database: str) -> str:
    return f"{package(shop(database))}.main:app"


def test_list_shows_every_message_with_its_handler(target: str):
    lines = run("list", target).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["KIND", "MESSAGE"],
        ["command", "PlaceOrder"],
        ["query", "FindOrder"],
        ["event", "Counted"],
        ["event", "OrderPlaced"],
    ]
    assert ":send_receipt" in lines[-1]
    assert "orders by this application's relay" in lines[-1]


def test_list_prints_the_whole_description_as_json(target: str):
    described = run_json("list", target)
    assert described["name"] == "shop"
    assert [message["name"] for message in described["messages"]] == [
        "PlaceOrder",
        "FindOrder",
        "Counted",
        "OrderPlaced",
    ]


def test_check_is_content_with_wiring_that_is_right(target: str):
    assert run("check", target).stdout == "shop: no problem in 4 messages, 4 handlers.\n"
    assert run_json("check", target) == {"application": "shop", "problems": []}


@pytest.fixture
def broken(package: WritePackage, database: str) -> str:
    files = shop(database)
    files["orders.py"] = ORDERS.replace("query: FindOrder", "query: FindOrder, clock: object")
    return f"{package(files)}.main:app"


def test_check_lists_what_is_wrong_and_ends_with_1(broken: str):
    error = run("check", broken, code=1).stderr
    assert error.startswith("Error: 1 problem\n- ")
    assert "nothing provides 'clock' (object)" in error


def test_check_lists_what_is_wrong_as_json(broken: str):
    found = run_json("check", broken, code=1)
    assert found["application"] is None
    (problem,) = found["problems"]
    assert sorted(problem) == ["cure", "what", "where"]
    assert problem["where"].endswith("orders.py:29")


@pytest.mark.parametrize("command", [["list"], ["explain", "PlaceOrder"]])
def test_other_commands_say_what_is_wrong_as_well(broken: str, command: list[str]):
    name, *rest = command
    assert "1 problem" in run(name, broken, *rest, code=1).stderr


def test_explain_tells_of_a_command(target: str):
    text = run("explain", target, "PlaceOrder").stdout
    assert "because      its first parameter is PlaceOrder, and it is decorated as command handler" in text
    assert "transaction  one for the command" in text
    assert "is given     context: Context from what is running" in text
    assert "emits        Counted, OrderPlaced" in text


@pytest.mark.parametrize("name", ["OrderPlaced", "order-placed"])
def test_explain_tells_of_a_published_event_by_its_class_and_by_its_name_on_the_wire(target: str, name: str):
    text = run("explain", target, name).stdout
    assert "topic         orders" in text
    assert "key           order_id" in text
    assert "retries      any error: none, it is dead at once" in text
    assert "when dead    its key waits until it is replayed or discarded" in text


def test_explain_prints_the_same_message_as_list_does_as_json(target: str):
    described = run_json("list", target)
    path = f"{target.partition('.')[0]}.orders.FindOrder"
    assert run_json("explain", target, path) == described["messages"][1]


def test_a_message_that_is_not_there_is_told_with_one_that_is(target: str):
    assert run("explain", target, "OrderPlacd", code=1).stderr == (
        "Error: Application 'shop' has no message 'OrderPlacd'. Did you mean OrderPlaced?\n"
    )


def test_a_message_of_two_modules_wants_its_whole_path(package: WritePackage, database: str):
    files = shop(database)
    twin = "import cqrs\n\nclass FindOrder(cqrs.Query[str]): ...\n\n"
    files["legacy.py"] = f"{twin}@cqrs.query_handler\nasync def find(query: FindOrder) -> str: ...\n"
    name = package(files)
    error = run("explain", f"{name}.main:app", "FindOrder", code=2).stderr
    assert f"'FindOrder' may be {name}.legacy.FindOrder and {name}.orders.FindOrder. Write the whole path." in error


def test_an_application_that_is_not_there_ends_with_3(target: str):
    assert "There is no module" in run("list", "nothing:app", code=3).stderr
