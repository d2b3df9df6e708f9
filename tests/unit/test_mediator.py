import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import pydantic
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import cqrs


class Start(cqrs.Command[Any]):
    number: int = 0


class Inner(cqrs.Command[Any]):
    pass


class Look(cqrs.Query[Any]):
    pass


class Happened(cqrs.Event):
    name: str = ""


class UserCreated(pydantic.BaseModel):
    user_id: str


def around(name: str, log: list[str]) -> cqrs.Middleware:
    async def middleware(message: Any, context: cqrs.Context, call_next: Any) -> Any:
        log.append(f"> {name}")
        try:
            return await call_next(message, context)
        finally:
            log.append(f"< {name}")

    return middleware


async def rows_of(database: str, statement: str) -> list[Any]:
    engine = create_async_engine(database)
    async with engine.connect() as connection:
        rows = (await connection.execute(text(statement))).scalars().all()
    await engine.dispose()
    return list(rows)


async def create_table(database: str) -> None:
    engine = create_async_engine(database)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE items (name TEXT)"))
    await engine.dispose()


# Replies and exceptions


async def test_the_reply_is_the_very_object_that_the_handler_returned(registry: cqrs.Registry):
    reply = object()

    @registry.command_handler
    async def handler(command: Start) -> Any:
        return reply

    assert await cqrs.bootstrap(registry=registry).send(Start()) is reply


async def test_the_handler_gets_the_very_message_that_was_sent(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Start) -> Any:
        return command

    message = Start()
    assert await cqrs.bootstrap(registry=registry).send(message) is message


async def test_a_query_is_answered(registry: cqrs.Registry):
    @registry.query_handler
    async def handler(query: Look) -> Any:
        return "seen"

    assert await cqrs.bootstrap(registry=registry).send(Look()) == "seen"


@pytest.mark.parametrize("asks", ["nothing", "context", "session"])
async def test_an_exception_arrives_unchanged(registry: cqrs.Registry, database: str, asks: str):
    error = ValueError("no")

    async def nothing(command: Start) -> Any:
        raise error

    async def context(command: Start, context: cqrs.Context) -> Any:
        raise error

    async def session(command: Start, session: AsyncSession) -> Any:
        raise error

    registry.command_handler({"nothing": nothing, "context": context, "session": session}[asks])
    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        with pytest.raises(ValueError, match="no") as caught:
            await app.send(Start())
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_an_exception_keeps_its_traceback(registry: cqrs.Registry):
    def deep_inside() -> None:
        raise ValueError("no")

    @registry.command_handler
    async def handler(command: Start) -> Any:
        deep_inside()

    with pytest.raises(ValueError, match="no") as caught:
        await cqrs.bootstrap(registry=registry).send(Start())
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-2:] == ["handler", "deep_inside"]


async def test_an_exception_keeps_its_cause(registry: cqrs.Registry):
    cause = KeyError("k")

    @registry.command_handler
    async def handler(command: Start) -> Any:
        raise ValueError("no") from cause

    with pytest.raises(ValueError, match="no") as caught:
        await cqrs.bootstrap(registry=registry).send(Start())
    assert caught.value.__cause__ is cause


async def test_the_application_goes_on_after_an_exception(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Start) -> Any:
        if command.number == 0:
            raise ValueError("no")
        return command.number

    app = cqrs.bootstrap(registry=registry)
    with pytest.raises(ValueError, match="no"):
        await app.send(Start())
    assert await app.send(Start(number=1)) == 1


async def test_a_command_that_nobody_handles_is_refused(registry: cqrs.Registry):
    app = cqrs.bootstrap(registry=registry, name="shop")
    with pytest.raises(cqrs.NotHandled) as caught:
        await app.send(Start())
    assert str(caught.value) == (
        f"{Start.__module__}.Start has no handler in application 'shop'. "
        "Decorate one with @cqrs.command_handler or @cqrs.query_handler in a module that `scan` reaches, before "
        "`bootstrap` is called."
    )
    assert caught.value.message is Start


