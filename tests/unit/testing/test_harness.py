import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import cqrs
from cqrs.testing import NotEnded, harness
from tests.unit.support import RecordingPublisher, name

SERVER = "postgresql+psycopg://nobody@localhost:1/nowhere"
"""A database that no test reaches."""
tables = MetaData()
seen = Table("seen", tables, Column("number", Integer))


class Order(cqrs.Command[int]):
    number: int


class Count(cqrs.Query[int]):
    pass


class Placed(cqrs.Event):
    number: int


class Noted(cqrs.Event):
    number: int


@dataclass
class World:
    """What happens outside of the database, with the failures that are to come."""

    failures: int = 0
    handled: list[tuple[str, int]] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def orders(registry: cqrs.Registry, world: World) -> cqrs.Registry:
    """An order is noted in its transaction, placed, and receives a receipt by a handler that fails at first."""
    registry.integration_event(topic="orders", key="number", name="Placed")(Placed)

    @registry.command_handler
    async def order(command: Order, session: AsyncSession, context: cqrs.Context) -> int:
        context.emit(Noted(number=command.number))
        context.emit(Placed(number=command.number))
        if command.number < 0:
            raise ValueError("there is no such order")
        return command.number

    @registry.event_handler
    async def note(event: Noted) -> None:
        world.handled.append(("note", event.number))

    @registry.event_handler(name="receipt", retry=cqrs.Retry(attempts=3, first=3600.0))
    async def send_receipt(event: Placed, context: cqrs.Context) -> None:
        world.attempts.append(context.attempt)
        if world.failures:
            world.failures -= 1
            raise ConnectionError("no route")
        world.handled.append(("receipt", event.number))

    return registry


@pytest.fixture(params=["local", "broker"])
def app(orders: cqrs.Registry, request: pytest.FixtureRequest) -> cqrs.Mediator:
    broker = RecordingPublisher() if request.param == "broker" else None
    return cqrs.bootstrap(registry=orders, name="shop", database=SERVER, broker=broker)


async def test_a_send_returns_the_reply_when_all_it_caused_has_ended(app: cqrs.Mediator, world: World):
    async with harness(app) as t:
        assert await t.send(Order(number=7)) == 7
        assert world.handled == [("note", 7), ("receipt", 7)]


async def test_a_retry_in_an_hour_happens_at_once(app: cqrs.Mediator, world: World):
    world.failures = 2
    async with harness(app) as t:
        await t.send(Order(number=7))
    assert world.attempts == [1, 2, 3]
    assert [(each.handler, each.number, str(each.error), each.dead) for each in t.failures] == [
        ("receipt", 1, "no route", False),
        ("receipt", 2, "no route", False),
    ]


async def test_a_dead_letter_is_an_end(app: cqrs.Mediator, world: World):
    world.failures = 3
    async with harness(app) as t:
        await t.send(Order(number=7))
        assert [each.dead for each in t.failures] == [False, False, True]
        assert (await t.app.outbox.counts()).dead == 1


async def test_what_waits_behind_a_dead_letter_is_shown_and_goes_on_after_a_replay(app: cqrs.Mediator, world: World):
    world.failures = 3
    async with harness(app) as t:
        await t.send(Order(number=7))
        await t.send(Order(number=7))
        assert "receipt - not begun: a dead letter of its key comes first" in t.tree
        await t.app.outbox.replay()
        await t.settle()
        assert "not begun" not in t.tree
        assert [each.dead for each in t.failures] == [False, False, False]
    assert world.handled.count(("receipt", 7)) == 2


async def test_events_of_a_key_stay_in_order_behind_a_retry(app: cqrs.Mediator, world: World):
    world.failures = 1
    async with harness(app) as t:
        await t.app.send(Order(number=7))
        await t.app.send(Order(number=7))
        await t.settle()
    assert world.attempts == [1, 2, 1]


