"""A source on the command line: recognised by its files, with its fields after a colon."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import re
import typing
from pathlib import Path

from big_vision_lite import config as configs
from big_vision_lite.data import sources
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.errors import UserError, reading

FORMS = "a folder, a .json, .csv, .tar or .py file, 'emoji_scenes', or the name of a TFDS dataset"


def source_of(spec: str) -> Source:
    """The source that ``PATH_OR_NAME`` or ``PATH_OR_NAME:field=value,field=value`` stands for.

    Each format recognises its own files (`Source.recognise`). A config file, with its arguments, stands for the
    training source.

    Raises:
      UserError: there is no such source, or it has no such field.
    """
    if _is_config(spec):
        return _train_input(spec).source
    place, fields = (*re.split(r":(?=[a-z_]+=)", spec, maxsplit=1), "")[:2]
    kind, known = _recognised(place)
    hints = {field.name: typing.get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)}
    known |= configs.parse_assignments(fields, hints, f"{spec}: {kind.__name__}", "field")
    try:
        return kind(**known)
    except TypeError as error:  # a field without a default is missing
        raise UserError(f"{spec}: {error}; give fields as {place}:field=value") from None


def input_of(spec: str) -> Input | None:
    """The training input of a config; None when ``spec`` is not a config."""
    return _train_input(spec) if _is_config(spec) else None


def inputs_of(spec: str) -> dict[str, Input]:
    """All inputs of a config, by name; none when ``spec`` is not a config."""
    if not _is_config(spec):
        return {}
    from big_vision_lite.experiment import load_experiment

    experiment = load_experiment(spec)
    return {"train": experiment.train, **experiment.evals}


def _train_input(spec: str) -> Input:
    from big_vision_lite.experiment import load_experiment

    return load_experiment(spec).train


def _is_config(spec: str) -> bool:
    return ".py" in spec and spec.partition(".py")[2][:1] in ("", ":")


def _recognised(place: str) -> tuple[type[Source], dict[str, object]]:
    """The class of a source, and the fields that say where it is."""
    from big_vision_lite.data.sources.tfds import Tfds

    path = Path(os.path.expanduser(place))
    with reading(repr(place[:100]), f"expected {FORMS}", OSError):  # such as a name that is too long
        for kind in _formats() if place else ():
            if (fields := kind.recognise(path)) is not None:
                return kind, fields
    if place.startswith((".", "/", "~")) or re.search(r"\.[A-Za-z]\w*$", place) or not place.isprintable() or not place:
        raise UserError(f"there is no source at {place!r}; expected {FORMS}")
    return Tfds, {"name": place}


def _formats() -> list[type[Source]]:
    """The classes of data/sources/, by precedence."""
    for module in pkgutil.iter_modules(sources.__path__, sources.__name__ + "."):
        importlib.import_module(module.name)
    formats = [kind for kind in Source.__subclasses__() if kind.__module__.startswith(sources.__name__)]
    return sorted(formats, key=lambda kind: (-kind.precedence, kind.__module__))
