"""A consumer, as a process: it hands what the broker delivers to the application's handler, and acknowledges it then.

It may be killed at any moment: what it had not acknowledged comes again, and must not take effect again.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterable
from typing import Any

import aiormq
from aiokafka import AIOKafkaConsumer, TopicPartition

import cqrs
from tests.faults.application import NARROW, WIDE, Marked, Setting, make
from tests.faults.brokers import PARTITIONS, queue

log = logging.getLogger("faults.consumer")


async def take_all(app: cqrs.Mediator, bodies: Iterable[bytes]) -> None:
    """Hand messages over, keys side by side and in order within a key."""
    by_key: dict[str, list[Marked]] = {}
    for body in bodies:
        event = Marked.model_validate_json(body)
        by_key.setdefault(event.key or event.payload.token, []).append(event)

    async def take_key(events: Iterable[Marked]) -> None:
        for event in events:
            await take(app, event)

    await asyncio.gather(*map(take_key, by_key.values()))


async def take(app: cqrs.Mediator, event: Marked) -> None:
    """Hand a message over until it has been taken: consumers do not skip."""
    while True:
        try:
            async with asyncio.timeout(10):
                return await app.send(event)
        except Exception as error:  # noqa: BLE001 - the database is being ill-treated
            log.warning("a message is tried again: %r", error)
            await asyncio.sleep(0.2)


async def from_kafka(app: cqrs.Mediator, setting: Setting) -> None:
    """Read every n-th partition, from behind what was taken."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=setting.broker.removeprefix("kafka://"),
        group_id=setting.run,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=5_000,
    )
    await consumer.start()
    try:
        places = [
            TopicPartition(setting.topic(name), number) for name in (WIDE, NARROW) for number in range(PARTITIONS)
        ]
        consumer.assign(places[setting.number :: setting.of])
        while True:
            found = await consumer.getmany(timeout_ms=200, max_records=50)
            await take_all(app, [record.value for records in found.values() for record in records])
            await consumer.commit()
    finally:
        await consumer.stop()


async def from_rabbitmq(app: cqrs.Mediator, setting: Setting) -> None:
    """Consume both queues, of which one consumer at a time is active."""
    async with aiormq.connect(setting.broker) as connection:
        channel = await connection.channel()
        await channel.basic_qos(prefetch_count=50)
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        for name in (WIDE, NARROW):
            await channel.basic_consume(queue(setting, name), arrived.put)
        while True:
            messages = [await _next(arrived, connection)]
            messages += [arrived.get_nowait() for _ in range(arrived.qsize())]
            await take_all(app, [message.body for message in messages])
            await channel.basic_ack(messages[-1].delivery_tag, multiple=True)


async def _next(arrived: asyncio.Queue[Any], connection: Any) -> Any:
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                return await arrived.get()
        if connection.is_closed:
            raise ConnectionError("RabbitMQ is gone")


async def main(setting: Setting) -> None:
    consume = from_kafka if setting.broker.startswith("kafka") else from_rabbitmq
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        async with make(setting, relay=False, broker=None) as app:
            while True:
                try:
                    await consume(app, setting)
                except Exception as error:  # noqa: BLE001 - the broker is being ill-treated
                    log.warning("the broker is tried again: %r", error)
                    await asyncio.sleep(0.3)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s consumer %(name)s %(message)s")
    log.setLevel(logging.WARNING)
    asyncio.run(main(Setting.given()))