async def test_it_tells_what_was_sent_emitted_and_published(app: cqrs.Mediator):
    async with harness(app) as t:
        await t.send(Order(number=7))
        assert t.sent == [Order(number=7)]
        assert t.emitted == [Noted(number=7), Placed(number=7)]
        [published] = t.published
        assert (published.topic, published.key, published.type) == ("orders", "7", "Placed")
        assert published.body == b'{"number":7}'
        assert published.headers["ce_source"] == "shop"
        assert published.event == Placed(number=7)


async def test_what_was_rolled_back_was_not_emitted(app: cqrs.Mediator):
    async with harness(app) as t:
        with pytest.raises(ValueError, match="no such order"):
            await t.send(Order(number=-1))
        assert t.emitted == []
        assert t.published == []
        assert [str(each.error) for each in t.failures] == ["there is no such order"]
        assert "emitted Placed(number=-1) to 'orders', key '-1' - rolled back" in t.tree


async def test_an_event_that_nobody_here_handles_is_published(registry: cqrs.Registry):
    registry.integration_event(topic="orders", name="Placed")(Placed)

    @registry.command_handler
    async def order(command: Order, context: cqrs.Context) -> int:
        context.emit(Placed(number=command.number))
        return 0

    app = cqrs.bootstrap(registry=registry, database=SERVER, broker=RecordingPublisher())
    async with harness(app) as t:
        await t.send(Order(number=1))
        assert [each.event for each in t.published] == [Placed(number=1)]
        assert "emitted Placed(number=1) to 'orders' - nobody here handles it" in t.tree


async def test_assertions_return_what_they_found(app: cqrs.Mediator):
    async with harness(app) as t:
        await t.send(Order(number=1))
        await t.send(Order(number=2))
        assert t.assert_sent(Order, number=2).number == 2
        assert t.assert_emitted(Noted, number=2).number == 2
        assert t.assert_published(Placed, number=2).key == "2"
        t.assert_not_emitted(Placed, number=3)
        t.assert_no_failures()


async def test_an_assertion_shows_the_tree(app: cqrs.Mediator, orders: cqrs.Registry, world: World):
    world.failures = 1
    order, note = (name(record.target) for record in orders.handlers[:2])
    async with harness(app) as t:
        await t.send(Order(number=1))
        with pytest.raises(AssertionError) as caught:
            t.assert_emitted(Placed, number=2)
    assert str(caught.value) == (
        f"""Placed(number=2) was not emitted.

sent Order(number=1)
  {order}
    emitted Noted(number=1)
      {note}
    emitted Placed(number=1) to 'orders', key '1'
      receipt - failed at attempt 1: ConnectionError: no route; well at attempt 2"""
    )


@pytest.mark.parametrize("wrong", ["assert_not_emitted", "assert_no_failures", "assert_sent", "assert_published"])
async def test_every_assertion_can_fail(app: cqrs.Mediator, world: World, wrong: str):
    world.failures = 1
    message = {"assert_sent": Count, "assert_published": Noted, "assert_not_emitted": Placed}.get(wrong)
    async with harness(app) as t:
        await t.send(Order(number=1))
        with pytest.raises(AssertionError, match=r"(?s)(was|failed)\b.*\n\nsent Order"):
            getattr(t, wrong)(*([message] if message else []))


# Receiving, emitting, and what others send


async def test_a_received_event_is_taken_once_by_its_id(app: cqrs.Mediator, world: World):
    async with harness(app) as t:
        await t.receive(Placed(number=1), event_id="one")
        await t.receive(Placed(number=1), event_id="one")
        await t.receive(Placed(number=1))
        assert world.handled == [("receipt", 1), ("receipt", 1)]
        assert t.tree.startswith("received Placed(number=1) to 'orders', key '1'\n  receipt\n")
        assert t.published == t.emitted == []


async def test_a_received_event_is_retried(app: cqrs.Mediator, world: World):
    world.failures = 2
    async with harness(app) as t:
        await t.receive(Placed(number=1))
    assert world.attempts == [1, 2, 3]


async def test_a_received_event_keeps_its_headers(registry: cqrs.Registry):
    registry.integration_event(topic="orders", name="Placed")(Placed)
    found = []

    @registry.event_handler
    async def keep(event: Placed, context: cqrs.Context) -> None:
        found.append((context.message_id, context.correlation_id))

    async with harness(cqrs.bootstrap(registry=registry, database=SERVER)) as t:
        await t.receive(Placed(number=1), event_id="one", headers={"correlation_id": "story"})
    assert found == [("one", "story")]


