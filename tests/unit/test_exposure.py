import dataclasses
import datetime as dt
import json
from typing import Annotated, Any

import fastapi
import httpx
import pydantic
import pytest

import cqrs
from cqrs.integrations.fastapi import expose, lifespan, problems, router
from tests.unit.web import client

Sku = Annotated[str, pydantic.StringConstraints(min_length=2, strip_whitespace=True)]


class Confirmation(cqrs.Response):
    order_id: str
    quantity: int


class PlaceOrder(cqrs.Command[Confirmation], extra="forbid"):
    """Place an order.

    The same order twice is one.
    """

    order_id: Sku
    quantity: Annotated[int, pydantic.Field(gt=0, description="How many.")] = 1
    at: dt.date | None = None

    @pydantic.model_validator(mode="after")
    def no_dozen(self) -> "PlaceOrder":
        if self.quantity == 12:
            raise ValueError("no dozens")
        return self


class GetOrder(cqrs.Query[Confirmation]):
    order_id: Sku
    quantity: Annotated[int, pydantic.Field(gt=0)] = 1
    tags: list[str] = pydantic.Field(default=[])
    by: str = pydantic.Field(default="me", alias="from")
    parts: list[int] = pydantic.Field(default_factory=lambda: [7])


class Forget(cqrs.Command[None]):
    order_id: str
    hard: bool = False


class Placed(cqrs.Event):
    order_id: str


@dataclasses.dataclass
class Move:
    """No class of the toolkit."""

    order_id: str
    shelf: int = 3
    notes: list[str] = dataclasses.field(default_factory=list)


class Ping(cqrs.Command[str]):
    pass


@pytest.fixture
def app(registry: cqrs.Registry) -> cqrs.Mediator:
    @registry.command_handler
    async def place(command: PlaceOrder, context: cqrs.Context) -> Confirmation:
        return Confirmation(order_id=f"{command.order_id}/{context.correlation_id}", quantity=command.quantity)

    @registry.query_handler
    async def get(query: GetOrder) -> Confirmation:
        return Confirmation(order_id=f"{query.order_id} {query.by} {query.tags} {query.parts}", quantity=query.quantity)

    @registry.command_handler
    async def forget(command: Forget) -> None: ...

    @registry.command_handler
    async def move(command: Move) -> dict[str, Any]:
        return dataclasses.asdict(command)

    @registry.command_handler
    async def ping(command: Ping) -> str:
        return "pong"

    @registry.event_handler
    async def hear(event: Placed) -> None: ...

    return cqrs.bootstrap(registry=registry)


def api_of(app: cqrs.Mediator, *exposed: Any, **options: Any) -> fastapi.FastAPI:
    api = fastapi.FastAPI(lifespan=lifespan(app), exception_handlers=problems())
    api.include_router(router(app, *exposed, **options))
    return api


