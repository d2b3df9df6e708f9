import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.field import COMBINATIONS, Place
from tests.faults.instances import VARIABLES, Instances, instances
from tests.servers import server


@pytest.fixture(scope="session")
def servers() -> Iterator[Instances]:
    """Servers that may be killed, on machines where those of the other tests are up."""
    for variable in VARIABLES.values():
        server(variable)
    with asyncio.Runner() as runner:
        started = instances()
        yield runner.run(started.__aenter__())
        runner.run(started.__aexit__(None, None, None))


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.services if combination.servers else [])
        for name, combination in COMBINATIONS.items()
    ]
)
def place(request: pytest.FixtureRequest) -> Place:
    needs = COMBINATIONS[request.param].servers
    return Place(request.param, request.getfixturevalue("servers") if needs else Instances(Path()))
