import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cqrs
from cqrs.cli.opening import assigned
from tests.unit.cli.support import run, shop
from tests.unit.conftest import WritePackage

ROOT = Path(cqrs.__file__).parents[1]
EMIT = """
import asyncio, sys
from {name}.main import app
from {name}.orders import PlaceOrder

async def main():
    async with app:
        for sku in sys.argv[1:]:
            await app.send(PlaceOrder(sku=sku))

asyncio.run(main())
"""


class Process:
    """A `cqrs run`, what it prints, and what it logs."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "cqrs", "run", *arguments],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in iter(self.child.stdout.readline, ""))

    def has_said(self, text: str, times: int = 1) -> bool:
        return sum(text in line for line in list(self.lines)) >= times

    def wait_for(self, text: str, times: int = 1, seconds: float = 30.0) -> None:
        poll(lambda: self.has_said(text, times) or self.child.poll() is not None, seconds)
        assert self.has_said(text, times), self.lines

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        if self.child.stdout is not None:
            self.child.stdout.close()

    def end(self, number: int) -> int:
        self.child.send_signal(number)
        return self.child.wait(timeout=30)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def poll(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        threading.Event().wait(0.02)


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process(tmp_path, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def name(package: WritePackage, database: str) -> str:
    return package(shop(database, "relay=False"))


def emit(folder: Path, name: str, *skus: str) -> None:
    program = EMIT.format(name=name)
    subprocess.run([sys.executable, "-c", program, *skus], cwd=folder, env=environment(), check=True, timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_it_relays_what_others_saved_until_a_signal(start: Start, name: str, tmp_path: Path, number: int):
    emit(tmp_path, name, "tea")
    process = start(f"{name}.main:app")
    process.wait_for("'shop' relays as process")
    process.wait_for("receipt for tea")
    emit(tmp_path, name, "coffee")
    process.wait_for("receipt for coffee")
    assert process.end(number) == 0
    process.wait_for("'shop' has stopped.")


SLOW = """
import asyncio
import cqrs
from .orders import OrderPlaced


@cqrs.event_handler
async def pack(event: OrderPlaced) -> None:
    print("packing", flush=True)
    await asyncio.sleep({seconds})
    print("packed", flush=True)
"""


@pytest.mark.slow
def test_what_is_in_flight_finishes_within_the_grace_period(
    start: Start, package: WritePackage, database: str, tmp_path: Path
):
    name = package(shop(database, "relay=False") | {"slow.py": SLOW.format(seconds=1)})
    emit(tmp_path, name, "tea")
    process = start(f"{name}.main:app")
    process.wait_for("packing")
    assert process.end(signal.SIGTERM) == 0
    process.wait_for("packed")


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(start: Start, package: WritePackage, database: str, tmp_path: Path):
    name = package(shop(database, "relay=False, grace=60.0") | {"slow.py": SLOW.format(seconds=60)})
    emit(tmp_path, name, "tea")
    process = start(f"{name}.main:app")
    process.wait_for("packing")
    process.child.send_signal(signal.SIGTERM)
    process.wait_for("'shop' stops")
    assert process.end(signal.SIGTERM) == -signal.SIGTERM


def test_without_the_relay_and_without_a_broker_there_is_nothing_to_run(name: str):
    assert run("run", f"{name}.main:app", "--no-relay", code=1).stderr == (
        "Error: Application 'shop' has no broker, so with --no-relay there is nothing to run.\n"
    )


@pytest.mark.slow
def test_it_starts_again_when_a_file_changes(start: Start, name: str, tmp_path: Path):
    process = start(f"{name}.main:app", "--reload")
    process.wait_for("'shop' relays as process")
    (tmp_path / name / "orders.py").touch()
    process.wait_for("'shop' has stopped.")
    process.wait_for("'shop' relays as process", times=2)
    process.end(signal.SIGTERM)
    process.wait_for("'shop' has stopped.", times=2)


def test_neither_role_is_a_wrong_usage(name: str):
    error = run("run", f"{name}.main:app", "--no-relay", "--no-consume", code=2).stderr
    assert "With neither --relay nor --consume there is nothing to run." in error


BROKEN = """
import cqrs


@cqrs.integration_event(topic="orders")
class OrderPlaced(cqrs.Event):
    pass


%s

app = cqrs.bootstrap(name="shop", database="sqlite+aiosqlite:///%s/app.db", broker="kafka://127.0.0.1:1", grace=0.1)
"""
HANDLER = """
@cqrs.event_handler
async def bill(event: OrderPlaced) -> None: ...
"""


@pytest.mark.usefixtures("own_registrations")
def test_without_faststream_a_sentence_says_what_to_install(
    package: WritePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in ("cqrs.integrations.faststream", "cqrs.integrations.subscribing"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in ("cqrs.integrations.from_kafka", "cqrs.integrations.from_rabbitmq"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "faststream", None)
    name = package({"main.py": BROKEN % (HANDLER, tmp_path)})
    error = run("run", f"{name}.main:app", code=1).stderr
    assert error.endswith(
        "Error: Consuming needs the package faststream. Run: pip install 'cqrs-toolkit[faststream]'\n"
    )


def test_an_application_without_a_database_has_nothing_to_run(package: WritePackage):
    name = package({"main.py": "import cqrs\n\napp = cqrs.bootstrap(registry=cqrs.Registry(), name='shop')\n"})
    assert run("run", f"{name}.main:app", code=1).stderr == (
        "Error: Application 'shop' has no database, so it has no outbox.\n"
    )


def test_a_database_that_cannot_be_used_ends_with_4(package: WritePackage, tmp_path: Path):
    name = package(shop(f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/app.db"))
    error = run("run", f"{name}.main:app", code=4).stderr
    assert "cannot be connected to" in error
    assert "Traceback" not in error


def test_the_roles_are_decided_here_whatever_bootstrap_was_told(registry: cqrs.Registry, database: str):
    app = cqrs.bootstrap(registry=registry, database=database, relay=False)
    relaying = assigned(app, relay=True)
    assert relaying.blueprint is not None
    assert relaying.blueprint.wishes.relay
    assert assigned(app, relay=False) is app
