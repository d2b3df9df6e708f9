"""Where the arguments of a handler come from: the running context, or a provider of the container."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol, get_args, get_origin

from cqrs.annotations import bare, show, without_none
from cqrs.injection import Dependency, Provider, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


NOT_PROVIDED = "Add a provider of that type to the container, or give the parameter a default."
NOT_ANNOTATED = "Annotate it: with cqrs.Context, AsyncSession, or a type that the container provides."
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Resolver(Protocol):
    """Finds what a container provides; asked once a parameter, at bootstrap."""

    def provider(self, wanted: type, marks: Sequence[object]) -> Provider | None:
        """Return the provider of a type, or of the mark (in `Annotated`, or as default) that names one.

        Returns None when nothing provides it; raises `LookupError(what, cure)` when it cannot be decided.
        """
        ...


@dataclass(frozen=True, slots=True)
class Injector:
    """Where parameters come from: what the running context has, then the container."""

    from_context: Mapping[type, Source]
    container: Resolver
    cures: Mapping[str, str] = field(default_factory=dict)
    """What to do when nothing provides a type of this name, where it is something else than adding a provider."""

    def dependencies(
        self,
        parameters: Sequence[inspect.Parameter],
        hints: Mapping[str, Any],
        report: Callable[[str, str], None],
    ) -> tuple[list[Dependency], bool]:
        """Return the parameters that have a source, and whether that is every one that needs one.

        What is wrong, with its cure, is told to `report`.
        """
        found: list[Dependency] = []
        complete, contiguous = True, True
        for parameter in parameters:
            if parameter.kind in _VARIADIC:
                continue
            source = self._source(parameter, hints.get(parameter.name), report)
            if source is not None:
                by_position = contiguous and parameter.kind in POSITIONAL
                found.append(Dependency(parameter.name, source, by_position, bare(hints.get(parameter.name))))
            elif parameter.default is parameter.empty:
                complete = False
            else:
                contiguous = False
        return found, complete

    def _source(self, parameter: inspect.Parameter, hint: Any, report: Callable[[str, str], None]) -> Source | None:
        wanted = without_none(bare(hint))
        kind = get_origin(wanted) or wanted
        marks = [*(get_args(hint)[1:] if get_origin(hint) is Annotated else ()), parameter.default]
        try:
            provider = self.container.provider(kind if isinstance(kind, type) else object, marks)
        except LookupError as error:
            what, cure = error.args
            report(f"parameter '{parameter.name}': {what}", cure)
            return Source(lambda: None)
        if provider is not None:
            return Source(provider)
        if kind in self.from_context:
            return self.from_context[kind]
        if parameter.default is parameter.empty:
            what = f"nothing provides '{parameter.name}' ({'not annotated' if hint is None else show(hint)})"
            cure = self.cures.get(getattr(kind, "__name__", ""), NOT_PROVIDED)
            report(what, NOT_ANNOTATED if hint is None else cure)
        return None
