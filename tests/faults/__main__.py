"""`make faults MINUTES=60`: all combinations, or those that are named, ill-treated in turn for so long in all."""

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from time import time

from tests.faults.conductor import Report, conduct, table
from tests.faults.field import COMBINATIONS
from tests.faults.instances import instances


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "combinations", nargs="*", metavar="COMBINATION", help=f"{', '.join(COMBINATIONS)}; without: all"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long faults happen, in all (default: 5)")
    parser.add_argument("--seed", type=int, default=int(time()), help="draws the faults; by default the time")
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between faults of a kind (default: 1)")
    found = parser.parse_args()
    found.combinations = found.combinations or list(COMBINATIONS)
    if unknown := set(found.combinations) - COMBINATIONS.keys():
        parser.error(f"no combination is named {', '.join(sorted(unknown))}")
    return found


async def main(names: Sequence[str], seconds: float, seed: int, pause: float) -> list[Report]:
    reports = []
    async with instances() as found:
        for name in names:
            print(f"{name}: faults for {seconds:.0f} s, seed {seed}", flush=True)
            reports.append(await conduct(name, found, seconds=seconds, seed=seed, pause=pause))
            for violation in reports[-1].findings.violations:
                print(f"  VIOLATION: {violation}", flush=True)
    return reports


if __name__ == "__main__":
    wished = arguments()
    share = wished.minutes * 60 / len(wished.combinations)
    random.seed(wished.seed)
    results = asyncio.run(main(wished.combinations, share, wished.seed, wished.pause))
    print(f"\nseed {wished.seed}\n{table(results)}")
    sys.exit(any(report.findings.violations for report in results))
