"""One combination at work: its processes and servers, the faults that can happen to them, and the end."""

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import NamedTuple
from urllib.parse import urlsplit

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cqrs.outbox.rows import Counts
from tests.faults.application import BATCH, EFFECT, HISTORY, Nowhere, Setting, make, prepare
from tests.faults.brokers import Broker, broker_of
from tests.faults.checker import Findings, Mark, check
from tests.faults.instances import Instances
from tests.faults.processes import Process
from tests.faults.relay import POINTS
from tests.proxy import Proxy
from tests.servers import scratch_database

COPIES = 3 * BATCH
"""What one fault of one relay may cause to come again: a batch of each of its two lanes, and one of parked rows."""
TIME_TO_DRAIN = 60.0
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@dataclass(frozen=True, slots=True)
class Combination:
    """A database and a broker, by the names that `scripts/services` has for them; empty: a file, the handlers."""

    database: str
    broker: str

    @property
    def servers(self) -> tuple[str, ...]:
        return tuple(name for name in (self.database, self.broker) if name)


COMBINATIONS = {
    "postgresql+kafka": Combination("postgres", "kafka"),
    "postgresql+rabbitmq": Combination("postgres", "rabbitmq"),
    "mariadb+kafka": Combination("mariadb", "kafka"),
    "sqlite+local": Combination("", ""),
}


class Place(NamedTuple):
    """A combination by its name, and servers that it may use."""

    name: str
    servers: Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a field is laid out."""

    relays: int = 3
    consumers: int = 2
    rate: float = 80.0
    lease: float = 2.0
    crashes: float = 0.0
    """The share of a relay's starts that end at a crash point."""
    clocks: bool = False
    """Whether the first relay has a clock that can be put forward and back."""
    mutation: str = ""


