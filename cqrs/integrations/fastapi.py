"""FastAPI: the application's lifetime, dependencies, errors, exposed messages, and what probes ask.

The only module that knows how a FastAPI application and an application of this toolkit belong together.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

try:
    from fastapi import APIRouter, Depends, FastAPI
    from starlette.requests import HTTPConnection
    from starlette.responses import JSONResponse
except ModuleNotFoundError as error:
    if error.name not in ("fastapi", "starlette"):
        raise
    raise ModuleNotFoundError(
        "This needs the package fastapi. Run: pip install 'cqrs-toolkit[fastapi]'", name="fastapi"
    ) from None

from cqrs import health
from cqrs.errors import MisuseError
from cqrs.integrations.exposure import Exposed, expose, router
from cqrs.integrations.problems import problem_response, problem_responses, problems
from cqrs.mediator import Mediator
from cqrs.origin import Origin, coming_from, origin_of

__all__ = [
    "Exposed",
    "Lifespan",
    "Origin",
    "expose",
    "get_mediator",
    "get_origin",
    "lifespan",
    "probes",
    "problem_response",
    "problem_responses",
    "problems",
    "router",
]

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]
"""What `FastAPI(lifespan=...)` takes."""


def lifespan(app: Mediator, *, consume: bool = False, inner: Lifespan | None = None) -> Lifespan:
    """Return what `FastAPI(lifespan=...)` takes: the application is open while the server runs.

    With `consume` the published events that the application handles are taken from the broker meanwhile. `inner` is a
    lifespan of yours: it begins when the application is open, ends before it closes, and what it yields is the state
    of requests as ever.
    """

    @asynccontextmanager
    async def run(api: FastAPI) -> AsyncGenerator[Any]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(app)
            if consume:
                await stack.enter_async_context(app.consuming())
            api.state.mediator = app
            yield await stack.enter_async_context(inner(api)) if inner is not None else None

    return run


async def get_origin(connection: HTTPConnection) -> AsyncGenerator[Origin]:
    """Let what is sent in a request belong to its story, for `Depends`: correlation id and W3C trace headers.

    As one of `FastAPI(dependencies=[...])` it does so for every route.
    """
    with coming_from(origin_of(connection.headers)) as found:
        yield found


async def get_mediator(connection: HTTPConnection, _origin: Annotated[Origin, Depends(get_origin)]) -> Mediator:
    """Return the application that `lifespan` has opened, for `Depends`; what is sent belongs to the request's story."""
    found: Mediator | None = getattr(connection.app.state, "mediator", None)
    if found is None:
        raise MisuseError(
            "No application was opened for this FastAPI. Pass it: FastAPI(lifespan=lifespan(app)). In a test without "
            "a server use `async with api.router.lifespan_context(api):`."
        )
    return found


def probes(app: Mediator, *, timeout: float = health.TIMEOUT, max_lag: float | None = None) -> APIRouter:
    """Return the routes `/livez`, which says that the process answers, and `/readyz`, which says how it is.

    `/readyz` looks at the database, the schema, the broker and the outbox's lag, and answers 503 unless all is well,
    within about `timeout` seconds. With `max_lag` it is not ready when a saved event has waited for so many seconds.
    """
    routes = APIRouter(include_in_schema=False)

    @routes.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:
        found = await health.examine(app, timeout=timeout, max_lag=max_lag) if app.is_open else health.CLOSED
        return JSONResponse(found.figures, 200 if found.is_ready else 503, {"cache-control": "no-store"})

    return routes
