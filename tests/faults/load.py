"""Writers, as a process: commands on several keys at a steady rate until SIGTERM, whatever the database does."""

import asyncio
import logging
import random
import signal

import cqrs
from tests.faults.application import KEYS, Nowhere, Refused, Setting, Write, make

WRITERS = 6
log = logging.getLogger("faults.load")


def drawn() -> Write:
    """Return a command: of one key mostly, of several, or of none; one in ten fails after it has emitted."""
    keys = random.sample(KEYS, random.choices((0, 1, 2, 3), (1, 6, 2, 1))[0])
    return Write(keys=keys, times=random.randint(1, 3), fails=random.random() < 0.1)


async def write(app: cqrs.Mediator, pause: float, stop: asyncio.Event) -> None:
    """Send commands; one that fails is not tried again: what the database says is what was committed."""
    while not stop.is_set():
        try:
            async with asyncio.timeout(10):
                await app.send(drawn())
        except Refused:
            pass
        except Exception as error:  # noqa: BLE001 - the database is being ill-treated
            log.warning("a command failed: %r", error)
            await asyncio.sleep(0.1)
        await asyncio.sleep(pause * random.uniform(0.2, 1.8))


async def main(setting: Setting) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        make(setting, relay=False, broker=Nowhere() if setting.broker else None) as app,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(WRITERS):
            tasks.create_task(write(app, WRITERS / setting.rate, stop))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s load %(name)s %(message)s")
    asyncio.run(main(Setting.given()))