async def test_a_local_event_is_not_received(app: cqrs.Mediator):
    async with harness(app) as t:
        with pytest.raises(cqrs.MisuseError, match="Noted is no published event"):
            await t.receive(Noted(number=1))


async def test_what_no_handler_would_receive_is_not_received(registry: cqrs.Registry):
    registry.integration_event(topic="orders", name="Placed")(Placed)
    app = cqrs.bootstrap(registry=registry, database=SERVER, broker=RecordingPublisher())
    async with harness(app) as t:
        with pytest.raises(cqrs.MisuseError, match="Placed has no handler in application"):
            await t.receive(Placed(number=1))


async def test_an_event_is_emitted_outside_a_handler(app: cqrs.Mediator, world: World):
    async with harness(app) as t:
        await t.emit(Placed(number=1))
        await t.emit(Noted(number=2))
        assert t.emitted == [Placed(number=1), Noted(number=2)]
        assert t.sent == []
    assert world.handled == [("receipt", 1), ("note", 2)]


async def test_what_is_emitted_with_a_session_exists_with_its_commit(app: cqrs.Mediator):
    async with harness(app) as t:
        async with t.session() as session:
            await t.app.emit(Placed(number=1), session=session)
            await session.rollback()
        async with t.session() as session:
            await t.app.emit(Placed(number=2), session=session)
        await t.settle()
        assert t.emitted == [Placed(number=2)]


async def test_the_users_own_application_is_the_one_under_test_meanwhile(app: cqrs.Mediator, world: World):
    async with harness(app) as t:
        async with app, app.consuming():
            assert await app.send(Order(number=3)) == 3
        assert app.is_open
        await t.settle()
        assert t.sent == [Order(number=3)]
    assert world.handled == [("note", 3), ("receipt", 3)]
    assert type(app) is cqrs.Mediator
    assert not app.is_open


async def test_an_open_application_is_refused(registry: cqrs.Registry):
    async with cqrs.bootstrap(registry=registry) as app:
        with pytest.raises(cqrs.MisuseError, match="is open already"):
            async with harness(app):
                pass


async def test_an_application_is_under_one_test_at_a_time(app: cqrs.Mediator):
    async with harness(app):
        with pytest.raises(cqrs.MisuseError, match="is open already"):
            async with harness(app):
                pass


async def test_sends_side_by_side_all_wait_for_their_ends(app: cqrs.Mediator, world: World):
    async with harness(app) as t:
        assert await asyncio.gather(*(t.send(Order(number=number)) for number in range(5))) == list(range(5))
        assert len(world.handled) == 10


async def test_drain_delivers_too(app: cqrs.Mediator, world: World):
    async with harness(app) as t:
        await t.app.send(Order(number=1))
        await app.drain()
        assert ("receipt", 1) in world.handled


# What is sent within handlers


async def test_nested_sends_and_queries_are_part_of_the_tree(registry: cqrs.Registry):
    @registry.query_handler
    async def count(query: Count) -> int:
        return 3

    @registry.command_handler
    async def order(command: Order, context: cqrs.Context) -> int:
        return await context.send(Count())

    async with harness(cqrs.bootstrap(registry=registry)) as t:
        assert await t.send(Order(number=1)) == 3
        assert t.sent == [Order(number=1), Count()]
        assert t.tree.splitlines()[1:] == [f"  {name(order)}", "    sent Count()", f"      {name(count)}"]


class Notice(cqrs.NotificationEvent[dict[str, int]]):
    topic: str = "notices"


