"""A hierarchy of classes: which class is a kind of which. Any class may have several parents."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from big_vision_lite.errors import UserError


class Hierarchy:
    """Read from a file of two columns, child and parent, separated by a tab, a comma or spaces; ``#`` starts a
    comment, and a first line ``child parent`` is a heading.

    Attributes:
      parents: names of each name's parents, in the order of the file.
      digest: 16 hex digits that name the content.

    Raises:
      UserError: no such file, a line without two columns, or a cycle; the cycle is spelt out.
    """

    def __init__(self, file: str):
        self.file = file
        try:
            text = Path(file).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the hierarchy {file!r}: {error}; expected a file of lines 'child,parent'") \
                from None
        self.digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.parents: dict[str, list[str]] = {}
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            separator = next((s for s in "\t," if s in line), None)
            row = next(csv.reader([line], delimiter=separator)) if separator else line.split()
            names = [name.strip() for name in row]
            if len(names) != 2 or not all(names):
                raise UserError(f"{file} line {number}: {line!r} is not 'child,parent'; names with commas need quotes "
                                "or tabs between columns")
            if number == 1 and [name.lower() for name in names] == ["child", "parent"]:
                continue
            child, parent = names
            if parent not in self.parents.setdefault(child, []):
                self.parents[child].append(parent)
        if not self.parents:
            raise UserError(f"the hierarchy {file!r} is empty; expected lines 'child,parent'")
        self._refuse_cycles()

    def _refuse_cycles(self) -> None:
        done: set[str] = set()
        for start in self.parents:
            path, on_path, stack = [], set(), [(start, False)]
            while stack:  # depth first, without recursion: hierarchies may be deep
                name, leaving = stack.pop()
                if leaving:
                    on_path.remove(path.pop())
                    done.add(name)
                elif name in on_path:
                    cycle = [*path[path.index(name):], name]
                    raise UserError(f"{self.file}: the hierarchy has a cycle: {' -> '.join(cycle)}; remove one of "
                                    "these lines")
                elif name not in done:
                    path.append(name)
                    on_path.add(name)
                    stack.append((name, True))
                    stack.extend((parent, False) for parent in self.parents.get(name, ()))

    def ancestors(self, name: str) -> list[str]:
        """All ancestors, nearest first, each once."""
        found, front = {}, [name]
        while front:
            front = [parent for child in front for parent in self.parents.get(child, ()) if parent not in found]
            found |= dict.fromkeys(front)
        return list(found)
