import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest
from faststream.kafka import KafkaBroker

import cqrs
from cqrs.registry import Kind
from tests.unit.support import RecordingPublisher, name, path, place, problems

pytestmark = pytest.mark.usefixtures("own_registrations")


class PlaceOrder(cqrs.Command[str]):
    pass


class GetOrder(cqrs.Query[str]):
    pass


class OrderPlaced(cqrs.Event):
    order_id: str = "o1"


A_DATABASE = 'Give bootstrap one: database="sqlite+aiosqlite:///app.db".'
A_BROKER = "Give bootstrap a broker, or decorate a handler of it."


def publish(registry: cqrs.Registry, **options: Any) -> type:
    """Declare a new published event."""

    class Shipped(cqrs.Event):
        order_id: str = "o1"

    return registry.integration_event(topic="orders", **options)(Shipped)


# What an application has


async def test_both_spellings_make_an_application(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder) -> str:
        return "placed"

    for app in (cqrs.bootstrap(registry=registry), cqrs.bootstrap.bootstrap(registry=registry)):
        assert isinstance(app, cqrs.Mediator)
        assert await app.send(PlaceOrder()) == "placed"


def test_without_scan_an_application_has_what_the_registry_holds(fresh_modules: None):
    @cqrs.command_handler
    async def handler(command: PlaceOrder) -> str:
        return "placed"

    assert PlaceOrder in cqrs.bootstrap().plans


MODULE = """
import cqrs

class Ping(cqrs.Command[str]):
    pass

@cqrs.command_handler
async def ping(command: Ping) -> str:
    return "{answer}"
"""


async def test_with_scan_an_application_has_the_handlers_of_those_modules_alone(package: Any):
    one, other = package({"ping.py": MODULE.format(answer="one")}), package({"ping.py": MODULE.format(answer="other")})
    apps = [cqrs.bootstrap(one), cqrs.bootstrap(other)]
    assert [len(app.plans) for app in apps] == [1, 1]
    answers = [await app.send(sys.modules[f"{app.name}.ping"].Ping()) for app in apps]
    assert answers == ["one", "other"]


async def test_several_packages_make_one_application(package: Any):
    names = [package({"ping.py": MODULE.format(answer=answer)}) for answer in ("one", "other")]
    app = cqrs.bootstrap(names)
    assert [await app.send(sys.modules[f"{package}.ping"].Ping()) for package in names] == ["one", "other"]


def test_with_scan_the_calling_module_counts_too(package: Any):
    name = package({"ping.py": MODULE.format(answer="one")})

    @cqrs.command_handler
    async def handler(command: PlaceOrder) -> str:
        return "placed"

    assert PlaceOrder in cqrs.bootstrap(name).plans


async def test_scan_takes_registries_beside_paths(package: Any, registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder) -> str:
        return "placed"

    app = cqrs.bootstrap([package({"ping.py": MODULE.format(answer="one")}), registry])
    assert await app.send(PlaceOrder()) == "placed"
    assert len(app.plans) == 2


def test_a_registry_may_be_scanned_alone(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder) -> str:
        return "placed"

    assert PlaceOrder in cqrs.bootstrap(registry, registry=cqrs.Registry()).plans


def test_excluded_modules_are_not_part_of_an_application(package: Any):
    name = package({"ping.py": MODULE.format(answer="one"), "broken.py": "raise ValueError"})
    assert len(cqrs.bootstrap(name, exclude=(f"{name}.broken",)).plans) == 1


# Names


def test_an_application_is_named_after_the_first_scanned_package(package: Any):
    name = package({"orders/__init__.py": MODULE.format(answer="one")})
    assert cqrs.bootstrap(f"{name}.orders").name == name


def test_an_application_is_named_after_the_calling_module(registry: cqrs.Registry):
    assert cqrs.bootstrap(registry=registry).name == __name__.partition(".")[0]


def test_an_application_may_have_a_name_of_its_own(registry: cqrs.Registry):
    assert cqrs.bootstrap(registry=registry, name="shop").name == "shop"


