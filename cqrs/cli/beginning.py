"""`init`: a starter project that runs and passes its own tests."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path

import click

from cqrs.cli.exits import Failure
from cqrs.cli.output import show_json, takes_json

KINDS = ("worker", "fastapi")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option("--kind", type=click.Choice(KINDS), default="worker", show_default=True, help="What the project runs as.")
@click.option("--name", help="The name of its package. Default: the folder's.")
@takes_json
def init(*, folder: Path, kind: str, name: str | None, as_json: bool) -> None:
    """Write a starter project into an empty folder, and print the commands that install, test and run it."""
    from cqrs.cli.starter import commands, files

    package = _package(name or folder.resolve().name, given=name is not None)
    _want_empty(folder)
    written = files(package, kind)
    for path, text in written.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    if as_json:
        show_json({"files": list(written), "commands": commands(package, kind)})
        return
    click.echo(f"Wrote {', '.join(written)}.\n\nNext:")
    if folder.resolve() != Path.cwd():
        click.echo(f"  cd {folder}")
    for command in commands(package, kind):
        click.echo(f"  {command}")


def _package(wanted: str, *, given: bool) -> str:
    name = wanted if given else wanted.lower().replace("-", "_").replace(" ", "_")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise click.UsageError(f"'{wanted}' cannot be the name of a package. Give one: --name shop.")
    if name in sys.stdlib_module_names or name in ("cqrs", "tests"):
        raise click.UsageError(f"A package '{name}' would hide another one. Give another name: --name shop.")
    return name


def _want_empty(folder: Path) -> None:
    """Refuse a folder that has files, other than hidden ones such as .git and .venv."""
    found = sorted(each.name for each in folder.iterdir() if not each.name.startswith(".")) if folder.exists() else []
    if found:
        raise Failure(f"{folder.resolve()} is not empty: it has {', '.join(found[:5])}. Name an empty or a new folder.")
