"""The program `cqrs`: all commands, put together."""

from __future__ import annotations

import click

from cqrs.cli import beginning, contract, database, doctor, graph, rows, running, wiring
from cqrs.cli.exits import Program


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cqrs-toolkit", prog_name="cqrs", message="%(prog)s %(version)s")
def cqrs() -> None:
    """Run, check and look into applications made by cqrs.bootstrap.

    MODULE:APP finds one as uvicorn does: shop.main:app is `app` of shop/main.py in the current folder.
    """


for _command in (
    running.run,
    wiring.list_messages,
    wiring.check,
    wiring.explain,
    graph.draw,
    contract.print_asyncapi,
    rows.outbox,
    rows.dead,
    database.db,
    doctor.doctor,
    beginning.init,
):
    cqrs.add_command(_command)
