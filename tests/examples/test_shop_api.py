"""The shop behind HTTP: what it answers, also to nonsense and to two at once."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from yarl import URL

from examples.shop.api import make_api
from examples.shop.app import make_shop
from examples.shop.demo.broker import create_topic
from examples.shop.tables import create
from tests.examples.shop import kafka, rows, shop_on
from tests.examples.web import LOOK, PATIENCE, serving
from tests.proxy import Proxy
from tests.unit.web import client

ALONE = ("--factory", "examples.shop.api:serve_and_consume")
ORDER = {"line": 2, "order_id": "A-1", "customer": "ada", "sku": "mug", "quantity": 2}


@asynccontextmanager
async def shop_at(database: str) -> AsyncIterator[httpx.AsyncClient]:
    await create(database)
    async with client(make_api(make_shop(database))) as shop:
        yield shop


@pytest.fixture
async def database(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"


@pytest.fixture
async def shop(database: str) -> AsyncIterator[httpx.AsyncClient]:
    async with shop_at(database) as shop:
        yield shop


async def test_an_order_is_placed_and_shown(shop: httpx.AsyncClient):
    placed = await shop.post("/orders", json=ORDER)
    assert (placed.status_code, placed.json()) == (201, {"order_id": "A-1", "total": 2900})
    shown = await shop.get("/orders/A-1")
    assert shown.json() == {"order_id": "A-1", "customer": "ada", "sku": "mug", "quantity": 2, "total": 2900}
    assert (await shop.get("/last-line")).json() == 2


async def test_the_same_line_twice_is_one_order_and_another_one_is_refused(shop: httpx.AsyncClient):
    first, again = [await shop.post("/orders", json=ORDER) for _ in range(2)]
    other = await shop.post("/orders", json=ORDER | {"line": 3})
    assert again.json() == first.json()
    assert (other.status_code, other.json()["detail"]) == (409, "duplicate order id")
    assert other.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"sku": "unheard-of"}, 409, "unknown sku"),
        ({"quantity": 10**30}, 409, "not enough in stock"),
        ({"quantity": 0}, 422, "body.quantity: Input should be greater than 0"),
        ({"line": 2**31}, 422, "body.line: Input should be less than or equal to 2147483647"),
        ({"customer": "a\0"}, 422, "body.customer: String should match pattern '^[^\\x00]*$'"),
        ({"surplus": 1}, 422, "body.surplus: Extra inputs are not permitted"),
    ],
)
async def test_an_order_that_cannot_be_is_refused_with_its_reason(
    shop: httpx.AsyncClient, change: dict, status: int, detail: str
):
    answer = await shop.post("/orders", json=ORDER | change)
    assert (answer.status_code, answer.json()["detail"]) == (status, detail)


async def test_an_order_that_is_not_there_is_not_found(shop: httpx.AsyncClient):
    answer = await shop.get("/orders/A-9")
    assert (answer.status_code, answer.json()["detail"]) == (404, "there is no order A-9")


async def test_a_line_that_was_refused_is_noted(shop: httpx.AsyncClient, tmp_path: Path):
    assert (await shop.put("/refused-lines/7", json={"reason": "unknown sku"})).status_code == 204
    assert rows(tmp_path / "shop.db", "SELECT line, reason FROM refused_lines") == [(7, "unknown sku")]


async def test_it_says_how_it_is(shop: httpx.AsyncClient):
    ready = await shop.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")


async def test_schemathesis_finds_no_server_error(database: str, tmp_path: Path):
    await create(database)
    server = ("--factory", "examples.shop.api:serve")
    async with serving(*server, log=tmp_path / "log", DATABASE_URL=database, BROKER_URL="") as shop:
        await search(str(shop.base_url.join("/openapi.json")), tmp_path)


async def search(url: str, directory: Path) -> None:
    # Not whether all that the schema allows is taken: JSON Schema cannot say that a name is more than blanks.
    command = [Path(sys.executable).with_name("schemathesis"), "run", url, "--seed", "1"]
    command += ["--max-examples", "50", "--exclude-checks", "positive_data_acceptance"]
    environment = os.environ | {"NO_COLOR": "1", "PYTHONWARNINGS": "default"}
    ended = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Tested: 4" in ended.stdout


@pytest.mark.services
@pytest.mark.parametrize("database", ["POSTGRES_URL", "MYSQL_URL"])
async def test_two_orders_of_one_id_at_the_same_moment_are_one_and_a_refusal(database: str):
    async with shop_on(database, None) as place, shop_at(place["DATABASE_URL"]) as shop:
        for number in range(10):
            # Of different articles: two of one article come one after the other, as its row is locked.
            orders = [
                ORDER | {"order_id": f"A-{number}", "line": 2 + 2 * number + which, "sku": sku}
                for which, sku in enumerate(("mug", "honey"))
            ]
            answers = await asyncio.gather(*(shop.post("/orders", json=order) for order in orders))
            assert sorted(answer.status_code for answer in answers) == [201, 409], [a.text for a in answers]


@pytest.mark.services
async def test_the_same_order_twice_at_the_same_moment_is_one_order():
    async with shop_on("POSTGRES_URL", None) as place, shop_at(place["DATABASE_URL"]) as shop:
        for number in range(10):
            order = ORDER | {"order_id": f"A-{number}", "line": 2 + number}
            answers = await asyncio.gather(*(shop.post("/orders", json=order) for _ in range(3)))
            assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}


@pytest.mark.services
@pytest.mark.parametrize("broker", ["KAFKA_URL", "RABBITMQ_URL"])
async def test_one_process_serves_and_consumes(broker: str, tmp_path: Path):
    async with shop_on("POSTGRES_URL", broker) as place:
        await create(place["DATABASE_URL"])
        if broker == "KAFKA_URL":
            await create_topic(kafka(), place["SHOP_TOPIC"])
        async with serving(*ALONE, log=tmp_path / "log", **place) as shop:
            assert (await shop.post("/orders", json=ORDER)).status_code == 201
            await until_receipts(place, 1)
            ready = await until_ready(shop)
    assert {check["state"] for check in ready["checks"].values()} == {"ok"}
    assert "consuming" in ready["checks"]


@pytest.mark.services
async def test_orders_are_taken_while_the_broker_is_down_and_receipts_follow(tmp_path: Path):
    async with shop_on("POSTGRES_URL", "RABBITMQ_URL") as place:
        await create(place["DATABASE_URL"])
        broker = URL(place["BROKER_URL"])
        async with Proxy(broker.host or "localhost", broker.port or 5672) as proxy:
            proxy.cut()
            away = place | {"BROKER_URL": str(broker.with_host("127.0.0.1").with_port(proxy.port))}
            async with serving(*ALONE, log=tmp_path / "log", **away) as shop:
                assert (await shop.post("/orders", json=ORDER)).status_code == 201
                down = await shop.get("/readyz")
                proxy.resume()
                await until_receipts(place, 1)
                await until_ready(shop)
    assert down.status_code == 503
    assert f"RabbitMQ at 127.0.0.1:{proxy.port} is out of reach" in down.json()["checks"]["broker"]["reason"]
    assert down.json()["checks"]["consuming"]["state"] == "failed"
    assert down.json()["checks"]["database"]["state"] == "ok"
    assert f":{broker.password}@" not in down.text


async def until_receipts(place: dict[str, str], number: int) -> None:
    engine = create_async_engine(place["DATABASE_URL"])
    try:
        async with asyncio.timeout(PATIENCE):
            while await count(engine) < number:  # noqa: ASYNC110 - a database tells nobody
                await asyncio.sleep(LOOK)
    finally:
        await engine.dispose()


async def count(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return (await connection.execute(text("SELECT count(*) FROM receipts"))).scalar_one()


async def until_ready(shop: httpx.AsyncClient) -> dict:
    async with asyncio.timeout(PATIENCE):
        while (ready := await shop.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - as above
            await asyncio.sleep(LOOK)
    return ready.json()
