from typing import Any

import pytest

from cqrs.injection import Dependency, Source, handle_with, inject, is_awaitable


class FakeContext:
    def __init__(self) -> None:
        self.emitted: list[Any] = []

    def emit(self, event: Any) -> None:
        self.emitted.append(event)


async def later(value: Any) -> Any:
    return value


async def keep(*arguments: Any, **keywords: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, keywords


def provided(name: str, get: Any, *, by_position: bool = True) -> Dependency:
    return Dependency(name, Source(get), by_position)


def made(target: Any, *dependencies: Dependency) -> Any:
    return inject(target, dependencies, takes_message=False)


async def test_without_dependencies_the_message_is_passed_alone():
    assert await inject(keep, ())("message", FakeContext()) == (("message",), {})


async def test_dependencies_are_passed_by_position_and_by_name():
    by_name = [provided("b", lambda: 2, by_position=False), provided("c", lambda: 3, by_position=False)]
    call = inject(keep, [provided("a", lambda: 1), *by_name])
    for _ in range(2):
        assert await call("message", FakeContext()) == (("message", 1), {"b": 2, "c": 3})


async def test_dependencies_are_fetched_for_each_call():
    numbers = iter([1, 2])
    call = inject(keep, [provided("a", lambda: next(numbers))])
    assert [(await call("message", FakeContext()))[0][1] for _ in range(2)] == [1, 2]


async def test_a_source_of_the_context_is_given_it():
    context = FakeContext()
    call = inject(keep, [Dependency("context", Source(lambda given: given, of_context=True))])
    assert (await call("message", context))[0][1] is context


@pytest.mark.parametrize("by_position", [True, False])
async def test_a_dependency_that_is_awaitable_is_awaited(by_position: bool):
    awaited = provided("a", lambda: later(1), by_position=by_position)
    call = inject(keep, [awaited, provided("b", lambda: 2, by_position=False)])
    arguments, keywords = await call("message", FakeContext())
    assert (keywords if not by_position else {**keywords, "a": arguments[1]}) == {"a": 1, "b": 2}


async def test_a_dependency_may_become_awaitable_between_calls():
    values = iter([1, later(2), 3])
    call = inject(keep, [provided("a", lambda: next(values))])
    assert [(await call("message", FakeContext()))[0][1] for _ in range(3)] == [1, 2, 3]


class Handler:
    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.events: list[str] = []

    async def handle(self, message: str) -> int:
        self.events.append(f"handled {message}")
        return self.number


async def test_a_handler_object_is_made_for_each_message():
    objects = []

    def make(_message: Any, _context: Any) -> Handler:
        objects.append(Handler())
        return objects[-1]

    call = handle_with(make, reads_events=False)
    await call("one", FakeContext())
    await call("two", FakeContext())
    assert len(objects) == 2


async def test_a_class_without_dependencies_is_made_plainly():
    assert await handle_with(made(Handler), reads_events=False)("message", FakeContext()) == 0


async def test_a_class_is_made_with_its_dependencies():
    make = made(Handler, provided("number", lambda: 7))
    assert await handle_with(make, reads_events=False)("message", FakeContext()) == 7


async def test_a_class_waits_for_a_dependency_that_is_awaitable():
    make = made(Handler, provided("number", lambda: later(7), by_position=False))
    assert await handle_with(make, reads_events=False)("message", FakeContext()) == 7


async def test_events_that_a_handler_object_collected_are_emitted_after_it():
    context = FakeContext()
    await handle_with(made(Handler), reads_events=True)("message", context)
    assert context.emitted == ["handled message"]


async def test_events_of_a_handler_that_failed_are_not_emitted():
    class Failing(Handler):
        async def handle(self, message: str) -> int:
            await super().handle(message)
            raise ValueError(message)

    context = FakeContext()
    with pytest.raises(ValueError, match="message"):
        await handle_with(made(Failing), reads_events=True)("message", context)
    assert context.emitted == []


async def test_what_can_be_awaited_is_awaitable():
    coroutine = later(1)
    assert is_awaitable(coroutine)
    await coroutine
    assert not is_awaitable(later)
    assert not is_awaitable(1)
