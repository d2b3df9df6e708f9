"""`db`: the tables of the toolkit, created, upgraded, compared, or written into a project of the user's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cqrs.cli.exits import Failure
from cqrs.cli.locate import load, names_application
from cqrs.cli.output import show_json, takes_json

if TYPE_CHECKING:
    from cqrs.mediator import Mediator
    from cqrs.outbox.database import Database

DIALECTS = ("postgresql", "mysql", "mariadb", "sqlite")
CALLED = re.compile(r"migrations\.upgrade\(\s*op\s*,[^)]*\bto\s*=\s*(\d+)")


def takes_database(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `app` and `place`: the application, or the URL with its prefix and schema."""

    @wraps(command)
    def placed(
        *,
        target: str | None,
        factory: bool,
        app_dir: Path,
        url: str | None,
        prefix: str,
        schema: str | None,
        **rest: Any,
    ) -> Any:
        if target is not None:
            _refuse_given("prefix", "schema")
        app = None if target is None else load(target, factory=factory, folder=app_dir)
        return command(app=app, place={"url": url, "prefix": prefix, "schema": schema}, **rest)

    options = (
        click.option(
            "--url", envvar="CQRS_DATABASE_URL", show_envvar=True, help="The database, without an application."
        ),
        click.option(
            "--prefix", default="cqrs_", show_default=True, help="With --url: what the tables' names begin with."
        ),
        click.option("--schema", help="With --url: the schema that the tables are in."),
    )
    for option in reversed(options):
        placed = option(placed)
    return names_application(required=False)(placed)


def _refuse_given(*names: str) -> None:
    """Refuse options that an application has values of its own for."""
    source = click.get_current_context().get_parameter_source
    given = [f"--{name}" for name in names if source(name) is not click.core.ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"{' and '.join(given)} go with --url alone: MODULE:APP has its own.")


@click.group()
def db() -> None:
    """Create, upgrade and compare the toolkit's tables.

    The database is that of MODULE:APP, or --url.
    """


@db.command()
@takes_database
@takes_json
def upgrade(app: Mediator | None, *, place: dict[str, Any], as_json: bool) -> None:
    """Create the tables, or bring them to the number that this version needs."""
    _want_one(app, place)
    from cqrs.migrations import VERSION, migrate, recorded_number

    async def act(database: Database) -> int:
        where = (database.prefix, database.schema)
        async with database.writers.begin() as connection, database.dialect.migrating(connection):
            before = await connection.run_sync(recorded_number, *where)
            if before < VERSION:
                await connection.run_sync(lambda c: migrate(c, prefix=where[0], schema=where[1]))
        return before

    before = _on(app, place, act)
    if before > VERSION:
        raise Failure(f"The tables have number {before}, and this version knows {VERSION}: upgrade cqrs-toolkit.")
    if as_json:
        show_json({"before": before, "number": VERSION})
    elif before == VERSION:
        click.echo(f"The tables have number {VERSION} already.")
    else:
        click.echo(f"The tables have number {VERSION} now; before, {before or 'there were none'}.")


@db.command()
@takes_database
@takes_json
def check(app: Mediator | None, *, place: dict[str, Any], as_json: bool) -> None:
    """Compare the number and the live tables with what this version needs."""
    _want_one(app, place)
    from cqrs.migrations import VERSION, differences, recorded_number

    async def look(database: Database) -> tuple[int, list[str]]:
        where = (database.prefix, database.schema)
        async with database.readers.connect() as connection:
            number = await connection.run_sync(recorded_number, *where)
            found = await connection.run_sync(lambda c: differences(c, prefix=where[0], schema=where[1]))
        return number, found

    number, found = _on(app, place, look)
    right = number == VERSION and not found
    if as_json:
        show_json({"number": number, "wanted": VERSION, "differences": found})
    elif right:
        click.echo(f"The tables have number {number} and are as they should be.")
    else:
        click.echo(
            f"The tables have {f'number {number}' if number else 'no number'}, and this version needs {VERSION}."
        )
        for each in found:
            click.echo(f"- {each}")
    if not right:
        raise click.exceptions.Exit(Failure.exit_code)


