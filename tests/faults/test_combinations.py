"""Every fault once, on every combination; `make faults MINUTES=60` is the same for as long as one likes."""

import pytest

from tests.faults.conductor import conduct, table
from tests.faults.field import Place

pytestmark = pytest.mark.slow


async def test_every_fault_once(place: Place):
    report = await conduct(*place, seconds=None, seed=1, pause=0.3)
    print(table([report]))  # noqa: T201 - figures for whoever reads them
    assert report.findings.violations == []
    assert report.findings.committed > 0
