"""What must not be left half done finishes although its task is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import logging
import types
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@types.coroutine
def shielded(ending: Coroutine[Any, Any, Result]) -> Generator[Any, Any, Result]:
    """Finish a COMMIT or ROLLBACK although the task is cancelled meanwhile; the cancellation goes on afterwards.

    It runs in the task itself: one of its own, which `asyncio.shield` makes, costs more than all else that happens in
    this process for a COMMIT. A timeout within the ending that cancels this very task does not reach it either.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - what is awaited runs in one
    shield = _Shield(task)
    try:
        while True:
            yield from shield.over(ending.send(None))
    except StopIteration as end:
        if shield.holds_back:
            raise asyncio.CancelledError from None
        result: Result = end.value
        return result
    except Exception as error:
        if not shield.holds_back:
            raise
        log.exception("The end of a cancelled command's transaction failed.", exc_info=error)
        raise asyncio.CancelledError from None


class _Shield:
    """Stands before a future that a task waits for: the task is woken by it, and cannot cancel it.

    Of a future it has what tasks ask of those that are not asyncio's own; see `asyncio.isfuture`.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._before = task.cancelling()
        self._was_hit = False
        self._future: asyncio.Future[Any]
        self._asyncio_future_blocking = False

    @property
    def holds_back(self) -> bool:
        """Whether the task was cancelled meanwhile, by somebody who has not taken that back."""
        return self._was_hit and self._task.cancelling() > self._before

    def over(self, future: asyncio.Future[Any] | None) -> Generator[Any, Any, None]:
        """Wait for a future, or for a turn of the loop; how the future ends is told to who asked for it."""
        if future is None:
            try:
                yield
            except asyncio.CancelledError:
                self._was_hit = True
            return
        self._future = future
        self._asyncio_future_blocking = True
        try:
            yield self
        except GeneratorExit:
            raise
        except BaseException:  # noqa: BLE001, S110 - the future's own
            pass

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the future."""
        return self._future.get_loop()

    def add_done_callback(self, call: Callable[[Any], object], *, context: Context | None = None) -> None:
        """Call when the future is done."""
        self._future.add_done_callback(call, context=context)

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - as futures have it
        """Take the blow."""
        self._was_hit = True
        return True
