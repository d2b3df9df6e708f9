"""The relay: claims rows, hands them to their publisher in order per key, and settles what came of it.

It knows neither SQL nor handlers nor brokers: the store and the publishers are given to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from traceback import format_exception
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

    from cqrs.codec import Envelope
    from cqrs.outbox.store import Claimed, Store

from cqrs.outbox.store import Verdict

log = logging.getLogger(__name__)

ERROR_LIMIT = 4000
Settle = Callable[["list[Claimed]", "list[Verdict]", "list[Claimed]"], Awaitable[None]]
"""Ends a claim: what was delivered, what failed, and what was not tried."""


class Fate(Enum):
    """The end of one envelope that is not a failure."""

    DELIVERED = "delivered"
    NOT_SENT = "not sent"
    """Not begun, or given up without a result: it stays where it is, and no attempt is counted."""
    OVERDUE = "overdue"
    """Begun, and given up at the claim's deadline: its key is parked, and no attempt is counted."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An envelope that was refused. `final` says that no retry can help: it is dead at once."""

    error: BaseException
    final: bool = False


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The topic of an envelope, or with `everything` the whole broker, is out of reach; the envelope is not to blame.

    It stays where it is and no attempt is counted. The relay leaves the topic (the destination) alone for a while.
    """

    error: BaseException
    everything: bool = False


Outcome = Fate | Failed | Unavailable


class Publisher(Protocol):
    """Delivers envelopes to one kind of destination."""

    async def open(self) -> None:
        """Connect. Called once, before anything is published."""
        ...

    async def close(self) -> None:
        """Finish or give up what is in flight, and disconnect."""
        ...

    async def publish(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        """Deliver, and return one outcome an envelope, in their order.

        `DELIVERED` is said only of what was acknowledged. Envelopes of one lane are delivered in the order given, and
        after the first of a lane that is not delivered the rest of it is `NOT_SENT`; lanes do not wait for each other.
        `Failed` is said of an envelope that was refused, `Unavailable` where its topic or the broker cannot be
        reached. It does not retry and raises nothing but cancellation: the relay decides what comes next.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a relay works. Durations in seconds.

    `lease` is how long slots stay a relay's without a sign of life, `idle` how often an idle relay looks for what no
    wake-up told it, `grace` how long a stop waits for what is in flight, `batch` the most rows of one claim.
    """

    lease: float = 10.0
    idle: float = 2.0
    grace: float = 10.0
    batch: int = 500


class Relay:
    """Three supervised lanes: over the outbox, over parked rows that are due, and one that looks what is to do.

    `end` answers what becomes of a failed row: seconds to wait (None: dead), and whether a dead one blocks its key.
    """

    def __init__(
        self,
        store: Store,
        publishers: Mapping[str, Publisher],
        *,
        end: Callable[[str, BaseException, int], tuple[float | None, bool]],
        skipping: Collection[str] = (),
        pace: Pace = Pace(),
    ) -> None:
        self.owner = f"{socket.gethostname()[:32]}:{os.getpid()}:{uuid4().hex[:8]}"
        self.settled = asyncio.Event()
        self._store = store
        self._publishers = publishers
        self._destinations = sorted(publishers)
        self._end = end
        self._skipping = skipping
        self._pace = pace
        self._stopping = False
        self._awake = {name: asyncio.Event() for name in ("outbox", "parked", "look")}
        self._lanes: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to relay."""
        self._stopping = False
        work = {"outbox": self.relay_outbox, "parked": self.relay_due, "look": self._look}
        self._lanes = [asyncio.create_task(self._lane(name, work[name]), name=f"cqrs relay {name}") for name in work]

    async def stop(self) -> None:
        """Claim nothing more, let what is in flight finish within the grace period, and give the slots back."""
        self._stopping = True
        for event in self._awake.values():
            event.set()
        if not self._lanes:
            return
        _, late = await asyncio.wait(self._lanes, timeout=self._pace.grace)
        for lane in late:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)

    @property
    def stopping(self) -> bool:
        """Whether nothing new is to be begun."""
        return self._stopping

    def wake(self) -> None:
        """Tell that there are rows in the outbox. Sticky: a call while the lane works makes it look once more."""
        self._awake["outbox"].set()

    def look(self) -> None:
        """Tell that something about parked rows has changed: look what is due now, and when the next will be."""
        self._awake["look"].set()

    async def relay_outbox(self) -> bool:
        """Claim, publish and settle one batch of the outbox; returns whether there was one."""
        claim = await self._store.claim(
            self.owner, self._destinations, skipping=self._skipping, limit=self._pace.batch, lease=self._pace.lease
        )
        if claim is None:
            return False
        delivered = await self._deliver(
            claim.rows, self._renew_slots, lambda done, failed, _: self._store.settle(self.owner, done, failed)
        )
        return delivered or claim.held_back > 0

    async def relay_due(self) -> bool:
        """Claim, publish and settle the parked rows that are due; returns whether there were any."""
        token, rows = await self._store.claim_due(self._destinations, limit=self._pace.batch, lease=self._pace.lease)
        if not rows:
            return False
        held = [token]

        async def renew() -> None:
            held[0] = await self._store.renew_due(held[0], rows, self._pace.lease)

        return await self._deliver(rows, renew, lambda *fates: self._store.settle_due(held[0], *fates))

    async def _deliver(self, rows: Sequence[Claimed], renew: Callable[[], Awaitable[None]], settle: Settle) -> bool:
        """Publish claimed rows while their claim is renewed, and settle them whatever happens."""
        outcomes: Sequence[Outcome] = [Fate.NOT_SENT] * len(rows)
        faults: list[BaseException] = []
        try:
            async with self._renewing(renew):
                outcomes = await self._publish(rows, faults)
        finally:
            done, failed, returned = self._sort(rows, outcomes)
            await settle(done, failed, returned)
        self._tell(done, failed)
        if faults:
            raise faults[0]
        return bool(done or failed)

    async def _publish(self, rows: Sequence[Claimed], faults: list[BaseException]) -> list[Outcome]:
        """Publish side by side what goes to different publishers; what one raises, against its word, is a fault."""
        outcomes: dict[int, Outcome] = {row.id: Failed(row.fault, final=True) for row in rows if row.fault is not None}
        by_publisher: dict[int, tuple[Publisher, list[tuple[int, Envelope]]]] = {}
        held: set[tuple[str, str, str | None]] = set()
        for row in rows:
            if row.fault is not None and row.lane[-1] is not None:
                held.add(row.lane)
            if row.envelope is not None and row.lane not in held:
                publisher = self._publishers[row.envelope.destination]
                by_publisher.setdefault(id(publisher), (publisher, []))[1].append((row.id, row.envelope))
        groups = list(by_publisher.values())
        published = await asyncio.gather(
            *(publisher.publish([envelope for _, envelope in numbered]) for publisher, numbered in groups),
            return_exceptions=True,
        )
        for (_, numbered), results in zip(groups, published, strict=True):
            if isinstance(results, BaseException):
                faults.append(results)
                continue
            outcomes.update(zip((number for number, _ in numbered), results, strict=True))
        return [outcomes.get(row.id, Fate.NOT_SENT) for row in rows]

    def _sort(
        self, rows: Sequence[Claimed], outcomes: Sequence[Outcome]
    ) -> tuple[list[Claimed], list[Verdict], list[Claimed]]:
        done: list[Claimed] = []
        failed: list[Verdict] = []
        returned: list[Claimed] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, Failed):
                failed.append(self._judge(row, outcome))
            else:
                (done if outcome is Fate.DELIVERED else returned).append(row)
        return done, failed, returned

    def _judge(self, row: Claimed, failure: Failed) -> Verdict:
        destination = row.envelope.destination if row.envelope is not None else row.lane[0]
        wait, blocks = self._end(destination, failure.error, row.attempts + 1)
        error = "".join(format_exception(failure.error))[-ERROR_LIMIT:]
        return Verdict(row, error, None if failure.final else wait, blocks)

    def _tell(self, done: Sequence[Claimed], failed: Sequence[Verdict]) -> None:
        for verdict in failed:
            envelope = verdict.row.envelope
            what = f"{envelope.type} {envelope.message_id} to {envelope.destination}" if envelope else "a saved event"
            reason = verdict.error.rstrip().rpartition("\n")[2]
            if verdict.wait is None:
                log.error("%s is dead at attempt %d: %s", what, verdict.row.attempts + 1, reason)
            else:
                log.warning("%s failed, tried again in %.1f s: %s", what, verdict.wait, reason)
        if failed:
            self.look()
        if done or failed:
            self.settled.set()

    async def _renew_slots(self) -> None:
        await self._store.renew(self.owner, self._pace.lease)

    @asynccontextmanager
    async def _renewing(self, renew: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
        """Show a sign of life every quarter of the lease; a lost lease costs duplicates, which the inbox absorbs."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(self._pace.lease / 4)
                try:
                    await renew()
                except Exception as error:  # noqa: BLE001 - the claim's own statements report a lasting fault
                    log.debug("A lease could not be renewed: %s", error)

        task = asyncio.create_task(beat(), name="cqrs relay lease")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _lane(self, name: str, work: Callable[[], Awaitable[bool]]) -> None:
        """Work while there is work, then wait to be woken; survive every fault of the database."""
        awake, faults = self._awake[name], 0
        while not self._stopping:
            awake.clear()
            try:
                worked = await work()
                faults = _told_recovery(name, faults)
                if not worked:
                    await awake.wait()
            except Exception as error:  # noqa: BLE001 - a lane must not die
                faults = _told_fault(name, faults, error)
                await _wait(awake, min(5.0, 0.1 * 2 ** min(faults, 6)))

    async def _look(self) -> bool:
        """Look, with one statement, for what no wake-up told, and wait until the next look or the next retry is due."""
        probe = await self._store.probe(self._destinations)
        if probe.outbox:
            self._awake["outbox"].set()
        pause = self._pace.idle if probe.due is None else min(self._pace.idle, probe.due)
        if probe.due is not None and probe.due <= 0:
            self._awake["parked"].set()
            pause = self._pace.idle
        await _wait(self._awake["look"], pause)
        return True


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _told_fault(name: str, faults: int, error: Exception) -> int:
    if faults == 0:
        log.error("The relay's lane '%s' has a fault and goes on trying: %s", name, error)
    return faults + 1


def _told_recovery(name: str, faults: int) -> int:
    if faults:
        log.warning("The relay's lane '%s' works again after %d faults.", name, faults)
    return 0


def describe(rows: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """Return a line for each (event id, type, destination, state)."""
    return [f"- {kind} {event_id} to {destination}: {state}" for event_id, kind, destination, state in rows]
