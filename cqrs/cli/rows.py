"""`outbox` and `dead`: what has not ended, and what a person does about what was given up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from cqrs.cli.exits import Failure
from cqrs.cli.locate import takes_application
from cqrs.cli.output import count, show_facts, show_json, show_table, takes_json

if TYPE_CHECKING:
    from datetime import datetime

    from cqrs.mediator import Mediator
    from cqrs.outbox import Outbox
    from cqrs.outbox.survey import Saved

FILTERS = ("event_id", "destination", "topic", "key", "type")
STATES = ("ready", "waiting", "dead", "scheduled")

takes_limit: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many rows of each table."
)


def takes_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `which`: the rows' values that were named on the command line."""

    @wraps(command)
    def filtered(**options: Any) -> Any:
        named = {name: value for name in FILTERS if (value := options.pop(name)) is not None}
        return command(which=named, **options)

    for name in reversed(FILTERS):
        filtered = click.option(
            f"--{name.replace('_', '-')}", name, help=f"Only rows of this {name.replace('_', ' ')}."
        )(filtered)
    return filtered


@click.group()
def outbox() -> None:
    """Look at what was saved and has not ended."""


@outbox.command()
@takes_application
@takes_json
def stats(app: Mediator, *, as_json: bool) -> None:
    """Count rows by destination: the broker, or a handler."""
    found = _with(app, lambda outbox: outbox.backlog())
    if as_json:
        show_json(found)
    elif not found:
        click.echo("Nothing is in the outbox.")
    else:
        titles = ("DESTINATION", "READY", "WAITING", "DEAD", "SCHEDULED", "OLDEST")
        show_table(titles, [(b.destination, b.ready, b.waiting, b.dead, b.scheduled, _time(b.oldest)) for b in found])


@outbox.command("list")
@takes_application
@click.option("--state", type=click.Choice(STATES), help="Only rows in this state.")
@takes_filters
@takes_limit
@takes_json
def list_rows(app: Mediator, *, state: Any, which: dict[str, Any], limit: int, as_json: bool) -> None:
    """List rows, parked ones first, the oldest first."""
    _show(_with(app, lambda outbox: outbox.find(state=state, limit=limit, **which)), as_json=as_json)


@outbox.command("show")
@takes_application
@click.argument("event_id")
@takes_json
def show_event(app: Mediator, *, event_id: str, as_json: bool) -> None:
    """Show an event, with headers and body, for every destination where it has not ended."""
    found = _with(app, lambda outbox: outbox.find(event_id=event_id))
    if not found:
        raise Failure(
            f"No event '{event_id}' is in the outbox: it was delivered, discarded, or never saved. "
            "`cqrs outbox list` has the ids, under EVENT."
        )
    _show_whole(found, as_json=as_json)


@click.group()
def dead() -> None:
    """Look at what was given up, deliver it again, or discard it."""


@dead.command("list")
@takes_application
@takes_filters
@takes_limit
@takes_json
def list_dead(app: Mediator, *, which: dict[str, Any], limit: int, as_json: bool) -> None:
    """List dead letters, the oldest first."""
    _show(_with(app, lambda outbox: outbox.find(state="dead", limit=limit, **which)), as_json=as_json)


@dead.command("show")
@takes_application
@click.argument("seq", type=int)
@takes_json
def show_dead(app: Mediator, *, seq: int, as_json: bool) -> None:
    """Show a dead letter with its headers, its body and its error. SEQ is its number in `list`."""
    found = _with(app, lambda outbox: outbox.find(state="dead", seq=seq))
    if not found:
        raise Failure(f"No dead letter has the number {seq}. `cqrs dead list` shows what there is.")
    _show_whole(found, as_json=as_json)


