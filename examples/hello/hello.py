from fastapi import FastAPI

import cqrs
from cqrs.integrations.fastapi import expose, lifespan, router


class Greet(cqrs.Command[str]):
    name: str


@cqrs.integration_event(topic="greetings", key="name")
class Greeted(cqrs.Event):
    name: str


@cqrs.command_handler
async def greet(command: Greet, context: cqrs.Context) -> str:
    context.emit(Greeted(name=command.name))
    return f"Hello, {command.name}!"


@cqrs.event_handler
async def remember(event: Greeted) -> None:
    print("greeted", event.name, flush=True)


app = cqrs.bootstrap(database="sqlite+aiosqlite:///hello.db")
api = FastAPI(lifespan=lifespan(app))
api.include_router(router(app, expose(Greet, "POST /greetings")))
