"""How relays of other processes are told of rows: NOTIFY, after the commit and over a connection of its own.

Inside the user's transaction it would take a lock of the whole cluster at every COMMIT. Polling is the truth
underneath: a notification that is lost costs delay only.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from cqrs.outbox.waiting import came

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds within which the listener must hear its own first ring."""
GAP = 0.005
"""Seconds between two rings: who commits more often than that finds the others awake."""
ALIVE = 30.0
"""Seconds between two looks whether the listener's connection is alive."""


class Bell:
    """Rings for others, and calls `heard` when others ring; at most one ring is on its way."""

    def __init__(
        self, engine: AsyncEngine, channel: str, *, heard: Callable[[], None] | None, listen_url: str | None = None
    ) -> None:
        self._engine = engine
        self._channel = channel
        self._heard = heard
        self._listen_url = listen_url
        self._own = uuid4().hex
        self._rung = asyncio.Event()
        self._rings = 0
        self._silent = asyncio.Event()
        self._silent.set()
        self._heard_own = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to ring, and to listen where somebody wants to hear."""
        self._tasks = [asyncio.create_task(self._lasting(self._ring_on), name="cqrs bell")]
        if self._heard is not None:
            self._tasks.append(asyncio.create_task(self._lasting(self._listen), name="cqrs listener"))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let a ring that is due go out, and stop."""
        await came(self._silent, PATIENCE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def ring(self) -> None:
        """Tell others that rows were committed. Sticky: a call while a ring is on its way makes for one more."""
        self._silent.clear()
        self._rung.set()

    async def _lasting(self, work: Callable[[], Any]) -> None:
        """Go on after every fault of the connection, until the work says that it is over."""
        pause, tell = 0.1, log.warning
        while True:
            began = monotonic()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - whatever it is, polling goes on and so does this
                if monotonic() - began > ALIVE:
                    pause, tell = 0.1, log.warning
                tell("Wake-ups across processes have a fault, the relay polls, and they are tried again: %s", error)
                tell = log.debug
                await asyncio.sleep(pause)
                pause = min(5.0, pause * 2)
            else:
                return

    async def _ring_on(self) -> None:
        # Two statements, which are one transaction, and without parameters: drivers prepare no such string, and what is
        # not prepared passes every pooler. Nothing of it has to reach the disk.
        ring = f"SET LOCAL synchronous_commit = off; NOTIFY {self._channel}, '{self._own}'"
        async with _driver(self._engine) as driver:
            while True:
                await self._rung.wait()
                self._rung.clear()
                try:
                    await driver.execute(ring)
                except BaseException:
                    self._rung.set()
                    raise
                self._rings += 1
                await asyncio.sleep(GAP)
                if not self._rung.is_set():
                    self._silent.set()

    async def _listen(self) -> None:
        """Hear others until the connection is lost; returns only when nothing can be heard."""
        assert self._heard is not None  # noqa: S101 - else nobody listens
        engine = create_async_engine(self._listen_url, poolclass=NullPool) if self._listen_url else self._engine
        async with _driver(engine) as driver:
            hear = _hear_asyncpg if hasattr(driver, "add_listener") else _hear_psycopg
            hearing = asyncio.create_task(hear(driver, self._channel, self._told), name="cqrs notifications")
            try:
                if await self._hears_itself(hearing):
                    self._heard()
                    await hearing
                else:
                    log.warning(
                        "LISTEN hears nothing on this connection, as behind a pooler in transaction mode: the relay "
                        "polls instead. Pass listen_url= to bootstrap, a direct way to the database, to be woken."
                    )
            finally:
                hearing.cancel()
                await asyncio.gather(hearing, return_exceptions=True)

    async def _hears_itself(self, hearing: asyncio.Task[None]) -> bool:
        end, before = monotonic() + PATIENCE, self._rings
        self._heard_own.clear()
        while not self._heard_own.is_set() and not hearing.done() and monotonic() < end:
            self.ring()
            await came(self._heard_own, PATIENCE / 20)
        if self._rings == before:
            raise ConnectionError("nothing could be rung, so nothing could be heard")
        return self._heard_own.is_set() or hearing.done()

    def _told(self, payload: str) -> None:
        if payload == self._own:
            self._heard_own.set()
        elif self._heard is not None:
            self._heard()


@asynccontextmanager
async def _driver(engine: AsyncEngine) -> AsyncGenerator[Any]:
    """Open a connection in autocommit for the bell alone; it does not go back to the pool."""
    connection = await engine.connect()
    try:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        yield (await connection.get_raw_connection()).driver_connection
    finally:
        with suppress(Exception):
            await connection.invalidate()
        await connection.close()


async def _hear_asyncpg(driver: Any, channel: str, told: Callable[[str], None]) -> None:
    lost = asyncio.Event()
    driver.add_termination_listener(lambda _: lost.set())
    await driver.add_listener(channel, lambda _connection, _pid, _channel, payload: told(payload))
    while not lost.is_set():
        await came(lost, ALIVE)
        await _look_alive(driver)


async def _hear_psycopg(driver: Any, channel: str, told: Callable[[str], None]) -> None:
    await driver.execute(f"LISTEN {channel}")
    while True:
        async for notification in driver.notifies(timeout=ALIVE):
            told(notification.payload)
        await _look_alive(driver)


async def _look_alive(driver: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        await driver.execute("SELECT 1")
