"""Finds the application that a command is for, as uvicorn does: `module:attribute`, from the current folder."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cqrs.cli.exits import NoApplication
from cqrs.errors import ConfigurationError

if TYPE_CHECKING:
    from types import TracebackType

    from cqrs.mediator import Mediator


def takes_application(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `app`, found by its first argument `MODULE:APP`."""

    @wraps(command)
    def located(*, target: str, factory: bool, app_dir: Path, **options: Any) -> Any:
        return command(app=load(target, factory=factory, folder=app_dir), **options)

    return names_application(required=True)(located)


def names_application(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the argument and options that `load` wants: `target`, `factory` and `app_dir`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        folder = click.Path(exists=True, file_okay=False, path_type=Path)
        command = click.option(
            "--app-dir", type=folder, default=".", help="Look for the module here. Default: the current folder."
        )(command)
        command = click.option("--factory", is_flag=True, help="APP is a function that returns the application.")(
            command
        )
        return click.argument("target", metavar="MODULE:APP", required=required)(command)

    return decorate


def load(target: str, *, factory: bool = False, folder: Path = Path()) -> Mediator:
    """Return the application that `module:attribute` names.

    Raises `NoApplication`, which says in a sentence what is not there, and the application's `ConfigurationError`.
    """
    module_name, colon, attributes = target.partition(":")
    if not (module_name and colon and attributes):
        raise NoApplication(f"'{target}' names no application. Write MODULE:APP, for example shop.main:app.")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise NoApplication(f"'{module_name}' is the path of a file. Write {dotted}:{attributes}.")
    found = _import(module_name, folder.resolve())
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise NoApplication(f"'{module_name}' has no '{attributes}'.{_known(found)}")
        found = getattr(found, attribute)
    return _called(found, target) if factory else _checked(found, target)


def _import(name: str, folder: Path) -> Any:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            message = f"There is no module '{name}': looked in {folder} and in what is installed."
            raise NoApplication(message) from None
        raise _broken(name, error) from error
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from error


def _broken(name: str, error: BaseException) -> NoApplication:
    return NoApplication(f"Importing '{name}' failed: {_told(error)}.")


def _told(error: BaseException) -> str:
    """Return an error in one line, with the place where the user's code raised it."""
    lines = str(error.msg if isinstance(error, SyntaxError) else error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
    place = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else _place(error.__traceback__)
    return f"{text} ({place})" if place else text


def _place(traceback: TracebackType | None) -> str:
    place = ""
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith("<frozen") and file not in (__file__, importlib.__file__):
            place = f"{file}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def _called(function: Any, target: str) -> Mediator:
    if not callable(function):
        raise NoApplication(f"'{target}' is a {type(function).__name__} and cannot be called. Leave out --factory.")
    needed = _needed(function)
    if needed:
        raise NoApplication(f"'{target}' wants {needed}. A factory is called without arguments.")
    try:
        made = function()
    except ConfigurationError:
        raise
    except Exception as error:
        raise NoApplication(f"Calling '{target}' failed: {_told(error)}.") from error
    return _checked(made, target)


def _needed(function: Callable[..., Any]) -> str:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return ""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return ", ".join(
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind not in variadic
    )


def _checked(found: Any, target: str) -> Mediator:
    from cqrs.mediator import Mediator

    if isinstance(found, Mediator):
        return found
    kind = "a function" if inspect.isroutine(found) else f"a {type(found).__module__}.{type(found).__qualname__}"
    hint = " If it returns one, pass --factory." if callable(found) else ""
    raise NoApplication(f"'{target}' is {kind}, and no application that cqrs.bootstrap returned.{hint}")


def _known(module: Any) -> str:
    """Return a sentence that names the applications that a module has."""
    from cqrs.mediator import Mediator

    names = [name for name, value in vars(module).items() if isinstance(value, Mediator)] if vars(module) else []
    return f" It has the application {' and '.join(repr(name) for name in names)}." if names else ""
