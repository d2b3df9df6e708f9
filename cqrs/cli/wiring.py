"""`list`, `check`, `explain`: how an application is wired. They need neither a database nor a broker."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from cqrs.cli.exits import Exit, Failure
from cqrs.cli.locate import load, names_application, takes_application
from cqrs.cli.output import count, near, show_facts, show_json, show_table, takes_json
from cqrs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cqrs.description import Application, Handler, Message, Policy
    from cqrs.mediator import Mediator


@click.command("list")
@takes_application
@takes_json
def list_messages(app: Mediator, *, as_json: bool) -> None:
    """List the messages of an application and who handles them."""
    from cqrs.describe import describe

    described = describe(app)
    if as_json:
        show_json(described)
        return
    show_table(("KIND", "MESSAGE", "HANDLER", "RUNS", "ROUTE", "WHERE"), _rows(described))


def _rows(described: Application) -> Iterator[tuple[str, ...]]:
    for message in described.messages:
        route = "" if message.route is None else f"{message.route.topic or 'its own topic'} by {message.route.carrier}"
        for handler in message.handlers:
            yield message.kind, message.name, handler.name, _runs(message, handler), route, near(handler.where)
        if not message.handlers:
            yield message.kind, message.name, "", "", route, near(message.where)


def _runs(message: Message, handler: Handler) -> str:
    if message.kind != "event":
        return "at once"
    return "in the background" if handler.background else "in the transaction"


@click.command()
@names_application(required=True)
@takes_json
def check(*, target: str, factory: bool, app_dir: Path, as_json: bool) -> None:
    """Say everything that is wrong with the wiring; for CI."""
    from cqrs.describe import describe

    try:
        described = describe(load(target, factory=factory, folder=app_dir))
    except ConfigurationError as error:
        if not as_json:
            raise
        show_json({"application": None, "problems": error.problems})
        raise click.exceptions.Exit(Exit.FOUND) from None
    if as_json:
        show_json({"application": described.name, "problems": []})
        return
    handlers = sum(len(message.handlers) for message in described.messages)
    click.echo(
        f"{described.name}: no problem in {count(len(described.messages), 'message')}, {count(handlers, 'handler')}."
    )


@click.command()
@takes_application
@click.argument("message")
@takes_json
def explain(app: Mediator, *, message: str, as_json: bool) -> None:
    """Say what happens with a message, and why.

    MESSAGE is a class's name, its dotted path, or an event's name on the wire.
    """
    from cqrs.describe import describe

    found = _find(describe(app), message)
    if as_json:
        show_json(found)
        return
    show_facts(_facts(found))
    for handler in found.handlers:
        click.echo()
        show_facts(_handler_facts(handler))


def _find(described: Application, name: str) -> Message:
    found = [each for each in described.messages if name in _names(each)]
    if len(found) > 1:
        paths = " and ".join(each.type for each in found)
        raise click.UsageError(f"'{name}' may be {paths}. Write the whole path.")
    if not found:
        close = get_close_matches(name, [each.name for each in described.messages], n=1)
        hint = f" Did you mean {close[0]}?" if close else " `cqrs list` shows what there is."
        raise Failure(f"Application '{described.name}' has no message '{name}'.{hint}")
    return found[0]


def _names(message: Message) -> tuple[str | None, ...]:
    return message.name, message.type, message.route.name if message.route else None


def _facts(message: Message) -> list[tuple[str, Any]]:
    route = message.route
    return [
        (message.kind, f"{message.type} ({near(message.where)})"),
        ("reply", message.reply),
        ("published as", route and route.name),
        ("topic", route and (route.topic or "each event's own")),
        ("key", route and (route.key or "none: events of this type have no order")),
        ("carried by", route and route.carrier),
        ("consumed", "from the broker, by `cqrs run` or app.consuming()" if message.consumed else None),
        ("handlers", None if message.handlers else "none here"),
    ]


def _handler_facts(handler: Handler) -> list[tuple[str, Any]]:
    needs = [f"{need.parameter}: {need.type} from {need.provider}" for need in handler.needs]
    middlewares = [f"{each.name} ({near(each.where)})" for each in handler.middlewares]
    return [
        ("handler", f"{handler.name} ({near(handler.where)})"),
        ("because", handler.why),
        ("transaction", handler.transaction),
        ("middlewares", "\n".join(middlewares)),
        ("is given", "\n".join(needs)),
        ("emits", ", ".join(handler.emits)),
        ("retries", "\n".join(map(_policy, handler.retry))),
        ("when dead", _when_dead(handler)),
        ("timeout", None if handler.timeout is None else f"{handler.timeout:g} s"),
    ]


def _policy(policy: Policy) -> str:
    error = "any error" if policy.error == "BaseException" else policy.error
    if policy.attempts == 1:
        return f"{error}: none, it is dead at once"
    often = "for ever" if policy.attempts is None else f"{policy.attempts} attempts"
    return f"{error}: {often}, after {policy.first:g} s, then {policy.factor:g} times longer up to {policy.longest:g} s"


def _when_dead(handler: Handler) -> str | None:
    if handler.on_dead is None:
        return None
    return "its key waits until it is replayed or discarded" if handler.on_dead == "block" else "its key goes on"
