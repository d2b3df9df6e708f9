"""A consumer, as a process: an application that consumes, and relays nothing.

It may be killed at any moment: what it had not acknowledged comes again, and must not take effect again.
"""

import asyncio
import logging
import signal

from tests.faults.application import Setting, make


async def main(setting: Setting) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with make(setting, relay=False, broker=setting.broker) as app, app.consuming():
        await stop.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s consumer %(process)d %(name)s %(message)s")
    asyncio.run(main(Setting.given().but(consumes=True)))
