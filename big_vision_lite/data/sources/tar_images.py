"""Images in tar files: one file per class, as ImageNet-21k is distributed (``n01440764.tar``, ``n01443537.tar``, ...),
or the shards of a WebDataset."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import PIECE_ROWS, Columns, with_keys
from big_vision_lite.data.ragged import Ragged
from big_vision_lite.data.source import Dataset, Example, Source
from big_vision_lite.data.sources.files import (
    EXTENSIONS,
    MAX_FILE_BYTES,
    Fingerprint,
    OpenFiles,
    compact,
    content_identity,
    is_image,
    text_at,
)
from big_vision_lite.data.sources.splits import SPLITS, check_held_out, hashed_split, standard_split
from big_vision_lite.data.sources.tar_files import (
    TAR_ERRORS,
    class_name,
    example_key,
    is_tar,
    unreadable,
    visible_members,
)
from big_vision_lite.errors import BadImageError, UserError, first_line, nearest
from big_vision_lite.system.cache import cached_file, cached_path
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.system.parse import open_regular

FORMAT = 4
MAX_DEPTH = 8
"""Of tar files within tar files."""
MAX_OPEN_FILES = 512
"""With more tar files than this, they are opened for each read: ImageNet-21k has 21,841, above most limits."""


@dataclasses.dataclass(frozen=True)
class TarImages(Source):
    """Random access to images in uncompressed tar files, one per class; nothing is unpacked.

    Or in one tar file of such tar files, as all of ImageNet-21k is distributed. The classes are the sorted names of
    the files without ``.tar``; the id of an example is ``CLASS/MEMBER``.

    Or in the shards of a WebDataset: next to each image ``KEY.jpg``, the file ``KEY.cls`` has its class. If all of
    these are numbers, the classes are all numbers from 0 on, otherwise they are sorted. The id is
    ``CLASS/SHARD/MEMBER``.

    Hidden files are ignored. The list of members is cached until the path, size or time of a file changes.
    """

    path: str = ""
    """Folder of the tar files, or a tar file of tar files."""
    split: str = "all"
    """all, or train, validation or test, which are split by a hash of the ids."""
    held_out: float = 0.01
    """The fraction of images for validation, and again for test; below 0.5."""
    fingerprint: Fingerprint = "mtime"
    """As of `ImageFolder`: sizes and times are those of the tar files."""

    precedence: ClassVar[int] = 0  # archives may lie beside the files of other formats

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        has_tars = any(map(is_tar, os.listdir(path))) if path.is_dir() else is_tar(path.name) and path.is_file()
        return {"path": str(path)} if has_tars else None

    def __post_init__(self) -> None:
        check_held_out(self)

    def open(self) -> TarDataset:
        """Lists the members of the files, or reads the cached list.

        Raises:
          UserError: there are no tar files, or one has no images, is compressed, damaged or truncated, or has an image
            twice.
        """
        split = standard_split(self.split)
        if split is None and self.split != "all":
            raise UserError(f"TarImages.split is {self.split!r}; expected one of all, {', '.join(SPLITS)}"
                            + nearest(self.split, ["all", *SPLITS]))
        files = self._files()
        stats = [(os.path.abspath(file), status.st_size, status.st_mtime_ns) for file in files
                 for status in [os.stat(file)]]
        times, key = (hashlib.blake2b(repr(values).encode(errors="surrogateescape"), digest_size=8).hexdigest()
                      for values in ([stat[1:] for stat in stats], stats))
        index = _index(files, key)
        selected, part = np.arange(len(index.label_of)), "all"
        if split:
            splits = (hashed_split(text_at(index.ids, i), self.held_out) for i in range(len(selected)))
            selected = np.flatnonzero([name == split for name in splits])
            part = f"{split}-{self.held_out:g}"
        if not len(selected):
            raise UserError(f"no image of {self.path!r} falls into split {self.split!r} with held_out="
                            f"{self.held_out:g}; raise held_out or choose another split")
        dataset = TarDataset(index.classes, False, f"tar-{index.digest}-{times}-{part}",
                             OpenFiles(files, MAX_OPEN_FILES), selected, index)
        if self.fingerprint == "content":
            identity = content_identity(range(len(dataset)), dataset.hash_of_image, f"{key}-{part}")
            dataset.fingerprint = f"tar-{index.digest}-{identity}-{part}"
        return dataset

    def _files(self) -> list[str]:
        """Raises: UserError."""
        path = os.path.expanduser(self.path)
        if os.path.isfile(path):
            return [path]
        names = sorted(name for name in os.listdir(path) if name[0] != ".") if os.path.isdir(path) else []
        files = [f"{path}/{name}" for name in names if is_tar(name)]
        if not files:
            compressed = [name for name in names if ".tar." in name.lower()]
            hint = f"; {compressed[0]} is compressed: unpack it with `tar -xf`" if compressed else ""
            raise UserError(f"there is no tar file in {self.path!r}; expected a folder of CLASS.tar, or one tar of them"
                            + hint)
        return files


class _ClassTar(NamedTuple):
    """The images of a class in one tar file."""

    name: str  # of the class
    shard: bool  # of a WebDataset
    file: int  # number of the outermost file
    members: pa.LargeBinaryArray
    places: np.ndarray  # int64 [n, 2]: offset and size of each image in the outermost file


class _Index(NamedTuple):
    """All images, sorted by class and name."""

    classes: tuple[str, ...]
    ids: pa.LargeBinaryArray
    label_of: np.ndarray  # int32 [n]
    file_of: np.ndarray  # int32 [n]
    places: np.ndarray  # int64 [n, 2]: offset and size
    digest: str


def _index(files: list[str], key: str) -> _Index:
    """Read from the cache, or built and cached. Raises: UserError."""
    path = cached_path("tar", f"{key}-{FORMAT}.npz")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as a:
            buffers = [None, pa.py_buffer(a["id_offsets"]), pa.py_buffer(a["id_bytes"])]
            ids = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(a["id_offsets"]) - 1, buffers)
            return _Index(tuple(a["classes"].tolist()), ids, a["label_of"], a["file_of"], a["places"], str(a["digest"]))
    except Exception:  # missing or, as checksums tell, damaged, for which there are many errors: built again
        pass
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * usable_cores())) as pool:
        tars = list(itertools.chain.from_iterable(pool.map(_class_tars, range(len(files)), files)))
    index = _sorted(tars, files)
    with contextlib.suppress(OSError), cached_file(path) as temporary:
        offsets, joined = _offsets_and_bytes(index.ids)
        np.savez(temporary, classes=np.array(index.classes), id_offsets=offsets, id_bytes=joined,
                 label_of=index.label_of, file_of=index.file_of, places=index.places, digest=index.digest)
    return index


def _sorted(tars: list[_ClassTar], files: list[str]) -> _Index:
    """Only one class's images are Python objects at a time. Raises: UserError when an id occurs twice."""
    if len({tar.shard for tar in tars}) > 1:
        odd = next(tar for tar in tars if not tar.shard)
        raise UserError(f"{files[odd.file]} has images without classes, but others have .cls files, as shards of a "
                        "WebDataset do; expected all or none")
    numbers = tars[0].shard and all(re.fullmatch("[0-9]+", tar.name) for tar in tars)
    tars = sorted(tars, key=lambda tar: (int(tar.name) if numbers else 0, tar.name))
    names, ids, files_of, places, counts = [], [], [], [], []
    for name, group in itertools.groupby(tars, key=lambda tar: tar.name):
        entries = sorted((text_at(tar.members, i), tar.file, *place) for tar in group
                         for i, place in enumerate(tar.places.tolist()))
        for a, b in itertools.pairwise(entries):
            if a[0] == b[0]:
                raise UserError(f"{files[a[1]]} at byte {a[2]:,} and {files[b[1]]} at byte {b[2]:,} both contain "
                                f"{a[0]!r} of class {name!r}; ids must be unique: pack the file again")
        names.append(name)
        ids.append(compact(f"{name}/{member}" for member, *_ in entries))
        files_of.append(np.array([file for _, file, *_ in entries], np.int32))
        places.append(np.array([place for _, _, *place in entries], np.int64))
        counts.append(len(entries))
    all_ids = pa.concat_arrays(ids)
    offsets, joined = _offsets_and_bytes(all_ids)
    all_places = np.concatenate(places)
    digest = hashlib.blake2b(repr(names).encode(errors="surrogateescape"), digest_size=8)
    for content in (offsets[1:], all_places[:, 1]):  # sizes, but not positions, which packing again may change
        digest.update(np.ascontiguousarray(content).tobytes())
    digest.update(joined)
    labels = np.array(names, np.int32) if numbers else np.arange(len(names), dtype=np.int32)
    classes = tuple(map(str, range(labels[-1] + 1))) if numbers else tuple(names)
    return _Index(classes, all_ids, np.repeat(labels, counts), np.concatenate(files_of), all_places, digest.hexdigest())


