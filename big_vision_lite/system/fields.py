"""Fields of dataclasses, checked against their annotations: where a config comes from Python or JSON, a cluster from
TOML. msgspec checks the values; it takes dataclasses too, but neither their base classes nor unions of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from big_vision_lite.errors import UserError, nearest

T = TypeVar("T")
_CONTAINERS: tuple[Any, ...] = (tuple, list, dict, Mapping, Sequence)


def check(value: Any) -> None:
    """Check the fields of a dataclass, and of those in it, against their annotations. Raises: UserError."""
    values = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    check_values(type(value), values)
    for inner in _dataclasses_in(values):
        check(inner)


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from values of another format, such as TOML: tables become dataclasses, lists tuples.

    Raises:
      UserError: as `check_names` and `check_values`.
    """
    check_names(kind, values)
    return kind(**_converted(kind, values, _build_instance))


def check_names(kind: type, values: Mapping[str, Any]) -> None:
    """Raises: UserError when a value is for none of a dataclass's fields, or a field has no value and no default."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise UserError(f"{kind.__name__} has no field {name!r}" + nearest(name, fields))
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{kind.__name__} needs {name!r}, which is missing")


def check_values(kind: type, values: Mapping[str, Any]) -> None:
    """Check values for a dataclass's fields: those of dataclasses must be built already.

    Raises:
      UserError: names the field whose value is of another type, not one of several words, or beyond what any field can
        hold: finite numbers of 64 bits, text without NUL.
    """
    _converted(kind, values)


def at_least(value: Any, minimum: float, *names: str) -> None:
    """Raises: UserError when one of a dataclass's fields, or of its entries if it is a tuple, is below ``minimum``."""
    for name in names:
        field = getattr(value, name)
        if field is not None and min(field if isinstance(field, tuple) else (field,), default=minimum) < minimum:
            raise UserError(f"{type(value).__name__}: {name}={field}; expected at least {minimum}")


def _converted(kind: type, values: Mapping[str, Any], hook: Callable[[Any, Any], Any] | None = None) -> dict[str, Any]:
    """The values as msgspec converts them to the fields' types. ``hook`` converts those to dataclasses."""
    hints, converted = _field_types(kind), {}
    for name, value in values.items():
        reason, words = _beyond_limits(value), []
        try:
            converted[name] = msgspec.convert(value, hints.get(name, Any), dec_hook=hook)
        except msgspec.ValidationError as error:
            hint, reason = typing.get_type_hints(kind)[name], str(error).replace("`", "")
            words = [str(word) for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is Literal
                     for word in typing.get_args(part)]
        if reason:
            raise UserError(f"{kind.__name__}.{name}={reprlib.repr(value)}: {reason}"
                            + (nearest(str(value), words) if words else ""))
    return converted


def _beyond_limits(value: Any) -> str:
    """What makes a value one that no field can hold, or ""."""
    match value:
        case str() if "\0" in value:
            return "Expected text without NUL"
        case float() if not math.isfinite(value):
            return "Expected a finite number"
        case int() if not -2**63 <= value < 2**63:
            return "Expected a number of 64 bits"
        case dict():
            return _beyond_limits((*value, *value.values()))
        case tuple() | list():
            return next(filter(None, map(_beyond_limits, value)), "")
    return ""


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    """What stands for each field's annotation in msgspec; without those that it does not know, which only classes
    outside this package have."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError:  # imported for type checkers only
        return {}
    checkable = {field.name: _checkable(hints[field.name]) for field in dataclasses.fields(kind)}
    return {name: hint for name, hint in checkable.items() if _is_known(hint)}


def _checkable(hint: Any) -> Any:
    """An annotation with a class that stands for its dataclasses."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = tuple(filter(dataclasses.is_dataclass, members))
        others = tuple(_checkable(member) for member in members if member not in kinds)
        return typing.Union[(*others, *([_stand_in(kinds)] if kinds else []))]
    if dataclasses.is_dataclass(hint):
        return _stand_in((hint,))
    if origin in _CONTAINERS:
        return origin[tuple(member if member is ... else _checkable(member) for member in members)]
    return hint


class _StandIn(type):
    """A class whose instances are those of some dataclasses."""

    kinds: tuple[type, ...]

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.kinds)


@functools.cache
def _stand_in(kinds: tuple[type, ...]) -> _StandIn:
    return _StandIn(" or ".join(kind.__name__ for kind in kinds), (), {"kinds": kinds})


def _build_instance(stand_in: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"Expected a table, got {type(value).__name__}")
    return build(stand_in.kinds[0], value)


def _is_known(hint: Any) -> bool:
    """Whether msgspec can check values of a type."""
    with contextlib.suppress(msgspec.ValidationError):
        try:
            msgspec.convert(None, hint)
        except TypeError:
            return False
    return True


def _dataclasses_in(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value):
        yield value
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _dataclasses_in(entry)


def _plain(value: Any) -> Any:
    """Numbers of numpy that are Python's too, as float64, as Python's."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return float(value) if isinstance(value, float) else value
