"""How an application is: its database, its schema, its broker, and how far its outbox lags behind.

It only looks, is bounded in time, and shows no secret; `/readyz` and whoever else wants to know show what it found.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING, Any

from cqrs.errors import CqrsError
from cqrs.outbox.waiting import heard

if TYPE_CHECKING:
    from cqrs.consuming import Consumer
    from cqrs.mediator import Mediator
    from cqrs.outbox.storage import Storage

log = logging.getLogger(__name__)

TIMEOUT = 2.0
"""Seconds that every check has."""
CHECKS = ("database", "schema", "broker", "lag", "consuming")
UNTOLD = "see the log of the process"


class State(StrEnum):
    """What came of a check."""

    OK = "ok"
    FAILED = "failed"
    UNUSED = "unused"
    """This process has no such thing, or does not use it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: how it is, why, and how many seconds the look took."""

    state: State
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Health:
    """What was found, by name: `database`, `schema`, `broker`, `lag` and, where it does, `consuming`."""

    checks: Mapping[str, Check]
    despite: Collection[str] = ()
    """The checks that may fail, and are only told."""

    @property
    def is_ready(self) -> bool:
        """Whether nothing failed that counts."""
        return all(check.state is not State.FAILED or name in self.despite for name, check in self.checks.items())

    @property
    def figures(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        checks = {
            name: {"state": check.state.value, "reason": check.reason, "seconds": round(check.seconds, 4)}
            for name, check in self.checks.items()
        }
        return {"status": "ready" if self.is_ready else "not ready", "checks": checks}


CLOSED = Health({"application": Check(State.FAILED, "it is not open", 0.0)})
"""How an application is that serves although nobody has opened it."""

Look = Callable[[], Awaitable[tuple[State, str]]]
"""Returns a state and its reason, or raises what says why it failed."""


async def examine(
    app: Mediator, *, timeout: float = TIMEOUT, max_lag: float | None = None, despite: Collection[str] = ()
) -> Health:
    """Look at everything side by side, and return within about `timeout` seconds.

    With `max_lag` it fails when a saved event has waited for so many seconds at the front of the outbox; without it the
    lag is only told. `despite` names checks that may fail. An application that is not open is looked at, too, and has
    no connection afterwards. Raises `ValueError` for a check that there is not.
    """
    refuse_unknown(despite)
    storage: Any = app.storage  # the port says nothing of how it is
    looks = {} if storage is None else _of_storage(storage, max_lag)
    if app.consumer is not None:
        looks["consuming"] = _of_consumer(app.consumer)
    try:
        found = await asyncio.gather(*(_checked(name, look, timeout) for name, look in looks.items()))
    finally:
        if storage is not None and not app.is_open:
            await storage.disconnect()
    return Health(dict(zip(looks, found, strict=True)), tuple(despite))


def refuse_unknown(names: Collection[str]) -> None:
    """Raise `ValueError` for a check that there is not."""
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        raise ValueError(f"There is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}.")


async def _checked(name: str, look: Look, timeout: float) -> Check:
    began = monotonic()
    task = asyncio.ensure_future(look())
    # Not asyncio.timeout: what hangs may hang in its clean-up, too.
    done, _ = await asyncio.wait({task}, timeout=timeout)
    if not done:
        task.cancel()
        task.add_done_callback(heard)
        return Check(State.FAILED, f"no answer within {timeout:g} s", monotonic() - began)
    seconds = monotonic() - began
    try:
        return Check(*task.result(), seconds)
    except CqrsError as error:
        return Check(State.FAILED, str(error), seconds)
    except Exception:
        log.warning("The check of the %s failed.", name, exc_info=True)
        return Check(State.FAILED, UNTOLD, seconds)


def _of_consumer(consumer: Consumer) -> Look:
    async def consuming() -> tuple[State, str]:
        if consumer.fault is None:
            return State.OK, "at work"
        return State.FAILED, consumer.fault.partition(":")[0]  # what follows may show a statement's parameters

    return consuming


def _of_storage(storage: Storage, max_lag: float | None) -> dict[str, Look]:
    from cqrs.outbox.publisher import Pingable
    from cqrs.schema import VERSION

    async def database() -> tuple[State, str]:
        await storage.connect()
        return State.OK, "answers"

    async def schema() -> tuple[State, str]:
        await storage.check_schema()
        return State.OK, f"number {VERSION}"

    async def broker() -> tuple[State, str]:
        if storage.broker is None:
            return State.UNUSED, "events are delivered here"
        if storage.is_open and not storage.relays:
            return State.UNUSED, "others relay"
        if not isinstance(storage.broker, Pingable):
            return State.UNUSED, "its publisher has no ping"
        await storage.broker.ping()
        return State.OK, "answers"

    async def lag() -> tuple[State, str]:
        seconds = await storage.lag()
        late = max_lag is not None and seconds > max_lag
        return State.FAILED if late else State.OK, f"the oldest saved event has waited for {seconds:.1f} s"

    return {"database": database, "schema": schema, "broker": broker, "lag": lag}