def _offsets_and_bytes(ids: pa.LargeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """int64 ``[n + 1]`` and uint8."""
    _, offsets, joined = ids.buffers()
    offsets = np.frombuffer(offsets, np.int64, len(ids) + 1)
    return offsets, np.frombuffer(joined, np.uint8, offsets[-1])


def _class_tars(number: int, file: str) -> list[_ClassTar]:
    """The images of a tar file and of the tar files in it. Raises: UserError."""
    tars: list[_ClassTar] = []
    try:
        with open(open_regular(file), "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as opened:
            _walk(opened, file, Path(file).stem, number, 0, os.path.getsize(file), tars)
    except TAR_ERRORS as error:
        raise UserError(unreadable(file, error)) from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {first_line(error)}") from None
    return tars


def _walk(opened: tarfile.TarFile, file: str, name: str, number: int, base: int, size: int, tars: list[_ClassTar],
          depth: int = 1) -> None:
    """Adds the images of a tar file of ``size`` bytes that starts at byte ``base`` of ``file``."""
    members, places, inner, class_of, described = [], [], 0, {}, set()
    for member, start in visible_members(opened, file, base, size, os.path.getsize(file)):
        key, extension = example_key(member.name)
        if is_image(member.name):
            members.append(member.name.removeprefix("./"))
            places.append((start, member.size))
        elif member.isreg() and extension == "cls":
            class_of[key] = class_name(opened.extractfile(member).read(100), file, member.name)
        elif member.isreg() and extension in ("json", "txt"):
            described.add(key)
        elif member.isreg() and is_tar(member.name):
            inner += 1
            if depth == MAX_DEPTH:
                raise UserError(f"{file}: {member.name!r} is a tar file within {depth} others; expected one tar file "
                                "per class, or one of such files")
            try:
                with tarfile.open(fileobj=opened.extractfile(member), mode="r:") as below:
                    _walk(below, file, Path(member.name).stem, number, start, member.size, tars, depth + 1)
            except TAR_ERRORS as error:
                raise UserError(unreadable(file, error, start, member.name)) from None
    if not members and not inner:
        raise UserError(f"{file} has no images{f' in {name}.tar' if base else ''} ({', '.join(sorted(EXTENSIONS))}); "
                        "each tar file is a class: add some or remove it")
    for label, indices in _by_class(file, name, members, class_of, described).items():
        ids = compact(f"{name}/{members[at]}" if class_of else members[at] for at in indices)
        tars.append(_ClassTar(label, bool(class_of), number, ids, np.array([places[at] for at in indices], np.int64)))


def _by_class(file: str, name: str, members: list[str], class_of: dict[str, str], described: set[str]
              ) -> dict[str, list[int]]:
    """The images of each class of a tar file, as indices: all are of class ``name``, but in shards of a WebDataset.

    Args:
      class_of, described: the keys of .cls files, with the class, and of .json and .txt files.

    Raises:
      UserError: it is a shard, and an image has no class.
    """
    keys = [example_key(member)[0] for member in members]
    if not class_of and (not keys or not described.issuperset(keys)):
        return {name: list(range(len(keys)))} if keys else {}
    indices = defaultdict(list)
    for at, key in enumerate(keys):
        if key not in class_of:
            raise UserError(f"{file}: {members[at]!r} has no {key}.cls with its class; expected one for each image of "
                            "a WebDataset, as this seems to be")
        indices[class_of[key]].append(at)
    return indices


@dataclasses.dataclass(eq=False)
class TarDataset(Dataset):
    """Images in tar files. Threads and processes may share it, because reads give their own offset."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    files: OpenFiles
    selected: np.ndarray  # int64 [n]: which of all images are in the split
    index: _Index

    def __len__(self) -> int:
        return len(self.selected)

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        at = int(self.selected[range(len(self))[index]])
        return text_at(self.index.ids, at), self.index.label_of[at : at + 1]

    def column_pieces(self) -> Iterator[Columns]:
        for start in range(0, len(self), PIECE_ROWS):
            rows = self.selected[start : start + PIECE_ROWS]
            labels = Ragged(np.arange(1, len(rows) + 1), self.index.label_of[rows])
            yield with_keys(self.index.ids.take(pa.array(rows)), labels)

    def __getitem__(self, index: int) -> Example:
        id_, labels = self.labels(index)
        at = int(self.selected[range(len(self))[index]])
        file, (offset, size) = int(self.index.file_of[at]), self.index.places[at].tolist()
        if size > MAX_FILE_BYTES:
            raise BadImageError(id_, f"it has {size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
        try:
            image = self.files.read(file, offset, size)
        except OSError as error:
            raise BadImageError(id_, first_line(error)) from error
        if len(image) < size:
            raise BadImageError(id_, f"{self.files.paths[file]} is shorter than when it was indexed")
        return {"id": id_, "image": image, "labels": labels}

    def hash_of_image(self, index: int) -> bytes:
        try:
            return hashlib.blake2b(self[index]["image"]).digest()
        except BadImageError:  # an error when it is read
            return b"unreadable"
