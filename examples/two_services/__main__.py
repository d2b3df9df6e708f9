"""The story: orders are placed, billing is killed on the way, and in the end every order has one invoice."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from examples.two_services import billing, orders

NUMBER = 100
PATIENCE = 90.0
"""Seconds until the last invoice at most. Kafka notices after ten that a consumer was killed."""


async def main(folder: Path) -> int:
    for name, tables in (("orders", orders.TABLES), ("billing", billing.TABLES)):
        url = os.environ.setdefault(f"{name.upper()}_DATABASE", f"sqlite+aiosqlite:///{folder / name}.db")
        await create(url, tables)
    engines = [create_async_engine(os.environ[name]) for name in ("ORDERS_DATABASE", "BILLING_DATABASE")]
    try:
        return await tell(*engines)
    finally:
        for engine in engines:
            await engine.dispose()


async def tell(ordered: AsyncEngine, billed: AsyncEngine) -> int:
    run = uuid4().hex[:8]  # what a run that was broken off has left on the broker does not count
    invoices = sa.select(billing.INVOICES).where(billing.INVOICES.c.order_id.startswith(run)).subquery()
    invoiced = sa.select(orders.ORDERS).where(orders.ORDERS.c.invoice.is_not(None)).subquery()
    app = orders.make()
    async with app, app.consuming():
        async with billing_process() as process:
            for number in range(NUMBER):
                await app.send(orders.PlaceOrder(order_id=f"{run}-{number:03}", amount=number))
            await until(lambda: count(billed, invoices), NUMBER // 10)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        print(f"billing was killed after {await count(billed, invoices)} of {NUMBER} invoices")
        async with billing_process():
            await until(lambda: count(ordered, invoiced), NUMBER)
    issued = await count(billed, invoices)
    print(f"{NUMBER} orders, {issued} invoices, {issued - NUMBER} too many, none missing")
    return 0 if issued == NUMBER else 1


@asynccontextmanager
async def billing_process() -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run the other service as one does, `cqrs run`, until it is no longer wanted."""
    command = [sys.executable, "-m", "cqrs", "run", "--factory", "examples.two_services.billing:make"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def until(found: Callable[[], Awaitable[int]], wanted: int) -> None:
    end = monotonic() + PATIENCE
    while await found() < wanted:
        if monotonic() > end:
            raise TimeoutError(f"{await found()} of {wanted} after {PATIENCE:g} s")
        await asyncio.sleep(0.1)


async def count(engine: AsyncEngine, table: sa.FromClause) -> int:
    async with engine.connect() as connection:
        return (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()


async def create(url: str, tables: sa.MetaData) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(tables.create_all)
    await engine.dispose()


if __name__ == "__main__":
    if "BROKER_URL" not in os.environ:
        sys.exit("Set BROKER_URL, for example to kafka://localhost:9092 or amqp://guest:guest@localhost/.")
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(asyncio.run(main(Path(scratch))))
