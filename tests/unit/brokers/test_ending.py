import asyncio

from cqrs.brokers.ending import Endings, Idle


async def test_idle_waits_for_all_that_run():
    idle, seen = Idle(), []

    async def run(number: int) -> None:
        async with idle:
            await asyncio.sleep(0)
            seen.append(number)

    tasks = [asyncio.create_task(run(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert await idle.wait(5)
    assert sorted(seen) == [0, 1, 2]
    await asyncio.gather(*tasks)


async def test_idle_is_waited_for_no_longer_than_that():
    idle = Idle()
    async with idle:
        assert not await idle.wait(0)


async def test_what_does_not_disconnect_in_time_is_cancelled():
    endings, ended = Endings("end"), []

    async def end(disconnected: asyncio.Event, name: str) -> None:
        try:
            await disconnected.wait()
            ended.append(name)
        except asyncio.CancelledError:
            ended.append(f"{name} cancelled")
            raise

    there, never = asyncio.Event(), asyncio.Event()
    there.set()
    endings.begin(end(there, "one"))
    endings.begin(end(never, "two"))
    await endings.wait(0.05)
    assert ended == ["one", "two cancelled"]
