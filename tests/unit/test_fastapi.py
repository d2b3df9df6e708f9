import builtins
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import fastapi
import httpx
import pytest

import cqrs
from cqrs.integrations.fastapi import Origin, OriginMiddleware, get_mediator, get_origin, lifespan, probes
from cqrs.origin import origin
from tests.unit.support import RecordingPublisher
from tests.unit.web import client

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Ask(cqrs.Command[str]):
    text: str = "what"


@pytest.fixture
def app(registry: cqrs.Registry, database: str) -> cqrs.Mediator:
    @registry.command_handler
    async def answer(command: Ask, context: cqrs.Context) -> str:
        return f"{command.text} {context.correlation_id} {context.headers.get('traceparent')}"

    return cqrs.bootstrap(registry=registry, database=database)


# The lifespan


async def test_the_application_is_open_while_the_server_runs(app: cqrs.Mediator):
    api = fastapi.FastAPI(lifespan=lifespan(app))
    async with api.router.lifespan_context(api):
        assert app.is_open
    assert not app.is_open


async def test_a_lifespan_of_ones_own_runs_while_the_application_is_open(app: cqrs.Mediator):
    seen = []

    @asynccontextmanager
    async def mine(api: fastapi.FastAPI) -> AsyncGenerator[dict[str, str]]:
        seen.append(("begins", app.is_open))
        yield {"tea": "assam"}
        seen.append(("ends", app.is_open))

    api = fastapi.FastAPI(lifespan=lifespan(app, inner=mine))
    async with api.router.lifespan_context(api) as state:
        assert state == {"tea": "assam"}
    assert seen == [("begins", True), ("ends", True)]


async def test_a_lifespan_of_ones_own_that_fails_closes_the_application(app: cqrs.Mediator):
    @asynccontextmanager
    async def mine(api: fastapi.FastAPI) -> AsyncGenerator[None]:
        raise RuntimeError("no tea")
        yield

    api = fastapi.FastAPI(lifespan=lifespan(app, inner=mine))
    with pytest.raises(RuntimeError, match="no tea"):
        async with api.router.lifespan_context(api):
            pass
    assert not app.is_open


@pytest.mark.parametrize("consume", [True, False])
async def test_events_are_consumed_only_where_that_was_asked_for(
    app: cqrs.Mediator, monkeypatch: pytest.MonkeyPatch, consume: bool
):
    seen = []

    @asynccontextmanager
    async def consuming() -> AsyncGenerator[None]:
        seen.append(("begins", app.is_open))
        yield
        seen.append(("ends", app.is_open))

    monkeypatch.setattr(app, "consuming", consuming, raising=False)
    api = fastapi.FastAPI(lifespan=lifespan(app, consume=consume))
    async with api.router.lifespan_context(api):
        pass
    assert seen == ([("begins", True), ("ends", True)] if consume else [])


# Dependencies


async def test_a_route_is_given_the_application_and_what_it_sends_belongs_to_the_request(app: cqrs.Mediator):
    api = fastapi.FastAPI(lifespan=lifespan(app))

    @api.post("/ask")
    async def ask(command: Ask, mediator: Annotated[cqrs.Mediator, fastapi.Depends(get_mediator)]) -> str:
        return await mediator.send(command)

    async with client(api) as asking:
        answer = await asking.post("/ask", json={}, headers={"x-correlation-id": "story-1", "traceparent": PARENT})
    assert answer.json() == f"what story-1 {PARENT}"
    assert origin() == Origin()


async def test_the_design_s_route_works_as_written(app: cqrs.Mediator):
    api = fastapi.FastAPI(lifespan=lifespan(app))

    def get_my_mediator() -> cqrs.RequestMediator:
        return app

    @api.post("/ask")
    async def ask(command: Ask, mediator: cqrs.RequestMediator = fastapi.Depends(get_my_mediator)):  # noqa: B008, FAST002 - as the design has it
        return await mediator.send(command)

    async with client(api) as asking:
        answer = await asking.post("/ask", json={"text": "who"}, headers={"x-request-id": "story-2"})
    assert answer.json() == "who story-2 None"


