"""The class style of the design, typed as a strict user would."""

from typing import assert_type

import cqrs
from cqrs.events import Event


class CreateUserResponse(cqrs.Response):
    user_id: str


class CreateUserCommand(cqrs.Command[CreateUserResponse]):
    email: str
    name: str


class GetUserResponse(cqrs.Response):
    name: str


class GetUserQuery(cqrs.Request):
    user_id: str


class UserCreatedEvent(cqrs.Event):
    user_id: str


class CreateUserHandler(cqrs.RequestHandler[CreateUserCommand, CreateUserResponse]):
    def __init__(self) -> None:
        self._events: list[Event] = []

    @property
    def events(self) -> list[Event]:
        return self._events

    async def handle(self, request: CreateUserCommand) -> CreateUserResponse:
        self._events.append(UserCreatedEvent(user_id="user_1"))
        return CreateUserResponse(user_id="user_1")


class GetUserHandler(cqrs.RequestHandler[GetUserQuery, GetUserResponse]):
    async def handle(self, request: GetUserQuery) -> GetUserResponse:
        return GetUserResponse(name="John Doe")


class UserCreatedEventHandler(cqrs.EventHandler[UserCreatedEvent]):
    async def handle(self, event: UserCreatedEvent) -> None:
        assert_type(event.user_id, str)


async def quick_start() -> None:
    mediator = cqrs.bootstrap.bootstrap(
        commands_mapper=lambda m: m.bind(CreateUserCommand, CreateUserHandler),
        queries_mapper=lambda m: m.bind(GetUserQuery, GetUserHandler),
        domain_events_mapper=lambda m: m.bind(UserCreatedEvent, UserCreatedEventHandler),
    )
    assert_type(mediator, cqrs.Mediator)
    result = await mediator.send(CreateUserCommand(email="user@example.com", name="John Doe"))
    assert_type(result, CreateUserResponse)
    print(f"User created: {result.data['user_id']}")  # noqa: T201 - as the design has it


class Wrong(cqrs.RequestHandler[GetUserQuery, GetUserResponse]):
    async def handle(self, request: CreateUserCommand) -> GetUserResponse:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return GetUserResponse(name=request.name)


def a_handler_without_handle_cannot_be_made() -> None:
    class Empty(cqrs.EventHandler[UserCreatedEvent]):
        pass

    Empty()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
