"""The FastAPI and FastStream snippets of the design, and what there is for FastAPI."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, assert_type

import fastapi
import faststream
import pydantic
from faststream.kafka import KafkaBroker

import cqrs
from cqrs.integrations.fastapi import (
    Origin,
    expose,
    get_origin,
    lifespan,
    probes,
    problem_responses,
    problems,
    router,
)
from cqrs.integrations.fastapi import get_mediator as get_mediator_of_lifespan

broker = KafkaBroker()


class CreateUserResponse(cqrs.Response):
    user_id: str


class CreateUserCommand(cqrs.Command[CreateUserResponse]):
    email: str
    name: str


class UserCreated(pydantic.BaseModel):
    user_id: str


def get_mediator() -> cqrs.Mediator:
    return cqrs.bootstrap("users")


class Refused(Exception):
    pass


app = cqrs.bootstrap("users")


@asynccontextmanager
async def mine(_api: fastapi.FastAPI) -> AsyncGenerator[dict[str, str]]:
    yield {"greeting": "hello"}


api = fastapi.FastAPI(
    lifespan=lifespan(app, consume=True, inner=mine),
    exception_handlers=problems({Refused: 409}),
    responses=problem_responses(422),
)
api.include_router(router(app, expose(CreateUserCommand, "POST /v2/users", status=201, refused=[409], tags=["users"])))
api.include_router(probes(app, timeout=1.0, max_lag=60.0))


@api.post("/v3/users")
async def create_user_again(
    command: CreateUserCommand,
    mediator: Annotated[cqrs.Mediator, fastapi.Depends(get_mediator_of_lifespan)],
    origin: Annotated[Origin, fastapi.Depends(get_origin)],
) -> CreateUserResponse:
    assert_type(origin.correlation_id, str | None)
    return await mediator.send(command)


@api.post("/users")
async def create_user(
    command: CreateUserCommand,
    mediator: cqrs.RequestMediator = fastapi.Depends(get_mediator),  # noqa: B008, FAST002 - as the design has it
) -> dict[str, str]:
    result = await mediator.send(command)
    return {"user_id": result.data["user_id"]}


@broker.subscriber("user_events")
async def on_user(
    event: cqrs.NotificationEvent[UserCreated],
    mediator: cqrs.EventMediator = faststream.Depends(get_mediator),  # noqa: B008 - as the design has it
) -> None:
    await mediator.send(event)