class Field:
    """What runs; its methods are the faults, each of which counts itself."""

    def __init__(
        self, combination: Combination, instances: Instances, setting: Setting, wishes: Wishes, seed: int
    ) -> None:
        self.combination = combination
        self.counts: Counter[str] = Counter()
        self.crashes: Counter[str] = Counter()
        self.allowed = 0
        """How many duplicates the faults so far explain."""
        self.drained = self.consumed = 0.0
        """Seconds from the load's end until everything was delivered, and until it had taken effect."""
        self.keep = False
        """Whether the logs of the processes stay, for whoever looks for a violation's cause."""
        self.setting = setting
        self.broker: Broker = broker_of(setting)
        self.chance = random.Random(seed)
        self._instances = instances
        self._wishes = wishes
        self._engine: AsyncEngine = create_async_engine(setting.database, poolclass=sa.NullPool)
        self._database_proxies: list[Proxy] = []
        self._broker_proxies: list[Proxy] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._served = asyncio.Lock()
        self._violations: list[str] = []
        self.relays: list[Process] = []
        self.consumers: list[Process] = []
        self.load = self._process("load", lambda: setting.but(rate=wishes.rate))

    # Lifetime

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Start all processes; in the end they have ended, and what the broker had of this run is gone."""
        await prepare(self.setting)
        await self.broker.create()
        async with contextlib.AsyncExitStack() as stack:
            for number in range(self._wishes.relays):
                await self._add_relay(stack, number)
            for number in range(self._wishes.consumers if self.combination.broker else 0):
                self.consumers.append(self._consumer(number))
            self._tasks = [asyncio.create_task(process.keep()) for process in self.processes]
            try:
                yield
            finally:
                await self._end(self.processes)
                await asyncio.gather(*self._tasks)
                await self._engine.dispose()
                with contextlib.suppress(Exception):  # it is interrupted while the broker is down
                    await self.broker.remove()

    @property
    def processes(self) -> list[Process]:
        return [self.load, *self.relays, *self.consumers]

    async def _add_relay(self, stack: contextlib.AsyncExitStack, number: int) -> None:
        setting = self.setting.but(number=number, mutation=self._wishes.mutation)
        if self.combination.database:
            url = sa.make_url(setting.database)
            proxy = await stack.enter_async_context(Proxy(str(url.host), url.port or 0))
            self._database_proxies.append(proxy)
            setting = setting.but(database=url.set(port=proxy.port).render_as_string(hide_password=False))
        if self.combination.broker:
            place = urlsplit(setting.broker)
            proxy = await stack.enter_async_context(Proxy(str(place.hostname), place.port or 0))
            self._broker_proxies.append(proxy)
            setting = setting.but(broker_port=proxy.port)
        environment = self._clock() if self._wishes.clocks and number == 0 else {}
        self.relays.append(self._process("relay", lambda: self._armed(setting), environment=environment))

    def _consumer(self, number: int) -> Process:
        return self._process("consumer", lambda: self.setting.but(number=number, of=self._wishes.consumers))

    def _process(self, role, setting, *, environment=None) -> Process:
        log = Path(self.setting.folder) / f"{role}.log"
        return Process(role, setting, log, environment=environment or {}, ended=self._crashed)

    def _armed(self, setting: Setting) -> Setting:
        """Let some starts of a relay end at a crash point."""
        if self.chance.random() >= self._wishes.crashes:
            return setting
        return setting.but(crash=f"{self.chance.choice(POINTS)}:{self.chance.randint(1, 5)}")

    def _crashed(self, setting: Setting) -> None:
        point = setting.crash.partition(":")[0] or "unknown"
        self.crashes[point] += 1
        self._happens("crashes", f"relay {setting.number}: {point}")

    async def _end(self, processes: Sequence[Process]) -> None:
        await asyncio.gather(*(process.end() for process in processes))
        self._violations += [f"a {process.role} did not end when told to" for process in processes if process.late]

    async def until_busy(self) -> None:
        """Wait until something has been committed and has taken effect: all is up."""
        end = monotonic() + TIME_TO_DRAIN
        while not await self._count(EFFECT):
            assert monotonic() < end, f"nothing takes effect; see {self.setting.folder}"
            await asyncio.sleep(0.1)

    async def until_nothing_is_parked(self) -> None:
        """Wait until relays call no handler: a process that is stopped within one holds its transaction open."""
        end = monotonic() + TIME_TO_DRAIN
        while await self._count(sa.table("cqrs_parked")):
            assert monotonic() < end, f"something stays parked; see {self.setting.folder}"
            await asyncio.sleep(0.05)

    async def until_all_of_now_took_effect(self) -> float:
        """Wait until all that is committed now has taken effect; returns the seconds that it took."""
        began = monotonic()
        waiting = {mark.token for mark in await self._marks(HISTORY, HISTORY.c.number)}
        while waiting:
            assert monotonic() < began + TIME_TO_DRAIN, f"{len(waiting)} do not take effect; see {self.setting.folder}"
            await asyncio.sleep(0.05)
            waiting -= {mark.token for mark in await self._marks(EFFECT, EFFECT.c.id)}
        return monotonic() - began

    # Faults of processes

    def allow(self, relays: int) -> None:
        """Let the checker know of something that a test does to relays by itself."""
        self.allowed += COPIES * relays

    def _happens(self, fault: str, what: str, relays: int = 1) -> None:
        """Count a fault, and write down when it began."""
        self.counts[fault] += 1
        self.allowed += COPIES * relays
        with (Path(self.setting.folder) / "faults.log").open("a") as log:
            log.write(f"{time():.3f} {fault}: {what}\n")

    def kill(self, process: Process) -> None:
        self._happens("kills", process.name)
        process.kill()

    async def freeze(self, process: Process, seconds: float) -> None:
        """Stop a process, and let it go on, past its lease or before."""
        self._happens("stops", f"{process.name} for {seconds} s")
        process.stop()
        await asyncio.sleep(seconds)
        process.go_on()

    async def rebalance(self, seconds: float) -> None:
        """Let a consumer more join for a while: partitions, or queues, change hands twice."""
        self._happens("rebalances", f"a consumer more for {seconds:.1f} s", relays=0)
        guest = self._consumer(len(self.consumers))
        keeping = asyncio.create_task(guest.keep())
        await asyncio.sleep(seconds)
        await self._end([guest])
        await keeping

    async def terminate(self, process: Process) -> None:
        """End a process as a deployment does."""
        self._happens("terminations", process.name, relays=0)
        await process.terminate()

    # Faults of servers and networks

    async def restart(self, server: str) -> None:
        async with self._served:
            self._happens("restarts", server, len(self.relays))
            await self._instances.restart(server)

    async def kill_server(self, server: str) -> None:
        async with self._served:
            self._happens("server kills", server, len(self.relays))
            await self._instances.kill(server)

    async def cut(self, proxy: Proxy, seconds: float) -> None:
        self._happens("cuts", f"port {proxy.target} for {seconds} s")
        proxy.cut()
        await asyncio.sleep(seconds)
        proxy.resume()

    async def stall(self, proxy: Proxy, seconds: float) -> None:
        self._happens("stalls", f"port {proxy.target} for {seconds} s")
        proxy.stall()
        await asyncio.sleep(seconds)
        proxy.resume()

    @property
    def proxies(self) -> list[Proxy]:
        return self._database_proxies + self._broker_proxies

    async def refuse(self, how: str, seconds: float) -> None:
        """Let the narrow topic refuse for a while; then a person replays what is dead of it."""
        async with self._served:
            self._happens("refusals", f"{how} for {seconds:.1f} s", relays=0)
            await self.broker.refuse(how)
            try:
                await asyncio.sleep(seconds)
            finally:
                await self.broker.accept()

    # The clock

    @property
    def has_clock(self) -> bool:
        return self._wishes.clocks

    def _clock(self) -> dict[str, str]:
        self._put_clock("+0")
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock_file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @property
    def _clock_file(self) -> Path:
        return Path(self.setting.folder) / "clock"

    def _put_clock(self, text: str) -> None:
        self._clock_file.write_text(text)

    async def jump(self, seconds: int) -> None:
        """Put the first relay's clock forward or back."""
        self._happens("clock jumps", f"{seconds:+d} s", relays=0)
        await asyncio.to_thread(self._put_clock, f"{seconds:+d}")

    # The end

    async def drain(self, patience: float = TIME_TO_DRAIN) -> None:
        """Mend everything, and let the one relay that has lived longest deliver what is left, alone."""
        for proxy in self.proxies:
            proxy.resume()
        for process in self.processes:
            process.go_on()
        self._wishes = Wishes(relays=self._wishes.relays)
        oldest = min((relay for relay in self.relays if not relay.retired), key=lambda relay: relay.began)
        others = [relay for relay in self.relays if relay is not oldest]
        await self._end(others)
        await asyncio.sleep(1.0)
        await self._end([self.load])
        began = monotonic()
        await self._until_empty()
        self.drained = monotonic() - began
        await self._until_effective(patience)
        self.consumed = monotonic() - began

    async def _until_empty(self) -> None:
        async with make(self.setting, relay=False, broker=Nowhere() if self.setting.broker else None) as desk:
            end = monotonic() + TIME_TO_DRAIN
            while (counts := await desk.outbox.counts()) != EMPTY:
                if monotonic() > end:
                    self._violations.append(f"not drained after {TIME_TO_DRAIN:g} s: {counts}")
                    return
                self.counts["replays"] += await desk.outbox.replay()
                await asyncio.sleep(0.1)

    async def _until_effective(self, patience: float) -> None:
        """Wait until consumers have caught up; what is missing after that is found by the checker."""
        end = monotonic() + patience
        while await self._count(EFFECT) < await self._count(HISTORY):
            if monotonic() > end:
                return
            await asyncio.sleep(0.2)

    async def _count(self, table: sa.TableClause) -> int:
        async with self._engine.connect() as connection:
            return (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()

    async def findings(self) -> Findings:
        """Compare what was committed, delivered and done."""
        committed = await self._marks(HISTORY, HISTORY.c.number)
        delivered = await self.broker.delivered()
        effects = await self._marks(EFFECT, EFFECT.c.id)
        found = check(committed, delivered, effects, most_duplicates=self.allowed)
        found.violations.extend(self._violations)
        if found.violations or os.environ.get("FAULTS_KEEP"):
            self.keep = True
            when = await self._times()
            history = {"when": when, "committed": committed, "delivered": delivered, "effects": effects}
            (Path(self.setting.folder) / "history.json").write_bytes(to_json(history))
        return found

    async def _times(self) -> dict[str, float]:
        async with self._engine.connect() as connection:
            rows = await connection.execute(sa.select(HISTORY.c.token, HISTORY.c.at))
            return dict(map(tuple, rows))

    async def _marks(self, table: sa.Table, order: sa.Column) -> list[Mark]:
        async with self._engine.connect() as connection:
            rows = await connection.execute(sa.select(table.c.name, table.c.number, table.c.token).order_by(order))
            return [Mark(*row) for row in rows]


EMPTY = Counts(0, 0, 0, 0)


@contextlib.asynccontextmanager
async def field(name: str, instances: Instances, *, wishes: Wishes = Wishes(), seed: int = 0) -> AsyncIterator[Field]:
    """Lay out a combination and let it work."""
    combination = COMBINATIONS[name]
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="cqrs-faults-"))
    async with contextlib.AsyncExitStack() as stack:
        await instances.up(combination.servers)
        database = f"sqlite+aiosqlite:///{folder / 'faults.db'}"
        if combination.database:
            url = instances.urls[combination.database]
            database = await stack.enter_async_context(scratch_database(url))
        setting = Setting(
            run=f"faults-{uuid.uuid4().hex[:8]}",
            database=database,
            broker=instances.urls[combination.broker] if combination.broker else "",
            folder=str(folder),
            lease=wishes.lease,
        )
        found = Field(combination, instances, setting, wishes, seed)
        async with found.at_work():
            yield found
    if found.keep or os.environ.get("FAULTS_KEEP"):
        print(f"  logs: {folder}")  # noqa: T201 - for whoever looks for a cause
    else:
        await asyncio.to_thread(shutil.rmtree, folder)
