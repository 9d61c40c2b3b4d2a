"""The files of a dataset of many large files: a folder of them, a pattern, or one."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from big_vision_lite.data.sources.files import Fingerprint, files_identity
from big_vision_lite.data.sources.remote import listing, url_of
from big_vision_lite.data.sources.splits import SPLITS, standard_split
from big_vision_lite.errors import UserError, nearest


class Shards(NamedTuple):
    """Files of one dataset."""

    root: str
    names: tuple[str, ...]
    """Sorted, relative to ``root``, with forward slashes."""
    stats: np.ndarray
    """int64 ``[n, 2]``: sizes in bytes and modification times in ns, or numbers of versions in a bucket."""

    def path(self, shard: int) -> str:
        return f"{self.root}/{self.names[shard]}"

    def key(self, shard: int, *more: object) -> str:
        """Names what is known of a file as long as it is not changed."""
        path = self.path(shard)
        identity = repr((path if url_of(path) else os.path.abspath(path), *self.stats[shard].tolist(), *more))
        return hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=12).hexdigest()

    def key_of_all(self, *more: object) -> str:
        """As `key`, of all files together."""
        keys = "".join(self.key(shard, *more) for shard in range(len(self.names)))
        return hashlib.blake2b(keys.encode(), digest_size=12).hexdigest()

    def fingerprint(self, kind: str, identity: object, fingerprint: Fingerprint) -> str:
        """Of the dataset.

        Args:
          kind: of the source.
          identity: what ids and labels depend on beside the files.
        """
        if fingerprint == "content" and url_of(self.root):
            raise UserError(f"fingerprint='content' of files at {self.root} would read all of them; expected 'mtime', "
                            "which goes by their versions")
        identity = repr((self.names, identity)).encode(errors="surrogateescape")
        digest = hashlib.blake2b(identity, digest_size=8).hexdigest()
        return f"{kind}-{digest}-{files_identity(self.root, self.names, self.stats, fingerprint)}"


def find_shards(path: str, suffix: str, split: str | None, owner: str) -> Shards:
    """The files that a path or URL stands for: a file, a pattern such as ``train-*.tar``, or a folder, whose files lie
    in it or in its folders named data or like a split.

    Args:
      suffix: of the files' names, such as ``.tar``.
      split: only files of this split, which the first word of their name or folder says.
      owner: the source's name, for messages.

    Raises:
      UserError: there are no such files, or they are of several splits and none is chosen.
    """
    standard = None if split is None else standard_split(split)
    if split is not None and standard is None:
        raise UserError(f"{owner}.split is {split!r}; expected one of {', '.join(SPLITS)}{nearest(split, SPLITS)}; "
                        "files of other splits can be named by a pattern")
    expanded = os.path.expanduser(path)
    url = url_of(path)
    if url:
        root, stats_of = listing(url, suffix)
        names = sorted(stats_of)
    else:
        root, files = _matching(expanded, suffix)
        names = sorted(os.path.relpath(file, root).replace(os.sep, "/") for file in files)
        stats_of = {}
    if not names:
        raise UserError(f"{owner}: there is no {suffix} file at {path!r}; expected a file, a folder of such files, or "
                        f"a pattern such as 'folder/train-*{suffix}'")
    splits = [_split_of(name) for name in names]
    known = sorted({name for name in splits if name})
    if standard:
        names = [name for name, its in zip(names, splits, strict=True) if its == standard]
        if not names:
            raise UserError(f"{owner}: {path!r} has no file of split {split!r}, only of {', '.join(known) or 'none'}; "
                            "the first word of a file's name, or of its folder's, says its split")
    elif (os.path.isdir(expanded) or (url and not re.search(r"[*?[]", path))) and len(known) > 1:
        raise UserError(f"{owner}: {path!r} has files of the splits {', '.join(known)}; expected split={known[-1]} or "
                        "another of them")
    if not re.search(r"[*?[]", path) and not path.lower().endswith(suffix):
        _check_numbers(names, owner)
    stats = [stats_of[name] if url else _size_and_time(f"{root}/{name}") for name in names]
    return Shards(root, tuple(names), np.array(stats, np.int64))


def _check_numbers(names: Sequence[str], owner: str) -> None:
    """Raises: UserError when files are missing whose names say how many there are, as in ``train-00001-of-00005``."""
    sets: dict[str, set[str]] = {}
    for name in names:
        if match := re.fullmatch(r"(.*)-(\d+)-of-(\d+)(.*)", name):
            sets.setdefault(f"{match[1]}-{{}}-of-{match[3]}{match[4]}", set()).add(match[2])
    for form, numbers in sets.items():
        count, digits = int(re.search(r"-\{\}-of-(\d+)", form)[1]), len(min(numbers))
        lacking = [number for k in range(count) if (number := f"{k:0{digits}}") not in numbers]
        if lacking:
            raise UserError(f"{owner}: {form.format(lacking[0])!r} is missing ({len(lacking):,} of {count:,} files "
                            "are); copy it there, or name the files to use by a pattern")


def _size_and_time(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def first_shard(path: Path, suffix: str) -> str | None:
    """The first of the files that a path stands for, of any split; None if there are none."""
    if url := url_of(str(path)):
        root, files = listing(url, suffix)
        return f"{root}/{min(files)}" if files else None
    return min(_matching(str(path), suffix)[1], default=None)


def _matching(path: str, suffix: str) -> tuple[str, list[str]]:
    """The folder that ids are relative to, and the files."""
    if os.path.isdir(path):
        inner = [entry.path for entry in os.scandir(path)
                 if (entry.name == "data" or standard_split(entry.name)) and entry.is_dir()]
        files = [entry.path for folder in (path, *inner) for entry in os.scandir(folder)]
    else:
        files = glob.glob(path, recursive=True) if glob.has_magic(path) else [path]
        path = os.path.dirname(re.split(r"[*?[]", path)[0]) if files != [path] else os.path.dirname(path)
    visible = (file for file in files if file.lower().endswith(suffix) and os.path.basename(file)[0] != ".")
    return path or ".", list(filter(os.path.isfile, visible))


def _split_of(name: str) -> str | None:
    """train, validation or test, by the first word of the file's name or of the nearest folder that says it."""
    words = (re.match("[A-Za-z]*", part) for part in reversed(name.split("/")))
    return next((split for word in words if word and (split := standard_split(word[0]))), None)