async def ask(api: fastapi.FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async with client(api) as asking:
        return await asking.request(method, path, **options)


def wrong(app: cqrs.Mediator, *exposed: Any) -> list[str]:
    with pytest.raises(cqrs.ConfigurationError) as caught:
        router(app, *exposed)
    return [f"{problem.what}. {problem.cure}" for problem in caught.value.problems]


# What routes do


async def test_a_command_is_the_body_and_its_reply_the_answer(app: cqrs.Mediator):
    api = api_of(app, expose(PlaceOrder, "POST /orders", status=201))
    answer = await ask(
        api, "POST", "/orders", json={"order_id": " A-1 ", "quantity": 2}, headers={"x-correlation-id": "story"}
    )
    assert (answer.status_code, answer.json()) == (201, {"order_id": "A-1/story", "quantity": 2})


async def test_fields_in_the_path_are_taken_from_there_and_the_others_from_the_body(app: cqrs.Mediator):
    api = api_of(app, expose(PlaceOrder, "PUT /orders/{order_id}"))
    answer = await ask(api, "PUT", "/orders/A-1", json={"at": "2026-11-27"}, headers={"x-correlation-id": "story"})
    assert (answer.status_code, answer.json()) == (200, {"order_id": "A-1/story", "quantity": 1})


async def test_a_query_has_its_fields_in_path_and_query(app: cqrs.Mediator):
    api = api_of(app, expose(GetOrder, "GET /orders/{order_id}"))
    answer = await ask(api, "GET", "/orders/A-1?quantity=3&tags=a&tags=b&from=you")
    assert answer.json() == {"order_id": "A-1 you ['a', 'b'] [7]", "quantity": 3}
    answer = await ask(api, "GET", "/orders/A-1?parts=1")
    assert answer.json() == {"order_id": "A-1 me [] [1]", "quantity": 1}


async def test_a_query_may_have_a_body(app: cqrs.Mediator):
    api = api_of(app, expose(GetOrder, "POST /searches"))
    assert (await ask(api, "POST", "/searches", json={"order_id": "A-1"})).json()["quantity"] == 1


async def test_a_command_without_a_reply_has_no_content(app: cqrs.Mediator):
    api = api_of(app, expose(Forget, "DELETE /orders/{order_id}"))
    answer = await ask(api, "DELETE", "/orders/A-1?hard=true")
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers


async def test_a_dataclass_is_a_message_like_any_other(app: cqrs.Mediator):
    api = api_of(app, expose(Move, "POST /moves"), expose(Move, "PATCH /moves/{order_id}"))
    answer = await ask(api, "POST", "/moves", json={"order_id": "A-1", "notes": ["x"]})
    assert answer.json() == {"order_id": "A-1", "shelf": 3, "notes": ["x"]}
    answer = await ask(api, "PATCH", "/moves/A-1", json={"shelf": 4})
    assert answer.json() == {"order_id": "A-1", "shelf": 4, "notes": []}


async def test_a_message_without_fields_wants_no_body(app: cqrs.Mediator):
    api = api_of(app, expose(Ping, "POST /ping"))
    assert (await ask(api, "POST", "/ping")).json() == "pong"
    assert "422" not in api.openapi()["paths"]["/ping"]["post"]["responses"]


@pytest.mark.parametrize(
    ("method", "path", "body", "places"),
    [
        ("POST", "/orders", {"order_id": "A", "quantity": 0}, [["body", "order_id"], ["body", "quantity"]]),
        ("POST", "/orders", {"order_id": "A-1", "quantity": 12}, [["body"]]),
        (
            "PUT",
            "/orders/A",
            {"quantity": 0, "order_id": "A-1"},
            [["path", "order_id"], ["body", "quantity"], ["body", "order_id"]],
        ),
        ("PUT", "/orders/A-1", {"quantity": 12}, [["body"]]),
        ("PUT", "/orders/A-1", {"at": "yesterday"}, [["body", "at"]]),
        ("GET", "/orders/A?quantity=0", None, [["path", "order_id"], ["query", "quantity"]]),
    ],
)
async def test_a_request_that_is_no_such_message_says_where(
    app: cqrs.Mediator, method: str, path: str, body: Any, places: list[list[str]]
):
    api = api_of(
        app,
        expose(PlaceOrder, "POST /orders"),
        expose(PlaceOrder, "PUT /orders/{order_id}"),
        expose(GetOrder, "GET /orders/{order_id}"),
    )
    answer = await ask(api, method, path, json=body)
    assert answer.status_code == 422
    found = [error["loc"][: 1 if error["type"] == "value_error" else 2] for error in answer.json()["errors"]]
    assert found == places


async def test_the_command_refuses_what_its_fields_did_not(app: cqrs.Mediator):
    class Stay(cqrs.Command[None]):
        first: int
        last: int

        @pydantic.field_validator("last")
        @classmethod
        def later(cls, value: int, known: pydantic.ValidationInfo) -> int:
            if value < known.data["first"]:
                raise ValueError("before it began")
            return value

    registry = cqrs.Registry()

    @registry.command_handler
    async def stay(command: Stay) -> None: ...

    api = api_of(cqrs.bootstrap(registry=registry), expose(Stay, "PUT /stays/{first}"))
    assert (await ask(api, "PUT", "/stays/1", json={"last": 2})).status_code == 204
    answer = await ask(api, "PUT", "/stays/2", json={"last": 1})
    assert answer.json()["detail"] == "body.last: Value error, before it began"


# What OpenAPI says


def test_openapi_has_parameters_bodies_replies_and_problems(app: cqrs.Mediator):
    api = api_of(
        app,
        expose(PlaceOrder, "POST /orders", status=201, refused=[409], tags=["orders"]),
        expose(PlaceOrder, "PUT /orders/{order_id}"),
        expose(GetOrder, "GET /orders/{order_id}", refused=[404]),
        expose(Forget, "DELETE /orders/{order_id}"),
        prefix="/v1",
    )
    found = api.openapi()
    post, put = found["paths"]["/v1/orders"]["post"], found["paths"]["/v1/orders/{order_id}"]["put"]
    get, delete = (found["paths"]["/v1/orders/{order_id}"][method] for method in ("get", "delete"))
    assert (post["summary"], post["description"]) == ("Place order", "Place an order.\n\nThe same order twice is one.")
    assert post["tags"] == ["orders"]
    assert post["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/PlaceOrder"}
    reply = {"$ref": "#/components/schemas/Confirmation"}
    assert post["responses"]["201"]["content"]["application/json"]["schema"] == reply
    assert {status: list(answer.get("content", [])) for status, answer in post["responses"].items()} == {
        "201": ["application/json"],
        "400": ["application/problem+json"],
        "409": ["application/problem+json"],
        "422": ["application/problem+json"],
    }
    assert sorted(found["components"]["schemas"]["PlaceOrderBody"]["properties"]) == ["at", "quantity"]
    assert [(each["name"], each["in"], each["schema"]["minLength"]) for each in put["parameters"]] == [
        ("order_id", "path", 2)
    ]
    assert [(each["name"], each["in"], each["required"]) for each in get["parameters"]] == [
        ("order_id", "path", True),
        ("quantity", "query", False),
        ("tags", "query", False),
        ("from", "query", False),
        ("parts", "query", False),
    ]
    assert list(get["responses"]) == ["200", "422", "404"]
    assert list(delete["responses"]) == ["204", "422"]
    assert "HTTPValidationError" not in found["components"]["schemas"]


def test_openapi_describes_a_problem_once(app: cqrs.Mediator):
    found = api_of(
        app, expose(PlaceOrder, "POST /orders", refused=[409]), expose(Forget, "DELETE /orders/{order_id}")
    ).openapi()
    answers = [*found["paths"]["/orders"]["post"]["responses"].items()]
    answers += found["paths"]["/orders/{order_id}"]["delete"]["responses"].items()
    assert {json.dumps(answer["content"]) for status, answer in answers if status >= "400"} == {
        '{"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}'
    }
    assert found["components"]["schemas"]["ProblemDetails"]["required"] == ["type", "title", "status"]


def test_openapi_keeps_a_model_of_the_name_that_problems_have(app: cqrs.Mediator):
    class ProblemDetails(pydantic.BaseModel):
        mine: int

    api = api_of(app, expose(PlaceOrder, "POST /orders"))
    api.get("/mine", response_model=ProblemDetails)(lambda: None)
    schemas = api.openapi()["components"]["schemas"]
    (reference,) = api.openapi()["paths"]["/orders"]["post"]["responses"]["422"]["content"].values()
    theirs = reference["schema"]["$ref"].removeprefix("#/components/schemas/")
    assert "status" in schemas[theirs]["properties"]
    assert len([name for name in schemas if "ProblemDetails" in name]) == 2


# What is refused


def test_everything_that_is_wrong_is_reported_together(app: cqrs.Mediator):
    class Unheard(cqrs.Command[None]):
        pass

    with pytest.raises(cqrs.ConfigurationError) as caught:
        router(
            app,
            expose(Unheard, "POST /unheard"),
            expose(Placed, "POST /placed"),
            expose(PlaceOrder, "POST /orders/{id}"),
            expose(Forget, "GET /orders/{order_id}"),
        )
    assert len(caught.value.problems) == 4
    assert all(problem.where.startswith(f"{__file__}:") for problem in caught.value.problems)


def test_a_message_that_is_none_is_refused(app: cqrs.Mediator):
    assert wrong(app, expose("PlaceOrder", "POST /orders")) == [
        "'PlaceOrder' is no message. Name the class of a command or query: expose(PlaceOrder, \"POST /orders\")."
    ]


def test_a_message_that_nobody_handles_is_refused(app: cqrs.Mediator):
    class Unheard(cqrs.Command[None]):
        pass

    (problem,) = wrong(app, expose(Unheard, "POST /unheard"))
    assert "has no handler in application" in problem
    assert "Decorate a handler of it" in problem


def test_an_event_is_refused(app: cqrs.Mediator):
    assert wrong(app, expose(Placed, "POST /placed")) == [
        "Placed is an event, which tells what has happened already. Expose the command whose handler emits it."
    ]


def test_a_path_parameter_that_is_no_field_is_refused(app: cqrs.Mediator):
    assert wrong(app, expose(PlaceOrder, "PUT /orders/{id:path}"), expose(Ping, "POST /ping/{name}")) == [
        (
            "PlaceOrder has no field 'id', which its path /orders/{id:path} names. "
            "Its fields are: order_id, quantity, at."
        ),
        "Ping has no field 'name', which its path /ping/{name} names. It has no fields: leave it out of the path.",
    ]


def test_two_routes_of_one_method_and_path_are_refused(app: cqrs.Mediator):
    (problem,) = wrong(app, expose(Forget, "PUT /orders/{order_id}"), expose(Move, "PUT /orders/{order_id}"))
    assert problem.startswith("Move and Forget have the same route, PUT /orders/{order_id}. Give one of them another")
    assert router(app, expose(Forget, "PUT /orders/{order_id}"), expose(Move, "PATCH /orders/{order_id}"))


@pytest.mark.parametrize(
    "route", ["/orders", "post /orders", "POST orders", "POST", "OPTIONS /orders", "POST /a b", ""]
)
def test_a_route_that_is_none_is_refused(app: cqrs.Mediator, route: str):
    (problem,) = wrong(app, expose(PlaceOrder, route))
    assert problem.startswith(f"PlaceOrder has the route {route!r}, which is none. Write one of DELETE, GET, PATCH")


@pytest.mark.parametrize(
    ("message", "method", "cure"), [(Ping, "GET", "POST or PUT or PATCH or DELETE"), (GetOrder, "PUT", "GET or POST")]
)
def test_a_method_that_says_something_else_is_refused(app: cqrs.Mediator, message: type, method: str, cure: str):
    (problem,) = wrong(app, expose(message, f"{method} /orders"))
    assert problem.endswith(f"which {method} is not for. Use {cure}.")


def test_statuses_that_mean_something_else_are_refused(app: cqrs.Mediator):
    assert wrong(app, expose(Ping, "POST /ping", status=404, refused=[200])) == [
        "Ping is refused with 200, which is no error's status. Give numbers from 400 to 599: refused=[409].",
        "Ping has status=404, which is no success. Give one from 200 to 299: status=201.",
    ]


def test_a_field_that_no_query_can_hold_is_refused(registry: cqrs.Registry):
    class Search(cqrs.Query[int]):
        where: dict[str, int]
        order: Move

    @registry.query_handler
    async def search(query: Search) -> int:
        return 1

    app = cqrs.bootstrap(registry=registry)
    (problem,) = wrong(app, expose(Search, "GET /searches"))
    assert problem.startswith("FastAPI cannot make a route of Search: ")
    assert problem.endswith("Write that route by hand, and send the message in it.")


def test_a_message_whose_fields_nobody_knows_is_refused(registry: cqrs.Registry):
    class Plain:
        pass

    @registry.command_handler
    async def take(command: Plain) -> None: ...

    assert wrong(cqrs.bootstrap(registry=registry), expose(Plain, "POST /plain")) == [
        "Plain has no fields that a request could fill. Make it a pydantic model or a dataclass."
    ]


@pytest.mark.parametrize(
    "arguments",
    [(expose(PlaceOrder, "POST /orders"),), (cqrs.bootstrap(registry=cqrs.Registry(), name="shop"), PlaceOrder)],
)
def test_a_router_of_something_else_says_what_it_takes(arguments: tuple[Any, ...]):
    with pytest.raises(cqrs.MisuseError, match="router takes the application, then routes"):
        router(*arguments)
