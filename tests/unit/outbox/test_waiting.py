import asyncio
from contextlib import suppress
from time import monotonic

import pytest

from cqrs.outbox.waiting import within


async def test_an_end_that_comes_in_time_is_waited_for():
    ended = []

    async def end() -> None:
        await asyncio.sleep(0)
        ended.append(True)

    await within(5.0, end)
    assert ended


async def test_an_end_that_hangs_in_its_clean_up_too_is_left_to_itself():
    going_on, released = [], asyncio.Event()

    async def end() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        going_on.append(True)
        await released.wait()

    began = monotonic()
    await within(0.01, end)
    assert monotonic() - began < 2.0
    await asyncio.sleep(0)
    assert going_on
    released.set()


async def test_an_end_that_fails_says_so():
    async def end() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await within(5.0, end)
