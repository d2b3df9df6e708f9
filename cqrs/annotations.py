"""What annotations of types say: of unions, of generic classes, and of the messages and replies that handlers name."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin  # pyright: ignore[reportDeprecated]

from cqrs.handlers import EventHandler, RequestHandler
from cqrs.messages import Command, Query, Request

_UNIONS = (UnionType, Union)  # pyright: ignore[reportDeprecated]  # what `Optional[X]` is before Python 3.14


def bare(annotation: Any) -> Any:
    """Return an annotation without its marks: the X of `Annotated[X, ...]`."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def members(annotation: Any) -> list[Any]:
    """Return what a union is of, or the annotation alone."""
    return list(get_args(annotation)) if get_origin(annotation) in _UNIONS else [annotation]


def without_none(annotation: Any) -> Any:
    """Return the X of `X | None`."""
    some = [member for member in members(annotation) if member is not NoneType]
    return some[0] if len(some) == 1 else annotation


def class_of(annotation: Any) -> Any:
    """Return the class that messages of a generic annotation have."""
    origin = get_origin(annotation)
    return origin if isinstance(origin, type) and origin not in _UNIONS else annotation


def is_message(annotation: Any) -> bool:
    """Whether this can be a message's class."""
    is_class = isinstance(annotation, type) and annotation.__module__ not in ("builtins", "typing")
    return is_class and not issubclass(annotation, dict) and annotation not in (Request, Command, Query)


def base_argument(target: Any) -> Any:
    """Return the message of a base `RequestHandler[Message, Reply]` or `EventHandler[Message]`, if any."""
    for base in getattr(target, "__orig_bases__", ()):
        if get_origin(base) in (RequestHandler, EventHandler):
            return get_args(base)[0]
    return None


def reply_type(message: type) -> Any:
    """Return the R of a `Command[R]` or `Query[R]`; Any where none was given."""
    for base in message.__mro__:
        generic = getattr(base, "__pydantic_generic_metadata__", None) or {}
        if generic.get("origin") in (Command, Query) and generic["args"]:
            reply = generic["args"][0]
            return NoneType if reply is None else reply
    return Any


def fits(returned: Any, promised: Any) -> bool:
    """Whether a return annotation can be what was promised; in doubt, yes: a type checker knows better."""
    if returned is Any or returned == promised or any(fits(returned, m) for m in members(promised) if m != promised):
        return True
    some = members(returned)
    if len(some) > 1:
        return all(fits(member, promised) for member in some)
    ours, theirs = get_origin(returned) or returned, get_origin(promised) or promised
    if not (isinstance(ours, type) and isinstance(theirs, type)):
        return True
    same_arguments = not (get_args(returned) and get_args(promised)) or get_args(returned) == get_args(promised)
    return issubclass(ours, theirs) and same_arguments


def show(annotation: Any) -> str:
    """Return an annotation as a person would write it."""
    if annotation is NoneType:
        return "None"
    return annotation.__qualname__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
