"""The names of splits, and splits by a hash of the ids for data that has none."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from big_vision_lite.errors import UserError

SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}
"""Aliases of each split, also for its folder, in upper or lower case."""


def standard_split(split: str) -> str | None:
    """train, validation or test, from any of their aliases; None for another name."""
    return next((name for name, aliases in SPLITS.items() if split.lower() in aliases), None)


def spellings(split: str) -> list[str]:
    """The names that the folder or list of a split may have: its own, its aliases, and these in other cases."""
    names = (split, *SPLITS.get(standard_split(split), ()))
    return list(dict.fromkeys((*names, *(case(name) for name in names for case in (str.lower, str.title, str.upper)))))


def hashed_split(id_: str, held_out: float) -> str:
    """The split that an example belongs to, a pure function of its id."""
    fraction = int.from_bytes(hashlib.blake2b(os.fsencode(id_), digest_size=8).digest()) / 2**64
    return "test" if fraction < held_out else "validation" if fraction < 2 * held_out else "train"


def check_held_out(source: Any) -> None:
    """Raises: UserError when a source's ``held_out`` leaves nothing for training."""
    if not 0 <= source.held_out < 0.5:
        raise UserError(f"{type(source).__name__}.held_out is {source.held_out!r}; expected 0 <= held_out < 0.5")
