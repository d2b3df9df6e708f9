import cqrs
from cqrs.deliveries import Deliveries, deliveries_of
from cqrs.retry import OnDead, policies


class Shipped(cqrs.Event):
    order: str


class Counted(cqrs.Event):
    number: int


def deliveries(registry: cqrs.Registry, *, on_dead: OnDead = "block", retry: cqrs.Retry = cqrs.Retry()) -> Deliveries:  # noqa: B008 - frozen
    registry.integration_event(topic="shipping", name="Shipped")(Shipped)

    @registry.event_handler(name="track", on_dead="skip", retry=cqrs.Retry(attempts=1))
    async def track(event: Shipped) -> None: ...

    @registry.event_handler(name="bill")
    async def bill(event: Shipped) -> None: ...

    @registry.event_handler(name="count", durable=True)
    async def count(event: Counted) -> None: ...

    @registry.event_handler(name="note")
    async def note(event: Counted) -> None: ...

    app = cqrs.bootstrap(registry=registry, name="shop", database="sqlite+aiosqlite:///unused.db")
    return deliveries_of(app.plans.values(), retry=policies(retry), on_dead=on_dead)


def test_durable_handlers_and_those_of_published_events_are_delivered_to(registry: cqrs.Registry):
    assert sorted(deliveries(registry).by_name) == [("bill", "Shipped"), ("count", "Counted"), ("track", "Shipped")]


def test_published_events_are_known_by_topic_and_name(registry: cqrs.Registry):
    found = deliveries(registry).by_topic
    assert {topic: list(plans) for topic, plans in found.items()} == {"shipping": ["Shipped"]}


def test_a_handlers_own_policies_come_before_the_applications(registry: cqrs.Registry):
    found = deliveries(registry, retry=cqrs.Retry(attempts=2, first=5.0, jitter=0.0))
    error = ValueError("no")
    assert found.end("track", error, 1) == (None, False)
    assert found.end("bill", error, 1) == (5.0, True)
    assert found.end("broker", error, 2) == (None, True)


def test_what_skips_is_what_its_handler_or_the_application_lets_skip(registry: cqrs.Registry):
    assert deliveries(registry).skipping == ["track"]


def test_an_application_that_skips_skips_at_the_broker_too(registry: cqrs.Registry):
    assert sorted(deliveries(registry, on_dead="skip").skipping) == ["bill", "broker", "count", "track"]