# Mappers


async def test_mappers_bind_messages_to_handlers(registry: cqrs.Registry):
    heard = []

    async def place(command: PlaceOrder, context: cqrs.Context) -> str:
        context.emit(OrderPlaced())
        return "placed"

    async def get(query: GetOrder) -> str:
        return "order"

    async def heard_of(event: OrderPlaced) -> None:
        heard.append(event)

    app = cqrs.bootstrap(
        registry=registry,
        commands_mapper=lambda m: m.bind(PlaceOrder, place),
        queries_mapper=lambda m: m.bind(GetOrder, get),
        domain_events_mapper=lambda m: m.bind(OrderPlaced, heard_of),
    )
    assert [await app.send(PlaceOrder()), await app.send(GetOrder())] == ["placed", "order"]
    assert len(heard) == 1


def test_mappers_leave_the_registry_alone(registry: cqrs.Registry):
    async def place(command: PlaceOrder) -> str:
        return "placed"

    cqrs.bootstrap(registry=registry, commands_mapper=lambda m: m.bind(PlaceOrder, place))
    assert registry.handlers == []


def test_a_handler_that_is_decorated_and_bound_is_one(registry: cqrs.Registry):
    @registry.command_handler
    async def place(command: PlaceOrder) -> str:
        return "placed"

    app = cqrs.bootstrap(registry=registry, commands_mapper=lambda m: m.bind(PlaceOrder, place))
    assert len(app.plans[PlaceOrder].handlers) == 1


def test_a_mapped_handler_keeps_the_options_that_its_decorator_gave_it(registry: cqrs.Registry):
    @registry.command_handler(name="orders.place")
    async def place(command: PlaceOrder) -> str:
        return "placed"

    app = cqrs.bootstrap(registry=registry, commands_mapper=lambda m: m.bind(PlaceOrder, place))
    assert [handler.name for handler in app.plans[PlaceOrder].handlers] == ["orders.place"]


def test_a_mapper_may_bind_several_handlers_to_an_event(registry: cqrs.Registry):
    async def first(event: OrderPlaced) -> None: ...

    async def second(event: OrderPlaced) -> None: ...

    app = cqrs.bootstrap(
        registry=registry,
        domain_events_mapper=lambda m: m.bind(OrderPlaced, first).bind(OrderPlaced, second),
    )
    assert [handler.name for handler in app.plans[OrderPlaced].handlers] == [name(first), name(second)]
    assert app.plans[OrderPlaced].kind is Kind.EVENT


def test_two_handlers_bound_to_a_command_are_refused(registry: cqrs.Registry):
    async def one(command: PlaceOrder) -> str:
        return "one"

    async def other(command: PlaceOrder) -> str:
        return "other"

    wishes = {"commands_mapper": lambda m: m.bind(PlaceOrder, one).bind(PlaceOrder, other)}
    (problem,) = problems(registry=registry, **wishes)
    assert problem.startswith(f"{path(PlaceOrder)} has 2 command handlers, expected one: ")


# What is wrong with an application


def test_everything_that_is_wrong_comes_in_one_error(registry: cqrs.Registry):
    @registry.command_handler
    async def one(command: PlaceOrder, orders: Any) -> str:
        return "one"

    @registry.event_handler(durable=True)
    async def other(event: OrderPlaced) -> None: ...

    with pytest.raises(cqrs.ConfigurationError) as caught:
        cqrs.bootstrap(registry=registry)
    error = caught.value
    assert len(error.problems) == 2
    assert str(error) == "\n".join(["2 problems", *(f"- {problem}" for problem in error.problems)])


def test_a_single_problem_is_counted_in_the_singular():
    assert str(cqrs.ConfigurationError([cqrs.Problem("It is wrong", "Mend it.", "here:1")])) == (
        "1 problem\n- It is wrong (here:1). Mend it."
    )


def test_a_problem_without_a_place_shows_none():
    assert str(cqrs.Problem("It is wrong", "Mend it.")) == "It is wrong. Mend it."


