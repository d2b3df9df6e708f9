"""Every error that the toolkit raises; each names the thing, the place and the way out.

CqrsError
├── ConfigurationError      everything that is wrong with the wiring, in one error
├── DatabaseUnreachable     the database cannot be connected to at the start
├── SchemaError             the database's tables are not those that this version needs
├── NotHandled              a command or query without a handler was sent
├── MisuseError             a call that the rules of the toolkit forbid
│   ├── NotOpen             the application was used outside `async with app`
│   ├── OutsideHandler      something of a running handler was asked for where none runs
│   ├── ForeignTask         another task used the transaction of a running command
│   ├── QueryViolation      a query tried to change something
│   └── TransactionMisuse   a handler ended, or spoiled, the transaction that is not its own
├── EventCycle              events caused each other without end
├── EncodingError           an event cannot be written as JSON, or its key cannot be used
├── DecodingError           a saved or received body cannot be read back
├── PublishError            a broker, or its client, did not take a saved event
├── CommitUnknown           the connection was lost during COMMIT
└── DrainTimeout            some of what was emitted has not ended
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class CqrsError(Exception):
    """The base of every error that the toolkit raises."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the wiring: what, where, and the cure."""

    what: str
    cure: str
    where: str = ""

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.what}{place}. {self.cure}"


class ConfigurationError(CqrsError):
    """Everything that is wrong with the wiring, found before anything runs. `problems` holds each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([count, *(f"- {problem}" for problem in self.problems)]))


class DatabaseUnreachable(CqrsError):
    """The database cannot be connected to when the application is opened."""

    def __init__(self, url: str, reason: BaseException) -> None:
        first = (str(reason).strip() or type(reason).__name__).splitlines()[0]
        super().__init__(
            f"{url} cannot be connected to: {first}. Check that it runs, that host, port, user and password are right, "
            "and that the database of that name exists."
        )


class SchemaError(CqrsError):
    """The database's tables are not those that this version needs; the message has the command to run."""


class NotHandled(CqrsError):
    """A command or query was sent that no handler of this application takes."""

    def __init__(self, message: type, application: str) -> None:
        self.message = message
        super().__init__(
            f"{message.__module__}.{message.__qualname__} has no handler in application '{application}'. "
            "Decorate one with @cqrs.command_handler or @cqrs.query_handler in a module that `scan` reaches, before "
            "`bootstrap` is called."
        )


class MisuseError(CqrsError):
    """A call that the rules of the toolkit forbid."""


class NotOpen(MisuseError):
    """The application was used outside `async with app`."""

    def __init__(self, application: str) -> None:
        super().__init__(
            f"Application '{application}' is not open. Use it inside `async with app:`; "
            "FastAPI opens it by `lifespan=lifespan(app)`."
        )


class OutsideHandler(MisuseError):
    """Something that belongs to a running handler was asked for where none runs."""


class ForeignTask(MisuseError):
    """Another task used the transaction of a command that still runs."""

    def __init__(self, message: object) -> None:
        super().__init__(
            f"A task that was started while {type(message).__qualname__} runs (asyncio.gather, create_task) used its "
            "transaction. A session serves one task: await the calls one after the other, or start the task "
            "after the command has ended."
        )


class QueryViolation(MisuseError):
    """A query emitted an event or sent a command; queries change nothing."""


class TransactionMisuse(MisuseError):
    """A handler ended the command's transaction, or went on after a part of it had failed."""


class EventCycle(CqrsError):
    """Events or nested commands caused each other past the limit; `chain` holds the message types, the cause first."""

    def __init__(self, chain: Iterable[type]) -> None:
        self.chain = tuple(chain)
        names = " -> ".join(message.__qualname__ for message in self.chain[-8:])
        super().__init__(
            f"{len(self.chain)} messages caused each other without end: ... -> {names}. "
            "Break the cycle, or make one of the handlers durable so that it runs in a transaction of its own."
        )


class EncodingError(CqrsError):
    """An event cannot be written as JSON, or its key cannot be used. Nothing of it was saved."""


class DecodingError(CqrsError):
    """A saved or received body cannot be read back as the event that its type names."""


class PublishError(CqrsError):
    """A broker, or its client, did not take a saved event; the message says why, and what helps."""


class CommitUnknown(CqrsError):
    """The connection was lost during COMMIT: all of the transaction was saved or nothing, and which is unknown."""


class DrainTimeout(CqrsError):
    """Some of what was emitted has not ended; `pending` holds a line for each."""

    def __init__(self, pending: Sequence[str], reason: str) -> None:
        self.pending = tuple(pending)
        super().__init__("\n".join([f"{len(self.pending)} {reason}", *self.pending]))
