import pytest

import cqrs
from cqrs.origin import Origin, coming_from, origin
from cqrs.origin import origin_of as read

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Ask(cqrs.Command[str]):
    pass


def origin_of(headers: dict[str, str]) -> Origin:
    return read([(name.encode(), text.encode("latin-1")) for name, text in headers.items()])


@pytest.fixture
def app(registry: cqrs.Registry) -> cqrs.Mediator:
    @registry.command_handler
    async def answer(command: Ask, context: cqrs.Context) -> str:
        return f"{context.correlation_id} {dict(context.headers)}"

    return cqrs.bootstrap(registry=registry)


def test_a_request_names_its_story_and_the_headers_that_travel_on():
    headers = {
        "x-correlation-id": "story-1",
        "traceparent": PARENT,
        "tracestate": "a=1",
        "baggage": "b=2",
        "x-other": "?",
    }
    assert origin_of(headers) == Origin("story-1", {"traceparent": PARENT, "tracestate": "a=1", "baggage": "b=2"})


def test_the_request_id_names_a_story_that_has_no_other_name():
    assert origin_of({"x-request-id": "request-1"}) == Origin("request-1")
    assert origin_of({"x-request-id": "request-1", "x-correlation-id": "story-1"}) == Origin("story-1")


@pytest.mark.parametrize("text", ["", " ", "a\nb", "ä", "a" * 129, " a"])
def test_a_correlation_id_that_is_malformed_or_too_long_is_left_out(text: str):
    assert origin_of({"x-correlation-id": text}) == Origin()


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        PARENT.upper(),
        f"{PARENT}-more",
        PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        f"ff{PARENT[2:]}",
    ],
)
def test_a_traceparent_that_is_none_is_left_out_with_its_state(parent: str):
    assert origin_of({"traceparent": parent, "tracestate": "a=1"}) == Origin()


def test_baggage_over_the_limit_is_left_out():
    assert origin_of({"baggage": "a" * 8193}) == Origin()


async def test_what_is_sent_belongs_to_the_story_that_it_comes_from(app: cqrs.Mediator):
    with coming_from(Origin("story-1", {"traceparent": PARENT})):
        assert await app.send(Ask()) == f"story-1 {{'traceparent': '{PARENT}'}}"


async def test_what_is_sent_begins_a_story_where_the_origin_names_none(app: cqrs.Mediator):
    with coming_from(Origin()):
        first, second = await app.send(Ask()), await app.send(Ask())
    assert first != second


async def test_the_origin_ends_with_its_block(app: cqrs.Mediator):
    with coming_from(Origin("story-1")):
        pass
    assert origin() == Origin()
    assert not (await app.send(Ask())).startswith("story-1")


async def test_an_event_that_is_saved_carries_the_story_and_the_trace(registry: cqrs.Registry, database: str):
    seen = []

    @registry.integration_event(topic="asked")
    class Asked(cqrs.Event):
        pass

    @registry.command_handler
    async def answer(command: Ask, context: cqrs.Context) -> str:
        context.emit(Asked())
        return context.message_id

    @registry.event_handler
    async def hear(event: Asked, context: cqrs.Context) -> None:
        seen.append((context.correlation_id, context.causation_id, context.headers["traceparent"]))

    async with cqrs.bootstrap(registry=registry, database=database) as app:
        with coming_from(Origin("story-1", {"traceparent": PARENT})):
            message_id = await app.send(Ask())
        await app.drain()
    assert seen == [("story-1", message_id, PARENT)]
