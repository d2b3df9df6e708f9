"""The conductor: draws faults by lot from a seed until the time is over, and says what became of it."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic

from tests.faults.checker import Findings
from tests.faults.field import COMBINATIONS, FAKETIME, Field, Wishes, field
from tests.faults.instances import Instances

Fault = Callable[[Field, random.Random], Awaitable[None]]


async def kill(field: Field, chance: random.Random) -> None:
    field.kill(chance.choice(field.relays))


async def kill_load(field: Field, chance: random.Random) -> None:
    field.kill(field.load)


async def kill_consumer(field: Field, chance: random.Random) -> None:
    field.kill(chance.choice(field.consumers))


async def stop_consumer(field: Field, chance: random.Random) -> None:
    """Stop a consumer: when it goes on, after long enough, others have its partitions."""
    await field.freeze(chance.choice(field.consumers), chance.choice((1.0, 3.0, 14.0)))


async def end_consumer(field: Field, chance: random.Random) -> None:
    await field.terminate(chance.choice(field.consumers))


async def rebalance(field: Field, chance: random.Random) -> None:
    await field.rebalance(chance.uniform(2.0, 6.0))


async def stop(field: Field, chance: random.Random) -> None:
    """Stop a relay, past its lease mostly: when it goes on, others have its slots."""
    lease = field.setting.lease
    await field.freeze(chance.choice(field.relays), chance.choice((0.5 * lease, 1.2 * lease, 2.0 * lease)))


async def terminate(field: Field, chance: random.Random) -> None:
    await field.terminate(chance.choice(field.relays))


async def jump(field: Field, chance: random.Random) -> None:
    await field.jump(chance.choice((-86_400, -3_600, 0, 3_600, 86_400)))


async def restart_database(field: Field, chance: random.Random) -> None:
    await field.restart(field.combination.database)


async def kill_database(field: Field, chance: random.Random) -> None:
    await field.kill_server(field.combination.database)


async def restart_broker(field: Field, chance: random.Random) -> None:
    await field.restart(field.combination.broker)


async def kill_broker(field: Field, chance: random.Random) -> None:
    await field.kill_server(field.combination.broker)


async def cut(field: Field, chance: random.Random) -> None:
    await field.cut(chance.choice(field.proxies), chance.choice((0.0, 0.5, 2.0)))


async def stall(field: Field, chance: random.Random) -> None:
    """Let a network swallow everything, for less than the lease or for longer."""
    await field.stall(chance.choice(field.proxies), field.setting.lease * chance.choice((0.3, 1.0, 2.5)))


async def refuse(how: str, field: Field, chance: random.Random) -> None:
    await field.refuse(how, chance.uniform(0.5, 3.0))


TO_PROCESSES: tuple[Fault, ...] = (kill, kill, kill, kill_load, stop, stop, terminate)
TO_CONSUMERS: tuple[Fault, ...] = (kill_consumer, kill_consumer, rebalance, stop_consumer, end_consumer)
TO_NETWORKS: tuple[Fault, ...] = (cut, cut, stall, stall)
TO_SERVERS: tuple[Fault, ...] = (restart_database, kill_database, restart_broker, kill_broker)


@dataclass(frozen=True, slots=True)
class Report:
    """What happened to one combination, and what came of it."""

    name: str
    seed: int
    seconds: float
    counts: Counter[str]
    crashes: Counter[str]
    allowed: int
    drained: float
    consumed: float
    findings: Findings


async def conduct(
    name: str,
    instances: Instances,
    *,
    seconds: float | None,
    seed: int,
    wishes: Wishes | None = None,
    pause: float = 1.0,
) -> Report:
    """Ill-treat a combination for so long, mend it, let it drain, and check its history.

    Processes, networks and servers have troubles of their own, so that faults overlap; `pause` is the mean between two
    of one kind. Without `seconds` each fault happens once.
    """
    wishes = wishes or Wishes(crashes=0.5, clocks=bool(COMBINATIONS[name].database) and FAKETIME.exists())
    async with field(name, instances, wishes=wishes, seed=seed) as found:
        await found.until_busy()
        began = monotonic()
        await asyncio.gather(
            *(
                _trouble(found, faults, random.Random(f"{seed} {number}"), seconds, pause)
                for number, faults in enumerate(_kinds(found))
            )
        )
        lasted = monotonic() - began
        await found.drain()
        findings = await found.findings()
        return Report(
            name, seed, lasted, found.counts, found.crashes, found.allowed, found.drained, found.consumed, findings
        )


def _kinds(found: Field) -> list[Sequence[Fault]]:
    """Return the faults that can happen here, a fault as often as it is likely."""
    processes = [*TO_PROCESSES, *([jump] if found.has_clock else [])]
    refusals = [partial(refuse, how) for how in found.broker.refusals]
    if not found.combination.servers:
        return [processes, refusals]
    return [processes, TO_CONSUMERS, TO_NETWORKS, [*refusals, *TO_SERVERS]]


async def _trouble(
    found: Field, faults: Sequence[Fault], chance: random.Random, seconds: float | None, pause: float
) -> None:
    """Let one fault after the other happen; one that has begun is brought to its end."""
    end = inf if seconds is None else monotonic() + seconds
    for fault in dict.fromkeys(faults) if seconds is None else _drawn(faults, chance):
        await asyncio.sleep(chance.uniform(0.2, 1.8) * pause)
        if monotonic() > end:
            return
        await fault(found, chance)


def _drawn(faults: Sequence[Fault], chance: random.Random) -> Iterator[Fault]:
    """Draw without putting back, again and again: none is left out for long."""
    while True:
        yield from chance.sample(faults, len(faults))


def table(reports: Sequence[Report]) -> str:
    """Return the report as a table, a column for each combination."""
    lines = [
        ("", *(report.name for report in reports)),
        ("seconds of faults", *(f"{report.seconds:.0f}" for report in reports)),
        ("committed", *(report.findings.committed for report in reports)),
        ("delivered", *(report.findings.delivered for report in reports)),
        ("lost", *(report.findings.lost for report in reports)),
        ("never committed", *(report.findings.phantoms for report in reports)),
        ("inversions", *(report.findings.inversions for report in reports)),
        ("effects missing", *(report.findings.missing for report in reports)),
        ("effects repeated", *(report.findings.repeated for report in reports)),
        ("effects disordered", *(report.findings.disordered for report in reports)),
        ("duplicates", *(report.findings.duplicates for report in reports)),
        ("  at most", *(report.allowed for report in reports)),
        *((fault, *(report.counts[fault] for report in reports)) for fault in FAULTS),
        ("crash points hit", *(report.crashes.total() for report in reports)),
        *((f"  {point}", *(report.crashes[point] for report in reports)) for point in _points(reports)),
        ("seconds to drain", *(f"{report.drained:.1f}" for report in reports)),
        ("  to take effect", *(f"{report.consumed:.1f}" for report in reports)),
        ("violations", *(len(report.findings.violations) for report in reports)),
    ]
    return "\n".join(_line([str(cell) for cell in cells]) for cells in lines)


FAULTS = (
    "kills",
    "stops",
    "terminations",
    "rebalances",
    "restarts",
    "server kills",
    "cuts",
    "stalls",
    "refusals",
    "replays",
    "clock jumps",
)


def _points(reports: Sequence[Report]) -> list[str]:
    return sorted({point for report in reports for point in report.crashes})


def _line(cells: Sequence[str]) -> str:
    return f"{cells[0]:<18}" + "".join(f"{cell:>21}" for cell in cells[1:])
