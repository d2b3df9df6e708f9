"""FastAPI: the application's lifetime, dependencies, errors, exposed messages, and what probes ask.

The only module that knows how a FastAPI application and an application of this toolkit belong together.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

try:
    from fastapi import APIRouter, FastAPI
    from starlette.requests import HTTPConnection
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp, Receive, Scope, Send
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
from cqrs.origin import Origin, origin, origin_of, teller

__all__ = [
    "Exposed",
    "Lifespan",
    "Origin",
    "OriginMiddleware",
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

    Meanwhile what is sent in a request belongs to the request's story, and with `consume` the published events that
    the application handles are taken from the broker. `inner` is a lifespan of yours: it begins when the application is
    open, ends before it closes, and what it yields is the state of requests as ever.
    """

    @asynccontextmanager
    async def run(api: FastAPI) -> AsyncGenerator[Any]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(app)
            if consume:
                await stack.enter_async_context(app.consuming())
            api.state.mediator = app
            stack.enter_context(_with_origins(api))
            yield await stack.enter_async_context(inner(api)) if inner is not None else None

    return run


class OriginMiddleware:
    """Lets what is sent in a request belong to its story: its correlation id and W3C trace headers.

    `lifespan` puts it around an application by itself; where there is another lifespan, `api.add_middleware` does.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        token = teller.set(partial(origin_of, scope["headers"]))
        try:
            await self._app(scope, receive, send)
        finally:
            teller.reset(token)


@contextmanager
def _with_origins(api: FastAPI) -> Generator[None]:
    inside = api.middleware_stack or api.build_middleware_stack()
    api.middleware_stack = OriginMiddleware(inside)  # too late for add_middleware: the lifespan runs in the stack
    try:
        yield
    finally:
        api.middleware_stack = inside


async def get_origin() -> Origin:
    """Return what the request says of its story, for `Depends`."""
    return origin()


async def get_mediator(connection: HTTPConnection) -> Mediator:
    """Return the application that `lifespan` has opened, for `Depends`."""
    found: Mediator | None = getattr(connection.app.state, "mediator", None)
    if found is None:
        raise MisuseError(
            "No application was opened for this FastAPI. Pass it: FastAPI(lifespan=lifespan(app)). In a test without "
            "a server use `async with api.router.lifespan_context(api):`."
        )
    return found


def probes(
    app: Mediator, *, timeout: float = health.TIMEOUT, max_lag: float | None = None, despite: Collection[str] = ()
) -> APIRouter:
    """Return the routes `/livez`, which says that the process answers, and `/readyz`, which says how it is.

    `/readyz` looks at the database, the schema, the broker and the outbox's lag, and answers 503 unless all is well,
    within about `timeout` seconds. With `max_lag` it is not ready when a saved event has waited for so many seconds.
    `despite` names checks that are only told, as in `despite=["broker"]`.
    """
    health.refuse_unknown(despite)
    routes = APIRouter(include_in_schema=False)

    @routes.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:
        options: Any = {"timeout": timeout, "max_lag": max_lag, "despite": despite}
        found = await health.examine(app, **options) if app.is_open else health.CLOSED
        return JSONResponse(found.figures, 200 if found.is_ready else 503, {"cache-control": "no-store"})

    return routes
