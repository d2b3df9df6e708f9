import asyncio
import logging
from typing import Any
from uuid import UUID

import pytest

import cqrs
from cqrs.context import Trace, new_trace


class Outer(cqrs.Command[Any]):
    pass


class Inner(cqrs.Command[Any]):
    pass


class Look(cqrs.Query[Any]):
    pass


class Happened(cqrs.Event):
    pass


def ids(context: cqrs.Context) -> tuple[str, str, str | None]:
    return context.message_id, context.correlation_id, context.causation_id


async def test_a_sent_message_begins_a_story_of_its_own(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Outer, context: cqrs.Context) -> Any:
        return ids(context)

    app = cqrs.bootstrap(registry=registry)
    message_id, correlation_id, causation_id = await app.send(Outer())
    assert UUID(message_id).version == 7
    assert (correlation_id, causation_id) == (message_id, None)
    assert (await app.send(Outer()))[0] != message_id


async def test_the_ids_of_a_message_stay_while_it_is_handled(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Outer, context: cqrs.Context) -> Any:
        return ids(context) == ids(context)

    assert await cqrs.bootstrap(registry=registry).send(Outer()) is True


async def test_a_nested_message_is_caused_by_the_one_that_sent_it(registry: cqrs.Registry):
    @registry.command_handler
    async def outer(command: Outer, context: cqrs.Context) -> Any:
        return ids(context), await context.send(Inner())

    @registry.command_handler
    async def inner(command: Inner, context: cqrs.Context) -> Any:
        return ids(context)

    (outer_id, *_), (inner_id, correlation_id, causation_id) = await cqrs.bootstrap(registry=registry).send(Outer())
    assert inner_id != outer_id
    assert (correlation_id, causation_id) == (outer_id, outer_id)


async def test_a_local_event_is_caused_by_the_message_whose_handler_emitted_it(registry: cqrs.Registry):
    seen: list[Any] = []

    @registry.command_handler
    async def outer(command: Outer, context: cqrs.Context) -> Any:
        await context.send(Inner())
        return ids(context)

    @registry.command_handler
    async def inner(command: Inner, context: cqrs.Context) -> Any:
        seen.append(ids(context))
        context.emit(Happened())

    @registry.event_handler
    async def one(event: Happened, context: cqrs.Context) -> None:
        seen.append(ids(context))

    @registry.event_handler
    async def other(event: Happened, context: cqrs.Context) -> None:
        seen.append(ids(context))

    outer_id, *_ = await cqrs.bootstrap(registry=registry).send(Outer())
    inner_ids, event_ids, same_event_ids = seen
    assert event_ids[1:] == (outer_id, inner_ids[0])
    assert event_ids == same_event_ids


async def test_a_message_sent_in_this_process_has_no_headers_and_is_the_first_attempt(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Outer, context: cqrs.Context) -> Any:
        return dict(context.headers), context.attempt

    assert await cqrs.bootstrap(registry=registry).send(Outer()) == ({}, 1)


def test_a_trace_hands_on_the_trace_headers_and_nothing_else():
    received = {"traceparent": "00-a-b-01", "tracestate": "v=1", "baggage": "k=v", "content-type": "application/json"}
    trace = Trace("m1", "c1", "x1", received, attempt=3)
    caused = trace.caused()
    assert (caused.correlation_id, caused.causation_id, caused.attempt) == ("c1", "m1", 1)
    assert caused.headers == {"traceparent": "00-a-b-01", "tracestate": "v=1", "baggage": "k=v"}
    assert UUID(caused.message_id).version == 7


def test_a_new_trace_is_its_own_correlation():
    trace = new_trace()
    assert (trace.correlation_id, trace.causation_id, dict(trace.headers)) == (trace.message_id, None, {})


async def test_a_context_shows_its_message_and_its_id(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Outer, context: cqrs.Context) -> Any:
        return repr(context), context.message_id

    shown, message_id = await cqrs.bootstrap(registry=registry).send(Outer())
    assert shown == f"<Context Outer {message_id}>"


async def test_the_context_ends_with_its_handler(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Outer) -> Any: ...

    await cqrs.bootstrap(registry=registry).send(Outer())
    with pytest.raises(cqrs.OutsideHandler):
        cqrs.current_session()


async def test_the_context_ends_with_a_handler_that_failed(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Outer) -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await cqrs.bootstrap(registry=registry).send(Outer())
    with pytest.raises(cqrs.OutsideHandler):
        cqrs.current_session()


