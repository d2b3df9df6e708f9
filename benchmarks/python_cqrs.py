"""python-cqrs with dependency-injector, run in an environment of its own because it shares our import name.

Started by `peer.py`. Reads a request a line, {"case", "who", "calls"}, and answers each with the nanoseconds of a call.
It imports what lies beside this file: through the package `benchmarks` our own `cqrs` would come along.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import version

from dependency_injector import containers, providers
from dict_mediator import DictMediator
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from timing import quiet_memory, repeat

import cqrs
from cqrs.bootstrap import requests
from cqrs.container.dependency_injector import DependencyInjectorCQRSContainer

INSERT = text("INSERT INTO written (number) VALUES (:number)")
CREATE = text("CREATE TABLE IF NOT EXISTS written (id INTEGER PRIMARY KEY, number INTEGER NOT NULL)")


class Plain(cqrs.Request[None]):
    number: int


class WithOne(cqrs.Request[None]):
    number: int


class WithThree(cqrs.Request[None]):
    number: int


class EmitOne(cqrs.Request[None]):
    number: int


class EmitThree(cqrs.Request[None]):
    number: int


class Noted(cqrs.DomainEvent):
    number: int


class Reply(cqrs.Response):
    number: int


class Ask(cqrs.Request[Reply]):
    number: int


class Write(cqrs.Request[None]):
    number: int


class First:
    seen = None


class Second:
    seen = None


class Third:
    seen = None


seen = First()
REPLY = Reply(number=1)


class PlainHandler(cqrs.RequestHandler[Plain]):
    async def handle(self, request):
        seen.seen = request


class WithOneHandler(cqrs.RequestHandler[WithOne]):
    def __init__(self, first: First):
        self.first = first

    async def handle(self, request):
        self.first.seen = request


class WithThreeHandler(cqrs.RequestHandler[WithThree]):
    def __init__(self, first: First, second: Second, third: Third):
        self.first, self.second, self.third = first, second, third

    async def handle(self, request):
        self.first.seen = self.second.seen = self.third.seen = request


class EmitOneHandler(cqrs.RequestHandler[EmitOne]):
    def __init__(self):
        self._events = []

    @property
    def events(self):
        return self._events

    async def handle(self, request):
        self._events.append(Noted(number=request.number))


class EmitThreeHandler(cqrs.RequestHandler[EmitThree]):
    def __init__(self):
        self._events = []

    @property
    def events(self):
        return self._events

    async def handle(self, request):
        self._events.append(Noted(number=request.number))
        self._events.append(Noted(number=request.number))
        self._events.append(Noted(number=request.number))


class NotedHandler(cqrs.EventHandler[Noted]):
    async def handle(self, event):
        seen.seen = event


class AskHandler(cqrs.RequestHandler[Ask]):
    async def handle(self, request):
        seen.seen = request
        return REPLY


class WriteHandler(cqrs.RequestHandler[Write]):
    def __init__(self, sessions: async_sessionmaker):
        self.sessions = sessions

    async def handle(self, request):
        async with self.sessions.begin() as session:
            await session.execute(INSERT, {"number": request.number})


class Container(containers.DeclarativeContainer):
    first = providers.Singleton(First)
    second = providers.Singleton(Second)
    third = providers.Singleton(Third)
    sessions = providers.Dependency()
    plain = providers.Factory(PlainHandler)
    with_one = providers.Factory(WithOneHandler, first=first)
    with_three = providers.Factory(WithThreeHandler, first=first, second=second, third=third)
    emit_one = providers.Factory(EmitOneHandler)
    emit_three = providers.Factory(EmitThreeHandler)
    noted = providers.Factory(NotedHandler)
    ask = providers.Factory(AskHandler)
    write = providers.Factory(WriteHandler, sessions=sessions)


# The same by hand


async def plain(command):
    seen.seen = command


async def with_one(command, first):
    first.seen = command


async def with_three(command, first, second, third):
    first.seen = second.seen = third.seen = command


async def emit_one(command, emit):
    emit(Noted(number=command.number))


async def emit_three(command, emit):
    emit(Noted(number=command.number))
    emit(Noted(number=command.number))
    emit(Noted(number=command.number))


async def noted(happened):
    seen.seen = happened


async def ask(query):
    seen.seen = query
    return REPLY


async def write(command, sessions):
    async with sessions.begin() as session:
        await session.execute(INSERT, {"number": command.number})


def mediator_of(container):
    """Return python-cqrs as its documentation sets it up."""
    adapter = DependencyInjectorCQRSContainer()
    adapter.attach_external_container(container)

    def commands(mapper):
        mapper.bind(Plain, PlainHandler)
        mapper.bind(WithOne, WithOneHandler)
        mapper.bind(WithThree, WithThreeHandler)
        mapper.bind(EmitOne, EmitOneHandler)
        mapper.bind(EmitThree, EmitThreeHandler)
        mapper.bind(Write, WriteHandler)

    return requests.bootstrap(
        di_container=adapter,
        commands_mapper=commands,
        queries_mapper=lambda mapper: mapper.bind(Ask, AskHandler),
        domain_events_mapper=lambda mapper: mapper.bind(Noted, NotedHandler),
    )


def dict_mediator(container, sessions):
    """Return the mediator by hand, with everything that the handlers need."""
    mediator = DictMediator()
    mediator.handlers = {
        Plain: plain,
        WithOne: with_one,
        WithThree: with_three,
        EmitOne: emit_one,
        EmitThree: emit_three,
        Ask: ask,
        Write: write,
    }
    mediator.held = {
        WithOne: (container.first(),),
        WithThree: (container.first(), container.second(), container.third()),
        Write: (sessions,),
    }
    mediator.listeners = {Noted: [noted]}
    return mediator


def engine(file):
    """Return an engine with the settings that ours has."""
    made = create_async_engine(f"sqlite+aiosqlite:///{file}", connect_args={"isolation_level": "IMMEDIATE"})

    @event.listens_for(made.sync_engine, "connect")
    def pragmas(connection, _record):
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    return made


async def serve(file):
    """Answer requests until there are no more."""
    database = engine(file)
    async with database.begin() as connection:
        await connection.execute(CREATE)
    sessions = async_sessionmaker(database)
    container = Container(sessions=providers.Object(sessions))
    theirs, by_hand = mediator_of(container).send, dict_mediator(container, sessions)
    cases = {
        "plain": (Plain(number=1), by_hand.send),
        "beside": (Plain(number=1), by_hand.send),  # it knows no application with a database
        "one": (WithOne(number=1), by_hand.send_holding),
        "three": (WithThree(number=1), by_hand.send_holding),
        "emit_one": (EmitOne(number=1), by_hand.send_emitting),
        "emit_three": (EmitThree(number=1), by_hand.send_emitting),
        "query": (Ask(number=1), by_hand.send),
        "write": (Write(number=1), by_hand.send_holding),
    }
    runners = {
        name: {"peer": repeat(theirs, message), "peer_dict": repeat(hand, message)}
        for name, (message, hand) in cases.items()
    }
    print(json.dumps({name: version(name) for name in ("python-cqrs", "dependency-injector")}), flush=True)
    with quiet_memory() as tidy:
        for line in sys.stdin:
            asked = json.loads(line)
            run = runners[asked["case"]][asked["who"]]
            print(json.dumps(await run(asked["calls"])), flush=True)
            tidy()
    await database.dispose()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
