"""Consuming: received messages go to their handlers in order per key, and are done once they are delivered or parked.

It knows neither brokers nor SQL: who receives, who delivers and who parks are given to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from cqrs.outbox.publisher import Failed, Fate, Outcome
from cqrs.outbox.rows import Claimed
from cqrs.outbox.waiting import came

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from cqrs.codec import Envelope
    from cqrs.errors import DecodingError
    from cqrs.outbox.rows import Verdict
    from cqrs.outbox.verdicts import Judge
    from cqrs.reading import Arrival, Reader, Received

log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that a batch may take. What has not begun by then is parked: brokers give up on who is silent for longer."""
LONGEST_PAUSE = 5.0

Deliver = Callable[["Sequence[Envelope]"], Awaitable["Sequence[Outcome]"]]


class Parking(Protocol):
    """Where messages wait that cannot be delivered now."""

    async def look(self, rows: Sequence[Claimed]) -> tuple[list[Claimed], list[Claimed]]:
        """Return the rows that may be delivered, and those that have to wait. What is parked already is in neither."""
        ...

    async def park(self, failed: Sequence[Verdict], held: Sequence[Claimed]) -> list[Claimed]:
        """Park what failed, and what is held back behind it; return what nothing holds back any more."""
        ...


class Consumer:
    """Takes batches of received messages to their end.

    Each handler of a message succeeds, fails and is parked on its own. While the database is away, or refuses what is
    needed to park, nothing ends, and the batch is tried again until it does. `is_absence` tells the one from the other.
    """

    def __init__(
        self,
        reader: Reader,
        deliver: Deliver,
        parking: Parking,
        judge: Judge,
        *,
        slot_of: Callable[[Envelope], int],
        parked: Callable[[], None],
        is_absence: Callable[[BaseException], bool],
        patience: float = PATIENCE,
    ) -> None:
        self.reader = reader
        self.fault: str | None = None
        """Why nothing is consumed at the moment, if so; what stands behind the first colon may show values."""
        self._deliver = deliver
        self._parking = parking
        self._judge = judge
        self._slot_of = slot_of
        self._parked = parked
        self._is_absence = is_absence
        self._patience = patience
        self._trouble: str | None = None
        self._stopped = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._working = 0
        self.taken = 0
        """How many messages this process has taken to their end."""

    @property
    def stopping(self) -> bool:
        """Whether nothing new is to be begun."""
        return self._stopped.is_set()

    async def take(self, received: Sequence[Received]) -> bool:
        """Deliver or park; returns whether every message has ended. If not, it was stopped: the broker sends again."""
        self._working += 1
        self._idle.clear()
        try:
            ended = await self._end(received)
            self.taken += len(received) if ended else 0
            return ended
        finally:
            self._working -= 1
            if not self._working:
                self._idle.set()

    def _read(self, received: Sequence[Received]) -> tuple[list[Claimed], dict[int, DecodingError]]:
        """Return what is for handlers, and why some of it cannot be read. What came twice is there once."""
        arrivals: dict[tuple[str, str], Arrival] = {}
        for message in received:
            for arrival in self.reader.read(message):
                arrivals.setdefault((arrival.envelope.destination, arrival.envelope.message_id), arrival)
        rows = [
            Claimed(number, self._slot_of(arrival.envelope), arrival.envelope)
            for number, arrival in enumerate(arrivals.values())
        ]
        faults = {
            row.id: arrival.fault
            for row, arrival in zip(rows, arrivals.values(), strict=True)
            if arrival.fault is not None
        }
        return rows, faults

    async def stop(self, grace: float) -> bool:
        """Begin nothing more, and wait so many seconds at most until what is at work has ended; returns whether."""
        self._stopped.set()
        return await came(self._idle, grace)

    def resume(self) -> None:
        """Begin again."""
        self._stopped.clear()

    async def _end(self, received: Sequence[Received]) -> bool:
        rows: list[Claimed] | None = None
        faults: dict[int, DecodingError] = {}
        late, pause = monotonic() + self._patience, 0.1
        while rows is None or rows:
            if self.stopping:
                return False
            try:
                if rows is None:
                    with _doing("reading what was received"):
                        rows, faults = self._read(received)
                rows = await self._advance(rows, faults, late=monotonic() >= late)
            except _Stuck as stuck:
                self._tell_trouble(stuck)
                await came(self._stopped, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._tell_recovery()
        return True

    async def _advance(self, rows: Sequence[Claimed], faults: dict[int, DecodingError], *, late: bool) -> list[Claimed]:
        """Deliver what may be delivered, and park what failed or has to wait; returns what is left."""
        with _doing("looking for parked keys"):
            free, held = await self._parking.look(rows)
        with _doing("delivering"):
            outcomes = _given_up(free, faults) if late else await self._outcomes(free, faults)
            judged = [self._judge.judge(row, outcome) for row, outcome in zip(free, outcomes, strict=True)]
        failed = [verdict for verdict in judged if verdict is not None]
        with _doing("parking what failed"):
            back = await self._parking.park(failed, held) if failed or held else []
        if failed:
            self._judge.tell(failed)
        if failed or held:
            self._parked()
        again = {row.id for row, outcome in zip(free, outcomes, strict=True) if outcome is Fate.NOT_SENT}
        again.update(row.id for row in back)
        return [row for row in rows if row.id in again]

    async def _outcomes(self, rows: Sequence[Claimed], faults: dict[int, DecodingError]) -> list[Outcome]:
        """Deliver, up to the first failure of each strand; what cannot be read is such a failure."""
        outcomes: list[Outcome] = [Fate.NOT_SENT] * len(rows)
        begun, stuck = set(), set()
        sent: list[int] = []
        for place, row in enumerate(rows):
            strand = row.envelope.strand
            if row.id in faults and strand not in begun:
                outcomes[place] = Failed(faults[row.id], final=True)
            elif row.id not in faults and strand not in stuck:
                sent.append(place)
            if row.id in faults:
                stuck.add(strand)
            begun.add(strand)
        told = await self._deliver([rows[place].envelope for place in sent]) if sent else ()
        for place, outcome in zip(sent, told, strict=True):
            outcomes[place] = outcome
        return outcomes

    def _tell_trouble(self, stuck: _Stuck) -> None:
        error = stuck.error
        absent = self._is_absence(error)
        trouble = "the database does not answer" if absent else f"{stuck.doing} failed with {type(error).__name__}"
        self.fault = f"{trouble}: {error}"
        if trouble != self._trouble:
            self._trouble = trouble
            level = logging.WARNING if absent else logging.ERROR
            cause = None if absent else error
            log.log(level, "Nothing is consumed, as %s; it is tried again: %s", trouble, error, exc_info=cause)

    def _tell_recovery(self) -> None:
        if self._trouble is not None:
            log.warning("Consuming goes on.")
            self._trouble = self.fault = None


class _Stuck(Exception):
    """What was done when something went wrong that is no message's own failure."""

    def __init__(self, doing: str, error: Exception) -> None:
        super().__init__(doing)
        self.doing = doing
        self.error = error


@contextmanager
def _doing(what: str) -> Generator[None]:
    try:
        yield
    except Exception as error:
        raise _Stuck(what, error) from error


def _given_up(rows: Sequence[Claimed], faults: Mapping[int, DecodingError]) -> list[Outcome]:
    return [Failed(faults[row.id], final=True) if row.id in faults else Fate.OVERDUE for row in rows]