@pytest.mark.parametrize("broker", [None, RecordingPublisher()])
async def test_the_class_style_is_written_down_in_the_same_way(
    registry: cqrs.Registry, broker: RecordingPublisher | None
):
    class OrderHandler(cqrs.RequestHandler[Order, int]):
        def __init__(self) -> None:
            self._events: list[cqrs.Event] = []

        @property
        def events(self) -> list[cqrs.Event]:
            return self._events

        async def handle(self, request: Order) -> int:
            self._events.append(Notice(payload={"number": request.number}))
            return request.number

    class NoticeHandler(cqrs.EventHandler[Notice]):
        async def handle(self, event: Notice) -> None: ...

    app = cqrs.bootstrap(
        registry=registry,
        database=SERVER,
        broker=broker,
        commands_mapper=lambda m: m.bind(Order, OrderHandler),
        domain_events_mapper=lambda m: m.bind(Notice, NoticeHandler),
    )
    async with harness(app) as t:
        assert await t.send(Order(number=1)) == 1
        assert t.tree.splitlines() == [
            "sent Order(number=1)",
            f"  {name(OrderHandler)}",
            "    emitted Notice({'number': 1}) to 'notices'",
            f"      {name(NoticeHandler)}",
        ]
        assert t.assert_published(Notice).message_id == str(t.assert_emitted(Notice).event_id)


async def test_handlers_beside_others_belong_to_their_event(registry: cqrs.Registry):
    @registry.command_handler
    async def order(command: Order, context: cqrs.Context) -> int:
        context.emit(Noted(number=1))
        return 0

    @registry.event_handler(concurrent=True, name="a")
    async def one(event: Noted) -> None: ...

    @registry.event_handler(concurrent=True, name="b")
    async def another(event: Noted) -> None: ...

    async with harness(cqrs.bootstrap(registry=registry)) as t:
        await t.send(Order(number=1))
        assert t.tree.splitlines()[2:] == ["    emitted Noted(number=1)", "      a", "      b"]


async def test_an_event_that_two_handlers_answer_has_both_answers(registry: cqrs.Registry):
    @registry.event_handler(name="a")
    async def one(event: Placed, context: cqrs.Context) -> None:
        context.emit(Noted(number=1))

    @registry.event_handler(name="b")
    async def another(event: Placed, context: cqrs.Context) -> None:
        context.emit(Noted(number=2))

    @registry.event_handler(name="c")
    async def note(event: Noted) -> None: ...

    async with harness(cqrs.bootstrap(registry=registry)) as t:
        await t.emit(Placed(number=0))
        assert t.tree.splitlines() == [
            "emitted Placed(number=0)",
            "  a",
            "    emitted Noted(number=1)",
            "      c",
            "  b",
            "    emitted Noted(number=2)",
            "      c",
        ]


async def test_a_transaction_that_cannot_be_committed_is_a_failure(registry: cqrs.Registry):
    @registry.command_handler
    async def order(command: Order, session: AsyncSession) -> int:
        await session.execute(select(1))
        await session.rollback()
        return 0

    async with harness(cqrs.bootstrap(registry=registry, database=SERVER)) as t:
        with pytest.raises(cqrs.TransactionMisuse):
            await t.send(Order(number=1))
        assert [type(each.error) for each in t.failures] == [cqrs.TransactionMisuse]


async def test_the_middlewares_of_the_application_stay(orders: cqrs.Registry):
    found = []

    async def note(message: object, context: cqrs.Context, call_next: cqrs.Call) -> object:
        found.append(type(message))
        return await call_next(message, context)

    app = cqrs.bootstrap(registry=orders, database=SERVER, middlewares=[note])
    async with harness(app) as t:
        await t.send(Order(number=1))
    assert found == [Order, Placed]


async def test_a_message_that_nobody_handles_was_sent_all_the_same(registry: cqrs.Registry):
    async with harness(cqrs.bootstrap(registry=registry)) as t:
        with pytest.raises(cqrs.NotHandled):
            await t.send(Order(number=1))
        assert t.sent == [Order(number=1)]


# What does not end


async def test_a_handler_that_hangs_is_shown(registry: cqrs.Registry):
    registry.integration_event(topic="orders", name="Placed")(Placed)

    @registry.event_handler(name="receipt")
    async def wait(event: Placed) -> None:
        await asyncio.Event().wait()

    async with harness(cqrs.bootstrap(registry=registry, database=SERVER), timeout=1.0) as t:
        with pytest.raises(NotEnded, match=r"(?s)has not ended after 1 s.*receipt - .*cut off while it was at work"):
            await t.emit(Placed(number=1))