def test_a_published_event_without_a_database_is_refused(registry: cqrs.Registry):
    event = publish(registry)

    @registry.event_handler
    async def handler(event: event) -> None: ...

    assert problems(registry=registry) == [
        (
            f"{event.__qualname__} is published to 'orders', but there is no database to save it in ({place(event)}). "
            f"{A_DATABASE}"
        )
    ]


def test_a_published_event_with_neither_broker_nor_handler_is_refused(package: Any, database: str):
    source = (
        MODULE.format(answer="one")
        + """
@cqrs.integration_event(topic="orders")
class Shipped(cqrs.Event):
    pass
"""
    )
    module = package({"ping.py": source})
    (problem,) = problems(module, database=database)
    shipped = sys.modules[f"{module}.ping"].Shipped
    assert problem == (
        f"Shipped is published to 'orders', but there is neither a broker nor a handler of it ({place(shipped)}). "
        f"{A_BROKER}"
    )


def test_a_published_event_of_a_registry_with_neither_broker_nor_handler_is_refused(
    registry: cqrs.Registry, database: str
):
    event = publish(registry)
    assert problems(registry=registry, database=database) == [
        (
            f"{event.__qualname__} is published to 'orders', but there is neither a broker nor a handler of it "
            f"({place(event)}). {A_BROKER}"
        )
    ]


def test_a_published_event_with_a_broker_needs_no_handler(registry: cqrs.Registry, database: str):
    publish(registry)
    assert cqrs.bootstrap(registry=registry, database=database, broker=RecordingPublisher()).plans == {}


def test_two_published_events_of_one_name_are_refused(registry: cqrs.Registry, database: str):
    one, other = publish(registry), publish(registry)

    @registry.event_handler
    async def handler(event: one | other) -> None: ...

    assert problems(registry=registry, database=database) == [
        (
            f"Two published events are named 'Shipped': {path(one)} and {path(other)} ({place(other)}). "
            "Give one of them a name of its own: @cqrs.integration_event(name=...)."
        )
    ]


def test_two_published_events_of_different_names_are_fine(registry: cqrs.Registry, database: str):
    one, other = publish(registry), publish(registry, name="order.shipped")

    @registry.event_handler
    async def handler(event: one | other) -> None: ...

    assert {plan.name for plan in cqrs.bootstrap(registry=registry, database=database).plans.values()} == {
        "Shipped",
        "order.shipped",
    }


def test_a_message_that_nobody_handles_is_refused(package: Any):
    module = package({"ping.py": MODULE.format(answer="one") + "\nclass Pong(cqrs.Query[str]):\n    pass\n"})
    (problem,) = problems(module)
    assert problem == (
        f"{module}.ping.Pong has no handler ({place(sys.modules[f'{module}.ping'].Pong)}). "
        "Decorate a handler of it in a scanned module, or move the message out of what is scanned."
    )


def test_a_message_that_is_only_a_base_is_no_problem(package: Any):
    source = MODULE.format(answer="one").replace("(cqrs.Command[str])", "(OrderCommand)")
    source = source.replace(
        "\nclass Ping", "\nclass OrderCommand(cqrs.Command[str]):\n    order_id: str = ''\n\nclass Ping"
    )
    assert len(cqrs.bootstrap(package({"ping.py": source})).plans) == 1


def test_a_message_that_a_mapper_binds_is_handled(package: Any):
    source = MODULE.format(answer="one") + "\nclass Pong(cqrs.Query[str]):\n    pass\n"
    module = package({"ping.py": source})
    __import__(f"{module}.ping")
    pong = sys.modules[f"{module}.ping"].Pong

    async def handler(query: GetOrder) -> str:
        return "pong"

    handler.__annotations__["query"] = pong
    assert pong in cqrs.bootstrap(module, queries_mapper=lambda m: m.bind(pong, handler)).plans


