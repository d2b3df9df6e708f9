from typing import Annotated

import fastapi
import httpx
import pydantic
import pytest

import cqrs
from cqrs.integrations.fastapi import problem_response, problem_responses, problems
from tests.unit.web import client


class Refused(Exception):
    """What the domain says."""


class OutOfStock(Refused):
    """One of its kinds."""


class Order(pydantic.BaseModel, extra="forbid"):
    quantity: Annotated[float, pydantic.Field(gt=0)]


api = fastapi.FastAPI(exception_handlers=problems({Refused: 409, LookupError: 404}), responses=problem_responses(422))


@api.post("/orders")
async def order(order: Order) -> None: ...


@api.get("/fails/{how}")
async def fail(how: str) -> None:
    raise {
        "domain": OutOfStock("no more tea"),
        "silent": LookupError(),
        "unhandled": RuntimeError("password=secret"),
        "credentials": fastapi.HTTPException(401, "who are you?", {"www-authenticate": "Basic"}),
        "structured": fastapi.HTTPException(400, {"code": 7}),
        "unchanged": fastapi.HTTPException(304),
        "unheard": fastapi.HTTPException(499, "gone"),
    }[how]


async def ask(method: str, path: str, **options) -> httpx.Response:
    async with client(api) as asking:
        return await asking.request(method, path, **options)


async def test_an_invalid_request_says_where_it_is_wrong():
    answer = await ask("POST", "/orders", json={"quantity": 0})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    found = answer.json()
    assert found["title"].startswith("Unprocessable")
    assert found == {
        "type": "about:blank",
        "title": found["title"],
        "status": 422,
        "detail": "body.quantity: Input should be greater than 0",
        "errors": [{"loc": ["body", "quantity"], "msg": "Input should be greater than 0", "type": "greater_than"}],
    }


@pytest.mark.parametrize(
    "body",
    [b"{nope", b"[]", b"", b'{"quantity": NaN}', b'{"quantity": 1, "\\ud800": 1}', b'"\\ud800"', b"\xff", b"\x00"],
)
async def test_a_body_that_is_no_order_is_a_problem_of_the_client(body: bytes):
    answer = await ask("POST", "/orders", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "nonsense", ""])
async def test_another_content_type_is_a_problem_of_the_client(kind: str):
    answer = await ask("POST", "/orders", content=b'{"quantity": 1}', headers={"content-type": kind})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_secret_in_an_invalid_body_is_not_repeated():
    answer = await ask("POST", "/orders", json={"quantity": "secret"})
    assert answer.status_code == 422
    assert "secret" not in answer.text


async def test_what_the_domain_refuses_has_the_status_that_it_was_given():
    answer = await ask("GET", "/fails/domain")
    assert answer.json() == {"type": "about:blank", "title": "Conflict", "status": 409, "detail": "no more tea"}
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_refusal_without_words_has_no_detail():
    assert (await ask("GET", "/fails/silent")).json() == {"type": "about:blank", "title": "Not Found", "status": 404}


async def test_an_unhandled_error_tells_nothing():
    answer = await ask("GET", "/fails/unhandled")
    assert answer.status_code == 500
    assert answer.json()["detail"] == "Something went wrong here, and not with the request."
    assert "secret" not in answer.text


async def test_an_unhandled_error_reaches_the_server():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as asking:
        with pytest.raises(RuntimeError, match="password=secret"):
            await asking.get("/fails/unhandled")


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        ("GET", "/nowhere", 404, {}),
        ("DELETE", "/orders", 405, {"allow": "POST"}),
        ("GET", "/fails/credentials", 401, {"www-authenticate": "Basic"}),
        ("GET", "/fails/unheard", 499, {}),
    ],
)
async def test_what_fastapi_answers_itself_is_a_problem_with_its_headers(
    method: str, path: str, status: int, headers: dict[str, str]
):
    answer = await ask(method, path)
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert headers.items() <= dict(answer.headers).items()


async def test_a_detail_that_is_no_text_is_an_extension():
    assert (await ask("GET", "/fails/structured")).json()["errors"] == {"code": 7}


async def test_a_status_that_has_no_body_gets_none():
    answer = await ask("GET", "/fails/unchanged")
    assert (answer.status_code, answer.content) == (304, b"")


def test_openapi_says_that_invalid_requests_are_problems():
    answers = api.openapi()["paths"]["/orders"]["post"]["responses"]
    assert list(answers["422"]["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in api.openapi()["components"]["schemas"]


def test_a_problem_of_ones_own_has_members_of_its_own():
    assert b'"balance": 30' in problem_response(403, "not enough", balance=30).body


def test_everything_that_is_wrong_with_a_mapping_is_said():
    with pytest.raises(cqrs.ConfigurationError) as caught:
        problems({"Refused": 409, Refused: 200, BaseException: 400})
    assert [problem.what for problem in caught.value.problems] == [
        "'Refused' is no exception type",
        "<class 'BaseException'> is no exception type",
        "200 is no status of an error",
    ]
