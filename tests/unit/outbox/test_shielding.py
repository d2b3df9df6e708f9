import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from cqrs.outbox.shielding import shielded


class Ending:
    """Waits for its future, then for a turn of the loop, and has ended."""

    def __init__(self, error: Exception | None = None) -> None:
        self.future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.error = error
        self.is_done = False

    async def __call__(self) -> str:
        found = await self.future
        await asyncio.sleep(0)
        self.is_done = True
        if self.error is not None:
            raise self.error
        return found


@pytest.fixture
async def ending() -> Ending:
    return Ending()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def begun(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(work)
    await turns()
    return task


async def test_it_returns_what_the_ending_returns(ending: Ending):
    asyncio.get_running_loop().call_soon(ending.future.set_result, "done")
    assert await shielded(ending()) == "done"


async def test_it_raises_what_the_ending_raises():
    ending = Ending(ValueError("no"))
    ending.future.set_result("done")
    with pytest.raises(ValueError, match="no"):
        await shielded(ending())


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_a_cancellation_waits_for_the_end(ending: Ending, cancellations: int):
    async def work() -> None:
        await shielded(ending())
        pytest.fail("the cancellation was lost")

    task = await begun(work())
    for _ in range(cancellations):
        task.cancel()
        await turns()
    assert not task.done()
    await ends_and_is_cancelled(task, ending)
    assert task.cancelled()


async def test_a_cancellation_in_the_turn_in_which_the_future_was_done_waits_too(ending: Ending):
    task = await begun(work_of(ending))
    ending.future.set_result("done")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ending.is_done


async def test_a_cancellation_during_a_mere_turn_of_the_loop_waits_too():
    ended = []

    async def ending() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        ended.append(True)

    task = asyncio.create_task(shielding(ending))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_an_ending_that_fails_after_a_cancellation_is_logged(caplog: pytest.LogCaptureFixture):
    ending = Ending(ValueError("no"))
    task = await begun(work_of(ending))
    task.cancel()
    ending.future.set_result("done")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["no"]


async def test_the_ending_hears_of_a_failure_of_what_it_waits_for(ending: Ending):
    task = await begun(work_of(ending))
    ending.future.set_exception(ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        await task
    assert not ending.is_done


async def test_the_ending_hears_that_what_it_waits_for_was_cancelled_by_others(ending: Ending):
    async def work() -> str:
        try:
            return await shielded(ending())
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            return "told"

    task = await begun(work())
    ending.future.cancel()
    assert await task == "told"


async def test_the_cancellation_keeps_its_message(ending: Ending):
    task = await begun(work_of(ending))
    task.cancel("for a reason")
    ending.future.set_result("done")
    with pytest.raises(asyncio.CancelledError, match="for a reason"):
        await task


async def test_a_scope_of_anyio_around_it_ends_when_it_has_ended(ending: Ending):
    asyncio.get_running_loop().call_later(0.02, ending.future.set_result, "done")
    with anyio.move_on_after(0.001) as scope:
        await shielded(ending())
        pytest.fail("the cancellation was lost")
    assert scope.cancelled_caught
    assert ending.is_done
    await asyncio.sleep(0)


async def test_a_timeout_around_it_strikes_when_it_has_ended(ending: Ending):
    asyncio.get_running_loop().call_later(0.02, ending.future.set_result, "done")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await shielded(ending())
    assert ending.is_done


async def test_a_timeout_within_it_is_no_cancellation_from_outside(ending: Ending):
    async def patient() -> str:
        async with asyncio.timeout(0.001):
            return await ending()

    asyncio.get_running_loop().call_later(0.02, ending.future.set_result, "done")
    assert await shielded(patient()) == "done"
    await asyncio.sleep(0)


async def test_a_task_that_was_cancelled_before_can_end_what_it_began(ending: Ending):
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await shielded(ending())
        return "never"

    task = await begun(work())
    task.cancel()
    await turns()
    ending.future.set_result("done")
    assert await task == "done"


async def test_one_within_another_ends_first(ending: Ending):
    task = await begun(shielding(lambda: work_of(ending)))
    task.cancel()
    await turns()
    assert not task.done()
    await ends_and_is_cancelled(task, ending)


async def ends_and_is_cancelled(task: asyncio.Task[Any], ending: Ending) -> None:
    ending.future.set_result("done")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ending.is_done


async def work_of(ending: Ending) -> str:
    return await shielded(ending())


async def shielding(ending: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    await shielded(ending())
