"""`cqrs run` with a broker: what one process publishes, another one consumes."""

import uuid
from pathlib import Path

import pytest

from tests.servers import server
from tests.unit.cli.support import ORDERS
from tests.unit.cli.test_running import Process, emit

pytestmark = pytest.mark.services

MAIN = """
import cqrs

app = cqrs.bootstrap(scan=__package__, exclude=[__name__], name="{name}", database="{database}", broker="{broker}")
"""


@pytest.mark.parametrize("variable", ["KAFKA_URL", "RABBITMQ_URL"])
def test_roles_are_divided_between_processes(tmp_path: Path, variable: str):
    broker, name = server(variable), f"shop_{uuid.uuid4().hex[:8]}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").touch()
    database = f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
    (package / "orders.py").write_text(ORDERS.replace('topic="orders"', f'topic="{name}"'))
    (package / "main.py").write_text(MAIN.format(name=name, database=database, broker=broker))
    relaying = Process(tmp_path, f"{name}.main:app", "--no-consume")
    consuming = Process(tmp_path, f"{name}.main:app", "--no-relay")
    try:
        relaying.wait_for(f"'{name}' relays as process")
        consuming.wait_for(f"'{name}' consumes as process")
        emit(tmp_path, name, "tea")
        consuming.wait_for("receipt for tea", seconds=60)
        assert not relaying.has_said("receipt for tea")
        assert [relaying.end(15), consuming.end(15)] == [0, 0]
    finally:
        relaying.close()
        consuming.close()
