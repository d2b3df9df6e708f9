"""Runs both services as processes of their own, each with a database of its own, until all orders have their invoices.

BROKER_URL says where Kafka is; an amqp:// URL does as well.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from sqlalchemy import MetaData, create_engine

from examples.two_services.billing.app import Base as Billing
from examples.two_services.orders.app import Base as Orders


async def main(folder: Path) -> int:
    billing = await start(folder, "billing", Billing.metadata, "cqrs", "run", "examples.two_services.billing.app:app")
    try:
        orders = await start(folder, "orders", Orders.metadata, "examples.two_services.orders")
        return await orders.wait()
    finally:
        billing.terminate()
        await billing.wait()


async def start(folder: Path, name: str, tables: MetaData, *module: str) -> asyncio.subprocess.Process:
    """Start a service as a process, with its own database."""
    file = folder / f"{name}.db"
    engine = create_engine(f"sqlite:///{file}")
    tables.create_all(engine)
    engine.dispose()
    environment = {**os.environ, "DATABASE_URL": f"sqlite+aiosqlite:///{file}"}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", *module, env=environment)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(asyncio.run(main(Path(folder))))
