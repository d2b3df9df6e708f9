import asyncio
from typing import Any
from urllib.parse import quote

import fastapi
import httpx
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqrs
from cqrs.integrations.fastapi import expose, problems, router
from cqrs.integrations.fields import fields_of

registry = cqrs.Registry()
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
segments = words.filter(lambda text: text not in (".", "..") and "/" not in text)


class Place(cqrs.Command[dict[str, Any]]):
    shelf: str
    number: int
    sku: str
    fresh: bool = True
    tags: list[str] = []  # noqa: RUF012 - pydantic copies it
    weight: float | None = None


class Find(cqrs.Query[dict[str, Any]]):
    shelf: str
    number: int
    sku: str
    fresh: bool = True
    tags: list[str] = []  # noqa: RUF012 - pydantic copies it
    weight: float | None = None


@registry.command_handler
async def place(command: Place) -> dict[str, Any]:
    return command.model_dump()


@registry.query_handler
async def find(query: Find) -> dict[str, Any]:
    return query.model_dump()


app = cqrs.bootstrap(registry=registry, name="fields")
api = fastapi.FastAPI(exception_handlers=problems())
api.include_router(
    router(
        app,
        expose(Place, "POST /places"),
        expose(Place, "PUT /shelves/{shelf}/{number}"),
        expose(Find, "GET /shelves/{shelf}/{number}"),
    )
)

values = st.fixed_dictionaries(
    {"shelf": segments, "number": st.integers(-(10**30), 10**30), "sku": words},
    optional={
        "fresh": st.booleans(),
        "tags": st.lists(words, max_size=3),
        "weight": st.floats(allow_nan=False, allow_infinity=False),
    },
)


def ask(method: str, path: str, **options: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


def in_path(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a path with the first fields, and the others."""
    rest = {name: value for name, value in found.items() if name not in ("shelf", "number")}
    return f"/shelves/{quote(found['shelf'], safe='')}/{found['number']}", rest


@given(values)
def test_what_a_body_says_is_what_the_handler_gets(found: dict[str, Any]):
    assert ask("POST", "/places", json=found).json() == Place(**found).model_dump()


@given(values)
def test_what_path_and_body_say_is_what_the_handler_gets(found: dict[str, Any]):
    path, rest = in_path(found)
    assert ask("PUT", path, json=rest).json() == Place(**found).model_dump()


@given(values)
def test_what_path_and_query_say_is_what_the_handler_gets(found: dict[str, Any]):
    path, rest = in_path(found)
    assert ask("GET", path, params=rest).json() == Find(**found).model_dump()


def test_an_alias_is_the_name_outside(registry: cqrs.Registry):
    class Rename(cqrs.Command[str], alias_generator=str.upper, populate_by_name=True):
        shelf: str
        title: str
        by: str = pydantic.Field(default="me", validation_alias=pydantic.AliasChoices("author", "by"))

    @registry.command_handler
    async def rename(command: Rename) -> str:
        return f"{command.shelf} {command.title} {command.by}"

    named = fastapi.FastAPI(exception_handlers=problems())
    named.include_router(
        router(
            cqrs.bootstrap(registry=registry),
            expose(Rename, "PUT /shelves/{shelf}"),
            expose(Rename, "DELETE /x/{shelf}"),
        )
    )

    async def asked(method: str, path: str, **options: Any) -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(named), base_url="http://test") as client:
            return (await client.request(method, path, **options)).json()

    assert asyncio.run(asked("PUT", "/shelves/one", json={"TITLE": "tea", "author": "you"})) == "one tea you"
    assert asyncio.run(asked("DELETE", "/x/one?TITLE=tea&author=you")) == "one tea you"


@pytest.mark.parametrize("message", [int, dict])
def test_a_class_without_fields_has_none(message: type):
    assert fields_of(message) is None
