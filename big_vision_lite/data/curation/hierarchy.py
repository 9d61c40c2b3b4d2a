"""A hierarchy of classes, in which a class may have several parents."""

from __future__ import annotations

import csv
import graphlib
import hashlib
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from big_vision_lite.data.sources.emoji_art import emoji_hierarchy
from big_vision_lite.errors import UserError, nearest, reading
from big_vision_lite.system.parse import parse_json, read_bytes, read_text

EMOJI = "emoji_scenes"
"""In place of a file: the groups of the emoji."""
_EXPECTED = "a hierarchy is a file with lines 'child,parent'"


def hierarchy_bytes(file: str) -> bytes:
    """What a hierarchy's file holds. Raises: UserError when it cannot be read."""
    return emoji_hierarchy().encode() if file == EMOJI else read_bytes(Path(os.path.expanduser(file)), _EXPECTED)


class _Node(msgspec.Struct, rename={"name": "LabelName", "subcategories": "Subcategory"}):
    name: str
    subcategories: list[_Node] = []


class Hierarchy:
    """Read from a file with the columns child and parent, separated by a tab, comma or spaces. ``#`` starts a comment;
    a first line ``child parent`` is a header. ``emoji_scenes`` is no file, but the groups of the emoji. A file
    that begins with ``{`` is Open Images' bbox_labels_600_hierarchy.json: LabelName, Subcategory, recursively.

    Attributes:
      parents: the parents of each name, in the order of the file.
      digest: 16 hex digits, a hash of the content.

    Raises:
      UserError: no such file, a line without two columns, or a cycle, which is spelt out.
    """

    def __init__(self, file: str):
        self.file = file
        text = emoji_hierarchy() if file == EMOJI else read_text(Path(os.path.expanduser(file)), _EXPECTED)
        self.digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.parents: dict[str, list[str]] = {}
        if text.lstrip().startswith("{"):
            self._add_below(parse_json(text, _Node, file, "it is read as Open Images' hierarchy"))
            text = ""
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            separator = next((s for s in "\t," if s in line), None)
            with reading(f"{file} line {number}", errors=csv.Error):
                row = next(csv.reader([line], delimiter=separator)) if separator else line.split()
            names = [name.strip() for name in row]
            if len(names) != 2 or not all(names):
                raise UserError(f"{file} line {number}: {reprlib.repr(line)} is not 'child,parent'; names with commas "
                                "need quotes or tabs between columns")
            if number == 1 and [name.lower() for name in names] == ["child", "parent"]:
                continue
            child, parent = names
            if parent not in self.parents.setdefault(child, []):
                self.parents[child].append(parent)
        if not self.parents:
            raise UserError(f"the hierarchy {file!r} is empty; expected lines 'child,parent'")
        try:
            graphlib.TopologicalSorter(self.parents).prepare()
        except graphlib.CycleError as error:
            raise UserError(f"{file}: the hierarchy has a cycle: {' -> '.join(reversed(error.args[1]))}; remove one of "
                            "these lines") from None

    def _add_below(self, node: _Node) -> None:
        for child in node.subcategories:
            if node.name not in self.parents.setdefault(child.name, []):
                self.parents[child.name].append(node.name)
            self._add_below(child)

    def ancestors_of(self, classes: Sequence[str]) -> list[list[str]]:
        """All ancestors of each class, nearest first. Raises: UserError when no class has any."""
        ancestors = [self._ancestors(name) for name in classes]
        if not any(ancestors):
            raise UserError(f"{self.file}: no class has a parent there, such as {classes[0]!r}; the file has names "
                            f"such as {reprlib.repr(next(iter(self.parents)))}; they must be those of the classes")
        return ancestors

    def parents_of(self, classes: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
        """The parents of ``classes``, sorted, and for each class the index of its own among them, int32 ``[classes]``.

        Raises:
          UserError: a class has no parent or several.
        """
        for name in classes:
            if len(found := self.parents.get(name, [])) != 1:
                what = f"the parents {', '.join(found)}" if found else "no parent"
                hint = "" if found else nearest(name, self.parents)
                raise UserError(f"{self.file}: class {name!r} has {what}; expected exactly one line '{name},PARENT'"
                                + hint)
        parents = tuple(sorted({self.parents[name][0] for name in classes}))
        number = {name: i for i, name in enumerate(parents)}
        return parents, np.array([number[self.parents[name][0]] for name in classes], np.int32)

    def _ancestors(self, name: str) -> list[str]:
        ancestors, level = {}, [name]
        while level:
            level = [parent for child in level for parent in self.parents.get(child, ()) if parent not in ancestors]
            ancestors |= dict.fromkeys(level)
        return list(ancestors)
