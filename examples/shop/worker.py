"""The process that is killed: it sends a command for each order line, and delivers what these emit.

Run as `python -m examples.shop.worker CSV`, with DATABASE_URL and BROKER_URL in the environment. With a broker it also
takes what comes back from there. It may die at any moment; started again, it goes on.
"""

import asyncio
import os
import sys
from pathlib import Path

import pydantic

import cqrs
from examples.shop.app import make_shop
from examples.shop.lines import Line, read_lines
from examples.shop.messages import LastLine, MissingReceipts, PlaceOrder, Refused, RefuseLine


async def work(orders: Path, database: str, broker: str | None) -> None:
    async with make_shop(database, broker) as shop, shop.consuming():
        # The last line once more: a worker that was killed does not know whether it heard all answers.
        first = await shop.send(LastLine())
        for line in read_lines(orders):
            if line.number >= first:
                await send_line(shop, line)
        await deliver_all(shop)


async def send_line(shop: cqrs.Mediator, line: Line) -> None:
    try:
        await shop.send(PlaceOrder.model_validate({"line": line.number, **line.cells}))
    except Refused as refused:
        await shop.send(RefuseLine(line=line.number, reason=str(refused)))
    except pydantic.ValidationError as error:
        await shop.send(RefuseLine(line=line.number, reason=reason_of(error)))


def reason_of(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    return f"{first['loc'][0]}: {first['msg'].partition(',')[0].lower()}"


async def deliver_all(shop: cqrs.Mediator) -> None:
    """Wait until every event has ended, or a dead letter says that one will not.

    `shop.drain()` would not do: it waits for what this process emitted, and killed ones have left events too.
    """
    while not await is_done(shop):  # noqa: ASYNC110 - a database tells nobody
        await asyncio.sleep(0.05)


async def is_done(shop: cqrs.Mediator) -> bool:
    left = await shop.outbox.counts()
    return bool(left.dead) or not (left.outbox or left.waiting or await shop.send(MissingReceipts()))


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), os.environ["DATABASE_URL"], os.environ.get("BROKER_URL") or None))
