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
        if shield.cancellation is not None:
            raise shield.cancellation from None
        result: Result = end.value
        return result
    except Exception:
        if shield.cancellation is None:
            raise
        log.exception("The end of a cancelled command's transaction failed.")
        raise shield.cancellation from None


class _Shield:
    """Stands before a future that a task waits for: the task is woken by it, and cannot cancel it.

    Of a future it has what tasks ask of those that are not asyncio's own; see `asyncio.isfuture`.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._before = task.cancelling()
        self._blow: asyncio.CancelledError | None = None
        self._future: asyncio.Future[Any]
        self._asyncio_future_blocking = False

    @property
    def cancellation(self) -> asyncio.CancelledError | None:
        """What the task was cancelled with meanwhile, unless that was taken back."""
        return self._blow if self._task.cancelling() > self._before else None

    def over(self, future: asyncio.Future[Any] | None) -> Generator[Any, Any, None]:
        """Wait for a future, or for a turn of the loop; how the future ends is told to who asked for it."""
        if future is None:
            try:
                yield
            except asyncio.CancelledError as error:
                self._blow = error
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

    def cancel(self, msg: object = None) -> bool:
        """Take the blow, with the message by which anyio knows its own."""
        self._blow = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        return True
