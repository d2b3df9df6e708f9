"""Every fault once, on every combination; `make faults MINUTES=60` is the same for as long as one likes."""

import pytest

from tests.faults.conductor import Report, conduct, table
from tests.faults.instances import Instances, instances

pytestmark = pytest.mark.slow


def assert_promises_were_kept(report: Report) -> None:
    print(table([report]))  # noqa: T201 - figures for whoever reads them
    assert report.findings.violations == []
    assert report.findings.committed > 0


@pytest.mark.services
@pytest.mark.parametrize("name", ["postgresql+kafka", "postgresql+rabbitmq", "mariadb+kafka"])
async def test_every_fault_once(name: str, servers: Instances):
    assert_promises_were_kept(await conduct(name, servers, seconds=None, seed=1, pause=0.3))


async def test_every_fault_once_without_servers():
    async with instances(()) as none:
        assert_promises_were_kept(await conduct("sqlite+local", none, seconds=None, seed=1, pause=0.3))
