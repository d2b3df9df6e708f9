import asyncio
from collections.abc import Iterator

import pytest

from tests.faults.instances import VARIABLES, Instances, instances
from tests.servers import server


@pytest.fixture(scope="session")
def servers() -> Iterator[Instances]:
    """Servers that may be killed, on machines where those of the other tests are up."""
    for variable in VARIABLES.values():
        server(variable)
    with asyncio.Runner() as runner:
        started = instances(tuple(VARIABLES))
        yield runner.run(started.__aenter__())
        runner.run(started.__aexit__(None, None, None))