async def test_any_object_that_nobody_handles_is_refused(registry: cqrs.Registry):
    with pytest.raises(cqrs.NotHandled, match="str has no handler"):
        await cqrs.bootstrap(registry=registry).send("hello")


async def test_a_class_in_place_of_a_message_is_refused(registry: cqrs.Registry):
    with pytest.raises(cqrs.MisuseError, match=r"Start is a class. Send an object of it: Start\(...\)."):
        await cqrs.bootstrap(registry=registry).send(Start)


async def test_a_class_in_place_of_an_event_is_refused(registry: cqrs.Registry):
    class Started(cqrs.Event):
        pass

    with pytest.raises(cqrs.MisuseError, match=r"Started is a class. Emit an object of it: "):
        await cqrs.bootstrap(registry=registry).emit(Started)


@pytest.mark.parametrize("handled", [True, False])
async def test_a_command_that_is_emitted_is_refused(registry: cqrs.Registry, handled: bool):
    async def handler(command: Start) -> Any: ...

    if handled:
        registry.command_handler(handler)
    with pytest.raises(cqrs.MisuseError, match=r"Start is no event, so it cannot be emitted. Send it: "):
        await cqrs.bootstrap(registry=registry).emit(Start())


async def test_a_handler_of_a_base_class_does_not_handle_its_subclasses(registry: cqrs.Registry):
    class Special(Start):
        pass

    @registry.command_handler
    async def handler(command: Start) -> Any: ...

    with pytest.raises(cqrs.NotHandled, match="Special has no handler"):
        await cqrs.bootstrap(registry=registry).send(Special())


# Tasks


async def test_tasks_may_send_side_by_side(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Start) -> Any:
        await asyncio.sleep(0)
        return command.number

    app = cqrs.bootstrap(registry=registry)
    assert await asyncio.gather(*(app.send(Start(number=number)) for number in range(20))) == list(range(20))


@pytest.mark.parametrize("through", ["context", "app"])
async def test_a_gathered_task_of_a_running_handler_may_not_send(registry: cqrs.Registry, through: str):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context, app: cqrs.Mediator) -> Any:
        sender = context if through == "context" else app
        await asyncio.gather(sender.send(Inner()), sender.send(Inner()))

    @registry.command_handler
    async def inner(command: Inner) -> Any: ...

    with pytest.raises(cqrs.ForeignTask) as caught:
        await cqrs.bootstrap(registry=registry).send(Start())
    assert str(caught.value) == (
        "A task that was started while Start runs (asyncio.gather, create_task) used its transaction. "
        "A session serves one task: await the calls one after the other, or start the task after the command has ended."
    )


