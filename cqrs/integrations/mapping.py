"""What a plain mapping from types to factories provides: dependency injection without a container."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from cqrs.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cqrs.injection import Provider


class MappingResolver:
    """Finds the factory of a type, or the one factory of a type that can stand for it."""

    def __init__(self, factories: Mapping[type, Any], problems: list[Problem]) -> None:
        self._factories = factories
        for made, factory in factories.items():
            if not callable(factory) or _needs_arguments(factory):
                cure = f"Write {{{made.__name__}: lambda: ...}}; what it needs comes from the surrounding code."
                problems.append(
                    Problem(f"container[{made.__name__}] is no factory that can be called without arguments", cure)
                )

    def provider(self, wanted: type, marks: Sequence[object]) -> Provider | None:
        """Return the factory of the type; names are for containers."""
        if any(type(mark).__module__.startswith("dependency_injector.") for mark in marks):
            raise LookupError(
                "Provide[...] names a provider of a dependency-injector container, and there is none",
                "Pass the container to bootstrap: container=Container().",
            )
        if wanted in self._factories or wanted.__module__ == "builtins":
            return self._factories.get(wanted)
        found = [made for made in self._factories if stands_for(made, wanted)]
        if len(found) > 1:
            names = " and ".join(made.__qualname__ for made in found)
            raise LookupError(f"{names} both provide {wanted.__qualname__}", "Annotate the parameter with one of them.")
        return self._factories[found[0]] if found else None


def stands_for(made: type, wanted: type) -> bool:
    """Whether an object of one type can be passed for the other: a subclass, or one with a Protocol's members."""
    if wanted in made.__mro__:
        return True
    if not getattr(wanted, "_is_protocol", False):
        return False
    members = {name for base in wanted.__mro__ if getattr(base, "_is_protocol", False) for name in _members_of(base)}
    declared = {name for base in made.__mro__ for name in getattr(base, "__annotations__", {})}
    return bool(members) and all(hasattr(made, name) or name in declared for name in members)


def _members_of(protocol: type) -> set[str]:
    names = {*vars(protocol), *getattr(protocol, "__annotations__", {})}
    return {name for name in names if not name.startswith("_") or name == "__call__"}


def _needs_arguments(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(parameter.default is parameter.empty and parameter.kind not in variadic for parameter in parameters)
