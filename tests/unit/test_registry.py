from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqrs
from cqrs.registry import Binder, Kind, Publication, source_of

DECORATORS = {
    Kind.COMMAND: cqrs.Registry.command_handler,
    Kind.QUERY: cqrs.Registry.query_handler,
    Kind.EVENT: cqrs.Registry.event_handler,
}


class PlaceOrder(cqrs.Command[int]):
    sku: str


async def place_order(command: PlaceOrder) -> int:
    return 1


class PlaceOrderHandler:
    async def handle(self, command: PlaceOrder) -> int:
        return 1


async def pass_through(message: Any, context: cqrs.Context, call_next: Any) -> Any:
    return await call_next(message, context)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("target", [place_order, PlaceOrderHandler], ids=["function", "class"])
def test_a_bare_decorator_returns_its_target_unchanged(registry: cqrs.Registry, kind: Kind, target: Any):
    before = dict(vars(target))
    assert DECORATORS[kind](registry, target) is target
    assert dict(vars(target)) == before


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("target", [place_order, PlaceOrderHandler], ids=["function", "class"])
def test_a_decorator_with_options_returns_its_target_unchanged(registry: cqrs.Registry, kind: Kind, target: Any):
    before = dict(vars(target))
    assert DECORATORS[kind](registry, name="place", middlewares=(pass_through,))(target) is target
    assert dict(vars(target)) == before


def test_a_decorator_with_empty_brackets_is_the_bare_one(registry: cqrs.Registry):
    assert registry.command_handler()(place_order) is place_order
    assert registry.handlers[0].options == {}


def test_an_event_that_is_declared_as_published_is_returned_unchanged(registry: cqrs.Registry):
    class OrderPlaced(cqrs.Event):
        order_id: str

    assert registry.integration_event(topic="orders", key="order_id")(OrderPlaced) is OrderPlaced


def test_options_are_written_down(registry: cqrs.Registry):
    retry = cqrs.Retry(attempts=3)
    registry.event_handler(name="n", durable=True, retry=retry, on_dead="skip", timeout=5.0)(place_order)
    (record,) = registry.handlers
    assert record.options == {"name": "n", "durable": True, "retry": retry, "on_dead": "skip", "timeout": 5.0}


def test_a_record_names_the_module_of_its_handler(registry: cqrs.Registry):
    registry.command_handler(place_order)
    assert registry.handlers[0].module == place_order.__module__


def test_a_record_cannot_be_changed(registry: cqrs.Registry):
    registry.command_handler(place_order)
    with pytest.raises(AttributeError):
        registry.handlers[0].kind = Kind.QUERY


def test_decorators_look_at_nothing(registry: cqrs.Registry):
    def nonsense(a, /, *b, c: "Missing" = 1, **d): ...  # noqa: F821 - the missing name is what is tested

    registry.command_handler(nonsense)
    assert registry.handlers[0].target is nonsense


def test_registries_know_nothing_of_each_other():
    one, other = cqrs.Registry(), cqrs.Registry()
    one.command_handler(place_order)
    assert other.handlers == []


def test_the_modules_decorators_fill_the_default_registry(fresh_modules: None):
    class OrderPlaced(cqrs.Event):
        order_id: str

    cqrs.command_handler(place_order)
    cqrs.query_handler(PlaceOrderHandler)
    cqrs.event_handler(durable=True)(place_order)
    cqrs.integration_event(topic="orders")(OrderPlaced)
    added = cqrs.default_registry.handlers[-3:]
    assert [(record.kind, record.target) for record in added] == [
        (Kind.COMMAND, place_order),
        (Kind.QUERY, PlaceOrderHandler),
        (Kind.EVENT, place_order),
    ]
    assert cqrs.default_registry.publications[OrderPlaced] == Publication(OrderPlaced, "OrderPlaced", "orders", None)


def test_a_published_event_goes_by_its_class_name(registry: cqrs.Registry):
    @registry.integration_event(topic="orders", key="order_id")
    class OrderPlaced(cqrs.Event):
        order_id: str

    assert registry.publications == {OrderPlaced: Publication(OrderPlaced, "OrderPlaced", "orders", "order_id")}