async def test_emitting_after_the_handler_has_ended_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Outer, context: cqrs.Context) -> Any:
        return context

    context = await cqrs.bootstrap(registry=registry).send(Outer())
    with pytest.raises(cqrs.OutsideHandler) as caught:
        context.emit(Happened())
    assert str(caught.value) == (
        "Happened was emitted after the handling of Outer had ended. "
        "Emit before the handler returns, or use `await app.emit(event)`."
    )


async def test_emitting_from_a_nested_handler_that_has_ended_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def outer(command: Outer, context: cqrs.Context) -> Any:
        ended = await context.send(Inner())
        ended.emit(Happened())

    @registry.command_handler
    async def inner(command: Inner, context: cqrs.Context) -> Any:
        return context

    with pytest.raises(cqrs.OutsideHandler, match="after the handling of Inner had ended"):
        await cqrs.bootstrap(registry=registry).send(Outer())


async def test_emitting_from_a_query_is_refused(registry: cqrs.Registry):
    @registry.query_handler
    async def handler(query: Look, context: cqrs.Context) -> Any:
        context.emit(Happened())

    with pytest.raises(cqrs.QueryViolation) as caught:
        await cqrs.bootstrap(registry=registry).send(Look())
    assert str(caught.value) == (
        "Happened was emitted while the query Look was handled. Queries change nothing: make it a command."
    )


async def test_emitting_from_a_query_within_a_command_is_refused(registry: cqrs.Registry):
    @registry.command_handler
    async def outer(command: Outer, context: cqrs.Context) -> Any:
        await context.send(Look())

    @registry.query_handler
    async def handler(query: Look, context: cqrs.Context) -> Any:
        context.emit(Happened())

    with pytest.raises(cqrs.QueryViolation, match="Happened was emitted while the query Look was handled"):
        await cqrs.bootstrap(registry=registry).send(Outer())


async def test_the_session_is_refused_where_no_handler_runs():
    with pytest.raises(cqrs.OutsideHandler) as caught:
        cqrs.current_session()
    assert str(caught.value) == (
        "cqrs.current_session() was called where no handler runs. Call it inside a handler, "
        "as `session = providers.Callable(cqrs.current_session)` in a container does."
    )


async def test_the_session_is_the_one_that_the_handler_was_given(registry: cqrs.Registry, database: str):
    from sqlalchemy.ext.asyncio import AsyncSession

    @registry.command_handler
    async def handler(command: Outer, session: AsyncSession) -> Any:
        return session is cqrs.current_session()

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        assert await app.send(Outer()) is True


async def test_the_session_is_refused_in_a_task_that_the_handler_started(registry: cqrs.Registry, database: str):
    async def use_the_session() -> None:
        cqrs.current_session()

    @registry.command_handler
    async def handler(command: Outer) -> Any:
        await asyncio.gather(use_the_session())

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        with pytest.raises(cqrs.ForeignTask, match="gather"):
            await app.send(Outer())


async def test_a_session_without_a_database_is_refused_with_the_cure(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: Outer) -> Any:
        return cqrs.current_session()

    with pytest.raises(cqrs.MisuseError) as caught:
        await cqrs.bootstrap(registry=registry, name="shop").send(Outer())
    assert str(caught.value) == (
        "Application 'shop' has no database, so it has no session and saves no events. "
        'Give it one: cqrs.bootstrap(database="sqlite+aiosqlite:///app.db").'
    )


@pytest.mark.parametrize("event", [{"order_id": 1}, "OrderPlaced", 7])
async def test_what_is_no_event_is_refused_at_emit(registry: cqrs.Registry, event: Any):
    @registry.command_handler
    async def handler(command: Outer, context: cqrs.Context) -> Any:
        context.emit(event)

    with pytest.raises(cqrs.MisuseError) as caught:
        await cqrs.bootstrap(registry=registry).send(Outer())
    assert str(caught.value) == (
        f"'{type(event).__name__}' is no event, so it cannot be emitted. "
        "Emit an object of a class of yours: `class OrderPlaced(cqrs.Event)`."
    )


async def test_the_log_says_once_that_nobody_hears_of_an_event(
    registry: cqrs.Registry, caplog: pytest.LogCaptureFixture
):
    @registry.command_handler
    async def handler(command: Outer, context: cqrs.Context) -> Any:
        context.emit(Happened())
        context.emit(Happened())

    with caplog.at_level(logging.WARNING):
        await cqrs.bootstrap(registry=registry).send(Outer())
    assert caplog.messages == [
        (
            "Happened was emitted, and nobody hears of it: it has no handler here and is not published. Decorate a "
            "handler with @cqrs.event_handler, or the event with @cqrs.integration_event(topic=...)."
        )
    ]
