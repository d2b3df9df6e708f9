"""Relays that are wrong on purpose: a checker that finds nothing there finds nothing anywhere."""

import asyncio

import pytest

from tests.faults.checker import Findings
from tests.faults.field import Field, Wishes, field
from tests.faults.instances import Instances

pytestmark = [pytest.mark.services, pytest.mark.slow]


async def history_of(mutation: str, servers: Instances) -> tuple[Field, Findings]:
    wishes = Wishes(relays=1, consumers=1, mutation=mutation)
    async with field("postgresql+kafka", servers, wishes=wishes) as found:
        await found.until_busy()
        await asyncio.sleep(1.0)
        await found.drain(patience=3.0)
        return found, await found.findings()


async def test_a_relay_that_swaps_two_events_of_a_key_is_found(servers: Instances):
    _, findings = await history_of("swapped", servers)
    assert findings.inversions > 0
    assert any("overtook one before it" in violation for violation in findings.violations)


async def test_a_relay_that_forgets_an_event_is_found(servers: Instances):
    _, findings = await history_of("dropped", servers)
    assert findings.lost > 0
    assert any("was lost" in violation for violation in findings.violations)


async def test_a_relay_that_sends_twice_is_found(servers: Instances):
    found, findings = await history_of("repeated", servers)
    assert found.allowed == 0
    assert findings.inversions == findings.lost == findings.repeated == 0
    assert findings.violations == [f"{findings.duplicates} duplicates, where the faults explain at most 0"]