def test_a_durable_handler_without_a_database_is_refused(registry: cqrs.Registry):
    @registry.event_handler(durable=True)
    async def handler(event: OrderPlaced) -> None: ...

    assert problems(registry=registry) == [
        f"{name(handler)} is durable, but there is no database to save for it ({place(handler)}). {A_DATABASE}"
    ]


def test_a_handler_name_that_does_not_fit_its_column_is_refused(registry: cqrs.Registry, database: str):
    long_name = "n" * 192

    @registry.event_handler(durable=True, name=long_name)
    async def handler(event: OrderPlaced) -> None: ...

    assert problems(registry=registry, database=database) == [
        (
            f"The handler name '{long_name}' has 192 characters, at most 191 fit ({place(handler)}). "
            "Give it a shorter one with name=..."
        )
    ]


def test_a_handler_name_that_just_fits_is_fine(registry: cqrs.Registry, database: str):
    @registry.event_handler(durable=True, name="n" * 191)
    async def handler(event: OrderPlaced) -> None: ...

    assert OrderPlaced in cqrs.bootstrap(registry=registry, database=database).plans


def test_a_long_name_that_stands_in_no_table_is_fine(registry: cqrs.Registry):
    @registry.command_handler(name="n" * 300)
    async def handler(command: PlaceOrder) -> str:
        return "placed"

    assert PlaceOrder in cqrs.bootstrap(registry=registry).plans


def test_a_broker_without_a_database_is_refused(registry: cqrs.Registry):
    assert problems(registry=registry, broker=RecordingPublisher()) == [
        "There is a broker, but no database to save events in. Give bootstrap a database."
    ]


def test_a_broker_of_an_unknown_scheme_is_refused_without_showing_it(registry: cqrs.Registry, database: str):
    (problem,) = problems(registry=registry, database=database, broker="nats://me:secret@queue")
    assert problem.startswith("The scheme 'nats' is none that a broker has. Use one of kafka://")
    assert "secret" not in problem


def test_a_wrong_lease_does_not_hide_what_is_wrong_with_the_broker(registry: cqrs.Registry, database: str):
    found = problems(registry=registry, database=database, broker="nats://queue", lease="long")
    assert [problem.partition(" ")[0] for problem in found] == ["The", "lease='long'"]


@pytest.mark.parametrize(
    ("wish", "named"), [({"carrier": "log"}, "carrier='log'"), ({"listen_url": "postgresql://db"}, "listen_url=")]
)
def test_what_needs_postgresql_is_refused(registry: cqrs.Registry, database: str, wish: dict[str, Any], named: str):
    assert problems(registry=registry, database=database, **wish) == [f"{named} needs PostgreSQL. Leave it out."]


def test_what_the_log_carries_needs_neither_a_broker_nor_a_handler(registry: cqrs.Registry):
    event = registry.integration_event(topic="orders")(type("Shipped", (cqrs.Event,), {}))
    options = {"registry": registry, "database": "postgresql+asyncpg://nobody@nowhere/shop"}
    assert cqrs.bootstrap(carrier="log", **options).plans == {}
    assert [problem.split(" (")[0] for problem in problems(**options)] == [
        f"{event.__qualname__} is published to 'orders', but there is neither a broker nor a handler of it"
    ]


def test_the_relay_retries_handlers_of_published_events_whatever_carries_these(registry: cqrs.Registry):
    event = registry.integration_event(topic="orders")(type("Shipped", (cqrs.Event,), {}))

    @registry.event_handler(name="receive")
    async def receive(event: event) -> None: ...

    options = {"registry": registry, "database": "postgresql+asyncpg://nobody@nowhere/shop"}
    assert [*cqrs.bootstrap(**options).storage.relay._handover.publishers] == ["receive"]
    assert [*cqrs.bootstrap(carrier="log", **options).storage.relay._handover.publishers] == ["receive"]


