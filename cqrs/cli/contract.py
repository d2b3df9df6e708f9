"""`asyncapi`: the document that tells others what an application publishes and consumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cqrs.cli.locate import takes_application
from cqrs.cli.output import show_json, takes_json

if TYPE_CHECKING:
    from cqrs.mediator import Mediator


@click.command("asyncapi")
@takes_application
@click.option("--app-version", default="1.0.0", show_default=True, help="The version that the document names.")
@takes_json
def print_asyncapi(app: Mediator, *, app_version: str, as_json: bool) -> None:
    """Print the AsyncAPI 3.0 document: topics, events, payloads and headers. It is JSON with and without --json."""
    from cqrs.asyncapi import asyncapi

    del as_json
    show_json(asyncapi(app, version=app_version))
