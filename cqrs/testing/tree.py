"""A story as text: what caused what, one line for each message and for each handler that it had."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from cqrs.events import NotificationEvent
from cqrs.testing.story import How

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cqrs.testing.story import Attempt, Told

LINES = 60
WIDTH = 160


def tree(roots: Iterable[Told]) -> str:
    """Return the story below these messages; of a long one its beginning."""
    lines = [line for told in roots for line in _message(told, "")]
    if len(lines) > LINES:
        lines = [*lines[:LINES], f"... and {len(lines) - LINES} lines more"]
    return "\n".join(lines) or "nothing happened"


def _message(told: Told, indent: str) -> Iterator[str]:
    where = "" if told.route is None else f" to '{told.route.topic}'"
    key = "" if told.route is None or told.route.key is None else f", key {str(told.route.key)!r}"
    taken_back = "" if told.exists else " - rolled back"
    nobody = " - nobody here handles it" if told.how is not How.SENT and told.exists and not _is_handled(told) else ""
    yield f"{indent}{told.how} {shortened(_named(told.message))}{where}{key}{taken_back}{nobody}"
    inner = f"{indent}  "
    for handler in dict.fromkeys(attempt.handler for attempt in told.attempts):
        attempts = [attempt for attempt in told.attempts if attempt.handler == handler]
        yield f"{inner}{handler}{_ending(attempts)}"
        for caused in attempts[-1].caused:
            yield from _message(caused, f"{inner}  ")
    for handler in told.waiting:
        yield f"{inner}{handler} - not begun: a dead letter of its key comes first"


def _named(message: object) -> str:
    """Return a message with its fields, of a notification those that are its own."""
    if isinstance(message, NotificationEvent):
        return f"{type(message).__qualname__}({message.payload!r})"
    return repr(message)


def _is_handled(told: Told) -> bool:
    return bool(told.attempts or told.waiting)


def _ending(attempts: list[Attempt]) -> str:
    """Return how it went, where it was not well at once."""
    parts = []
    for said, alike in groupby(attempts, lambda attempt: attempt.error and error_line(attempt.error)):
        numbers = [attempt.number for attempt in alike]
        if said:
            span = f"attempt {numbers[0]}" if len(numbers) == 1 else f"attempts {numbers[0]} to {numbers[-1]}"
            parts.append(f"failed at {span}: {said}")
    last = attempts[-1]
    if last.error is None and len(attempts) > 1:
        parts.append(f"well at attempt {last.number}")
    if not last.ended:
        parts.append("still at work")
    if last.dead:
        parts.append("dead")
    return f" - {'; '.join(parts)}" if parts else ""


def error_line(error: BaseException) -> str:
    """Return an exception in one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return shortened(f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__)


def shortened(text: str) -> str:
    """Return a text that fits into a line."""
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
