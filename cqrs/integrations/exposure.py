"""Commands and queries as routes: their fields become parameters and bodies, and their handlers stay untouched.

Everything is decided when the router is made, and everything that is wrong is reported together.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.exceptions import FastAPIError
from starlette.responses import Response

from cqrs.errors import ConfigurationError, MisuseError, Problem
from cqrs.integrations.fields import Shape, fields_of
from cqrs.integrations.problems import INVALID, problem_responses, unfit
from cqrs.mediator import Mediator
from cqrs.registry import Kind

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from cqrs.plan import Plan
    from cqrs.signature import Handler

METHODS = {Kind.COMMAND: ("POST", "PUT", "PATCH", "DELETE"), Kind.QUERY: ("GET", "POST")}
ROUTE = re.compile(r"(?P<method>[A-Z]+) (?P<path>/\S*)")
PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
NO_CONTENT, UNREADABLE = 204, 400
EXAMPLE = 'expose(PlaceOrder, "POST /orders")'


@dataclass(frozen=True, slots=True)
class Exposed:
    """A message that is to have a route."""

    message: Any
    route: str
    status: int | None
    refused: Sequence[int]
    options: Mapping[str, Any]
    where: str

    @property
    def named(self) -> str:
        """The message as problems name it."""
        return str(getattr(self.message, "__name__", repr(self.message)))


def expose(
    message: type[Any], route: str, *, status: int | None = None, refused: Sequence[int] = (), **options: Any
) -> Exposed:
    """Say that a command or query is to be had at `route`, which is a method and a path: `"POST /orders"`.

    Fields that the path names are taken from there, the others from the body, and with GET and DELETE from the query.
    `status` is that of success: by default 200, and 204 where there is no reply. `refused` are the statuses that the
    route may answer beyond that of an invalid request, for OpenAPI. Further options are those of FastAPI's
    `add_api_route`: `tags`, `summary`, `dependencies`.
    """
    caller = sys._getframe(1)  # noqa: SLF001 - where it is said is what a problem points at
    where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    return Exposed(message, route, status, tuple(refused), options, where)


@dataclass(frozen=True, slots=True)
class _Route:
    """A route in which nothing is wrong."""

    method: str
    path: str
    handler: Handler
    fields: Mapping[str, FieldInfo]


def router(app: Mediator, *exposed: Exposed, **options: Any) -> APIRouter:
    """Return a router with a route for each exposed message; `options` are those of `fastapi.APIRouter`.

    Errors pass: `problems` is what answers them. Raises one `ConfigurationError` that lists everything that is wrong.
    """
    given: tuple[Any, ...] = (app, *exposed)
    if not isinstance(given[0], Mediator) or not all(isinstance(each, Exposed) for each in given[1:]):
        raise MisuseError('router takes the application, then routes: router(app, expose(PlaceOrder, "POST /orders")).')
    routes = APIRouter(**options)
    found: list[Problem] = []
    for each in exposed:
        route = _read(app, each, found)
        if route is not None:
            _add(routes, app, each, route, found)
    _check_shared(exposed, found)
    if found:
        raise ConfigurationError(found)
    return routes


def _add(routes: APIRouter, app: Mediator, each: Exposed, route: _Route, found: list[Problem]) -> None:
    with_body = route.method not in ("GET", "DELETE")
    shape = Shape(each.message, route.fields, PARAMETER.findall(route.path), with_body=with_body)
    options = _options(each, route.handler, shape)
    try:
        routes.add_api_route(route.path, _endpoint(app, shape), methods=[route.method], **options)
    except (AssertionError, FastAPIError, TypeError, ValueError) as error:
        what = f"FastAPI cannot make a route of {each.named}: {str(error).strip()}"
        found.append(Problem(what.rstrip("."), "Write that route by hand, and send the message in it.", each.where))


def _endpoint(app: Mediator, shape: Shape) -> Callable[..., Any]:
    async def endpoint(**values: Any) -> Any:
        return await app.send(shape.message_of(values))

    endpoint.__signature__ = inspect.Signature(shape.parameters)  # type: ignore[attr-defined]  # what FastAPI reads
    return endpoint


def _options(each: Exposed, handler: Handler, shape: Shape) -> dict[str, Any]:
    nothing = handler.reply in (None, NoneType)
    status = each.status or (NO_CONTENT if nothing else 200)
    statuses = [*([UNREADABLE] if shape.has_body else []), *([INVALID] if shape.has_input else []), *each.refused]
    responses = problem_responses(*statuses) | each.options.get("responses", {})
    defaults = {
        "name": each.named,
        "summary": re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", each.named).capitalize(),
        "description": inspect.cleandoc(vars(each.message).get("__doc__") or ""),
        "response_model": None if status == NO_CONTENT or handler.reply is Any else handler.reply,
        "status_code": status,
    }
    if status == NO_CONTENT:
        defaults["response_class"] = Response  # which has no content type either
    return defaults | {**each.options, "responses": responses}


# What can be wrong


def _read(app: Mediator, each: Exposed, found: list[Problem]) -> _Route | None:
    """Return the route, or None with what is wrong added to `found`."""
    known = len(found)
    method, path = _read_route(each, found)
    plan = _read_plan(app, each, found)
    _check_status(each, found)
    if plan is None:
        return None
    if method and method not in METHODS[plan.kind]:
        cure = f"Use {' or '.join(METHODS[plan.kind])}."
        found.append(Problem(f"{each.named} is a {plan.kind}, which {method} is not for", cure, each.where))
    fields = fields_of(each.message)
    if fields is None:
        cure = "Make it a pydantic model or a dataclass."
        found.append(Problem(f"{each.named} has no fields that a request could fill", cure, each.where))
        return None
    _check_path(each, path, fields, found)
    return _Route(method, path, plan.handlers[0], fields) if len(found) == known else None


def _read_route(each: Exposed, found: list[Problem]) -> tuple[str, str]:
    route = ROUTE.fullmatch(each.route)
    known = sorted({method for methods in METHODS.values() for method in methods})
    if route is None or route["method"] not in known:
        cure = f"Write one of {', '.join(known)} and a path: {EXAMPLE}."
        found.append(Problem(f"{each.named} has the route {each.route!r}, which is none", cure, each.where))
        return "", ""
    return route["method"], route["path"]


def _read_plan(app: Mediator, each: Exposed, found: list[Problem]) -> Plan | None:
    plan = app.plans.get(each.message) if isinstance(each.message, type) else None
    if _is_event(each.message) or (plan is not None and plan.kind is Kind.EVENT):
        cure = "Expose the command whose handler emits it."
        found.append(Problem(f"{each.named} is an event, which tells what has happened already", cure, each.where))
        return None
    if not isinstance(each.message, type):
        cure = f"Name the class of a command or query: {EXAMPLE}."
        found.append(Problem(f"{each.named} is no message", cure, each.where))
        return None
    if plan is None:
        cure = "Decorate a handler of it with @cqrs.command_handler or @cqrs.query_handler where bootstrap finds it."
        found.append(Problem(f"{each.named} has no handler in application '{app.name}'", cure, each.where))
        return None
    return plan


def _is_event(message: Any) -> bool:
    from cqrs.events import Event

    return isinstance(message, type) and issubclass(message, Event)


def _check_status(each: Exposed, found: list[Problem]) -> None:
    for status in unfit(each.refused):
        cure = "Give numbers from 400 to 599: refused=[409]."
        found.append(Problem(f"{each.named} is refused with {status!r}, which is no error's status", cure, each.where))
    if each.status is not None and not 200 <= each.status <= 299:  # noqa: PLR2004 - what HTTP calls success
        cure = "Give one from 200 to 299: status=201."
        found.append(Problem(f"{each.named} has status={each.status}, which is no success", cure, each.where))


def _check_path(each: Exposed, path: str, fields: Iterable[str], found: list[Problem]) -> None:
    known = list(fields)
    for name in PARAMETER.findall(path):
        if name not in known:
            cure = f"Its fields are: {', '.join(known)}." if known else "It has no fields: leave it out of the path."
            what = f"{each.named} has no field '{name}', which its path {path} names"
            found.append(Problem(what, cure, each.where))


def _check_shared(exposed: Sequence[Exposed], found: list[Problem]) -> None:
    taken: dict[str, Exposed] = {}
    for each in exposed:
        other = taken.setdefault(PARAMETER.sub("{}", each.route), each)
        if other is not each and ROUTE.fullmatch(each.route):
            what = f"{each.named} and {other.named} have the same route, {each.route}"
            cure = f"Give one of them another path; the other one is at {other.where}."
            found.append(Problem(what, cure, each.where))
