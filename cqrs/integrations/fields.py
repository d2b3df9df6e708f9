"""The fields of a message as a request fills them: what comes from the path, the query and the body.

The only module that makes a message out of a request.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, cast, get_type_hints

import pydantic
from fastapi import Body, Path, Query
from fastapi.exceptions import RequestValidationError
from pydantic.fields import FieldInfo

BODY = "cqrs_body"
"""The name of an endpoint's parameter for the body; no field should have it."""


def fields_of(message: Any) -> Mapping[str, FieldInfo] | None:
    """Return the fields of a pydantic model or a dataclass; None of anything else."""
    if issubclass(message, pydantic.BaseModel):
        return dict(message.model_fields)
    if not dataclasses.is_dataclass(message):
        return None
    hints = get_type_hints(message, include_extras=True)
    return {field.name: _field(hints[field.name], field) for field in dataclasses.fields(message) if field.init}


def _field(hint: Any, field: dataclasses.Field[Any]) -> FieldInfo:
    found = FieldInfo.from_annotation(hint)
    if field.default is not dataclasses.MISSING:
        found.default = field.default
    if field.default_factory is not dataclasses.MISSING:
        found.default_factory = field.default_factory
    return found


class Shape:
    """How requests become messages of one type."""

    def __init__(
        self, message: type[Any], fields: Mapping[str, FieldInfo], in_path: Collection[str], *, with_body: bool
    ) -> None:
        rest = {name: field for name, field in fields.items() if name not in in_path}
        self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(message)
        self._keys = {name: _key(name, field) for name, field in fields.items()}
        self._places = {self._keys[name]: "path" if name in in_path else "query" for name in fields}
        self._body: Any = None
        if with_body and rest:
            self._body = message if len(rest) == len(fields) else _part(message, rest)
            self._places |= {self._keys[name]: "body" for name in rest}
        self._is_whole = self._body is message
        self.has_input = bool(fields)
        self.has_body = self._body is not None
        self.parameters = [_parameter(name, _annotated(fields[name], Path())) for name in in_path]
        if self._body is not None:
            self.parameters.append(_parameter(BODY, Annotated[self._body, Body()]))
        else:
            self.parameters += [_query(name, field) for name, field in rest.items()]

    def message_of(self, values: Mapping[str, Any]) -> Any:
        """Return the message; raises `RequestValidationError` where it refuses what its fields did not."""
        if self._is_whole:
            return values[BODY]
        found = {self._keys[name]: value for name, value in values.items() if name != BODY}
        if self._body is not None:
            body = values[BODY]
            found |= {self._keys[name]: getattr(body, name) for name in body.model_fields_set}
        try:
            return self._adapter.validate_python(found)
        except pydantic.ValidationError as error:
            errors = error.errors(include_url=False, include_context=False, include_input=False)
            raise RequestValidationError([{**each, "loc": self._place(each["loc"])} for each in errors]) from None

    def _place(self, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
        default = "query" if self._body is None else "body"
        return (self._places.get(str(loc[0]), default) if loc else default, *loc)


def _part(message: type[Any], fields: Mapping[str, FieldInfo]) -> type[pydantic.BaseModel]:
    """Return a model of the fields that the body has; the message itself looks at them together."""
    config = getattr(message, "model_config", None)
    definitions: dict[str, Any] = {name: (field.annotation, field) for name, field in fields.items()}
    return pydantic.create_model(f"{message.__name__}Body", __config__=config, **definitions)


def _key(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    if isinstance(alias, pydantic.AliasChoices):
        alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
    return alias if isinstance(alias, str) else name


def _query(name: str, field: FieldInfo) -> inspect.Parameter:
    key = _key(name, field)
    if field.default_factory is not None:
        factory = cast("Callable[[], Any]", field.default_factory)
        return _parameter(name, _annotated(field, Query(alias=key, default_factory=factory)))
    default = inspect.Parameter.empty if field.is_required() else field.default
    return _parameter(name, _annotated(field, Query(alias=key)), default)


def _annotated(field: FieldInfo, source: FieldInfo) -> Any:
    """Return the field's annotation with its constraints and what its documentation says."""
    source.title, source.description, source.examples = field.title, field.description, field.examples
    return Annotated[(field.annotation, *field.metadata, source)]


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
