"""What subscribers to both brokers have in common: they leave messages as they are, and end in time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

try:
    from faststream import AckPolicy
except ModuleNotFoundError as error:
    if error.name != "faststream":
        raise
    raise ModuleNotFoundError(
        "Consuming needs the package faststream. Run: pip install 'cqrs-toolkit[faststream]'", name="faststream"
    ) from None

from cqrs.brokers.tally import text_of
from cqrs.outbox.waiting import is_being_cancelled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from cqrs.consuming import Consumer

log = logging.getLogger(__name__)

MANUAL = AckPolicy.MANUAL
"""Acknowledgements are ours."""
BATCH = 500
"""How many messages are taken from Kafka at once, and how many of a RabbitMQ queue are on their way."""
ENDING = 5.0
"""Seconds that each last step has when consuming ends: acknowledgements, a cancelled task, a goodbye to the broker."""


async def everything(message: Any) -> bool:
    """Take every message. FastStream asks its own filter in a thread, where messages overtake each other."""
    del message
    return True


async def undecoded(message: Any) -> Any:
    """Leave bodies as they are: each handler's plan reads them. FastStream would fetch the message in a thread, too."""
    return message


def described(consumer: Consumer) -> str:
    """Say what is handled of what is subscribed."""
    names = [f"{name} ({topic})" for topic, plans in sorted(consumer.reader.plans.items()) for name in plans]
    return f"Handles {', '.join(names)}."


async def acknowledge(message: Any) -> None:
    """Tell the broker; if that is lost, it sends again, and the inbox knows."""
    try:
        await message.ack()
    except Exception as error:  # noqa: BLE001 - each client has errors of its own
        log.info("An acknowledgement was lost; what comes again takes no effect again: %s", text_of(error))


async def let_end(end: Callable[[], Awaitable[object]], *, seconds: float | None = ENDING) -> None:
    """Wait for an end; what is broken already may say so, or say nothing."""
    try:
        async with asyncio.timeout(seconds):
            await end()
    except (Exception, asyncio.CancelledError) as error:  # each client has errors of its own
        if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
            raise  # else a client stumbled over a task that it had cancelled itself
        log.debug("While consuming ended: %s", text_of(error))


async def all_ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=ENDING)
