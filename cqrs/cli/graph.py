"""`graph`: messages, handlers, events and topics as Mermaid or Graphviz draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from cqrs.cli.locate import takes_application
from cqrs.cli.output import show_json, takes_json

if TYPE_CHECKING:
    from cqrs.description import Application, Message
    from cqrs.mediator import Mediator

SHAPES = {
    "command": ('["', '"]', "box"),
    "query": ('["', '"]', "box"),
    "event": ('(["', '"])', "oval"),
    "handler": ('("', '")', "component"),
    "topic": ('[("', '")]', "cylinder"),
}
"""How each kind of node is drawn: by Mermaid between these brackets, by Graphviz in this shape."""
COLOURS = {"command": "#dbeafe", "query": "#dcfce7", "event": "#fef9c3", "handler": "#ffffff", "topic": "#fee2e2"}


@dataclass(frozen=True, slots=True)
class Node:
    """Something that is drawn once."""

    id: str
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Edge:
    """What leads from one node to another."""

    source: str
    target: str
    label: str


@dataclass(slots=True)
class Graph:
    """Nodes and edges in the order in which they were found."""

    nodes: dict[tuple[str, str], Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def node(self, kind: str, name: str, label: str) -> str:
        """Return the id of a node, which is added if it is new."""
        return self.nodes.setdefault((kind, name), Node(f"n{len(self.nodes)}", kind, label)).id

    def edge(self, source: str, target: str, label: str = "") -> None:
        """Add an edge that is not there yet."""
        edge = Edge(source, target, label)
        if edge not in self.edges:
            self.edges.append(edge)


def graph_of(described: Application) -> Graph:
    """Return what leads where: a message to its handlers, a handler to the events that its code names, and so on."""
    graph = Graph()
    events = {message.name: message for message in described.messages if message.kind == "event"}
    for message in described.messages:
        _add_message(graph, message)
    for message in described.messages:
        for handler in message.handlers:
            source = graph.node("handler", handler.name, handler.name.rpartition(":")[2])
            for name in handler.emits:
                graph.edge(source, graph.node("event", events[name].type, name), "emits")
    return graph


def _add_message(graph: Graph, message: Message) -> None:
    source = graph.node(message.kind, message.type, message.name)
    label = ""
    if message.route is not None:
        topic = message.route.topic or "each event's own topic"
        by_broker = message.route.carrier != "this application's relay"
        if by_broker:
            via = graph.node("topic", topic, topic)
            graph.edge(source, via, "published")
            source = via
        label = message.name if by_broker else "in the background"
    for handler in message.handlers:
        target = graph.node("handler", handler.name, handler.name.rpartition(":")[2])
        graph.edge(source, target, label or ("in the background" if handler.background else ""))


def mermaid(graph: Graph) -> Iterator[str]:
    """Return the lines of a Mermaid flowchart."""
    yield "flowchart LR"
    for node in graph.nodes.values():
        opening, closing, _ = SHAPES[node.kind]
        yield f"    {node.id}{opening}{_escaped(node.label)}{closing}:::{node.kind}"
    for edge in graph.edges:
        arrow = f"-->|{_escaped(edge.label)}|" if edge.label else "-->"
        yield f"    {edge.source} {arrow} {edge.target}"
    for kind in dict.fromkeys(node.kind for node in graph.nodes.values()):
        yield f"    classDef {kind} fill:{COLOURS[kind]},stroke:#475569,color:#0f172a"


def _escaped(label: str) -> str:
    return label.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")


def graphviz(graph: Graph) -> Iterator[str]:
    """Return the lines of a Graphviz digraph."""
    yield "digraph {"
    yield "    rankdir=LR"
    yield '    node [style=filled fontname="sans-serif"]'
    for node in graph.nodes.values():
        shape, colour = SHAPES[node.kind][2], COLOURS[node.kind]
        yield f'    {node.id} [label={_quoted(node.label)} shape={shape} fillcolor="{colour}"]'
    for edge in graph.edges:
        label = f" [label={_quoted(edge.label)}]" if edge.label else ""
        yield f"    {edge.source} -> {edge.target}{label}"
    yield "}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


FORMATS: dict[str, Callable[[Graph], Iterator[str]]] = {"mermaid": mermaid, "graphviz": graphviz}


@click.command("graph")
@takes_application
@click.option("--format", "form", type=click.Choice([*FORMATS]), default="mermaid", show_default=True)
@takes_json
def draw(app: Mediator, *, form: str, as_json: bool) -> None:
    """Draw messages, handlers, events and topics.

    What a handler emits is read from the events that its own code names.
    """
    from cqrs.describe import describe

    found = graph_of(describe(app))
    if as_json:
        show_json({"nodes": list(found.nodes.values()), "edges": found.edges})
        return
    for line in FORMATS[form](found):
        click.echo(line)