async def test_a_command_that_hangs_is_shown(registry: cqrs.Registry):
    @registry.command_handler(name="order")
    async def wait(command: Order) -> int:
        await asyncio.Event().wait()
        return 0

    async with harness(cqrs.bootstrap(registry=registry), timeout=0.05) as t:
        with pytest.raises(NotEnded, match=r"(?s)sent Order.*  order - .*cut off"):
            await t.send(Order(number=1))


async def test_a_timeout_of_a_handlers_own_is_its_error(registry: cqrs.Registry):
    @registry.command_handler
    async def wait(command: Order) -> int:
        raise TimeoutError("its own")

    async with harness(cqrs.bootstrap(registry=registry)) as t:
        with pytest.raises(TimeoutError, match="its own"):
            await t.send(Order(number=1))


async def test_an_endless_chain_of_events_is_shown(registry: cqrs.Registry):
    registry.integration_event(topic="orders", name="Placed")(Placed)

    @registry.event_handler
    async def again(event: Placed, context: cqrs.Context) -> None:
        context.emit(Placed(number=event.number + 1))

    async with harness(cqrs.bootstrap(registry=registry, database=SERVER), limit=20) as t:
        with pytest.raises(NotEnded, match=r"(?s)more than 20 attempts.*Placed\(number=0\).*Placed\(number=9\)"):
            await t.emit(Placed(number=0))


async def test_a_retry_for_ever_is_shown(registry: cqrs.Registry):
    registry.integration_event(topic="orders", name="Placed")(Placed)

    @registry.event_handler(retry=cqrs.Retry(attempts=None))
    async def fail(event: Placed) -> None:
        raise ValueError("never")

    async with harness(cqrs.bootstrap(registry=registry, database=SERVER), limit=10) as t:
        with pytest.raises(NotEnded, match="failed at attempts 1 to 11: ValueError: never"):
            await t.emit(Placed(number=0))


# What it stands on


async def test_tables_are_created_in_the_file(registry: cqrs.Registry):
    @registry.command_handler
    async def order(command: Order, session: AsyncSession) -> int:
        await session.execute(insert(seen).values(number=command.number))
        return len((await session.scalars(select(seen.c.number))).all())

    app = cqrs.bootstrap(registry=registry, database=SERVER)
    for _ in range(2):
        async with harness(app, tables=tables) as t:
            assert await t.send(Order(number=1)) == 1


async def test_a_session_of_the_test_is_committed(registry: cqrs.Registry):
    @registry.query_handler
    async def count(query: Count, session: AsyncSession) -> int:
        return len((await session.scalars(select(seen.c.number))).all())

    async with harness(cqrs.bootstrap(registry=registry, database=SERVER), tables=tables) as t:
        async with t.session() as session:
            await session.execute(insert(seen).values(number=1))
        with suppress(ZeroDivisionError):
            async with t.session() as session:
                await session.execute(insert(seen).values(number=2))
                raise ZeroDivisionError
        assert await t.send(Count()) == 1


async def test_without_a_database_there_is_no_session(registry: cqrs.Registry):
    async with harness(cqrs.bootstrap(registry=registry)) as t:
        with pytest.raises(cqrs.MisuseError, match="has no database"):
            async with t.session():
                pass


async def test_the_options_of_a_sessionmaker_stay(registry: cqrs.Registry):
    class Own(AsyncSession):
        pass

    @registry.command_handler
    async def order(command: Order, session: AsyncSession) -> int:
        assert isinstance(session, Own)
        return int(session.sync_session.autoflush)

    sessions = async_sessionmaker(create_async_engine(SERVER), class_=Own, autoflush=False)
    async with harness(cqrs.bootstrap(registry=registry, database=sessions)) as t:
        assert await t.send(Order(number=1)) == 0


