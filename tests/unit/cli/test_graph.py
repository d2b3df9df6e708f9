import pytest

from cqrs.cli.graph import Graph, graphviz, mermaid
from tests.unit.cli.support import run, run_json, shop
from tests.unit.conftest import WritePackage


def drawn(target: str) -> list[tuple[str, str, str]]:
    """Return the edges by the labels of their nodes."""
    found = run_json("graph", target)
    labels = {node["id"]: node["label"] for node in found["nodes"]}
    return [(labels[edge["source"]], edge["label"], labels[edge["target"]]) for edge in found["edges"]]


def test_without_a_broker_events_lead_to_their_handlers(package: WritePackage, database: str):
    assert drawn(f"{package(shop(database))}.main:app") == [
        ("PlaceOrder", "", "place_order"),
        ("FindOrder", "", "find_order"),
        ("Counted", "", "count"),
        ("OrderPlaced", "in the background", "send_receipt"),
        ("place_order", "emits", "Counted"),
        ("place_order", "emits", "OrderPlaced"),
    ]


def test_with_a_broker_they_lead_there_by_their_topics(package: WritePackage, database: str):
    edges = drawn(f"{package(shop(database, 'broker=' + repr('kafka://localhost')))}.main:app")
    assert ("OrderPlaced", "published", "orders") in edges
    assert ("orders", "OrderPlaced", "send_receipt") in edges


def test_mermaid_is_printed_and_graphviz_on_request(package: WritePackage, database: str):
    target = f"{package(shop(database))}.main:app"
    assert run("graph", target).stdout.startswith('flowchart LR\n    n0["PlaceOrder"]:::command\n')
    assert run("graph", target, "--format", "graphviz").stdout.startswith("digraph {\n    rankdir=LR\n")


@pytest.fixture
def awkward() -> Graph:
    graph = Graph()
    graph.edge(graph.node("event", "a", 'Paid["x"]'), graph.node("topic", "t", "back\\slash"), "<b>")
    return graph


def test_mermaid_escapes_what_it_would_read_as_its_own(awkward: Graph):
    assert list(mermaid(awkward))[1:4] == [
        '    n0(["Paid[#quot;x#quot;]"]):::event',
        '    n1[("back\\slash")]:::topic',
        "    n0 -->|#lt;b#gt;| n1",
    ]


def test_graphviz_escapes_what_it_would_read_as_its_own(awkward: Graph):
    lines = list(graphviz(awkward))
    assert '    n0 [label="Paid[\\"x\\"]" shape=oval fillcolor="#fef9c3"]' in lines
    assert '    n1 [label="back\\\\slash" shape=cylinder fillcolor="#fee2e2"]' in lines
    assert '    n0 -> n1 [label="<b>"]' in lines