TEN_MISTAKES = """
import cqrs
import pydantic
from dependency_injector import containers, providers

class PlaceOrder(cqrs.Command[int]):
    order_id: str

class CancelOrder(cqrs.Command[int]):
    order_id: str

class ShipOrder(cqrs.Command[int]):
    order_id: str

class PayOrder(cqrs.Command[int]):
    order_id: str

class PackOrder(cqrs.Command[int]):
    order_id: str

class WrapOrder(cqrs.Command[int]):
    order_id: str

class Opaque:
    pass

class Clock:
    pass

class OrderWeighed(cqrs.Event):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    scale: Opaque

class OrderCounted(cqrs.Event):
    order_id: str

@cqrs.integration_event(topic="orders", key="number")
class OrderPlaced(cqrs.Event):
    order_id: str

class Container(containers.DeclarativeContainer):
    one = providers.Factory(Clock)
    other = providers.Factory(Clock)

@cqrs.command_handler
async def place(command: PlaceOrder) -> int: ...             # 1: two handlers of one command

@cqrs.command_handler
async def place_too(command: PlaceOrder) -> int: ...

@cqrs.command_handler
async def nothing_said(command): ...                         # 2: no annotation

@cqrs.command_handler
async def cancel(command: CancelOrder) -> str: ...           # 3: contradicts Command[int]

@cqrs.command_handler
async def ship(command: ShipOrder, orders: Opaque) -> int: ...   # 4: nothing provides it

@cqrs.command_handler
async def pay(command: PayOrder, clock: Clock) -> int: ...   # 5: two providers provide it

@cqrs.command_handler
def pack(command: PackOrder) -> int: ...                     # 6: not async

@cqrs.command_handler(retries=3)
async def wrap(command: WrapOrder) -> int: ...               # 7: no such option

@cqrs.event_handler
async def receipt(event: OrderPlaced) -> None: ...           # 8: no such key

@cqrs.event_handler(durable=True)
async def weigh(event: OrderWeighed) -> None: ...            # 9: cannot be written

@cqrs.event_handler(durable=True, concurrent=True)
async def count(event: OrderCounted) -> None: ...            # 10: both in the background and beside others
"""

TEN_TEXTS = [
    "{m}.PlaceOrder has 2 command handlers, expected one: {m}:place ({file}:",
    "{m}.nothing_said: its first parameter 'command' has no annotation ({file}:",
    "{m}.cancel: it returns str, but {m}.CancelOrder promises int ({file}:",
    "{m}.ship: nothing provides 'orders' (Opaque) ({file}:",
    "{m}.pay: parameter 'clock': 'one' and 'other' both provide Clock ({file}:",
    "{m}.pack: a handler is a coroutine function, this one is a plain function ({file}:",
    "{m}.wrap: @cqrs.command_handler has no option retries ({file}:",
    "{m}.OrderPlaced has no 'number' to be its key ({file}",
    "{m}.OrderWeighed cannot be written as JSON and read back: ",
    "{m}:count is concurrent, but is delivered in the background, where every handler is on its own ({file}:",
]


