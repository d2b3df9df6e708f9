"""A FastAPI application under test: open, and asked without a server."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import fastapi
import httpx


@asynccontextmanager
async def client(api: fastapi.FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    """Ask the application while its lifespan runs; what it raises is answered, as a server would."""
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with (
        api.router.lifespan_context(api),
        httpx.AsyncClient(transport=transport, base_url="http://test") as asking,
    ):
        yield asking