async def test_a_route_may_ask_for_the_origin_itself(app: cqrs.Mediator):
    api = fastapi.FastAPI(lifespan=lifespan(app))

    @api.get("/story")
    async def story(origin: Annotated[Origin, fastapi.Depends(get_origin)]) -> str | None:
        return origin.correlation_id

    async with client(api) as asking:
        assert (await asking.get("/story", headers={"x-correlation-id": "story-3"})).json() == "story-3"
        assert (await asking.get("/story")).json() is None


async def test_where_there_is_another_lifespan_a_middleware_takes_the_story(app: cqrs.Mediator):
    @asynccontextmanager
    async def mine(api: fastapi.FastAPI) -> AsyncGenerator[None]:
        async with app:
            yield

    api = fastapi.FastAPI(lifespan=mine)
    api.add_middleware(OriginMiddleware)

    @api.post("/ask")
    async def ask(command: Ask) -> str:
        return await app.send(command)

    async with client(api) as asking:
        answer = await asking.post("/ask", json={}, headers={"x-correlation-id": "story-4"})
    assert answer.json() == "what story-4 None"


async def test_after_the_lifespan_the_api_is_as_it_was(app: cqrs.Mediator):
    api = fastapi.FastAPI(lifespan=lifespan(app))
    for _ in range(2):
        async with api.router.lifespan_context(api):
            assert isinstance(api.middleware_stack, OriginMiddleware)
        assert not isinstance(api.middleware_stack, OriginMiddleware)


async def test_an_application_that_nobody_has_opened_says_how(app: cqrs.Mediator):
    api = fastapi.FastAPI()

    @api.get("/")
    async def index(mediator: Annotated[cqrs.Mediator, fastapi.Depends(get_mediator)]) -> None: ...

    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as asking:
        with pytest.raises(cqrs.MisuseError, match=r"FastAPI\(lifespan=lifespan\(app\)\)"):
            await asking.get("/")


# Probes


async def test_an_open_application_is_alive_and_ready(app: cqrs.Mediator):
    api = fastapi.FastAPI(lifespan=lifespan(app))
    api.include_router(probes(app))
    async with client(api) as asking:
        alive, ready = await asking.get("/livez"), await asking.get("/readyz")
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert list(ready.json()["checks"]) == ["database", "schema", "broker", "lag"]
    assert ready.headers["cache-control"] == "no-store"


async def test_an_application_is_not_ready_while_its_broker_is_out_of_reach(registry: cqrs.Registry, database: str):
    class Away(RecordingPublisher):
        async def ping(self) -> None:
            raise cqrs.PublishError("The broker is away.")

    app = cqrs.bootstrap(registry=registry, database=database, broker=Away())
    api = fastapi.FastAPI(lifespan=lifespan(app))
    api.include_router(probes(app))
    async with client(api) as asking:
        alive, ready = await asking.get("/livez"), await asking.get("/readyz")
    assert alive.status_code == 200
    assert ready.status_code == 503
    assert ready.json()["checks"]["broker"]["reason"] == "The broker is away."


async def test_an_application_that_is_not_open_is_not_ready(app: cqrs.Mediator):
    api = fastapi.FastAPI()
    api.include_router(probes(app))
    async with client(api) as asking:
        ready = await asking.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["application"]["state"]) == (503, "failed")


def test_probes_are_not_in_the_documentation(app: cqrs.Mediator):
    api = fastapi.FastAPI()
    api.include_router(probes(app))
    assert api.openapi()["paths"] == {}


def test_without_fastapi_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *arguments):
        if name == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *arguments)

    monkeypatch.delitem(sys.modules, "cqrs.integrations.fastapi")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cqrs-toolkit\[fastapi\]'"):
        import cqrs.integrations.fastapi  # noqa: F401
