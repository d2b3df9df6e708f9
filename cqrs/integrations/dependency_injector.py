"""What a dependency-injector container provides, found by type or by name."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, get_args, get_origin, get_type_hints

from dependency_injector import providers
from dependency_injector.wiring import Provide

from cqrs.integrations.mapping import stands_for

if TYPE_CHECKING:
    from cqrs.injection import Provider

_MARK: type[Any] = type(Provide["name"])
"""What `Provide["name"]` is; the library gives the class no public name."""
_GENERATORS = (AsyncIterator, AsyncGenerator, Iterator, Generator)


class ContainerResolver:
    """Finds a container's providers: by the type that they make, by a base class or Protocol of it, or by name.

    Calling a provider follows `override()`, so that tests need no new wiring. As a context manager it opens and closes
    the container's resources.
    """

    def __init__(self, container: Any) -> None:
        self._container = container
        self._named = dict(walk(container))
        self._made = {
            name: made for name, provider in self._named.items() if (made := _made_type(provider)) is not None
        }

    def provider(self, wanted: type, marks: Sequence[object]) -> Provider | None:
        """Return the provider that a mark names, or the one of the wanted type, or of a type that can stand for it."""
        for mark in marks:
            if isinstance(mark, _MARK):
                return self._marked(getattr(mark, "provider"))  # noqa: B009 - known to no type checker
        if wanted.__module__ == "builtins":
            return None
        exact = [name for name, made in self._made.items() if made is wanted]
        names = exact or [name for name, made in self._made.items() if stands_for(made, wanted)]
        if len(names) > 1:
            both = " and ".join(repr(name) for name in names)
            cure = f'Name one: Annotated[{wanted.__qualname__}, Provide["{names[0]}"]].'
            raise LookupError(f"{both} both provide {wanted.__qualname__}", cure)
        return self._named[names[0]] if names else None

    def _marked(self, named: Any) -> Provider:
        if not isinstance(named, str):
            return self._of_this_container(named)
        provider: Any = self._container
        for part in named.split("."):
            provider = getattr(provider, part, None)
            if provider is None:
                known = ", ".join(sorted(self._named)) or "none"
                raise LookupError(f"the container has no provider named '{named}'", f"It has: {known}.")
        return provider  # type: ignore[no-any-return]  # found by name in the user's container

    def _of_this_container(self, declared: Any) -> Provider:
        """Return the instance's provider of one that was named on the container's class."""
        parent = getattr(self._container, "declarative_parent", None)
        names = [name for name, provider in walk(parent) if provider is declared] if parent else []
        return self._named[names[0]] if names else declared  # type: ignore[no-any-return]  # a provider of the user's

    async def __aenter__(self) -> Self:
        """Open the container's resources."""
        opening = self._container.init_resources()
        if opening is not None:
            await opening
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Close the container's resources, in reverse order."""
        closing = self._container.shutdown_resources()
        if closing is not None:
            await closing


def walk(container: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return the named providers of a container and of those nested in it, in the order of their definition."""
    found: list[tuple[str, Any]] = []
    for name, provider in container.providers.items():
        if isinstance(provider, providers.Container):
            found.extend(walk(provider, f"{path}{name}."))
        elif name != "__self__":
            found.append((f"{path}{name}", provider))
    return found


def _made_type(provider: Any) -> type | None:
    """Return the type of what a provider makes, as far as its declaration tells."""
    if isinstance(provider, providers.Dependency):
        return _as_type(provider.instance_of)
    if isinstance(provider, providers.Object):
        return type(provider())
    maker = getattr(provider, "cls", None) or getattr(provider, "provides", None)
    if isinstance(provider, providers.Resource):
        maker = inspect.unwrap(provider.provides) if callable(provider.provides) else None
    if isinstance(maker, type):
        return maker
    try:
        made = get_type_hints(maker).get("return") if callable(maker) else None
    except (NameError, TypeError):
        return None
    if get_origin(made) in _GENERATORS:
        made = get_args(made)[0]
    return _as_type(made)


def _as_type(made: Any) -> type | None:
    made = get_origin(made) or made
    return made if isinstance(made, type) and made is not object else None
