"""The relay: claims rows, hands them to their publisher in order per key, and settles what came of it.

It knows neither SQL nor handlers nor brokers: the store and the publishers are given to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from cqrs.outbox.circuits import Circuits
from cqrs.outbox.dialect import Nothing
from cqrs.outbox.handover import Handover
from cqrs.outbox.publisher import Fate, Outcome, Publisher
from cqrs.outbox.troubles import Troubles
from cqrs.outbox.verdicts import Judge
from cqrs.outbox.waiting import came, is_being_cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

    from cqrs.outbox.dialect import Claim, Lane
    from cqrs.outbox.rows import Claimed, Probe, Verdict
    from cqrs.outbox.store import Store
    from cqrs.outbox.verdicts import End

log = logging.getLogger(__name__)

BUSY_PAUSE = 0.01
"""Seconds that a lane waits, on the average, when others work on all slots that have work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a relay works. Durations in seconds.

    `lease` is how long slots stay a relay's without a sign of life, `idle` how often an idle relay looks for what no
    wake-up told it, `grace` how long a stop waits for what is in flight, `batch` the most rows of one claim, `lanes`
    how many claims a relay works on side by side.
    """

    lease: float = 10.0
    idle: float = 2.0
    grace: float = 10.0
    batch: int = 500
    lanes: int = 1

    @property
    def deadline(self) -> float:
        """How long what is claimed may take to be published, where a claim holds locks."""
        return 0.8 * self.lease


class Relay:
    """Supervised lanes: over the outbox, over parked rows that are due, over what is out of reach, and one that looks.

    `end` answers what becomes of a failed row.
    """

    def __init__(
        self,
        store: Store,
        publishers: Mapping[str, Publisher],
        *,
        end: End,
        skipping: Collection[str] = (),
        pace: Pace = Pace(),
    ) -> None:
        self.owner = f"{socket.gethostname()[:32]}:{os.getpid()}:{uuid4().hex[:8]}"
        self._destinations = sorted(publishers)
        self._judge = Judge(end)
        self._pace = pace
        self._stopping = False
        self._circuits = Circuits(skipping)
        self._handover = Handover(publishers, self._circuits, pace.lease)
        self._troubles = Troubles()
        self._outbox = [store.lane(f"{self.owner}/{number}", pace.lease) for number in range(pace.lanes)]
        self._parked = store.lane(f"{self.owner}/parked", pace.lease)
        self._trials = store.lane(f"{self.owner}/trials", pace.lease)
        self._probes = store.lane(f"{self.owner}/look", pace.lease)
        self._work: dict[str, Callable[[], Awaitable[bool]]] = {
            **{
                f"outbox {number}".removesuffix(" 1"): _bound(self.relay_outbox, lane)
                for number, lane in enumerate(self._outbox, 1)
            },
            "parked": self.relay_due,
            "trials": self._try_circuits,
            "look": self._look,
        }
        self._lanes: list[asyncio.Task[None]] = []
        self.delivered = 0
        """How many rows this process has delivered."""
        self.prepare()

    def prepare(self) -> None:
        """Forget the event loop that this relay has run in: an application may be opened again in another one."""
        self._awake = {name: asyncio.Event() for name in self._work}
        self.settled = asyncio.Event()

    def start(self) -> None:
        """Begin to relay."""
        self.prepare()
        self._stopping = False
        self._lanes = [
            asyncio.create_task(self._lane(name, work), name=f"cqrs relay {name}") for name, work in self._work.items()
        ]

    async def stop(self) -> None:
        """Claim nothing more, let what is in flight finish within the grace period, and give the slots back."""
        self._stopping = True
        for event in self._awake.values():
            event.set()
        if self._lanes:
            _, late = await asyncio.wait(self._lanes, timeout=self._pace.grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._lanes, return_exceptions=True)
        lanes = (*self._outbox, self._parked, self._trials, self._probes)
        await asyncio.gather(*(lane.close() for lane in lanes))

    @property
    def stopping(self) -> bool:
        """Whether nothing new is to be begun."""
        return self._stopping

    def wake(self) -> None:
        """Tell that there are rows in the outbox. Sticky: a call while a lane works makes it look once more."""
        for name, event in self._awake.items():
            if name.startswith("outbox"):
                event.set()

    def look(self) -> None:
        """Tell that something about parked rows has changed: look what is due now, and when the next will be."""
        self._awake["look"].set()

    async def relay_outbox(self, lane: Lane | None = None) -> bool:
        """Claim, publish and settle one batch of the outbox; returns whether there may be more to do."""
        view = self._circuits.view(self._destinations)
        claim = await (lane or self._outbox[0]).claim(view, self._pace.batch) if view.destinations else Nothing.IDLE
        if claim is Nothing.BUSY:
            await asyncio.sleep(BUSY_PAUSE * (0.5 + random.random()))  # noqa: S311 - nothing secret
            return True
        if isinstance(claim, Nothing):
            return False
        delivered = await self._deliver(claim)
        return delivered or claim.held_back > 0

    async def relay_due(self) -> bool:
        """Claim, publish and settle the parked rows that are due; returns whether there were any."""
        view = self._circuits.view(self._destinations)
        claim = await self._parked.retry(view, self._pace.batch) if view.destinations else None
        return claim is not None and await self._deliver(claim)

    async def probe(self) -> Probe:
        """Say what there is to do: for who relays by hand, with `relay_outbox` and `relay_due`."""
        return await self._probes.probe(self._circuits.view(self._destinations), {})

    async def _try_circuits(self) -> bool:
        """Try with one row each what has been out of reach, and wait until the next trial is due."""
        for wire in self._circuits.due():
            claim = await self._trials.claim(self._circuits.trial(wire), 1)
            if claim is Nothing.BUSY:
                self._circuits.postpone(wire, BUSY_PAUSE)
            elif isinstance(claim, Nothing):
                self._circuits.half_open(wire)
                self._wake_all()
            elif await self._deliver(claim) or claim.held_back:
                self._wake_all()
        pause = self._circuits.pause
        if pause is None:
            return False
        await came(self._awake["trials"], pause)
        return True

    def _wake_all(self) -> None:
        for event in self._awake.values():
            event.set()

    async def _deliver(self, claim: Claim) -> bool:
        """Publish claimed rows while their claim is kept, and settle them whatever happens."""
        rows = claim.rows
        outcomes: Sequence[Outcome] = [Fate.NOT_SENT] * len(rows)
        faults: list[BaseException] = []
        try:
            async with self._keeping(claim):
                outcomes = await self._handover.publish(rows, faults)
                if self._circuits.pause is not None:
                    self._awake["trials"].set()
        finally:
            done, failed, returned = self._sort(rows, outcomes)
            await claim.settle(done, failed, returned)
        self._tell(done, failed)
        if faults:
            raise faults[0]
        return bool(done or failed)

    def _sort(
        self, rows: Sequence[Claimed], outcomes: Sequence[Outcome]
    ) -> tuple[list[Claimed], list[Verdict], list[Claimed]]:
        if outcomes.count(Fate.DELIVERED) == len(rows):
            return list(rows), [], []
        done: list[Claimed] = []
        failed: list[Verdict] = []
        returned: list[Claimed] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome is Fate.DELIVERED:
                done.append(row)
            elif (verdict := self._judge.judge(row, outcome)) is not None:
                failed.append(verdict)
            else:
                returned.append(row)
        return done, failed, returned

    def _tell(self, done: Sequence[Claimed], failed: Sequence[Verdict]) -> None:
        self._judge.tell(failed)
        self.delivered += len(done)
        if failed:
            self.look()
        if done or failed:
            self.settled.set()

    @asynccontextmanager
    async def _keeping(self, claim: Claim) -> AsyncGenerator[None]:
        """Show a sign of life every quarter of the lease; a lost lease costs duplicates, which the inbox absorbs."""
        ended = asyncio.Event()
        begun: list[asyncio.Task[None]] = []

        async def beat() -> None:
            while not ended.is_set():
                try:
                    await claim.keep()
                except Exception as error:  # noqa: BLE001 - the claim's own statements report a lasting fault
                    log.debug("A lease could not be renewed: %s", error)
                await came(ended, pause)

        # Most claims end before: a task for each of them would take as long as some hundred rows.
        pause = self._pace.lease / 4
        timer = asyncio.get_running_loop().call_later(
            pause, lambda: begun.append(asyncio.create_task(beat(), name="cqrs relay lease"))
        )
        try:
            yield
        finally:
            # Not cancelled: a statement that is cut off could take the next one on its connection with it.
            timer.cancel()
            ended.set()
            for task in begun:
                await task

    async def _lane(self, name: str, work: Callable[[], Awaitable[bool]]) -> None:
        """Work while there is work, then wait to be woken; survive every fault of the database."""
        awake = self._awake[name]
        while not self._stopping:
            awake.clear()
            try:
                worked = await work()
                self._troubles.end(name)
                if not worked and not self._stopping:
                    await awake.wait()
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
                    raise
                faults = self._troubles.add(name, error)
                await came(awake, min(5.0, 0.1 * 2 ** min(faults, 6)))

    async def _look(self) -> bool:
        """Look, with one statement, for what no wake-up told, and wait until the next look or the next retry is due."""
        view = self._circuits.view(self._destinations)
        try:
            probe = await self._probes.probe(view, self._outbox[0].floors(view))
        except BaseException:
            # Perhaps another server answers next: let the lanes look for themselves.
            self.wake()
            raise
        if probe.outbox:
            self.wake()
        pause = self._pace.idle if probe.due is None else min(self._pace.idle, probe.due)
        if probe.due is not None and probe.due <= 0:
            self._awake["parked"].set()
            pause = self._pace.idle
        await came(self._awake["look"], pause)
        return True


def _bound(work: Callable[[Lane], Awaitable[bool]], lane: Lane) -> Callable[[], Awaitable[bool]]:
    return lambda: work(lane)
