"""Configs: Python files that return an ``Experiment``, and its resolved form as JSON.

``load("configs/x.py:depth=50,root=/photos")`` calls the file's ``get_config(depth=50, root="/photos")``. In JSON each
dataclass carries its class, and reading accepts only dataclasses of this package (or of modules that the caller
allows), refuses unknown fields, and never runs the config file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.remote import RemotePath, place

_CLASS = "class"
KINDS = {"config": "train", "study": "study"}
"""What files describe by a function get_KIND, and the command that takes them."""


def load(spec: str, kind: str = "config") -> Any:
    """The experiment that a config file describes, or the study that a study's does.

    Args:
      spec: ``FILE.py`` or ``FILE.py:argument=value,argument=value``; values are read by the types that the
        arguments of ``get_config`` are annotated with.
      kind: one of `KINDS`.

    Raises:
      UserError: no such file, argument or value; the message names the nearest valid ones.
    """
    file, _, arguments = spec.partition(".py:")
    path = Path(file if file.endswith(".py") else file + ".py")
    if not path.is_file():
        folder = path.parent
        beside = [str(p) for p in sorted(folder.rglob("*.py"))] if folder.is_dir() else []
        raise UserError(f"no {kind} file {str(path)!r}" + nearest(str(path), beside))
    name = f"bvl_{kind}_" + re.sub(r"\W", "_", str(path.with_suffix("")))
    module_spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses defined in a config look themselves up here
    module_spec.loader.exec_module(module)
    make = getattr(module, f"get_{kind}", None)
    if make is None:
        raise UserError(f"{path} has no function get_{kind}; a {kind} is a file with get_{kind}(...)"
                        + "".join(f"; bvl {command} takes one with get_{other}" for other, command in KINDS.items()
                                  if hasattr(module, f"get_{other}")))
    return make(**_arguments(make, arguments, path))


def _arguments(make: Any, text: str, path: Path) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters
    hints = typing.get_type_hints(make)
    values = {}
    for piece in filter(None, re.split(r",(?=\s*[A-Za-z_]\w*=)", text)):  # a comma inside a value stays
        key, equals, value = piece.strip().partition("=")
        if not equals:
            raise UserError(f"{path}: {piece.strip()!r} has no value; expected argument=value,argument=value")
        if key not in parameters:
            raise UserError(f"{path} has no argument {key!r}" + nearest(key, parameters))
        try:
            values[key] = parse(value, hints.get(key, str))
        except ValueError:
            expected = inspect.formatannotation(hints[key])
            raise UserError(f"{path}: {key}={value!r} is not {expected}") from None
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in values]
    if missing:
        raise UserError(f"{path} needs {', '.join(m + '=...' for m in missing)}; give it as {path}:{missing[0]}=VALUE")
    return values


def parse(text: str, hint: Any) -> Any:
    """Text as a value of the annotated type. Raises: ValueError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        def last(member: Any) -> int:  # anything is a text, and anything but a list of one is no list
            return 2 if member is str else 0 if typing.get_origin(member) is not tuple else 1 if "," in text else 3

        for member in sorted(inner, key=last):
            try:
                return parse(text, member)
            except ValueError:
                continue
        raise ValueError(text)
    if hint is type(None):
        if text.lower() != "none":
            raise ValueError(text)
        return None
    if origin is typing.Literal:
        for choice in inner:
            if text == str(choice):
                return choice
        raise ValueError(text)
    if origin is tuple:
        return tuple(parse(piece, inner[0]) for piece in text.strip("()").split(",") if piece)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return hint(text)


def to_json(value: Any) -> Any:
    """A dataclass tree as JSON values; each dataclass carries its class as ``module:name``."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_CLASS: f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, tuple | list):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} cannot stand in a config: {value!r}")


def from_json(value: Any, allowed: Sequence[str] = ()) -> Any:
    """The inverse of ``to_json``; lists become tuples.

    Args:
      allowed: modules beside this package whose dataclasses may be made.

    Raises:
      UserError: a class that is not allowed or not a dataclass, or a field it does not have.
    """
    if isinstance(value, list):
        return tuple(from_json(v, allowed) for v in value)
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get(_CLASS), str):  # a plain dict may use the key for itself
        return {k: from_json(v, allowed) for k, v in value.items()}
    kind = _find_class(value[_CLASS], allowed)
    fields = {k: from_json(v, allowed) for k, v in value.items() if k != _CLASS}
    known = [f.name for f in dataclasses.fields(kind)]
    for name in fields:
        if name not in known:
            raise UserError(f"config: {kind.__name__} has no field {name!r}" + nearest(name, known))
    missing = [f.name for f in dataclasses.fields(kind)
               if f.name not in fields and f.default is f.default_factory is dataclasses.MISSING]
    if missing:
        raise UserError(f"config: {kind.__name__} needs {missing[0]!r}, which is not there")
    return kind(**fields)


def _find_class(name: str, allowed: Sequence[str]) -> type:
    module, _, qualified = str(name).partition(":")
    if module.split(".")[0] != __package__ and module not in allowed:
        raise UserError(f"config: {name!r} is outside {__package__}; allow its module with --import {module}")
    try:
        kind: Any = importlib.import_module(module)
        for part in qualified.split("."):
            kind = getattr(kind, part)
    except (ImportError, AttributeError):
        raise UserError(f"config: there is no {name!r} in this version of {__package__}") from None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module):
        raise UserError(f"config: {name!r} is not a dataclass of its module")
    return kind


def save(value: Any, path: Path) -> None:
    write(path, json.dumps(to_json(value), indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file that is whole or not there, whenever the process ends."""
    if isinstance(path, RemotePath):
        path.write_text(text)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def read(path: Path, allowed: Sequence[str] = ()) -> Any:
    """Raises: UserError when the file is missing, cut or holds what ``from_json`` refuses."""
    path = place(path)
    try:
        tree = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path.name} in {str(path.parent)!r}: {error.strerror or error}; a run folder "
                        "holds one") from None
    except ValueError as error:  # not JSON, or not even text
        raise UserError(f"{path} is not valid JSON ({error}); it may have been cut") from None
    return from_json(tree, allowed)


def with_defaults(old: Any) -> Any:
    """A kept config with the fields that came into being since, which by default change nothing."""
    with contextlib.suppress(UserError):  # of classes that a config file defines, or that are no more
        return to_json(from_json(old))
    return old


def differences(old: Any, new: Any, ignore: Sequence[str] = (), at: str = "") -> list[str]:
    """Where two JSON trees differ, as ``field: old -> new``, leaving out the named fields and what is below them."""
    if at in ignore:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys((*old, *new)))
        return [d for k in keys for d in differences(old.get(k), new.get(k), ignore, f"{at}.{k}".lstrip("."))]
    return [] if old == new else [f"{at}: {json.dumps(old)} -> {json.dumps(new)}"]


def backbone_of(init: str | None) -> Any:
    """The backbone of the run in a folder, for a config that starts from it; None when ``init`` is not a run.

    Raises:
      UserError: as `read`.
    """
    path = place(Path(init).expanduser()) / "config.json" if init else None
    return read(path).backbone if path is not None and path.is_file() else None
