"""What values options may have, those of `bootstrap` and those of handlers alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from cqrs.errors import Problem
from cqrs.registry import EventOptions, HandlerOptions, Kind, source_of
from cqrs.retry import Retry, policies

if TYPE_CHECKING:
    from cqrs.registry import HandlerRecord

GROUP_LIMIT = 1000
"""How many messages one transaction may deliver at most."""

MIDDLEWARE = "`async def middleware(message, context, call_next)`"
ON_DEAD = "'block' or 'skip'"
POLICIES = "a cqrs.Retry, or a mapping from exception types to them"
SECONDS = "seconds above 0"
TEXT = "a text that is not empty"


def is_text(value: Any) -> bool:
    """Whether a value is a text that says something."""
    return isinstance(value, str) and bool(value)


def is_number(value: Any, least: float, most: float = float("inf")) -> bool:
    """Whether a value is a number within bounds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and least <= value <= most


def is_on_dead(value: Any) -> bool:
    """Whether a value says what becomes of a key behind a dead letter."""
    return isinstance(value, str) and value in ("block", "skip")


def are_policies(value: Any) -> bool:
    """Whether a value has a retry policy for each type of exception that it names."""
    return isinstance(value, Mapping) and all(
        isinstance(error, type) and issubclass(error, BaseException) and isinstance(policy, Retry)
        for error, policy in value.items()
    )


def wrong_middlewares(given: Any) -> Iterator[Problem]:
    """Say what is wrong with middlewares: they are no sequence, or one cannot be called as it will be."""
    if not isinstance(given, Iterable):
        yield Problem(f"middlewares={given!r} cannot be", "Pass a list of them.")
        return
    for middleware in given:
        if not callable(middleware):
            yield Problem(f"middlewares={middleware!r} cannot be called", f"Pass {MIDDLEWARE}.")
        elif not _takes_what_it_is_given(middleware):
            name = getattr(middleware, "__qualname__", repr(middleware))
            what = f"The middleware {name} does not take what it is given"
            yield Problem(what, f"Write {MIDDLEWARE}.", source_of(middleware))


def wrong_options(record: HandlerRecord) -> Iterator[Problem]:
    """Say what is wrong with the options of a handler: one that there is not, or a value that cannot be meant."""
    known = (EventOptions if record.kind is Kind.EVENT else HandlerOptions).__optional_keys__
    unknown = sorted(set(record.options) - known)
    if unknown:
        what = f"@cqrs.{record.kind}_handler has no option {', '.join(unknown)}"
        yield Problem(what, f"There are: {', '.join(sorted(known))}.")
    for name, (may_be, cure) in HANDLERS.items():
        value: Any = record.options.get(name)
        if name in known and value is not None and not may_be(value):
            yield Problem(f"{name}={value!r} cannot be", cure)
    yield from wrong_middlewares(record.options.get("middlewares", ()))


HANDLERS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (is_text, f"Pass {TEXT}."),
    "on_dead": (is_on_dead, f"Pass {ON_DEAD}."),
    "retry": (lambda retry: are_policies(policies(retry)), f"Pass {POLICIES}."),
    "timeout": (lambda timeout: is_number(timeout, 0.001), f"Pass {SECONDS}."),
    "group": (
        lambda group: isinstance(group, int) and is_number(group, 1, GROUP_LIMIT),
        f"Pass a number of messages from 1 to {GROUP_LIMIT}, or leave it out for a transaction a message.",
    ),
}
"""What the options of handlers may be, and the cure of what they may not."""


def _takes_what_it_is_given(middleware: Any) -> bool:
    try:
        inspect.signature(middleware).bind(None, None, call_next=None)
    except TypeError:
        return False
    except ValueError:  # what is written in C may hide its signature
        return True
    return True
