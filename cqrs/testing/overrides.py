"""What a test puts in the place of what a container provides."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from cqrs.errors import MisuseError
from cqrs.integrations.mapping import stands_for


@contextmanager
def overridden(container: Any, overrides: Mapping[type | str, object]) -> Generator[Any]:
    """Provide a container that gives these objects instead, by the type that is asked for, or by a provider's name.

    Of a dependency-injector container the providers are overridden meanwhile, and singletons made anew, so that what
    is built from them has the objects, too.
    """
    if isinstance(container, Mapping) or container is None:
        yield {**(container or {}), **_of_mapping(container or {}, overrides)}
        return
    from dependency_injector import providers

    found = {wanted: _provider(container, wanted) for wanted in overrides}
    with ExitStack() as stack:
        if overrides:
            stack.enter_context(container.reset_singletons())
        for wanted, provider in found.items():
            stack.enter_context(provider.override(providers.Object(overrides[wanted])))
        yield container


def _of_mapping(container: Mapping[Any, Any], overrides: Mapping[type | str, object]) -> dict[Any, Any]:
    given: dict[Any, Any] = {}
    for wanted, value in overrides.items():
        made = [key for key in container if key is wanted or (isinstance(wanted, type) and stands_for(key, wanted))]
        if not made:
            raise _unknown(wanted, [key.__qualname__ for key in container])
        given |= dict.fromkeys([wanted, *made], _giving(value))
    return given


def _giving(value: object) -> Any:
    return lambda: value


def _provider(container: Any, wanted: type | str) -> Any:
    from dependency_injector.wiring import Provide

    from cqrs.integrations.dependency_injector import ContainerResolver

    try:
        if isinstance(wanted, str):
            return ContainerResolver(container).provider(object, [Provide[wanted]])
        provider = ContainerResolver(container).provider(wanted, ())
    except LookupError as error:
        raise MisuseError(". ".join(str(part) for part in error.args)) from None
    if provider is None:
        raise _unknown(wanted, list(container.providers))
    return provider


def _unknown(wanted: type | str, known: list[str]) -> MisuseError:
    name = repr(wanted) if isinstance(wanted, str) else wanted.__qualname__
    return MisuseError(
        f"overrides= has {name}, which the application's container does not provide. "
        f"It provides: {', '.join(sorted(known)) or 'nothing'}."
    )
