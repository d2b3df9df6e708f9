"""The files of a starter project, in which NAME stands for its package; `cqrs init` writes them, tests run them."""

from __future__ import annotations

import json
import shlex

ORDERS = '''\
"""What can be asked, what happens, and who acts on it."""

import logging
import uuid

import cqrs

log = logging.getLogger(__name__)


class PlaceOrder(cqrs.Command[str]):
    """Answered by the order's id."""

    sku: str
    quantity: int = 1


@cqrs.integration_event(topic="orders", key="order_id")
class OrderPlaced(cqrs.Event):
    """Saved with the command that emits it, delivered after its commit."""

    order_id: str
    sku: str
    quantity: int


@cqrs.command_handler
async def place_order(command: PlaceOrder, context: cqrs.Context) -> str:
    order_id = str(uuid.uuid4())
    placed = OrderPlaced(order_id=order_id, sku=command.sku, quantity=command.quantity)
    context.emit(placed)
    return order_id


@cqrs.event_handler
async def send_receipt(event: OrderPlaced) -> None:
    log.info("Receipt for order %s: %d x %s", event.order_id, event.quantity, event.sku)
'''

MAIN = '''\
"""The application, put together; without a broker it delivers itself."""

import os

import cqrs

app = cqrs.bootstrap(
    scan="NAME.orders",
    name="NAME",
    database=os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///NAME.db"),
    broker=os.environ.get("BROKER_URL") or None,
)
'''

PLACE = '''\
"""Places an order: `python -m NAME coffee`."""

import asyncio
import logging
import sys

from NAME.main import app
from NAME.orders import PlaceOrder


async def main(sku: str = "tea") -> None:
    async with app:
        print("Order", await app.send(PlaceOrder(sku=sku)))
        await app.drain()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("NAME").setLevel(logging.INFO)
    asyncio.run(main(*sys.argv[1:2]))
'''

API = '''\
"""The application behind HTTP; `lifespan(app, consume=True)` would consume as well."""

from cqrs.integrations.fastapi import expose, lifespan, probes, problems, router
from fastapi import FastAPI

from NAME.main import app
from NAME.orders import PlaceOrder

api = FastAPI(title="NAME", lifespan=lifespan(app), exception_handlers=problems())
api.include_router(router(app, expose(PlaceOrder, "POST /orders", status=201)))
api.include_router(probes(app))
'''

TEST_ORDERS = '''\
"""An order from the command to the receipt, on a database of its own."""

from NAME.main import app
from NAME.orders import OrderPlaced, PlaceOrder


async def test_an_order_gets_its_receipt(cqrs_harness, caplog):
    caplog.set_level("INFO")
    async with cqrs_harness(app) as t:
        order_id = await t.send(PlaceOrder(sku="tea", quantity=2))
        t.assert_published(OrderPlaced, order_id=order_id, quantity=2)
        t.assert_no_failures()
    assert f"Receipt for order {order_id}: 2 x tea" in caplog.messages
'''

TEST_API = '''\
"""The API, as a client sees it."""

import httpx
import pytest

from NAME.api import api
from NAME.main import app
from NAME.orders import OrderPlaced


@pytest.fixture
async def client():
    transport = httpx.ASGITransport(api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_an_order_is_placed(cqrs_harness, client):
    async with cqrs_harness(app) as t:
        answer = await client.post("/orders", json={"sku": "tea", "quantity": 2})
        assert answer.status_code == 201
        await t.settle()
        t.assert_published(OrderPlaced, order_id=answer.json(), quantity=2)


async def test_an_order_without_an_article_is_refused(cqrs_harness, client):
    async with cqrs_harness(app) as t:
        answer = await client.post("/orders", json={"quantity": 2})
        assert answer.status_code == 422
        t.assert_not_emitted(OrderPlaced)
'''

PROJECT = """\
[project]
name = "NAME"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = [DEPENDENCIES]

[dependency-groups]
test = [TESTED_WITH]

[tool.pytest.ini_options]
asyncio_default_fixture_loop_scope = "function"
asyncio_mode = "auto"
pythonpath = ["."]
testpaths = ["tests"]
"""

README = """\
# NAME

COMMANDS

An order, from another shell:

    ORDER

`cqrs list NAME.main:app` shows what is wired, `cqrs explain NAME.main:app PlaceOrder` why.

On servers the code is the same. `run` then consumes from the broker what is published to it:

    pip install 'cqrs-toolkit[cli,postgres,kafka,faststream]'
    export DATABASE_URL=postgresql+asyncpg://user:password@localhost/NAME
    export BROKER_URL=kafka://localhost:9092
    cqrs db upgrade NAME.main:app
    cqrs run NAME.main:app
"""

TESTS = "python -m pytest"


def commands(name: str, kind: str) -> tuple[str, str, str]:
    """Return the commands of a project: what installs all that it needs, its tests, and what runs it."""
    needed, tested_with = libraries(kind)
    run = f"uvicorn {name}.api:api" if kind == "fastapi" else f"cqrs run {name}.main:app"
    return f"pip install {shlex.join([*needed, *tested_with])}", TESTS, run


def order(kind: str) -> str:
    """Return the command that places an order in a project that runs."""
    return 'curl --json \'{"sku": "tea"}\' localhost:8000/orders' if kind == "fastapi" else "python -m NAME tea"


def libraries(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a project needs to run, and what to test it, as pip names it."""
    if kind == "fastapi":
        return ("cqrs-toolkit[cli,fastapi]", "uvicorn"), ("httpx", "pytest", "pytest-asyncio")
    return ("cqrs-toolkit[cli]",), ("pytest", "pytest-asyncio")


def files(name: str, kind: str) -> dict[str, str]:
    """Return the files of a project, by their paths."""
    needed, tested_with = (json.dumps(each)[1:-1] for each in libraries(kind))
    listed = "\n".join(f"    {command}" for command in commands(name, kind))
    found = {
        "pyproject.toml": PROJECT.replace("DEPENDENCIES", needed).replace("TESTED_WITH", tested_with),
        "README.md": README.replace("COMMANDS", listed).replace("ORDER", order(kind)),
        ".gitignore": "__pycache__/\n.venv/\n*.db\n*.db-*\n",
        f"{name}/__init__.py": "",
        f"{name}/orders.py": ORDERS,
        f"{name}/main.py": MAIN,
        "tests/test_orders.py": TEST_ORDERS,
    }
    if kind == "fastapi":
        found |= {f"{name}/api.py": API, "tests/test_api.py": TEST_API}
    else:
        found |= {f"{name}/__main__.py": PLACE}
    return {path: text.replace("NAME", name) for path, text in found.items()}