async def test_a_handlers_own_timeout_is_a_failure(registry: cqrs.Registry):
    registry.integration_event(topic="orders", name="Placed")(Placed)

    @registry.event_handler(name="receipt", timeout=0.01, retry=cqrs.Retry(attempts=2))
    async def wait(event: Placed) -> None:
        await asyncio.Event().wait()

    async with harness(cqrs.bootstrap(registry=registry, database=SERVER)) as t:
        await t.emit(Placed(number=1))
        assert t.tree.endswith("receipt - failed at attempts 1 to 2: TimeoutError: cut off while it was at work; dead")


async def test_a_database_of_ones_own_is_used(orders: cqrs.Registry, database: str, world: World):
    world.failures = 1
    engine = create_async_engine(database)
    async with harness(cqrs.bootstrap(registry=orders, database=SERVER), database=engine) as t:
        await t.send(Order(number=1))
    async with engine.connect() as connection:
        assert len((await connection.execute(select(cqrs.metadata.tables["cqrs_inbox"]))).all()) == 1
    await engine.dispose()


# Random stories


class Step(cqrs.Event):
    """What its handlers do at each attempt is in the event: how often each fails, and what each emits in the end."""

    number: int
    handlers: list["Doing"]


class Doing(cqrs.Event):
    fails: int
    emits: list[Step]


Step.model_rebuild()
ATTEMPTS = 3
HANDLERS = ("first", "second")


def steps(depth: int) -> st.SearchStrategy[Step]:
    emits = st.lists(st.deferred(lambda: steps(depth - 1)), max_size=2) if depth else st.just([])
    doing = st.builds(Doing, fails=st.integers(0, ATTEMPTS), emits=emits)
    number = st.integers(0, 2)
    return st.builds(Step, number=number, handlers=st.lists(doing, min_size=len(HANDLERS), max_size=len(HANDLERS)))


def expected(step: Step) -> list[tuple[str, int, int]]:
    """(handler, key, failures) of all that a step causes, where no letter is dead."""
    found = []
    for handler, doing in zip(HANDLERS, step.handlers, strict=True):
        found.append((handler, step.number, doing.fails))
        if doing.fails < ATTEMPTS:
            found += [each for inner in doing.emits for each in expected(inner)]
    return found


@settings(max_examples=25)
@given(st.lists(steps(1), min_size=1, max_size=2), st.booleans())
async def test_a_random_story_has_ended_when_it_is_said_to(stories: list[Step], broker: bool):
    registry = cqrs.Registry()
    registry.integration_event(topic="steps", key="number")(Step)
    at_work, ended = set(), []

    def handle(place: int, handler: str) -> None:
        @registry.event_handler(
            name=handler, retry=cqrs.Retry(attempts=ATTEMPTS, first=60.0, jitter=1.0), on_dead="skip"
        )
        async def do(step: Step, session: AsyncSession, context: cqrs.Context) -> None:
            doing = step.handlers[place]
            at_work.add(context.message_id)
            for inner in doing.emits:
                context.emit(inner)
            await session.execute(select(1))
            at_work.discard(context.message_id)
            if context.attempt <= doing.fails:
                if doing.fails == ATTEMPTS == context.attempt:
                    ended.append((handler, step.number, doing.fails))
                raise ConnectionError
            ended.append((handler, step.number, doing.fails))

    for place, handler in enumerate(HANDLERS):
        handle(place, handler)
    app = cqrs.bootstrap(registry=registry, database=SERVER, broker=RecordingPublisher() if broker else None)
    async with harness(app) as t:
        for step in stories:
            before = len(ended)
            await t.emit(step)
            assert not at_work
            assert sorted(ended[before:]) == sorted(expected(step))
        counts = await t.app.outbox.counts()
        assert (counts.outbox, counts.waiting) == (0, 0)
        assert counts.dead == sum(each.dead for each in t.failures)
        assert len(t.failures) == sum(fails for *_, fails in ended)
        assert len(t.emitted) == len(ended) / len(HANDLERS)


async def test_a_harness_of_something_else_says_what_it_takes():
    def make() -> None: ...

    with pytest.raises(cqrs.MisuseError, match="harness takes an application that"):
        await harness(make).__aenter__()