def test_a_published_event_may_have_a_name_of_its_own(registry: cqrs.Registry):
    @registry.integration_event(topic="orders", name="order.placed")
    class OrderPlaced(cqrs.Event):
        order_id: str

    assert registry.publications[OrderPlaced].name == "order.placed"


def test_a_handler_is_bound_to_a_message_named_outright(registry: cqrs.Registry):
    registry.bind(Kind.COMMAND, PlaceOrder, PlaceOrderHandler)
    (record,) = registry.handlers
    assert (record.kind, record.message, record.target) == (Kind.COMMAND, PlaceOrder, PlaceOrderHandler)


def test_bindings_can_be_chained(registry: cqrs.Registry):
    Binder(Kind.EVENT, registry).bind(PlaceOrder, place_order).bind(PlaceOrder, PlaceOrderHandler)
    assert [record.target for record in registry.handlers] == [place_order, PlaceOrderHandler]


steps = st.lists(
    st.tuples(st.sampled_from(Kind), st.sampled_from(["bare", "brackets", "named", "bound"]), st.text(min_size=1))
)


@given(steps=steps)
def test_any_sequence_of_decorations_is_kept_in_order(steps: list[tuple[Kind, str, str]]):
    registry = cqrs.Registry()
    expected = []
    for kind, style, name in steps:

        async def handler(message: PlaceOrder) -> int:
            return 1

        match style:
            case "bare":
                assert DECORATORS[kind](registry, handler) is handler
            case "brackets":
                assert DECORATORS[kind](registry)(handler) is handler
            case "named":
                assert DECORATORS[kind](registry, name=name)(handler) is handler
            case _:
                registry.bind(kind, PlaceOrder, handler)
        options = {"name": name} if style == "named" else {}
        expected.append((kind, handler, options, PlaceOrder if style == "bound" else None))
    assert [(r.kind, r.target, r.options, r.message) for r in registry.handlers] == expected


@given(
    declared=st.lists(st.tuples(st.integers(0, 4), st.text(), st.none() | st.text(), st.none() | st.text(min_size=1)))
)
def test_the_last_declaration_of_an_event_counts(declared: list[tuple[int, str, str | None, str | None]]):
    registry = cqrs.Registry()
    events = [type(f"Event{number}", (cqrs.Event,), {}) for number in range(5)]
    expected = {}
    for number, topic, key, name in declared:
        event = events[number]
        assert registry.integration_event(topic=topic, key=key, name=name)(event) is event
        expected[event] = Publication(event, name or event.__name__, topic, key)
    assert registry.publications == expected


def test_a_functions_place_is_its_file_and_line():
    assert source_of(place_order) == f"{__file__}:{place_order.__code__.co_firstlineno}"


def test_a_classs_place_is_within_its_file():
    assert source_of(PlaceOrderHandler).startswith(f"{__file__}:")


def test_the_place_of_a_class_from_nowhere_is_its_module():
    assert source_of(type("Unknown", (), {"__module__": "nowhere"})) == "nowhere"


@pytest.mark.parametrize("kind", Kind)
def test_a_decorator_that_is_given_the_message_says_where_it_belongs(registry: cqrs.Registry, kind: Kind):
    with pytest.raises(cqrs.MisuseError) as caught:
        DECORATORS[kind](registry, PlaceOrder)
    assert str(caught.value) == (
        f"PlaceOrder is a message, and @cqrs.{kind}_handler is for its handler. Write it without an argument; the "
        "handler's first parameter names the message: `message: PlaceOrder`."
    )


def test_a_published_event_without_a_topic_is_refused_where_it_is_declared(registry: cqrs.Registry):
    class Shipped(cqrs.Event):
        pass

    with pytest.raises(cqrs.MisuseError) as caught:
        registry.integration_event(Shipped)
    assert str(caught.value) == (
        f"{Shipped.__qualname__} ({source_of(Shipped)}) is published to no topic. "
        'Name it: @cqrs.integration_event(topic="orders") above the class.'
    )


def test_a_topic_may_be_given_without_its_name(registry: cqrs.Registry):
    class Shipped(cqrs.Event):
        pass

    registry.integration_event("orders")(Shipped)
    assert registry.publications[Shipped].topic == "orders"
