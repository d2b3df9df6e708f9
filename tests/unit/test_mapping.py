from dataclasses import dataclass
from typing import Protocol

import pytest

import cqrs
from cqrs.integrations.mapping import stands_for
from tests.unit.support import path, place, problems


class PlaceOrder(cqrs.Command[object]):
    pass


class Orders:
    def place(self) -> str:
        return "placed"


class FastOrders(Orders):
    pass


class Placing(Protocol):
    def place(self) -> str: ...


class Shipping(Protocol):
    address: str

    def ship(self) -> None: ...


class Calling(Protocol):
    def __call__(self, text: str) -> None: ...


async def test_a_parameter_is_made_by_the_factory_of_its_type(registry: cqrs.Registry):
    orders = Orders()

    @registry.command_handler
    async def handler(command: PlaceOrder, given: Orders) -> object:
        return given

    assert await cqrs.bootstrap(registry=registry, container={Orders: lambda: orders}).send(PlaceOrder()) is orders


async def test_a_class_is_its_own_factory(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, given: Orders) -> object:
        return given

    app = cqrs.bootstrap(registry=registry, container={Orders: Orders})
    first, second = await app.send(PlaceOrder()), await app.send(PlaceOrder())
    assert type(first) is Orders
    assert first is not second


async def test_an_async_factory_is_awaited(registry: cqrs.Registry):
    async def make() -> Orders:
        return Orders()

    @registry.command_handler
    async def handler(command: PlaceOrder, given: Orders) -> object:
        return given

    assert type(await cqrs.bootstrap(registry=registry, container={Orders: make}).send(PlaceOrder())) is Orders


@pytest.mark.parametrize("wanted", [Orders, Placing], ids=["base class", "protocol"])
async def test_a_port_is_provided_by_what_can_stand_for_it(registry: cqrs.Registry, wanted: type):
    @registry.command_handler
    async def handler(command: PlaceOrder, given: wanted) -> object:
        return given

    app = cqrs.bootstrap(registry=registry, container={FastOrders: FastOrders, str: lambda: "text"})
    assert type(await app.send(PlaceOrder())) is FastOrders


async def test_a_builtin_type_is_provided_only_by_its_own_factory(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, given: str, flag: int = 5) -> object:
        return given, flag

    app = cqrs.bootstrap(registry=registry, container={str: lambda: "text", bool: lambda: True})
    assert await app.send(PlaceOrder()) == ("text", 5)


async def test_the_exact_type_goes_before_what_can_stand_for_it(registry: cqrs.Registry):
    @registry.command_handler
    async def handler(command: PlaceOrder, given: Orders) -> object:
        return given

    app = cqrs.bootstrap(registry=registry, container={FastOrders: FastOrders, Orders: Orders})
    assert type(await app.send(PlaceOrder())) is Orders


def test_two_factories_that_can_stand_for_a_type_are_refused(registry: cqrs.Registry):
    class SlowOrders(Orders):
        pass

    @registry.command_handler
    async def handler(command: PlaceOrder, given: Orders) -> object:
        return given

    container = {FastOrders: FastOrders, SlowOrders: SlowOrders}
    (problem,) = problems(registry=registry, container=container)
    assert problem.startswith(
        f"{path(handler)}: parameter 'given': FastOrders and {SlowOrders.__qualname__} both provide Orders "
        f"({place(handler)}). "
    )
    assert "Provide" not in problem  # a mapping has no names to choose from


@pytest.mark.parametrize(
    "factory", [Orders(), lambda needs: needs], ids=["an object", "a factory that needs an argument"]
)
def test_what_cannot_be_called_without_arguments_is_refused(registry: cqrs.Registry, factory: object):
    assert problems(registry=registry, container={Orders: factory}) == [
        (
            "container[Orders] is no factory that can be called without arguments. "
            "Write {Orders: lambda: ...}; what it needs comes from the surrounding code."
        )
    ]


@pytest.mark.parametrize("factory", [lambda needs=1: needs, lambda *a, **k: a, dict], ids=["default", "any", "builtin"])
def test_what_can_be_called_without_arguments_is_a_factory(registry: cqrs.Registry, factory: object):
    cqrs.bootstrap(registry=registry, container={Orders: factory})


@pytest.mark.parametrize(
    ("made", "wanted", "stands"),
    [
        (Orders, Orders, True),
        (FastOrders, Orders, True),
        (Orders, FastOrders, False),
        (Orders, Placing, True),
        (FastOrders, Placing, True),
        (Orders, Shipping, False),
        (str, Placing, False),
        (type("Caller", (), {"__call__": lambda self, text: None}), Calling, True),
        (Orders, Protocol, False),
    ],
)
def test_a_type_stands_for_its_bases_and_the_protocols_it_has_all_members_of(made: type, wanted: type, stands: bool):
    assert stands_for(made, wanted) is stands


def test_a_dataclass_has_the_members_that_are_its_fields():
    @dataclass
    class Parcel:
        address: str

        def ship(self) -> None: ...

    assert stands_for(Parcel, Shipping)


def test_a_port_that_inherits_from_another_needs_the_members_of_both():
    class Everything(Placing, Shipping, Protocol):
        pass

    class Both(Orders):
        address = "here"

        def ship(self) -> None: ...

    assert stands_for(Both, Everything)
    assert not stands_for(Orders, Everything)
