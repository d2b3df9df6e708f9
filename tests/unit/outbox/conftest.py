import pytest

from tests.unit.outbox.shop import Shop


@pytest.fixture
def shop(database: str) -> Shop:
    return Shop(database)
