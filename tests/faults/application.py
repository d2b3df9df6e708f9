"""The application under fire: commands that know their commit order, and a handler whose effects are counted.

What is true stands in the database: `faults_history` has what was committed, `faults_effect` what took effect. Both are
written in the transactions that they tell about.
"""

import os
import random
import sys
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import pydantic
import sqlalchemy as sa
from pydantic_core import from_json, to_json
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import cqrs
from cqrs.outbox.publisher import Outcome

WIDE, NARROW = "wide", "narrow"
"""Two topics; the second one refuses what it is given now and then."""
KEYS = [*(f"w{number}" for number in range(8)), *(f"n{number}" for number in range(4))]
"""Of both topics, by their first letter."""
RETRY = cqrs.Retry(attempts=6, first=0.1, factor=2.0)
BATCH = 50
"""Rows of a claim: few, so that a fault meets many of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a process is told when it starts, as JSON in its first argument."""

    run: str
    """Begins the names of topics, so that runs do not meet."""
    database: str
    broker: str = ""
    """Empty: local delivery."""
    broker_port: int = 0
    """Where a proxy stands before the broker."""
    folder: str = ""
    """For what processes tell each other by files."""
    lease: float = 2.0
    rate: float = 200.0
    """Commands a second."""
    number: int = 0
    of: int = 1
    crash: str = ""
    """Where the process ends itself by SIGKILL: a point, and at which pass."""
    mutation: str = ""
    """What is wrong with it, to prove that the checker finds it."""

    @property
    def refuses(self) -> Path:
        """A file that is there while handlers of the narrow topic refuse."""
        return Path(self.folder) / "refuses"

    @property
    def journal(self) -> Path:
        """Where handlers note what they are given, whether their transaction commits or not."""
        return Path(self.folder) / "journal"

    consumes: bool = False
    """Whether it is a consumer, for which RabbitMQ has the messages in another exchange, behind what refuses."""

    def topic(self, name: str) -> str:
        return f"{self.run}.{name}.out" if self.consumes and self.broker.startswith("amqp") else f"{self.run}.{name}"

    def text(self) -> str:
        return to_json(asdict(self)).decode()

    @classmethod
    def given(cls) -> Self:
        return cls(**from_json(sys.argv[1]))

    def but(self, **changes: Any) -> Self:
        return replace(self, **changes)


class Mark(pydantic.BaseModel):
    """What the history knows an event by. Without a key the number is 0."""

    key: str
    number: int
    token: str


class Write(cqrs.Command[None]):
    """Emit `times` events of each key, or of none; and then fail, perhaps."""

    keys: list[str]
    times: int
    fails: bool


class Refused(Exception):
    """On purpose."""


TABLES = sa.MetaData()
KEY = sa.Table(
    "faults_key",
    TABLES,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
HISTORY = sa.Table(
    "faults_history",
    TABLES,
    sa.Column("token", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(20), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
EFFECT = sa.Table(
    "faults_effect",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(20), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("token", sa.String(32), nullable=False),
)


def make(setting: Setting, *, relay: bool, broker: cqrs.Publisher | str | None, migrate: bool = False) -> cqrs.Mediator:
    """Return the application in one of its roles."""
    return cqrs.bootstrap(
        registry=_registry(setting),
        name=setting.run,
        database=setting.database,
        broker=broker,
        relay=relay,
        migrate=migrate,
        lease=setting.lease,
        grace=5.0,
        retry=RETRY,
    )


def _registry(setting: Setting) -> cqrs.Registry:
    registry = cqrs.Registry()

    class Wide(cqrs.NotificationEvent[Mark]):
        topic: str = setting.topic(WIDE)
        event_name: str = "Wide"

    class Narrow(cqrs.NotificationEvent[Mark]):
        topic: str = setting.topic(NARROW)
        event_name: str = "Narrow"

    dialect = sa.make_url(setting.database).get_backend_name()

    @registry.command_handler
    async def write(command: Write, session: AsyncSession, context: cqrs.Context) -> None:
        for key in sorted(command.keys):  # in one order, or they would wait for each other for ever
            number = await _locked(session, key)
            for step in range(1, command.times + 1):
                await _note(session, context, Mark(key=key, number=number + step, token=uuid.uuid4().hex))
            await session.execute(KEY.update().where(KEY.c.name == key).values(number=number + command.times))
        if not command.keys:
            await _note(session, context, Mark(key="", number=0, token=uuid.uuid4().hex))
        if command.fails:
            raise Refused

    async def _locked(session: AsyncSession, key: str) -> int:
        """Return the last number of a key, which nobody else draws before this transaction ends."""
        found = sa.select(KEY.c.number).where(KEY.c.name == key)
        return (await session.execute(found if dialect == "sqlite" else found.with_for_update())).scalar_one()

    async def _note(session: AsyncSession, context: cqrs.Context, mark: Mark) -> None:
        await session.execute(
            HISTORY.insert().values(token=mark.token, name=mark.key, number=mark.number, at=time.time())
        )
        event = Narrow if mark.key.startswith("n") else Wide
        context.emit(event(key=mark.key or None, payload=mark))

    @registry.event_handler(name="effects")
    async def take_effect(event: Wide | Narrow, session: AsyncSession) -> None:
        mark = event.payload
        _append(setting.journal, f"{mark.key} {mark.number} {mark.token}\n")
        if (mark.key.startswith("n") and setting.refuses.exists()) or random.random() < 0.002:
            raise Refused
        await session.execute(EFFECT.insert().values(name=mark.key, number=mark.number, token=mark.token))

    return registry


def _append(path: Path, line: str) -> None:
    """Write a line in one piece, behind what other processes have written."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


async def prepare(setting: Setting) -> None:
    """Make all tables."""
    async with make(setting, relay=False, broker=Nowhere(), migrate=True):
        pass
    engine = create_async_engine(setting.database)
    async with engine.begin() as connection:
        await connection.run_sync(TABLES.create_all)
        await connection.execute(KEY.insert(), [{"name": key, "number": 0} for key in KEYS])
    await engine.dispose()


class Nowhere:
    """Stands for the broker where nothing is published: with it, events are saved for a broker."""

    async def open(self) -> None:
        """Need nothing."""

    async def close(self) -> None:
        """Hold nothing."""

    async def publish(self, envelopes: Any) -> list[Outcome]:
        raise AssertionError("a process without a relay publishes nothing")