@db.command()
@takes_database
@click.option("--dialect", type=click.Choice(DIALECTS), help="The kind of database, without an application or a URL.")
def sql(app: Mediator | None, *, place: dict[str, Any], dialect: str | None) -> None:
    """Print the statements that create the tables. Nothing is connected to."""
    from cqrs import migrations

    if dialect is None:
        _want_one(app, place)
    wishes = _wishes(app)
    prefix, schema = (place["prefix"], place["schema"]) if wishes is None else (wishes.prefix, wishes.schema)
    name = dialect or _dialect(place["url"] if wishes is None else wishes.database)
    click.echo(migrations.sql(name, prefix=prefix, schema=schema), nl=False)


@db.command()
@takes_database
@click.option("--config", type=click.Path(path_type=Path), default="alembic.ini", show_default=True)
@click.option("-m", "--message", default="messaging", show_default=True, help="The revision's message.")
def revision(app: Mediator | None, *, place: dict[str, Any], config: Path, message: str) -> None:
    """Write one revision into your own Alembic project, which makes or upgrades the tables.

    The database is not asked: what the project's revisions bring the tables to is read from them.
    """
    from cqrs.migrations import VERSION

    if not config.is_file():
        raise Failure(f"There is no {config}: run this in your Alembic project, or begin one with `alembic init`.")
    wishes = _wishes(app)
    prefix, schema = (place["prefix"], place["schema"]) if wishes is None else (wishes.prefix, wishes.schema)
    since = _reached(config)
    if since >= VERSION:
        click.echo(f"The revisions of {config} bring the tables to number {VERSION} already.")
        return
    click.echo(f"Wrote {_write(config, message, since, prefix, schema)}. Run `alembic upgrade head`.")


def _scripts(config: Path) -> Any:
    from argparse import Namespace

    from alembic.config import Config
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(Config(str(config), cmd_opts=Namespace(quiet=True)))


def _reached(config: Path) -> int:
    """Return the number that the revisions of a project bring the tables to."""
    texts = [Path(each.path).read_text(encoding="utf-8") for each in _scripts(config).walk_revisions()]
    return max((int(number) for text in texts for number in CALLED.findall(text)), default=0)


def _write(config: Path, message: str, since: int, prefix: str, schema: str | None) -> str:
    from alembic.util import CommandError, rev_id

    from cqrs.migrations import VERSION

    options = (f", prefix={prefix!r}" if prefix != "cqrs_" else "") + (f", schema={schema!r}" if schema else "")
    beyond = f", since={since}" if since < VERSION - 1 else ""
    try:
        written = _scripts(config).generate_revision(
            rev_id(),
            message,
            refresh=True,
            imports="import cqrs",
            upgrades=f"cqrs.migrations.upgrade(op, to={VERSION}{beyond}{options})",
            downgrades=f"cqrs.migrations.downgrade(op, to={since}{options})",
        )
    except CommandError as error:
        raise Failure(f"Alembic did not write the revision: {error}") from None
    return str(written.path)


def _on(app: Mediator | None, place: dict[str, Any], act: Callable[[Any], Any]) -> Any:
    from cqrs.cli.loop import run_async
    from cqrs.cli.opening import database_of

    async def opened() -> Any:
        async with database_of(app, **place) as database:
            return await act(database)

    return run_async(opened())


def _want_one(app: Mediator | None, place: dict[str, Any]) -> None:
    if app is None and place["url"] is None:
        raise click.UsageError("Say which database: MODULE:APP, or --url.")


def _wishes(app: Mediator | None) -> Any:
    from cqrs.describe import blueprint_of

    return None if app is None else blueprint_of(app).wishes


def _dialect(database: Any) -> str:
    from sqlalchemy import make_url

    bound = getattr(database, "kw", {}).get("bind", database)
    return make_url(getattr(bound, "url", bound)).get_backend_name()
