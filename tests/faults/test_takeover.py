"""One of two relays is gone: the other delivers what it held.

On a machine that is busy nothing is soon: what is asserted is that it happens, and what is printed how soon.
"""

import asyncio

import pytest

from tests.faults.field import Field, Place, Wishes, field

pytestmark = pytest.mark.slow

WITH_SERVERS = [pytest.param(name, marks=pytest.mark.services) for name in ("postgresql+kafka", "mariadb+kafka")]


# On SQLite a process that is stopped within a transaction has the one write lock, and keeps it until it goes on.
@pytest.mark.parametrize("place", WITH_SERVERS, indirect=True)
async def test_a_zombie_is_replaced_and_does_no_harm_when_it_wakes(place: Place):
    async with field(*place, wishes=Wishes(relays=2)) as found:
        await found.until_busy()
        await found.until_nothing_is_parked()
        zombie, _ = found.relays
        zombie.stop()
        found.allow(relays=1)
        took = await found.until_all_of_now_took_effect()
        zombie.go_on()
        await asyncio.sleep(1.0)
        await assert_all_is_well(found, f"stopped relay: {took:.1f} s, lease {found.setting.lease:g} s")


@pytest.mark.parametrize("place", [*WITH_SERVERS, "sqlite+local"], indirect=True)
async def test_a_killed_relay_is_replaced(place: Place):
    async with field(*place, wishes=Wishes(relays=2)) as found:
        await found.until_busy()
        found.relays[0].retire()
        found.kill(found.relays[0])
        took = await found.until_all_of_now_took_effect()
        await assert_all_is_well(found, f"killed relay: {took:.1f} s")


async def assert_all_is_well(found: Field, told: str) -> None:
    await found.drain()
    findings = await found.findings()
    print(told, findings)  # noqa: T201 - figures for whoever reads them
    assert findings.violations == []
