"""What is sent, and the ways to send it: a direct call, the dict mediator, and the toolkit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dependency_injector import containers, providers
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

import cqrs
from benchmarks.dict_mediator import DictMediator
from benchmarks.timing import Runner, repeat

BESIDE = "command beside a database"
INSERT = text("INSERT INTO written (number) VALUES (:number)")
CREATE = text("CREATE TABLE IF NOT EXISTS written (id INTEGER PRIMARY KEY, number INTEGER NOT NULL)")


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: its contestants, what ratio to the dict mediator and to the peer is asked for."""

    name: str
    title: str
    message: object
    calls: Mapping[str, Callable[[Any], Awaitable[Any]]]
    bar: float | None = None
    peer_bar: float | None = None

    @property
    def runners(self) -> dict[str, Runner]:
        return {way: repeat(call, self.message) for way, call in self.calls.items()}


class First:
    seen: object = None


class Second:
    seen: object = None


class Third:
    seen: object = None


class Container(containers.DeclarativeContainer):
    first = providers.Singleton(First)
    second = providers.Singleton(Second)
    third = providers.Singleton(Third)


class Plain(cqrs.Command[None]):
    number: int


class WithOne(cqrs.Command[None]):
    number: int


class WithThree(cqrs.Command[None]):
    number: int


class EmitOne(cqrs.Command[None]):
    number: int


class EmitThree(cqrs.Command[None]):
    number: int


class Noted(cqrs.Event):
    number: int


class Reply(cqrs.Response):
    number: int


class Ask(cqrs.Query[Reply]):
    number: int


class Write(cqrs.Command[None]):
    number: int


REPLY = Reply(number=1)
seen = First()


async def plain(command: Plain) -> None:
    seen.seen = command


async def with_one(command: WithOne, first: First) -> None:
    first.seen = command


async def with_three(command: WithThree, first: First, second: Second, third: Third) -> None:
    first.seen = second.seen = third.seen = command


async def noted(happened: Noted) -> None:
    seen.seen = happened


async def ask(query: Ask) -> Reply:
    seen.seen = query
    return REPLY


# The same handlers with what each way of sending gives them to emit and to write with


async def emit_one(command: EmitOne, context: cqrs.Context) -> None:
    context.emit(Noted(number=command.number))


async def emit_three(command: EmitThree, context: cqrs.Context) -> None:
    context.emit(Noted(number=command.number))
    context.emit(Noted(number=command.number))
    context.emit(Noted(number=command.number))


async def write(command: Write, session: AsyncSession) -> None:
    await session.execute(INSERT, {"number": command.number})


async def emit_one_by_hand(command, emit):
    emit(Noted(number=command.number))


async def emit_three_by_hand(command, emit):
    emit(Noted(number=command.number))
    emit(Noted(number=command.number))
    emit(Noted(number=command.number))


async def write_by_hand(command, sessions):
    async with sessions.begin() as session:
        await session.execute(INSERT, {"number": command.number})


async def emit_one_directly(command):
    await noted(Noted(number=command.number))


async def emit_three_directly(command):
    await noted(Noted(number=command.number))
    await noted(Noted(number=command.number))
    await noted(Noted(number=command.number))


def engine_by_hand(file: Path) -> AsyncEngine:
    """Return an engine as a careful person makes it: WAL, every commit synced, the write lock from the beginning.

    The driver begins together with the first write: fewer trips to its thread than a BEGIN of its own.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", connect_args={"isolation_level": "IMMEDIATE"})

    @event.listens_for(engine.sync_engine, "connect")
    def pragmas(connection, _record):
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    return engine


def dict_mediator(sessions: async_sessionmaker[AsyncSession], container: Container) -> DictMediator:
    """Return the mediator by hand, with everything that the handlers need."""
    mediator = DictMediator()
    mediator.handlers = {
        Plain: plain,
        WithOne: with_one,
        WithThree: with_three,
        EmitOne: emit_one_by_hand,
        EmitThree: emit_three_by_hand,
        Ask: ask,
        Write: write_by_hand,
    }
    mediator.held = {
        WithOne: (container.first(),),
        WithThree: (container.first(), container.second(), container.third()),
        Write: (sessions,),
    }
    mediator.listeners = {Noted: [noted]}
    return mediator


def applications(file: Path) -> tuple[cqrs.Mediator, cqrs.Mediator]:
    """Return an application without and one with a database, with the same handlers otherwise."""
    without = cqrs.Registry()
    for handler in (plain, with_one, with_three, emit_one, emit_three):
        without.command_handler(handler)
    without.query_handler(ask)
    without.event_handler(noted)
    beside = cqrs.Registry()
    beside.command_handler(plain)
    beside.command_handler(write)
    return (
        cqrs.bootstrap(registry=without, container=Container(), name="benchmarks"),
        cqrs.bootstrap(registry=beside, database=f"sqlite+aiosqlite:///{file}", name="benchmarks"),
    )


@asynccontextmanager
async def cases(folder: Path) -> AsyncIterator[list[Case]]:
    """Open the applications and give every case, ready to run."""
    app, with_database = applications(folder / "ours.db")
    engine = engine_by_hand(folder / "by_hand.db")
    other = engine_by_hand(folder / "ours.db")
    async with AsyncExitStack() as stack:
        for each in (engine, other):
            stack.push_async_callback(each.dispose)
            async with each.begin() as connection:
                await connection.execute(CREATE)
        await stack.enter_async_context(app)
        await stack.enter_async_context(with_database)
        sessions, container = async_sessionmaker(engine), Container()
        hand = dict_mediator(sessions, container)
        yield _cases(app, with_database, hand, sessions, container)


def _cases(app, with_database, hand, sessions, container):
    first, second, third = container.first(), container.second(), container.third()

    async def with_one_directly(command):
        await with_one(command, first)

    async def with_three_directly(command):
        await with_three(command, first, second, third)

    async def write_directly(command):
        await write_by_hand(command, sessions)

    def case(name, title, message, /, *calls, bar=None, peer_bar=None):
        return Case(name, title, message, dict(zip(("direct", "dict", "ours"), calls, strict=True)), bar, peer_bar)

    holding, emitting, send, peer_bar = hand.send_holding, hand.send_emitting, app.send, 1 / 15
    beside, one, emit = Plain(number=1), WithOne(number=1), EmitOne(number=1)
    return [
        case("plain", "command", Plain(number=1), plain, hand.send, send, bar=2.5, peer_bar=peer_bar),
        case("beside", BESIDE, beside, plain, hand.send, with_database.send, bar=3.0, peer_bar=peer_bar),
        case("one", "one singleton", one, with_one_directly, holding, send, bar=3.5, peer_bar=peer_bar),
        case("three", "three singletons", WithThree(number=1), with_three_directly, holding, send),
        case("emit_one", "one local event", emit, emit_one_directly, emitting, send, bar=3.0, peer_bar=peer_bar),
        case("emit_three", "three local events", EmitThree(number=1), emit_three_directly, emitting, send),
        case("query", "query", Ask(number=1), ask, hand.send, send),
        case("write", "transaction on SQLite", Write(number=1), write_directly, holding, with_database.send),
    ]
