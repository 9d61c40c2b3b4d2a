"""Fields of dataclasses, checked against their annotations."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import typing
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest

import big_vision_lite
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.system.fields import _field_types, build, check


class Shape:
    """A base class that is no dataclass."""


@dataclasses.dataclass(frozen=True)
class Square(Shape):
    side: float = 1.0


@dataclasses.dataclass(frozen=True)
class Circle(Shape):
    radius: float = 1.0


@dataclasses.dataclass(frozen=True)
class Everything:
    """A field of each sort."""

    needed: int
    word: Literal["mean", "sum"] | None = None
    size: int | tuple[int, int] = 3
    names: tuple[str, ...] | str | int = 3
    flag: bool = False
    shapes: tuple[Square | Circle, ...] = ()
    by_name: dict[str, Square] = dataclasses.field(default_factory=dict)
    factors: Mapping[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize("values", [
    {"word": "sum", "size": (1, 2), "names": "all", "shapes": (Square(), Circle(2)), "by_name": {"a": Square(3)}},
    {"size": 2**62, "names": ("a", "é\n"), "factors": {"a": None, "b": 1.5, "c": True, "d": "x"}},
    {"shapes": (Square(np.float64(0.5)),), "factors": {"a": np.sqrt(2.0)}},
])
def test_sound_values_pass_as_they_are(values):
    everything = Everything(1, **values)
    check(everything)
    assert type(everything.shapes) is tuple and everything == Everything(1, **values)


@pytest.mark.parametrize(("values", "message"), [
    ({"needed": "1"}, "Everything.needed='1': Expected int, got str"),
    ({"needed": True}, "Everything.needed=True: Expected int, got bool"),
    ({"needed": 2.0}, "Everything.needed=2.0: Expected int, got float"),
    ({"needed": 2**63}, "Everything.needed=9223372036854775808: Expected a number of 64 bits"),
    ({"word": "maen"}, "Everything.word='maen': Invalid enum value 'maen'; did you mean 'mean'?"),
    ({"size": (1, 2, 3)}, "Everything.size=(1, 2, 3): Expected array of length 2, got 3"),
    ({"names": ("a", 2)}, "Everything.names=('a', 2): Expected str, got int - at $[1]"),
    ({"names": ("a", "b\0")}, r"Everything.names=('a', 'b\x00'): Expected text without NUL"),
    ({"flag": "yes"}, "Everything.flag='yes': Expected bool, got str"),
    ({"shapes": (Square(), Shape())}, "Expected Square or Circle, got Shape - at $[1]"),
    ({"shapes": (Circle(math.nan),)}, "Circle.radius=nan: Expected a finite number"),
    ({"by_name": {"a": Circle()}}, "Expected Square, got Circle - at $[...]"),
    ({"by_name": {"a": Square("2")}}, "Square.side='2': Expected float, got str"),
    ({"factors": {"a": ()}}, "Everything.factors={'a': ()}: Expected bool | int | float | str | null, got array"),
    ({"factors": {"a": math.inf}}, "Everything.factors={'a': inf}: Expected a finite number"),
])
def test_a_wrong_value_is_named(values, message):
    with pytest.raises(UserError) as error:
        check(Everything(**{"needed": 1, **values}))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_dataclasses_are_built_from_tables():
    values = {"needed": 1, "size": [3, 4], "by_name": {"a": {"side": 2}}, "word": "mean"}
    assert build(Everything, values) == Everything(1, "mean", (3, 4), by_name={"a": Square(2.0)})
    for change, message in (({"sise": 1}, "Everything has no field 'sise'; did you mean 'size'?"),
                            ({"by_name": {"a": {"sidd": 1}}}, "Square has no field 'sidd'; did you mean 'side'?"),
                            ({"by_name": {"a": 1}}, "Expected a table, got int"),
                            ({"flag": 1}, "Everything.flag=1: Expected bool, got int")):
        with pytest.raises(UserError) as error:
            build(Everything, {**values, **change})
        assert message in str(error.value)
    with pytest.raises(UserError, match="Everything needs 'needed', which is missing"):
        build(Everything, {})


def parts_of_experiments() -> set[type]:
    """Every dataclass of the package that a field of an experiment, or of its parts, may hold."""
    for module in pkgutil.walk_packages(big_vision_lite.__path__, "big_vision_lite."):
        if ".data." in module.name or ".heads." in module.name or ".backbones." in module.name:
            importlib.import_module(module.name)
    parts, new = set(), {Experiment}

    def dataclasses_in(hint) -> set[type]:
        if dataclasses.is_dataclass(hint):
            return {hint, *(below for kind in hint.__subclasses__() for below in dataclasses_in(kind))}
        return {part for member in typing.get_args(hint) for part in dataclasses_in(member)}

    while new:
        parts |= new
        new = {part for kind in new for hint in typing.get_type_hints(kind).values() for part in dataclasses_in(hint)}
        new = {part for part in new - parts if part.__module__.startswith("big_vision_lite.")}
    return parts


def test_every_annotation_of_an_experiment_can_be_checked():
    parts = parts_of_experiments()
    assert len(parts) > 40
    for kind in parts:
        assert set(_field_types(kind)) == {field.name for field in dataclasses.fields(kind)}, kind