async def test_a_gathered_task_may_not_use_the_session(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def start(command: Start, session: AsyncSession) -> Any:
        await session.execute(text("SELECT 1"))
        await asyncio.gather(session.execute(text("SELECT 2")))

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        with pytest.raises(cqrs.ForeignTask, match="gather"):
            await app.send(Start())


async def test_a_handler_goes_on_after_a_foreign_task_was_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        refused = await asyncio.gather(context.send(Inner()), return_exceptions=True)
        return type(refused[0]), await context.send(Inner())

    @registry.command_handler
    async def inner(command: Inner) -> Any:
        return "inner"

    assert await cqrs.bootstrap(registry=registry).send(Start()) == (cqrs.ForeignTask, "inner")


async def test_a_task_left_behind_starts_anew_once_the_command_has_ended(registry: cqrs.Registry):
    ended = asyncio.Event()
    tasks = []

    @registry.command_handler
    async def start(command: Start, app: cqrs.Mediator, context: cqrs.Context) -> Any:
        async def later() -> Any:
            await ended.wait()
            return await app.send(Inner())

        tasks.append(asyncio.create_task(later()))
        return context.message_id

    @registry.command_handler
    async def inner(command: Inner, context: cqrs.Context) -> Any:
        return context.message_id, context.correlation_id, context.causation_id

    start_id = await cqrs.bootstrap(registry=registry).send(Start())
    ended.set()
    message_id, correlation_id, causation_id = await tasks[0]
    assert (correlation_id, causation_id) == (message_id, None)
    assert message_id != start_id


async def test_a_task_left_behind_by_a_nested_handler_is_foreign_while_the_outer_one_runs(registry: cqrs.Registry):
    tasks = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        await context.send(Inner())
        with pytest.raises(cqrs.ForeignTask, match="while Start runs"):
            await tasks[0]
        return "reply"

    @registry.command_handler
    async def inner(command: Inner, app: cqrs.Mediator) -> Any:
        tasks.append(asyncio.create_task(app.send(Look())))

    @registry.query_handler
    async def look(query: Look) -> Any: ...

    assert await cqrs.bootstrap(registry=registry).send(Start()) == "reply"


async def test_a_task_left_behind_may_send_several_messages_in_turn(registry: cqrs.Registry):
    ended = asyncio.Event()
    tasks = []

    @registry.command_handler
    async def start(command: Start, app: cqrs.Mediator) -> Any:
        async def later() -> Any:
            await ended.wait()
            return [await app.send(Inner()), await app.send(Inner())]

        tasks.append(asyncio.create_task(later()))

    @registry.command_handler
    async def inner(command: Inner) -> Any:
        return "inner"

    await cqrs.bootstrap(registry=registry).send(Start())
    ended.set()
    assert await tasks[0] == ["inner", "inner"]


async def test_a_command_in_one_task_is_no_business_of_tasks_started_before_it(registry: cqrs.Registry):
    running, release = asyncio.Event(), asyncio.Event()

    @registry.command_handler
    async def start(command: Start) -> Any:
        running.set()
        await release.wait()
        return "start"

    @registry.command_handler
    async def inner(command: Inner) -> Any:
        return "inner"

    app = cqrs.bootstrap(registry=registry)
    await app.send(Inner())  # what runs in this task is now known, and inherited by both
    first = asyncio.create_task(app.send(Start()))
    await running.wait()
    assert await asyncio.create_task(app.send(Inner())) == "inner"
    assert await app.send(Inner()) == "inner"
    release.set()
    assert await first == "start"


async def test_descendants_of_a_task_that_has_ended_do_not_disturb_each_other(registry: cqrs.Registry):
    """What two tasks inherited from their parent must not become a third one's, which Python gave the parent's id."""
    seek, send, busy, release = (asyncio.Event() for _ in range(4))

    @registry.command_handler
    async def start(command: Start) -> Any:
        busy.set()
        await release.wait()

    @registry.command_handler
    async def inner(command: Inner) -> Any:
        return "inner"

    app = cqrs.bootstrap(registry=registry)

    async def sibling() -> Any:
        await send.wait()
        return await app.send(Inner())

    async def start_or_wait(wanted: int) -> None:
        await (app.send(Start()) if id(asyncio.current_task()) == wanted else release.wait())

    async def seeker(wanted: int) -> list[asyncio.Task[None]]:
        await seek.wait()
        tasks = [asyncio.create_task(start_or_wait(wanted)) for _ in range(100)]
        if any(id(task) == wanted for task in tasks):
            await busy.wait()
        return tasks

    async def parent() -> Any:
        await app.send(Inner())
        ended = id(asyncio.current_task())
        return asyncio.create_task(sibling()), asyncio.create_task(seeker(ended))

    first, second = await asyncio.create_task(parent())
    seek.set()
    others = await second
    send.set()
    try:
        assert await first == "inner"
    finally:
        release.set()
        await asyncio.gather(*others)
    if not busy.is_set():
        pytest.skip("Python gave the id to no other task")


# Middlewares


async def test_the_applications_middlewares_go_around_those_of_the_handler_in_order(registry: cqrs.Registry):
    log: list[str] = []

    @registry.command_handler(middlewares=(around("c", log), around("d", log)))
    async def handler(command: Start) -> Any:
        log.append("handler")
        return "reply"

    app = cqrs.bootstrap(registry=registry, middlewares=[around("a", log), around("b", log)])
    assert await app.send(Start()) == "reply"
    assert log == ["> a", "> b", "> c", "> d", "handler", "< d", "< c", "< b", "< a"]


async def test_a_handlers_middlewares_are_its_own(registry: cqrs.Registry):
    log: list[str] = []

    @registry.command_handler(middlewares=(around("mine", log),))
    async def start(command: Start) -> Any: ...

    @registry.command_handler
    async def inner(command: Inner) -> Any: ...

    await cqrs.bootstrap(registry=registry).send(Inner())
    assert log == []


async def test_middlewares_go_around_queries_and_events_too(registry: cqrs.Registry):
    log: list[str] = []

    @registry.query_handler
    async def look(query: Look) -> Any:
        log.append("query")

    @registry.event_handler
    async def happened(event: Happened) -> None:
        log.append("event")

    app = cqrs.bootstrap(registry=registry, middlewares=[around("a", log)])
    await app.send(Look())
    await app.send(Happened())
    assert log == ["> a", "query", "< a", "> a", "event", "< a"]


async def test_a_handlers_middlewares_go_around_a_nested_send_and_a_local_event(registry: cqrs.Registry):
    log: list[str] = []

    @registry.command_handler
    async def start(command: Start, context: cqrs.Context) -> Any:
        await context.send(Inner())

    @registry.command_handler(middlewares=(around("inner", log),))
    async def inner(command: Inner, context: cqrs.Context) -> Any:
        context.emit(Happened())

    @registry.event_handler(middlewares=(around("event", log),))
    async def happened(event: Happened) -> None: ...

    await cqrs.bootstrap(registry=registry).send(Start())
    assert log == ["> inner", "< inner", "> event", "< event"]


async def test_a_middleware_sees_the_message_its_context_and_the_reply(registry: cqrs.Registry):
    seen = []

    async def look(message: Any, context: cqrs.Context, call_next: Any) -> Any:
        reply = await call_next(message, context)
        seen.append((message, context.message, reply))
        return f"{reply}!"

    @registry.command_handler
    async def handler(command: Start) -> Any:
        return "reply"

    message = Start()
    assert await cqrs.bootstrap(registry=registry, middlewares=[look]).send(message) == "reply!"
    assert seen == [(message, message, "reply")]


async def test_a_middleware_may_answer_by_itself(registry: cqrs.Registry):
    async def answer(message: Any, context: cqrs.Context, call_next: Any) -> Any:
        return "cached"

    @registry.command_handler
    async def handler(command: Start) -> Any:
        raise AssertionError

    assert await cqrs.bootstrap(registry=registry, middlewares=[answer]).send(Start()) == "cached"


async def test_a_middleware_of_the_application_may_repeat_the_whole_transaction(registry: cqrs.Registry, database: str):
    await create_table(database)
    attempts = []

    async def again(message: Any, context: cqrs.Context, call_next: Any) -> Any:
        try:
            return await call_next(message, context)
        except ConnectionError:
            return await call_next(message, context)

    @registry.command_handler
    async def handler(command: Start, session: AsyncSession, context: cqrs.Context) -> Any:
        attempts.append(session)
        await session.execute(text("INSERT INTO items VALUES (:name)"), {"name": f"try {len(attempts)}"})
        context.emit(Happened(name=f"try {len(attempts)}"))
        if len(attempts) == 1:
            raise ConnectionError

    heard = []

    @registry.event_handler
    async def happened(event: Happened) -> None:
        heard.append(event.name)

    async with cqrs.bootstrap(registry=registry, database=database, name="shop", middlewares=[again]) as app:
        await app.send(Start())
    assert await rows_of(database, "SELECT name FROM items") == ["try 2"]
    assert heard == ["try 2"]


async def test_a_middleware_of_the_application_sees_the_commit(registry: cqrs.Registry, database: str):
    await create_table(database)
    seen = []

    async def look(message: Any, context: cqrs.Context, call_next: Any) -> Any:
        reply = await call_next(message, context)
        seen.extend(await rows_of(database, "SELECT name FROM items"))
        return reply

    @registry.command_handler
    async def handler(command: Start, session: AsyncSession) -> Any:
        await session.execute(text("INSERT INTO items VALUES ('saved')"))

    async with cqrs.bootstrap(registry=registry, database=database, name="shop", middlewares=[look]) as app:
        await app.send(Start())
    assert seen == ["saved"]


# Events sent by hand


async def test_a_sent_event_reaches_each_handler(registry: cqrs.Registry):
    heard = []

    @registry.event_handler
    async def first(event: Happened) -> None:
        heard.append("first")

    @registry.event_handler(durable=True)
    async def second(event: Happened) -> None:
        heard.append("second")

    registry.handlers[1].options.pop("durable")
    assert await cqrs.bootstrap(registry=registry).send(Happened()) is None
    assert heard == ["first", "second"]


async def test_a_sent_event_that_nobody_handles_is_no_error(registry: cqrs.Registry):
    assert await cqrs.bootstrap(registry=registry).send(Happened()) is None


async def test_each_handler_of_a_sent_event_has_a_transaction_of_its_own(registry: cqrs.Registry, database: str):
    await create_table(database)

    @registry.event_handler
    async def failing(event: Happened, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO items VALUES ('failing')"))
        raise ValueError("no")

    @registry.event_handler
    async def fine(event: Happened, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO items VALUES ('fine')"))

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        with pytest.raises(ValueError, match="no"):
            await app.send(Happened())
    assert await rows_of(database, "SELECT name FROM items") == ["fine"]


async def test_the_exception_of_one_handler_of_a_sent_event_arrives_as_it_is(registry: cqrs.Registry):
    error = ValueError("no")

    @registry.event_handler
    async def failing(event: Happened) -> None:
        raise error

    @registry.event_handler
    async def fine(event: Happened) -> None: ...

    with pytest.raises(ValueError, match="no") as caught:
        await cqrs.bootstrap(registry=registry).send(Happened())
    assert caught.value is error


async def test_exceptions_of_several_handlers_of_a_sent_event_arrive_together(registry: cqrs.Registry):
    one, other = ValueError("one"), KeyError("other")

    @registry.event_handler
    async def first(event: Happened) -> None:
        raise one

    @registry.event_handler
    async def second(event: Happened) -> None:
        raise other

    with pytest.raises(ExceptionGroup) as caught:
        await cqrs.bootstrap(registry=registry).send(Happened())
    assert caught.value.exceptions == (one, other)
    assert caught.value.message == "2 handlers of Happened failed"


@pytest.mark.parametrize("uses_the_session", [True, False])
async def test_a_sent_event_with_an_id_is_taken_once(registry: cqrs.Registry, database: str, uses_the_session: bool):
    heard = []

    @registry.event_handler
    async def handler(event: cqrs.NotificationEvent[UserCreated], session: AsyncSession) -> None:
        if uses_the_session:
            await session.execute(text("SELECT 1"))
        heard.append(event.payload.user_id)

    event = cqrs.NotificationEvent[UserCreated](payload=UserCreated(user_id="u1"))
    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        await app.send(event)
        await app.send(event.model_copy(deep=True))
    assert heard == ["u1"]
    assert await rows_of(database, "SELECT message_id FROM cqrs_inbox") == [str(event.event_id)]


async def test_a_sent_event_that_a_handler_failed_on_is_taken_by_it_again(registry: cqrs.Registry, database: str):
    heard: list[str] = []

    @registry.event_handler
    async def failing(event: cqrs.NotificationEvent[UserCreated]) -> None:
        heard.append("failing")
        if heard.count("failing") == 1:
            raise ValueError("no")

    @registry.event_handler
    async def fine(event: cqrs.NotificationEvent[UserCreated]) -> None:
        heard.append("fine")

    event = cqrs.NotificationEvent[UserCreated](payload=UserCreated(user_id="u1"))
    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        with pytest.raises(ValueError, match="no"):
            await app.send(event)
        await app.send(event)
    assert heard == ["failing", "fine", "failing"]


async def test_a_sent_event_without_an_id_is_taken_every_time(registry: cqrs.Registry, database: str):
    heard = []

    @registry.event_handler
    async def handler(event: Happened) -> None:
        heard.append(event.name)

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        await app.send(Happened(name="a"))
        await app.send(Happened(name="a"))
    assert heard == ["a", "a"]
    assert await rows_of(database, "SELECT message_id FROM cqrs_inbox") == []


async def test_a_sent_event_is_never_published(registry: cqrs.Registry, database: str):
    heard = []

    @registry.integration_event(topic="things")
    class Published(cqrs.Event):
        pass

    @registry.event_handler
    async def handler(event: Published) -> None:
        heard.append(event)

    async with cqrs.bootstrap(registry=registry, database=database, name="shop", relay=False) as app:
        await app.send(Published())
        assert (await app.outbox.counts()).outbox == 0
    assert len(heard) == 1


async def test_the_handler_of_a_sent_event_knows_it_by_its_id(registry: cqrs.Registry):
    seen = []

    @registry.event_handler
    async def handler(event: cqrs.NotificationEvent[UserCreated], context: cqrs.Context) -> None:
        seen.append(context.message_id)

    event = cqrs.NotificationEvent[UserCreated](payload=UserCreated(user_id="u1"))
    await cqrs.bootstrap(registry=registry).send(event)
    assert seen == [str(event.event_id)]


async def test_events_that_the_handler_of_a_sent_event_emits_are_handled(registry: cqrs.Registry):
    class Followed(cqrs.Event):
        pass

    heard = []

    @registry.event_handler
    async def handler(event: Happened, context: cqrs.Context) -> None:
        context.emit(Followed())

    @registry.event_handler
    async def followed(event: Followed) -> None:
        heard.append(event)

    await cqrs.bootstrap(registry=registry).send(Happened())
    assert heard == [Followed()]


# Emitting outside a handler


async def test_a_local_event_emitted_outside_a_handler_is_handled_at_once(registry: cqrs.Registry):
    heard = []

    @registry.event_handler
    async def handler(event: Happened) -> None:
        heard.append(event.name)

    await cqrs.bootstrap(registry=registry).emit(Happened(name="a"))
    assert heard == ["a"]


async def test_emit_inside_a_handler_is_the_contexts(registry: cqrs.Registry):
    log = []

    @registry.command_handler
    async def start(command: Start, app: cqrs.Mediator) -> Any:
        await app.emit(Happened())
        log.append("command")

    @registry.event_handler
    async def handler(event: Happened) -> None:
        log.append("event")

    await cqrs.bootstrap(registry=registry).send(Start())
    assert log == ["command", "event"]


async def test_a_published_event_emitted_outside_a_handler_is_delivered(registry: cqrs.Registry, database: str):
    heard = []

    @registry.integration_event(topic="things")
    class Published(cqrs.Event):
        name: str

    @registry.event_handler
    async def handler(event: Published) -> None:
        heard.append(event.name)

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        await app.emit(Published(name="a"))
        await app.drain()
    assert heard == ["a"]


@pytest.mark.parametrize("commits", [True, False])
async def test_an_event_emitted_in_ones_own_transaction_exists_when_that_commits(
    registry: cqrs.Registry, database: str, commits: bool
):
    heard = []

    @registry.integration_event(topic="things")
    class Published(cqrs.Event):
        pass

    @registry.event_handler
    async def handler(event: Published) -> None:
        heard.append(event)

    engine = create_async_engine(database)
    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        async with AsyncSession(engine) as session:
            await app.emit(Published(), session)
            assert (await app.outbox.counts()).outbox == 0
            await (session.commit() if commits else session.rollback())
        await app.drain()
        assert len(heard) == int(commits)
    await engine.dispose()


async def test_emitting_what_cannot_be_written_saves_nothing(registry: cqrs.Registry, database: str):
    @registry.integration_event(topic="things")
    class Published(cqrs.Event):
        anything: Any = None

    @registry.event_handler
    async def handler(event: Published) -> None: ...

    async with cqrs.bootstrap(registry=registry, database=database, name="shop", relay=False) as app:
        with pytest.raises(cqrs.EncodingError, match=r"field 'anything' of .*Published cannot be written as JSON"):
            await app.emit(Published(anything=object()))
        assert (await app.outbox.counts()).outbox == 0


# Open and closed


async def test_a_session_outside_async_with_is_refused(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def handler(command: Start, session: AsyncSession) -> Any: ...

    app = cqrs.bootstrap(registry=registry, database=database, name="shop")
    with pytest.raises(cqrs.NotOpen) as caught:
        await app.send(Start())
    assert str(caught.value) == (
        "Application 'shop' is not open. Use it inside `async with app:`; FastAPI opens it by `lifespan=lifespan(app)`."
    )


async def test_emitting_a_published_event_outside_async_with_is_refused(registry: cqrs.Registry, database: str):
    @registry.integration_event(topic="things")
    class Published(cqrs.Event):
        pass

    @registry.event_handler
    async def handler(event: Published) -> None: ...

    app = cqrs.bootstrap(registry=registry, database=database, name="shop")
    with pytest.raises(cqrs.NotOpen):
        await app.emit(Published())


async def test_an_application_that_was_closed_is_not_open(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def handler(command: Start, session: AsyncSession) -> Any: ...

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        await app.send(Start())
    with pytest.raises(cqrs.NotOpen):
        await app.send(Start())


async def test_an_application_can_be_opened_again(registry: cqrs.Registry, database: str):
    @registry.command_handler
    async def handler(command: Start, session: AsyncSession) -> Any:
        return (await session.execute(text("SELECT 1"))).scalar()

    app = cqrs.bootstrap(registry=registry, database=database, name="shop")
    for _ in range(2):
        async with app:
            assert await app.send(Start()) == 1


async def test_opening_an_open_application_is_refused(registry: cqrs.Registry):
    app = cqrs.bootstrap(registry=registry, name="shop")
    async with app:
        with pytest.raises(cqrs.MisuseError) as caught:
            async with app:
                pass
        assert str(caught.value) == "Application 'shop' is open already. Enter it once, where the process starts."


async def test_without_a_database_there_is_no_outbox(registry: cqrs.Registry):
    with pytest.raises(cqrs.MisuseError, match="Application 'shop' has no database"):
        _ = cqrs.bootstrap(registry=registry, name="shop").outbox


async def test_without_a_database_there_is_nothing_to_drain(registry: cqrs.Registry):
    await cqrs.bootstrap(registry=registry).drain(timeout=0.0)


async def test_what_is_not_open_cannot_be_drained(registry: cqrs.Registry, database: str):
    with pytest.raises(cqrs.NotOpen):
        await cqrs.bootstrap(registry=registry, database=database).drain()


# Two applications in one process


@pytest.fixture
def make(tmp_path: Any) -> Callable[[str, cqrs.Registry], cqrs.Mediator]:
    def make(name: str, registry: cqrs.Registry) -> cqrs.Mediator:
        return cqrs.bootstrap(registry=registry, name=name, database=f"sqlite+aiosqlite:///{tmp_path / name}.db")

    return make


async def test_two_applications_handle_one_message_each_in_its_way():
    shop, depot = cqrs.Registry(), cqrs.Registry()

    @shop.command_handler
    async def in_shop(command: Start) -> Any:
        return "shop"

    @depot.command_handler
    async def in_depot(command: Start) -> Any:
        return "depot"

    assert await cqrs.bootstrap(registry=shop).send(Start()) == "shop"
    assert await cqrs.bootstrap(registry=depot).send(Start()) == "depot"


async def test_an_application_inside_another_has_a_transaction_of_its_own(make: Any):
    shop, depot = cqrs.Registry(), cqrs.Registry()
    applications: dict[str, cqrs.Mediator] = {}

    @shop.command_handler
    async def in_shop(command: Start, session: AsyncSession) -> Any:
        return session, await applications["depot"].send(Inner())

    @depot.command_handler
    async def in_depot(command: Inner, session: AsyncSession) -> Any:
        return session

    async with make("shop", shop) as applications["shop"], make("depot", depot) as applications["depot"]:
        outer, inner = await applications["shop"].send(Start())
        assert outer is not inner


async def test_what_an_application_inside_another_saved_stays_when_the_outer_one_fails(make: Any, tmp_path: Any):
    shop, depot = cqrs.Registry(), cqrs.Registry()
    applications: dict[str, cqrs.Mediator] = {}
    depot_file = f"sqlite+aiosqlite:///{tmp_path / 'depot'}.db"

    @shop.command_handler
    async def in_shop(command: Start) -> Any:
        await applications["depot"].send(Inner())
        raise ValueError("no")

    @depot.command_handler
    async def in_depot(command: Inner, session: AsyncSession) -> Any:
        await session.execute(text("INSERT INTO items VALUES ('depot')"))

    await create_table(depot_file)
    applications["depot"] = make("depot", depot)
    applications["shop"] = make("shop", shop)
    depot_app = cqrs.bootstrap(registry=depot, name="depot", database=depot_file, migrate=True)
    applications["depot"] = depot_app
    async with applications["shop"], depot_app:
        with pytest.raises(ValueError, match="no"):
            await applications["shop"].send(Start())
    assert await rows_of(depot_file, "SELECT name FROM items") == ["depot"]


async def test_a_way_back_into_the_outer_application_joins_its_transaction(make: Any):
    shop, depot = cqrs.Registry(), cqrs.Registry()
    applications: dict[str, cqrs.Mediator] = {}

    @shop.command_handler
    async def in_shop(command: Start, session: AsyncSession) -> Any:
        await session.execute(text("SELECT 1"))
        return await applications["depot"].send(Inner()) is session

    @depot.command_handler
    async def in_depot(command: Inner) -> Any:
        return await applications["shop"].send(Look())

    @shop.query_handler
    async def look(query: Look, session: AsyncSession) -> Any:
        return session

    async with make("shop", shop) as applications["shop"], make("depot", depot) as applications["depot"]:
        assert await applications["shop"].send(Start()) is True


async def test_a_message_to_another_application_is_caused_by_the_one_that_sent_it():
    shop, depot = cqrs.Registry(), cqrs.Registry()
    applications: dict[str, cqrs.Mediator] = {}

    @shop.command_handler
    async def in_shop(command: Start, context: cqrs.Context) -> Any:
        return context.message_id, await applications["depot"].send(Inner())

    @depot.command_handler
    async def in_depot(command: Inner, context: cqrs.Context) -> Any:
        return context.causation_id, context.correlation_id

    applications["depot"] = cqrs.bootstrap(registry=depot)
    message_id, caused = await cqrs.bootstrap(registry=shop).send(Start())
    assert caused == (message_id, message_id)


async def test_a_query_of_one_application_may_command_another():
    shop, depot = cqrs.Registry(), cqrs.Registry()

    @depot.command_handler
    async def in_depot(command: Inner) -> Any:
        return "done"

    other = cqrs.bootstrap(registry=depot)

    @shop.query_handler
    async def look(query: Look) -> Any:
        return await other.send(Inner())

    assert await cqrs.bootstrap(registry=shop).send(Look()) == "done"


async def test_events_stay_in_their_application():
    shop, depot = cqrs.Registry(), cqrs.Registry()
    heard = []

    @shop.command_handler
    async def in_shop(command: Start, context: cqrs.Context) -> Any:
        context.emit(Happened())

    @shop.event_handler
    async def here(event: Happened) -> None:
        heard.append("shop")

    @depot.event_handler
    async def there(event: Happened) -> None:
        heard.append("depot")

    cqrs.bootstrap(registry=depot)
    await cqrs.bootstrap(registry=shop).send(Start())
    assert heard == ["shop"]


def test_the_mediator_has_the_names_of_the_class_style():
    assert cqrs.RequestMediator is cqrs.Mediator
    assert cqrs.EventMediator is cqrs.Mediator
