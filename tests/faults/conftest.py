from collections.abc import AsyncIterator

import pytest

from tests.faults.instances import Instances, instances
from tests.servers import server


@pytest.fixture(scope="session")
async def servers() -> AsyncIterator[Instances]:
    """Servers that may be killed, on machines where those of the other tests are up."""
    for variable in ("POSTGRES_URL", "MYSQL_URL", "KAFKA_URL", "RABBITMQ_URL"):
        server(variable)
    async with instances(("postgres", "mariadb", "kafka", "rabbitmq")) as found:
        yield found