def takes_choice(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `choices`: the dead letters that were named, as filters, all of which count."""

    @wraps(command)
    def chosen(*, seqs: tuple[int, ...], every: bool, which: dict[str, Any], **options: Any) -> Any:
        if sum(map(bool, (seqs, every, which))) != 1:
            raise click.UsageError("Say which dead letters: their numbers, or filters, or --all.")
        return command(choices=[{"seq": seq} for seq in seqs] or [which], **options)

    every = click.option("--all", "every", is_flag=True, help="All dead letters.")
    return click.argument("seqs", metavar="[SEQ]...", nargs=-1, type=int)(every(takes_filters(chosen)))


@dead.command()
@takes_application
@takes_choice
@takes_json
def replay(app: Mediator, *, choices: list[dict[str, Any]], as_json: bool) -> None:
    """Deliver dead letters again, with all attempts before them."""
    _tell("replayed", _act(app, choices, lambda outbox, which: outbox.replay(**which)), as_json=as_json)


@dead.command()
@takes_application
@takes_choice
@click.option("--yes", is_flag=True, help="Do not ask.")
@takes_json
def discard(app: Mediator, *, choices: list[dict[str, Any]], yes: bool, as_json: bool) -> None:
    """Delete dead letters for good; what waited behind them goes on."""
    if not yes:
        if not somebody_is_there():
            raise click.UsageError("What is discarded is gone. Nobody is here to be asked, so pass --yes.")
        found = _act(app, choices, _number)
        click.confirm(f"Discard {count(found, 'dead letter')} for good?", abort=True, err=True)
    _tell("discarded", _act(app, choices, lambda outbox, which: outbox.discard(**which)), as_json=as_json)


def somebody_is_there() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty()


async def _number(outbox: Outbox, which: dict[str, Any]) -> int:
    return len(await outbox.find(state="dead", limit=2**31 - 1, **which))


def _tell(done: str, number: int, *, as_json: bool) -> None:
    if as_json:
        show_json({done: number})
    else:
        click.echo(f"{count(number, 'dead letter')} {done}.")
    if not number:
        raise click.exceptions.Exit(Failure.exit_code)


def _act(app: Mediator, choices: list[dict[str, Any]], act: Callable[[Outbox, dict[str, Any]], Any]) -> int:
    async def each(outbox: Outbox) -> int:
        return sum([await act(outbox, which) for which in choices])

    return int(_with(app, each))


def _with(app: Mediator, look: Callable[[Outbox], Any]) -> Any:
    from cqrs.cli.loop import run_async
    from cqrs.cli.opening import outbox_of

    async def opened() -> Any:
        async with outbox_of(app) as outbox:
            return await look(outbox)

    return run_async(opened())


def _show(rows: list[Saved], *, as_json: bool) -> None:
    if as_json:
        show_json(rows)
    elif not rows:
        click.echo("There is nothing.")
    else:
        titles = ("SEQ", "STATE", "EVENT", "TYPE", "KEY", "DESTINATION", "ATTEMPTS", "SAVED", "ERROR")
        show_table(titles, map(_cells, rows))


def _cells(row: Saved) -> tuple[object, ...]:
    from cqrs.outbox.verdicts import cause_of

    error = cause_of(row.error or "")
    state = (
        row.state
        if row.seq is None or row.next_attempt_at is None
        else f"{row.state} until {_time(row.next_attempt_at)}"
    )
    return row.seq, state, row.event_id, row.type, row.key, row.destination, row.attempts, _time(row.created_at), error


def _show_whole(rows: list[Saved], *, as_json: bool) -> None:
    if as_json:
        show_json(rows)
        return
    for place, row in enumerate(rows):
        if place:
            click.echo()
        show_facts(_facts(row))


def _facts(row: Saved) -> list[tuple[str, object]]:
    return [
        ("seq", row.seq),
        ("state", row.state),
        ("event", row.event_id),
        ("type", row.type),
        ("destination", row.destination),
        ("topic", row.topic),
        ("key", row.key),
        ("attempts", row.attempts),
        ("next attempt", row.next_attempt_at and _time(row.next_attempt_at)),
        ("saved", _time(row.created_at)),
        ("headers", "\n".join(f"{name}: {value}" for name, value in row.headers.items())),
        ("body", row.payload.decode(errors="replace")),
        ("error", row.error),
    ]


def _time(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="seconds")
