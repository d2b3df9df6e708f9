"""The process that writes receipts: it consumes what comes back from the broker, until it is told to end.

Run as `python -m examples.shop.receiver`, with DATABASE_URL and BROKER_URL in the environment.
"""

import asyncio
import os
import signal

from examples.shop.app import make_shop


async def receive(database: str, broker: str) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with make_shop(database, broker) as shop, shop.consuming():
        await told.wait()


if __name__ == "__main__":
    asyncio.run(receive(os.environ["DATABASE_URL"], os.environ["BROKER_URL"]))
