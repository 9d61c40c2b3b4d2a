"""An experiment as the Python config that returns it: to read, to edit and to train again."""

from __future__ import annotations

import dataclasses
from typing import Any

from big_vision_lite.experiment import Experiment

WIDTH = 120
"""Longest line."""
ARGUMENTS = ("steps", "seed")
"""Fields of the experiment that become arguments of ``get_config``."""


def as_python(experiment: Experiment, summary: str) -> str:
    """The text of a config file. Fields at their defaults are left out.

    Args:
      summary: docstring of the file.
    """
    names: dict[str, set[str]] = {}
    body = _render(experiment, 4, len("return "), names, {name: name for name in ARGUMENTS})
    imports = "\n".join(f"from {module} import {', '.join(sorted(kinds))}" for module, kinds in sorted(names.items()))
    given = ", ".join(f"{name}: int = {getattr(experiment, name)}" for name in ARGUMENTS)
    return f'"""{summary}\n"""\n\n{imports}\n\n\ndef get_config({given}) -> Experiment:\n    return {body}\n'


def _render(value: Any, indent: int, used: int, names: dict[str, set[str]], instead: dict[str, str]) -> str:
    """An expression for a value.

    Args:
      indent: columns before the line's text.
      used: columns of the line's own text before the expression.
      names: collects the classes to import, by module.
      instead: texts of fields of the outermost dataclass.
    """
    if dataclasses.is_dataclass(value):
        kind = type(value)
        names.setdefault(kind.__module__, set()).add(kind.__qualname__.partition(".")[0])
        parts = [(f"{field.name}=", instead.get(field.name, getattr(value, field.name)), field.name in instead)
                 for field in dataclasses.fields(value) if field.name in instead or not _is_default(value, field)]
        opened, closed = f"{kind.__qualname__}(", ")"
    elif isinstance(value, dict):
        parts, opened, closed = [(f"{_text(key)}: ", item, False) for key, item in value.items()], "{", "}"
    elif isinstance(value, tuple):
        parts, opened, closed = [("", item, False) for item in value], "(", ",)" if len(value) == 1 else ")"
    else:
        return _text(value)

    def item(part: tuple[str, Any, bool], column: int) -> str:
        name, content, verbatim = part
        return name + (content if verbatim else _render(content, column, len(name), names, {}))

    flat = opened + ", ".join(item(part, indent) for part in parts) + closed
    if "\n" not in flat and indent + used + len(flat) < WIDTH:
        return flat
    inner = " " * (indent + 4)
    return opened + "\n" + "".join(f"{inner}{item(part, indent + 4)},\n" for part in parts) + " " * indent + closed[-1]


def _text(value: Any) -> str:
    if isinstance(value, str):
        text = repr(value)
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text else text
    return repr(value)


def _is_default(value: Any, field: dataclasses.Field) -> bool:
    default = field.default_factory() if callable(field.default_factory) else field.default
    return getattr(value, field.name) == default and type(getattr(value, field.name)) is type(default)
