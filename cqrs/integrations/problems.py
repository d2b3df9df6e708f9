"""Errors as RFC 9457 problem details: what a client did wrong, what the domain refused, and no word of what broke.

The only module that writes `application/problem+json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cqrs.errors import ConfigurationError, Problem

MEDIA_TYPE = "application/problem+json"
INVALID = 422
UNHANDLED = "Something went wrong here, and not with the request."
BODILESS = (204, 205, 304)

_ERROR = {
    "type": "object",
    "required": ["loc", "msg", "type"],
    "properties": {
        "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
        "msg": {"type": "string"},
        "type": {"type": "string"},
    },
}
SCHEMA: dict[str, Any] = {
    "title": "ProblemDetails",
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "default": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": _ERROR},
    },
}
"""What OpenAPI says of a problem; `errors` comes with invalid requests only."""


def _as_written(schema: dict[str, Any]) -> None:
    schema.clear()
    schema.update(SCHEMA)


class ProblemDetails(BaseModel):
    """The name of `SCHEMA` among OpenAPI's components, so that routes refer to it and none repeats it."""

    model_config = ConfigDict(json_schema_extra=_as_written)


class _Content(dict[str, Any]):
    """Takes the model's schema under our media type: FastAPI asks for it under that of the route's replies."""

    def setdefault(self, _media_type: str, default: Any = None) -> Any:
        return super().setdefault(MEDIA_TYPE, default)


ExceptionHandler = Callable[[Request, Any], Coroutine[Any, Any, Response]]


def problems(refused: Mapping[type[Exception], int] | None = None) -> dict[int | type[Exception], ExceptionHandler]:
    """Return what `FastAPI(exception_handlers=...)` takes, so that every error becomes a problem document.

    `refused` says which status an exception of the domain has; subclasses have it, too. Its text is the `detail`, so it
    should be fit to be read by clients. Any other exception is answered by 500 without a word of it; the server logs
    it. Raises `ConfigurationError` for what is no exception type and no status of an error.
    """
    found: dict[int | type[Exception], ExceptionHandler] = {
        HTTPException: _http,
        RequestValidationError: _invalid,
        Exception: _unhandled,
    }
    return found | {kind: _refusing(status) for kind, status in _checked(refused or {}).items()}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what `responses=` of a FastAPI application or route takes: these statuses are answered by a problem."""
    return {
        status: {"description": _title(status), "model": ProblemDetails, "content": _Content()} for status in statuses
    }


def problem_response(
    status: int, detail: str | None = None, *, headers: Mapping[str, str] | None = None, **members: Any
) -> Response:
    """Return a problem document for an exception handler of your own; further members are extensions of it."""
    if status in BODILESS:
        return Response(status_code=status, headers=headers)
    content = {"type": "about:blank", "title": _title(status), "status": status}
    if detail is not None:
        content["detail"] = detail
    # ASCII, because a client may have sent half of a surrogate pair that stands in `loc` now.
    return Response(json.dumps(content | members), status, headers, MEDIA_TYPE)


async def _http(_request: Request, error: HTTPException) -> Response:
    """Answer what FastAPI and routes raise themselves: unknown paths, wrong methods, missing credentials."""
    plain: Any = error.detail  # FastAPI's own HTTPException takes anything that is JSON
    if isinstance(plain, str):
        return problem_response(error.status_code, plain, headers=error.headers)
    return problem_response(error.status_code, headers=error.headers, errors=plain)


async def _invalid(_request: Request, error: RequestValidationError) -> Response:
    """Say where a request is wrong, without what it held: that may be a secret, or nothing JSON can write."""
    errors = [{name: each[name] for name in ("loc", "msg", "type")} for each in error.errors()]
    return problem_response(INVALID, "; ".join(map(_sentence, errors)), errors=errors)


async def _unhandled(_request: Request, _error: Exception) -> Response:
    return problem_response(500, UNHANDLED)


def _refusing(status: int) -> ExceptionHandler:
    async def refuse(_request: Request, error: Exception) -> Response:
        return problem_response(status, str(error) or None)

    return refuse


def _checked(refused: Mapping[Any, Any]) -> Mapping[type[Exception], int]:
    wrong = [
        Problem(f"{kind!r} is no exception type", "Name a class of exceptions: problems({Refused: 409}).")
        for kind in refused
        if not (isinstance(kind, type) and issubclass(kind, Exception))
    ]
    wrong += [
        Problem(f"{status!r} is no status of an error", "Give a number from 400 to 599: problems({Refused: 409}).")
        for status in refused.values()
        if not _is_error(status)
    ]
    if wrong:
        raise ConfigurationError(wrong)
    return refused


def unfit(statuses: Iterable[Any]) -> list[Any]:
    """Return those that are no status of an error."""
    return [status for status in statuses if not _is_error(status)]


def _is_error(status: Any) -> bool:
    return isinstance(status, int) and 400 <= status <= 599  # noqa: PLR2004 - what HTTP calls errors


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _sentence(error: Mapping[str, Any]) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {error['msg']}" if place else str(error["msg"])