def test_ten_mistakes_in_one_script_are_listed_in_one_error(tmp_path: Path):
    script = tmp_path / "mistakes.py"
    script.write_text(
        f'{TEN_MISTAKES}\ncqrs.bootstrap(container=Container(), database="sqlite+aiosqlite:///{tmp_path}/app.db")\n'
    )
    root = str(Path(cqrs.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, script], env={"PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ConfigurationError: 10 problems\n" in done.stderr
    listed = [line for line in done.stderr.splitlines() if line.startswith("- ")]
    assert len(listed) == 10
    for text in TEN_TEXTS:
        wanted = text.format(m="mistakes", file=script)
        found = [line for line in listed if line.replace("__main__.", "mistakes.").startswith(f"- {wanted}")]
        assert len(found) == 1, wanted


def test_ten_mistakes_in_a_scanned_module_are_listed_in_one_error(package: Any, database: str):
    module = package({"orders.py": TEN_MISTAKES})
    __import__(f"{module}.orders")
    container = sys.modules[f"{module}.orders"].Container()
    found = problems(module, container=container, database=database)
    # Messages whose only handler is unusable count as unhandled, too, where modules are scanned.
    own = [text for text in found if not re.search(r"Order has no handler ", text)]
    assert len(own) == 10
    for text in TEN_TEXTS:
        wanted = text.format(m=f"{module}.orders", file=sys.modules[f"{module}.orders"].__file__)
        assert len([line for line in own if line.startswith(wanted)]) == 1, wanted


def test_a_message_whose_handler_is_refused_is_not_reported_as_unhandled_too(package: Any):
    module = package({"ping.py": MODULE.format(answer="one").replace("-> str", "-> int").replace("async def", "def")})
    found = problems(module)
    assert any("this one is a plain function" in problem for problem in found)
    assert not any("has no handler" in problem for problem in found)


# The class style, as the design has it

CLASS_STYLE = """
import asyncio
from typing import List

import cqrs
from cqrs.events import Event


class CreateUserCommand(cqrs.Request):
    email: str
    name: str


class CreateUserResponse(cqrs.Response):
    user_id: str


class GetUserQuery(cqrs.Request):
    user_id: str


class GetUserResponse(cqrs.Response):
    name: str


class UserCreatedEvent(cqrs.Event):
    user_id: str


class CreateUserHandler(cqrs.RequestHandler[CreateUserCommand, CreateUserResponse]):
    def __init__(self): self._events: list[Event] = []
    @property
    def events(self) -> list[Event]: return self._events
    async def handle(self, request: CreateUserCommand) -> CreateUserResponse:
        self._events.append(UserCreatedEvent(user_id="user_1"))
        return CreateUserResponse(user_id="user_1")


class GetUserHandler(cqrs.RequestHandler[GetUserQuery, GetUserResponse]):
    async def handle(self, request: GetUserQuery) -> GetUserResponse:
        return GetUserResponse(name="John Doe")


class UserCreatedEventHandler(cqrs.EventHandler[UserCreatedEvent]):
    async def handle(self, event: UserCreatedEvent) -> None:
        print(f"Event: {event.user_id}")


async def main():
    mediator = cqrs.bootstrap.bootstrap(
        commands_mapper=lambda m: m.bind(CreateUserCommand, CreateUserHandler),
        queries_mapper=lambda m: m.bind(GetUserQuery, GetUserHandler),
        domain_events_mapper=lambda m: m.bind(UserCreatedEvent, UserCreatedEventHandler),
    )
    result = await mediator.send(CreateUserCommand(email="user@example.com", name="John Doe"))
    print(f"User created: {result.data['user_id']}")
    found = await mediator.send(GetUserQuery(user_id=result.user_id))
    print(f"User found: {found.name}")


asyncio.run(main())
"""


def test_the_class_style_of_the_design_runs_unchanged(tmp_path: Path):
    script = tmp_path / "users.py"
    script.write_text(CLASS_STYLE)
    root = str(Path(cqrs.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, script], env={"PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "Event: user_1\nUser created: user_1\nUser found: John Doe\n"


async def test_a_handler_object_that_collects_no_events_emits_none(registry: cqrs.Registry):
    class Handler(cqrs.RequestHandler[PlaceOrder, str]):
        async def handle(self, request: PlaceOrder) -> str:
            return "placed"

    app = cqrs.bootstrap(registry=registry, commands_mapper=lambda m: m.bind(PlaceOrder, Handler))
    assert await app.send(PlaceOrder()) == "placed"
    assert list(Handler().events) == []


async def test_events_that_a_decorated_class_collects_are_handled(registry: cqrs.Registry):
    heard = []

    @registry.command_handler
    class Handler(cqrs.RequestHandler[PlaceOrder, str]):
        def __init__(self) -> None:
            self._events: list[cqrs.Event] = []

        @property
        def events(self) -> list[cqrs.Event]:
            return self._events

        async def handle(self, request: PlaceOrder) -> str:
            self._events.append(OrderPlaced())
            return "placed"

    @registry.event_handler
    class Heard(cqrs.EventHandler[OrderPlaced]):
        async def handle(self, event: OrderPlaced) -> None:
            heard.append(event)

    assert await cqrs.bootstrap(registry=registry).send(PlaceOrder()) == "placed"
    assert heard == [OrderPlaced()]


ONE_SCRIPT = """
import asyncio
import cqrs

class PlaceOrder(cqrs.Command[str]):
    sku: str

@cqrs.integration_event(topic="orders", key="sku")
class OrderPlaced(cqrs.Event):
    sku: str

@cqrs.command_handler
async def place_order(command: PlaceOrder, context: cqrs.Context) -> str:
    context.emit(OrderPlaced(sku=command.sku))
    return "placed"

@cqrs.event_handler
async def send_receipt(event: OrderPlaced) -> None:
    print("receipt for", event.sku)

async def main():
    async with cqrs.bootstrap(database="sqlite+aiosqlite:///new.db") as app:
        print(await app.send(PlaceOrder(sku="tea")))
        await app.drain()

asyncio.run(main())
"""


def test_one_script_runs_on_a_database_that_did_not_exist(tmp_path: Path):
    script = tmp_path / "orders.py"
    script.write_text(ONE_SCRIPT)
    root = str(Path(cqrs.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == ["placed", "receipt for tea"]
    assert (tmp_path / "new.db").is_file()


async def test_a_notification_of_a_class_of_its_own_reaches_its_handler(registry: cqrs.Registry, database: str):
    class Payload(pydantic.BaseModel):
        user_id: str

    class SignedUp(cqrs.NotificationEvent[Payload]):
        topic: str = "users"

    heard = []

    @registry.event_handler
    async def handler(event: SignedUp) -> None:
        heard.append(event.payload.user_id)

    async with cqrs.bootstrap(registry=registry, database=database, name="shop") as app:
        await app.emit(SignedUp(payload=Payload(user_id="u1")))
        await app.drain()
    assert heard == ["u1"]


def test_a_mapper_that_is_no_function_is_refused(registry: cqrs.Registry):
    assert problems(registry=registry, commands_mapper={}) == [
        (
            "The mapper of command handlers, {}, cannot be called. "
            "Pass a function: lambda m: m.bind(CreateUser, CreateUserHandler)."
        )
    ]


@pytest.mark.parametrize("topic", ["bon marché", "orders/eu", ".."])
def test_a_topic_that_kafka_will_never_have_is_refused(registry: cqrs.Registry, database: str, topic: str):
    @registry.integration_event(topic=topic)
    class Shipped(cqrs.Event):
        pass

    for broker in ("kafka://localhost", KafkaBroker("localhost")):
        assert problems(registry=registry, database=database, broker=broker) == [
            (
                f"{Shipped.__qualname__} cannot be published to '{topic}' ({place(Shipped)}). "
                "Kafka's topics have up to 249 of the characters a-z A-Z 0-9 . _ -."
            )
        ]


@pytest.mark.parametrize(
    ("topic", "cure"),
    [
        ("amq.topic", "RabbitMQ keeps the exchanges whose names begin with 'amq.' for itself."),
        ("é" * 128, "RabbitMQ's exchanges have names of up to 255 bytes."),
    ],
)
def test_an_exchange_that_rabbitmq_will_never_have_is_refused(
    registry: cqrs.Registry, database: str, topic: str, cure: str
):
    @registry.integration_event(topic=topic)
    class Shipped(cqrs.Event):
        pass

    assert problems(registry=registry, database=database, broker="amqp://localhost/") == [
        f"{Shipped.__qualname__} cannot be published to '{topic}' ({place(Shipped)}). {cure}"
    ]


def test_a_topic_with_a_slash_is_fine_on_rabbitmq(registry: cqrs.Registry, database: str):
    registry.integration_event(topic="orders/eu")(OrderPlaced)
    cqrs.bootstrap(registry=registry, database=database, broker="amqp://localhost/")


@pytest.mark.parametrize("path", ["./shop", ".", "sqlite+aiosqlite:///app.db"])
def test_a_scan_that_is_no_dotted_name_is_one_problem(registry: cqrs.Registry, path: str):
    assert len(problems(path, registry=registry)) == 1
