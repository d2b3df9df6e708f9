"""`doctor`: versions, clashes, and whether the database and the broker answer."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cqrs.cli.exits import Exit
from cqrs.cli.locate import load, names_application
from cqrs.cli.output import show_json, show_table, takes_json

if TYPE_CHECKING:
    from cqrs.mediator import Mediator

OURS = "cqrs-toolkit"
LIBRARIES = (
    "aiosqlite",
    "alembic",
    "click",
    "dependency-injector",
    "pydantic",
    "rich",
    "sqlalchemy",
    "aiokafka",
    "aiormq",
    "asyncmy",
    "asyncpg",
    "fastapi",
    "faststream",
    "psycopg",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: "ok", "unused" or "failed", and why."""

    what: str
    state: str
    detail: str


@click.command()
@names_application(required=False)
@click.option("--timeout", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Seconds a check has.")
@takes_json
def doctor(*, target: str | None, factory: bool, app_dir: Path, timeout: float, as_json: bool) -> None:
    """Look at what is installed and, with MODULE:APP, whether its database and its broker can be used."""
    app = None if target is None else load(target, factory=factory, folder=app_dir)
    findings = [*_python(), *_clashes(), *([] if app is None else _servers(app, timeout))]
    versions = _versions()
    if as_json:
        show_json({"versions": versions, "findings": findings})
    else:
        show_table(("LIBRARY", "VERSION"), versions.items())
        click.echo()
        show_table(("CHECK", "STATE", "DETAIL"), [(f.what, f.state, f.detail) for f in findings])
    if any(finding.state == "failed" for finding in findings):
        raise click.exceptions.Exit(Exit.FOUND)


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in (OURS, *LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _python() -> Iterator[Finding]:
    import cqrs

    yield Finding("package", "ok", f"imported from {Path(cqrs.__file__).parent}")


def _clashes() -> Iterator[Finding]:
    """Find other distributions that install a package `cqrs`: the one that was installed last is imported."""
    others = [name for name in owners() if name != OURS]
    for name in others:
        detail = (
            f"{name} also installs a package 'cqrs': pip uninstall {name}, then pip install --force-reinstall {OURS}"
        )
        yield Finding("clash", "failed", detail)
    if not others:
        yield Finding("clash", "ok", "no other distribution installs a package 'cqrs'")


def owners() -> list[str]:
    """Return the distributions that have files in a package `cqrs`."""
    from importlib import metadata

    return sorted(set(metadata.packages_distributions().get("cqrs", [])))


def _servers(app: Mediator, timeout: float) -> Iterator[Finding]:
    from cqrs.cli.loop import run_async
    from cqrs.health import examine

    if app.storage is None:
        yield Finding("database", "unused", "the application has none")
        return
    with _without_logs():
        found: Any = run_async(examine(app, timeout=timeout))
        made_at_start = found.checks["database"].state == "ok" and run_async(_is_made_at_start(app))
    for name, check in found.checks.items():
        if name == "schema" and made_at_start:
            yield Finding(name, "unused", "there are no tables yet: the start makes them")
        elif name != "lag" or found.checks["schema"].state == "ok":
            yield Finding(name, check.state.value, check.reason)


async def _is_made_at_start(app: Mediator) -> bool:
    """Whether the tables are not there yet, and the application makes them when it is opened."""
    from cqrs.cli.opening import database_of
    from cqrs.describe import blueprint_of
    from cqrs.migrations import VERSION, recorded_number

    async with database_of(app) as database, database.readers.connect() as connection:
        number = await connection.run_sync(recorded_number, database.prefix, database.schema)
        embedded = connection.dialect.name == "sqlite" and number == 0
    return embedded or (blueprint_of(app).wishes.migrate and number < VERSION)


@contextmanager
def _without_logs() -> Generator[None]:
    """Say things once: what goes wrong is a finding."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
