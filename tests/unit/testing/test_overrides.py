from typing import Protocol

import pytest
from dependency_injector import containers, providers

import cqrs
from cqrs.testing import harness


class Greet(cqrs.Command[str]):
    pass


class Voice(Protocol):
    def say(self) -> str: ...


class Loud:
    def say(self) -> str:
        return "HELLO"


class Quiet:
    def say(self) -> str:
        return "hello"


class Person:
    def __init__(self, voice: Voice) -> None:
        self.voice = voice


class Container(containers.DeclarativeContainer):
    voice = providers.Singleton(Loud)
    person = providers.Singleton(Person, voice=voice)


@pytest.fixture
def greeting(registry: cqrs.Registry) -> cqrs.Registry:
    @registry.command_handler
    async def greet(command: Greet, voice: Voice) -> str:
        return voice.say()

    return registry


@pytest.mark.parametrize("asked", [Voice, Loud])
async def test_a_mapping_gives_the_object_instead(greeting: cqrs.Registry, asked: type):
    app = cqrs.bootstrap(registry=greeting, container={Loud: Loud})
    async with harness(app, overrides={asked: Quiet()}) as t:
        assert await t.send(Greet()) == "hello"
    assert await app.send(Greet()) == "HELLO"


@pytest.mark.parametrize("asked", [Voice, Loud, "voice"])
async def test_a_container_gives_the_object_instead(greeting: cqrs.Registry, asked: type | str):
    app = cqrs.bootstrap(registry=greeting, container=Container())
    async with harness(app, overrides={asked: Quiet()}) as t:
        assert await t.send(Greet()) == "hello"
    assert await app.send(Greet()) == "HELLO"


async def test_a_container_without_overrides_gives_what_it_has(greeting: cqrs.Registry):
    container = Container()
    async with harness(cqrs.bootstrap(registry=greeting, container=container)) as t:
        assert await t.send(Greet()) == "HELLO"


async def test_what_a_container_builds_has_the_object_too(registry: cqrs.Registry):
    @registry.command_handler
    async def greet(command: Greet, person: Person) -> str:
        return person.voice.say()

    app = cqrs.bootstrap(registry=registry, container=Container())
    assert await app.send(Greet()) == "HELLO"
    async with harness(app, overrides={Loud: Quiet()}) as t:
        assert await t.send(Greet()) == "hello"
    assert await app.send(Greet()) == "HELLO"


async def test_a_resource_that_is_overridden_is_not_opened(registry: cqrs.Registry):
    opened = []

    def open_voice() -> Loud:
        opened.append(1)
        return Loud()

    class Resources(containers.DeclarativeContainer):
        voice = providers.Resource(open_voice)

    @registry.command_handler
    async def greet(command: Greet, voice: Loud) -> str:
        return voice.say()

    async with harness(cqrs.bootstrap(registry=registry, container=Resources()), overrides={Loud: Quiet()}) as t:
        assert await t.send(Greet()) == "hello"
    assert opened == []


@pytest.mark.parametrize("container", [{Loud: Loud}, Container()])
@pytest.mark.parametrize("asked", [dict, "nonsense"])
async def test_what_the_container_does_not_provide_is_refused(
    greeting: cqrs.Registry, container: object, asked: type | str
):
    with pytest.raises(cqrs.MisuseError, match=r"(does not provide|no provider named)"):
        async with harness(cqrs.bootstrap(registry=greeting, container=container), overrides={asked: Quiet()}):
            pass
