"""The files of a starter project, in which NAME stands for its package; `cqrs init` writes them, tests run them."""

from __future__ import annotations

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
"""The application, put together."""

import os

import cqrs


def make_app(database: str, broker: str | None = None) -> cqrs.Mediator:
    """Return the application on these servers; without a broker it delivers itself."""
    return cqrs.bootstrap(
        scan="NAME.orders",
        name="NAME",
        database=database,
        broker=broker,
    )


app = make_app(
    os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///NAME.db"),
    os.environ.get("BROKER_URL") or None,
)
'''

API = '''\
"""The application behind HTTP."""

import cqrs
from cqrs.integrations.fastapi import expose, lifespan, probes, problems, router
from fastapi import FastAPI

from NAME.main import app
from NAME.orders import PlaceOrder


def make_api(app: cqrs.Mediator) -> FastAPI:
    """Return the API; `lifespan(app, consume=True)` would consume as well."""
    api = FastAPI(
        title="NAME",
        lifespan=lifespan(app),
        exception_handlers=problems(),
    )
    api.include_router(router(app, expose(PlaceOrder, "POST /orders", status=201)))
    api.include_router(probes(app))
    return api


api = make_api(app)
'''

TEST_ORDERS = '''\
"""An order from the command to the receipt, on a database of its own."""

import asyncio
from pathlib import Path

import pytest

from NAME.main import make_app
from NAME.orders import PlaceOrder


def test_an_order_gets_its_receipt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    order_id = asyncio.run(place_and_deliver(f"sqlite+aiosqlite:///{tmp_path}/test.db"))
    assert f"Receipt for order {order_id}: 2 x tea" in caplog.messages


async def place_and_deliver(database: str) -> str:
    async with make_app(database) as app:
        order_id = await app.send(PlaceOrder(sku="tea", quantity=2))
        await app.drain()
    return order_id
'''

TEST_API = '''\
"""The API, as a client sees it."""

import asyncio
from pathlib import Path

import httpx

from NAME.api import make_api
from NAME.main import make_app


def test_an_order_is_created(tmp_path: Path) -> None:
    answer = asyncio.run(post(tmp_path, {"sku": "tea", "quantity": 2}))
    assert answer.status_code == 201
    assert isinstance(answer.json(), str)


def test_an_order_without_an_article_is_refused(tmp_path: Path) -> None:
    answer = asyncio.run(post(tmp_path, {"quantity": 2}))
    assert answer.status_code == 422


async def post(folder: Path, order: dict[str, object]) -> httpx.Response:
    app = make_app(f"sqlite+aiosqlite:///{folder}/test.db")
    transport = httpx.ASGITransport(make_api(app))
    client = httpx.AsyncClient(transport=transport, base_url="http://test")
    async with app, client:
        return await client.post("/orders", json=order)
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
pythonpath = ["."]
testpaths = ["tests"]
"""

README = """\
# NAME

COMMANDS

`cqrs list NAME.main:app` shows what is wired, `cqrs explain NAME.main:app PlaceOrder` why. On servers, set
`DATABASE_URL` and `BROKER_URL`, and add their clients: `pip install 'cqrs-toolkit[postgres,kafka]'`.
"""

TESTS = "python -m pytest"


def commands(name: str, kind: str) -> tuple[str, str]:
    """Return the two commands of a project: its tests, and what runs it."""
    return TESTS, ("uvicorn NAME.api:api" if kind == "fastapi" else "cqrs run NAME.main:app").replace("NAME", name)


def libraries(kind: str) -> tuple[str, str]:
    """Return what a project needs to run, and what to test it, as pip names it."""
    if kind == "fastapi":
        return '"cqrs-toolkit[cli,fastapi]", "uvicorn"', '"httpx", "pytest"'
    return '"cqrs-toolkit[cli]"', '"pytest"'


def files(name: str, kind: str) -> dict[str, str]:
    """Return the files of a project, by their paths."""
    needed, tested_with = libraries(kind)
    listed = "\n".join(f"    {command}" for command in commands(name, kind))
    found = {
        "pyproject.toml": PROJECT.replace("DEPENDENCIES", needed).replace("TESTED_WITH", tested_with),
        "README.md": README.replace("COMMANDS", listed),
        ".gitignore": "__pycache__/\n.venv/\n*.db\n*.db-*\n",
        f"{name}/__init__.py": "",
        f"{name}/orders.py": ORDERS,
        f"{name}/main.py": MAIN,
        "tests/test_orders.py": TEST_ORDERS,
    }
    if kind == "fastapi":
        found |= {f"{name}/api.py": API, "tests/test_api.py": TEST_API}
    return {path: text.replace("NAME", name) for path, text in found.items()}
