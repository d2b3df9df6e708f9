"""`run`: a process that relays and consumes until it is told to stop."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from cqrs.cli.exits import Failure
from cqrs.cli.locate import load, names_application

LEVELS = ("debug", "info", "warning", "error")


@click.command()
@names_application(required=True)
@click.option("--relay/--no-relay", default=True, help="Deliver and publish what is in the outbox. Default: yes.")
@click.option("--consume/--no-consume", default=True, help="Consume published events from the broker. Default: yes.")
@click.option("--reload", "reloads", is_flag=True, help="Start again when a file below --app-dir changes.")
@click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True)
def run(
    *, target: str, factory: bool, app_dir: Path, relay: bool, consume: bool, reloads: bool, log_level: str
) -> None:
    """Relay and consume until SIGTERM or SIGINT.

    Then nothing new is begun, and what is in flight has the application's `grace` seconds to finish. A second signal
    ends the process at once.
    """
    if not (relay or consume):
        raise click.UsageError("With neither --relay nor --consume there is nothing to run.")
    if reloads:
        _reload(app_dir)
        return
    from cqrs.cli.loop import run_async
    from cqrs.cli.opening import assigned
    from cqrs.cli.serving import Roles, log_to_stderr, serve

    app = assigned(load(target, factory=factory, folder=app_dir), relay=relay)
    log_to_stderr(log_level)
    roles = Roles(relay=relay, consume=consume and app.intake is not None)
    if not (roles.relay or roles.consume):
        raise Failure(f"Application '{app.name}' has no broker, so with --no-relay there is nothing to run.")
    run_async(serve(app, roles))


def _reload(folder: Path) -> None:
    """Run the same command without `--reload`, anew whenever a Python file changes."""
    try:
        import watchfiles
    except ModuleNotFoundError:
        raise click.UsageError("--reload needs watchfiles: pip install 'cqrs-toolkit[cli]'") from None
    arguments = [sys.executable, "-m", "cqrs", *(each for each in sys.argv[1:] if each != "--reload")]
    watchfiles.run_process(
        folder, target=shlex.join(arguments), target_type="command", watch_filter=watchfiles.PythonFilter()
    )
