"""How commands end: exit codes, and errors as sentences instead of tracebacks."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any

import click

from cqrs.errors import CqrsError, DatabaseUnreachable, SchemaError


class Exit(IntEnum):
    """What the program ends with; documented in docs/reference/cli.md."""

    DONE = 0
    FOUND = 1
    """The command ran, and what it looked at is not as it should be; or what it was asked for is not there."""
    USAGE = 2
    """The command was called in a way that it does not understand. Click's own code."""
    NO_APPLICATION = 3
    UNUSABLE = 4
    """The database or the broker cannot be used."""


class Failure(click.ClickException):
    """A command's end that is not a success: one message on standard error, and the exit code."""

    exit_code = Exit.FOUND


class NoApplication(Failure):
    """There is no application where the command was told to look for it."""

    exit_code = Exit.NO_APPLICATION


class Unusable(Failure):
    """The database or the broker cannot be used."""

    exit_code = Exit.UNUSABLE


class Program(click.Group):
    """A group of commands whose foreseen errors are told in a sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except (DatabaseUnreachable, SchemaError) as error:
            raise Unusable(str(error)) from None
        except CqrsError as error:
            raise Failure(str(error)) from None
        except ModuleNotFoundError as error:
            if "cqrs-toolkit[" not in str(error):  # else it names the extra that is missing
                raise
            raise Failure(str(error)) from None
        except Exception as error:
            if not _is_of_a_database(error):
                raise
            raise Unusable(f"The database did not do it: {_first_line(error)}") from None


def _is_of_a_database(error: BaseException) -> bool:
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    return sqlalchemy is not None and isinstance(error, sqlalchemy.DBAPIError)


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
