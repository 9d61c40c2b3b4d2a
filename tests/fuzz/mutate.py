"""Changes of sound inputs: of bytes, of text, and of a random node of a JSON tree."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np

NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63),
    2**64,
    2**80,
    10**400,
    0.5,
    -0.0,
    1e-300,
    1e12,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
)
TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "nan",
    "null",
    "x\0y",
    "a\nb",
    "\ufeff",
    "\u202e\u2066",
    "é",
    "é",
    "\ud800",
    "../..",
    "/dev/zero",
    "/dev/stdin",
    ".",
    "~",
    "%s%n{0}",
    "[bold]",
    "a" * 5000,
    "\U0001d7d9",
    "$(touch sprung)",
    "'",
    '"',
)
VALUES: tuple[Any, ...] = (None, [], {}, [[]], {"": None}, *NUMBERS, *TEXTS)


def pick(rng: np.random.Generator, options) -> Any:
    return options[int(rng.integers(len(options)))]


def of_bytes(rng: np.random.Generator, data: bytes) -> tuple[bytes, str]:
    """The changed bytes, and what was done to them."""
    size, kind = len(data), pick(rng, ("cut", "flip", "flips", "zeros", "insert", "repeat", "remove", "append", "head"))
    at = int(rng.integers(size)) if size else 0
    if kind == "cut":
        return data[:at], f"cut at {at}"
    if kind in ("flip", "flips", "head"):
        changed = bytearray(data)
        for _ in range(1 if kind != "flips" else int(rng.integers(2, 20))):
            at = int(rng.integers(min(size, 64) if kind == "head" else size))
            changed[at] ^= 1 << int(rng.integers(8))
        return bytes(changed), f"{kind} at {at}"
    count = int(pick(rng, (1, 2, 7, 64, 512)))
    if kind == "zeros":
        return data[:at] + bytes(min(count, size - at)) + data[at + count :], f"{count} zeros at {at}"
    if kind == "insert":
        return data[:at] + rng.bytes(count) + data[at:], f"{count} bytes put in at {at}"
    if kind == "repeat":
        return data[:at] + data[at : at + count] + data[at:], f"{count} bytes twice at {at}"
    if kind == "remove":
        return data[:at] + data[at + count :], f"{count} bytes left out at {at}"
    return data + rng.bytes(count), f"{count} bytes behind the end"


def of_json(rng: np.random.Generator, values: Any) -> tuple[Any, str]:
    """A copy with one node changed, and what was done."""
    values = copy.deepcopy(values)
    holders = [(None, None, "$"), *_nodes(values, "$")]
    holder, key, where = pick(rng, holders if rng.random() < 0.05 else holders[1:] or holders)
    if holder is None:
        value = pick(rng, VALUES)
        return value, f"all of it is {value!r:.40}"
    kind, node = (
        pick(rng, ("value", "value", "number", "delete", "wrap", "type", "nest", "double", "rename")),
        holder[key],
    )
    if kind == "number" and isinstance(node, int | float) and not isinstance(node, bool):
        holder[key] = pick(
            rng, (*NUMBERS, -node, str(node), *([node + 1, node * 1000, float(node)] if abs(node) < 1e15 else []))
        )
    elif kind == "delete":
        del holder[key]
    elif kind == "wrap":
        holder[key] = pick(rng, ([node], {"x": node}, [node, node]))
    elif kind == "type":
        holder[key] = json.dumps(node) if not isinstance(node, str) else [*node]
    elif kind == "nest":
        for _ in range(int(pick(rng, (3, 50, 400)))):
            holder[key] = [holder[key]]
    elif kind == "double" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(node))
    elif kind == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        kind, holder[key] = "value", pick(rng, VALUES)
    return values, f"{where}: {kind} {holder[key] if kind == 'value' else ''!r:.40}"


def _nodes(values: Any, where: str):
    """(holder, key, path) of every node below the root."""
    if isinstance(values, dict | list):
        for key, node in values.items() if isinstance(values, dict) else enumerate(values):
            yield values, key, f"{where}.{key}"
            yield from _nodes(node, f"{where}.{key}")


def json_text(values: Any) -> bytes:
    """As Python writes JSON, with its NaN and Infinity; lone surrogates as escapes."""
    return json.dumps(values).encode()


def of_json_bytes(rng: np.random.Generator, values: Any) -> tuple[bytes, str]:
    """JSON text with one or two changed nodes or, now and then, bytes."""
    if rng.random() < 0.2:
        return of_bytes(rng, json_text(values))
    done = []
    for _ in range(int(rng.integers(1, 3))):
        values, what = of_json(rng, values)
        done.append(what)
    return json_text(values), "; ".join(done)


def of_text(rng: np.random.Generator, text: str) -> tuple[bytes, str]:
    """Text with a word changed, left out or put in or, now and then, bytes or the encoding changed."""
    kind = pick(rng, ("bytes", "encoding", "line", "word", "word", "word"))
    if kind == "bytes":
        return of_bytes(rng, text.encode(errors="surrogatepass"))
    if kind == "encoding":
        encoding = pick(rng, ("utf-16", "utf-32", "utf-8-sig", "latin-1", "utf-7"))
        return text.encode(encoding, "replace"), encoding
    parts = text.splitlines(keepends=True) if kind == "line" else _words(text)
    at = int(rng.integers(len(parts)))
    how = pick(rng, ("left out", "twice", "replaced", "swapped"))
    if how == "left out":
        part = parts.pop(at)
    elif how == "twice":
        part = parts[at]
        parts.insert(at, part)
    elif how == "swapped":
        other = int(rng.integers(len(parts)))
        part = parts[at]
        parts[at], parts[other] = parts[other], parts[at]
    else:
        part = parts[at]
        parts[at] = str(pick(rng, (*TEXTS, *NUMBERS)))
    return "".join(parts).encode(errors="surrogatepass"), f"{kind} {at} {part!r:.30} {how}"


def _words(text: str) -> list[str]:
    """Words, numbers and single other characters, which joined are the text."""
    return re.findall(r"[\w.]+|\s+|[^\w\s]", text) or [""]
