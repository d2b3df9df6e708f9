"""The FastAPI and FastStream snippets of the design."""

import fastapi
import faststream
import pydantic
from faststream.kafka import KafkaBroker

import cqrs

api = fastapi.FastAPI()
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
