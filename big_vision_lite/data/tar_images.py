"""Images in tar files, one a class, as ImageNet-21k is given out: ``n01440764.tar``, ``n01443537.tar``, ..."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import os
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from big_vision_lite.data.cache import cache_dir, kept
from big_vision_lite.data.cores import usable_cores
from big_vision_lite.data.files import Strings
from big_vision_lite.data.image_folder import EXTENSIONS, SPLITS, hashed_split
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.errors import BadImageError, UserError, nearest

FORMAT = 2
KEPT_OPEN = 512
"""Up to so many files stay open; a process may have few, and ImageNet-21k is 21,841."""


@dataclasses.dataclass(frozen=True)
class TarImages(Source):
    """Images at random from uncompressed tar files, each of which is a class; nothing is unpacked.

    Or from one tar file of such tar files, as the whole of ImageNet-21k comes. The classes are the sorted names of the
    files without ``.tar``; the id of an example is ``CLASS/MEMBER``. Hidden files are ignored. The first look at the
    files lists their members and keeps the list (`cache_dir`) until the name, size or time of a file changes.
    """

    path: str = ""
    """Folder of the tar files, or a tar file of tar files."""
    split: str = "all"
    """all, or train, validation or test, into which images fall by a hash of their id."""
    held_out: float = 0.01
    """The share of images for validation, and again for test; below 0.5."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 0.5:
            raise UserError(f"TarImages.held_out is {self.held_out!r}; expected 0 <= held_out < 0.5")

    def open(self) -> TarRecords:
        """Lists the members of the files, or reads the list that was kept.

        Raises:
          UserError: there are no tar files, one is without images, compressed, damaged or cut, or holds an image twice.
        """
        split = next((name for name, aliases in SPLITS.items() if self.split in aliases), None)
        if split is None and self.split != "all":
            raise UserError(f"TarImages.split is {self.split!r}; expected one of all, {', '.join(SPLITS)}"
                            + nearest(self.split, ["all", *SPLITS]))
        files = self._files()
        stats = [os.stat(file) for file in files]
        identity = repr([(os.path.basename(f), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)])
        index = _index(files, hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=8).hexdigest())
        chosen, part = np.arange(len(index.label_of)), "all"
        if split:
            splits = (hashed_split(index.ids.at(i), self.held_out) for i in range(len(chosen)))
            chosen = np.flatnonzero([name == split for name in splits])
            part = f"{split}-{self.held_out:g}"
        if not len(chosen):
            raise UserError(f"no image of {self.path!r} falls into split {self.split!r} at held_out={self.held_out:g}")
        classes = tuple(index.classes.at(i) for i in range(len(index.classes.ends)))
        return TarRecords(classes, False, f"tar-{index.digest}-{part}", tuple(files), chosen, index.ids, index.label_of,
                          index.file_of, index.places)

    def _files(self) -> list[str]:
        path = Path(self.path).expanduser()
        if path.is_file():
            return [str(path)]
        found = sorted(str(p) for p in path.glob("[!.]*.tar")) if path.is_dir() else []
        if not found:
            packed = sorted(p.name for p in path.glob("*.tar.*")) if path.is_dir() else []
            hint = f"; {packed[0]} is compressed: unpack it with `tar -xf`" if packed else ""
            raise UserError(f"there is no tar file in {self.path!r}; expected a folder of CLASS.tar, or one tar of them"
                            + hint)
        return found


class _Listed(NamedTuple):
    """The images of one tar file in which there are no others."""

    name: str  # of the class
    file: int  # the outermost file's number
    members: Strings
    places: np.ndarray  # int64 [n, 2]: offset and size of each, in the outermost file


class _Index(NamedTuple):
    """All images, by class and then by name."""

    classes: Strings
    ids: Strings
    label_of: np.ndarray  # int32 [n]
    file_of: np.ndarray  # int32 [n]
    places: np.ndarray  # int64 [n, 2]: offset and size
    digest: str


def _index(files: list[str], key: str) -> _Index:
    """From the cache, or made and kept there. Raises: UserError."""
    path = cache_dir() / "tar" / f"{key}-{FORMAT}.npz"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as a:
            return _Index(Strings(a["class_ends"], a["class_bytes"].tobytes()),
                          Strings(a["id_ends"], a["id_bytes"].tobytes()), a["label_of"], a["file_of"], a["places"],
                          str(a["digest"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or damaged: it can be made again
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * usable_cores())) as pool:
        listed = [found for founds in pool.map(_images, range(len(files)), files) for found in founds]
    index = _sorted(listed, files)
    with kept(path) as temporary:
        np.savez(temporary, class_ends=index.classes.ends, class_bytes=np.frombuffer(index.classes.joined, np.uint8),
                 id_ends=index.ids.ends, id_bytes=np.frombuffer(index.ids.joined, np.uint8), label_of=index.label_of,
                 file_of=index.file_of, places=index.places, digest=index.digest)
    return index


def _sorted(listed: list[_Listed], files: list[str]) -> _Index:
    """Only one class's images are Python objects at a time. Raises: UserError when an id is there twice."""
    listed = sorted(listed, key=lambda found: found.name)
    names, ids, files_of, places, counts = [], [], [], [], []
    for name, group in itertools.groupby(listed, key=lambda found: found.name):
        entries = sorted((found.members.at(i), found.file, *place) for found in group
                         for i, place in enumerate(found.places.tolist()))
        for one, other in itertools.pairwise(entries):
            if one[0] == other[0]:
                raise UserError(f"{files[one[1]]} at byte {one[2]:,} and {files[other[1]]} at byte {other[2]:,} both "
                                f"hold {one[0]!r} of class {name!r}; ids must differ: pack the file again")
        names.append(name)
        ids.append(Strings.of(f"{name}/{member}" for member, *_ in entries))
        files_of.append(np.array([file for _, file, *_ in entries], np.int32))
        places.append(np.array([place for _, _, *place in entries], np.int64))
        counts.append(len(entries))
    lengths = np.concatenate([np.diff(part.ends, prepend=0) for part in ids])
    joined = Strings(np.cumsum(lengths), b"".join(part.joined for part in ids))
    all_places = np.concatenate(places)
    digest = hashlib.blake2b(repr(names).encode(errors="surrogateescape"), digest_size=8)
    for content in (joined.ends, all_places[:, 1]):  # and not where they lie, which packing again may change
        digest.update(np.ascontiguousarray(content).tobytes())
    digest.update(joined.joined)
    return _Index(Strings.of(names), joined, np.repeat(np.arange(len(names), dtype=np.int32), counts),
                  np.concatenate(files_of), all_places, digest.hexdigest())


def _images(number: int, file: str) -> list[_Listed]:
    """What a tar file and the tar files in it hold. Raises: UserError."""
    found: list[_Listed] = []
    try:
        with tarfile.open(file, mode="r:") as opened:
            _walk(opened, file, Path(file).stem, number, 0, os.path.getsize(file), found)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(_refused(file, error)) from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    return found


def _walk(opened: tarfile.TarFile, file: str, name: str, number: int, base: int, size: int,
          found: list[_Listed]) -> None:
    """Add the images of a tar file of ``size`` bytes that begins at byte ``base`` of ``file``."""
    members, places, inner = [], [], 0
    while (member := opened.next()) is not None:
        opened.members.clear()  # it would keep a kilobyte of each
        start, hidden = base + member.offset_data, member.name.rpartition("/")[2].startswith(".")
        if member.isreg() and member.offset_data + member.size > size:
            raise UserError(f"{file} is cut: {member.name!r} ends at byte {start + member.size:,} and its tar file at "
                            f"{base + size:,}; copy it again")
        if hidden or member.isdir():
            continue
        image = member.name.rpartition(".")[2].lower() in EXTENSIONS
        if image and (not member.isreg() or member.issparse()):
            raise UserError(f"{file} at byte {base + member.offset:,}: {member.name!r} is a link or sparse; pack the "
                            "file again with --dereference --hard-dereference and without --sparse")
        if image:
            members.append(member.name.removeprefix("./"))
            places.append((start, member.size))
        elif member.isreg() and member.name.endswith(".tar"):
            inner += 1
            try:
                with tarfile.open(fileobj=opened.extractfile(member), mode="r:") as below:
                    _walk(below, file, Path(member.name).stem, number, start, member.size, found)
            except (tarfile.TarError, EOFError) as error:
                raise UserError(_refused(file, error, start, member.name)) from None
    # tarfile takes whatever is no header for the end. The real end is zeros, and so is all that follows, unless tar
    # files were simply put one after the other.
    opened.fileobj.seek(opened.offset)
    rest = opened.fileobj.read(64 * 1024)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise UserError(f"{file} is damaged or cut: the list of its members breaks off at byte "
                        f"{base + opened.offset:,} of {os.path.getsize(file):,}; copy or pack it again")
    if members:
        found.append(_Listed(name, number, Strings.of(members), np.array(places, np.int64)))
    elif not inner:
        raise UserError(f"{file} holds no images{f' in {name}.tar' if base else ''} ({', '.join(sorted(EXTENSIONS))}); "
                        "each tar file is a class: add some or remove it")


def _refused(file: str, error: Exception, base: int = 0, member: str = "") -> str:
    where = f"{file}{f': {member!r} at byte {base:,}' if member else ''}"
    with open(file, "rb") as opened:
        opened.seek(base)
        start = opened.read(6)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return (f"{where} is compressed, so that nothing in it can be read at random; unpack it with `tar -xf`, and "
                "name the folder of what comes out")
    return f"{where} is not a whole tar file ({error}); copy it again"


@dataclasses.dataclass(eq=False)
class TarRecords(Records):
    """Images at their places in tar files. Threads and processes may share it: reads name their place themselves."""

    classes: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    files: tuple[str, ...]
    chosen: np.ndarray  # int64 [n]: those of all images that are in the split
    ids: Strings
    label_of: np.ndarray
    file_of: np.ndarray
    places: np.ndarray  # int64 [all, 2]: offset and size

    def __post_init__(self) -> None:
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.chosen)

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        at = int(self.chosen[range(len(self))[index]])
        return self.ids.at(at), self.label_of[at : at + 1]

    def __getitem__(self, index: int) -> Example:
        id_, labels = self.labels(index)
        at = int(self.chosen[range(len(self))[index]])
        offset, size = (int(number) for number in self.places[at])
        try:
            image = self._read(int(self.file_of[at]), offset, size)
        except OSError as error:
            raise BadImageError(id_, error.strerror or str(error)) from error
        if len(image) < size:
            raise BadImageError(id_, f"{self.files[self.file_of[at]]} is shorter than when it was listed")
        return {"id": id_, "image": image, "labels": labels}

    def _read(self, file: int, offset: int, size: int) -> bytes:
        if len(self.files) > KEPT_OPEN:
            with open(self.files[file], "rb", buffering=0) as opened:
                return os.pread(opened.fileno(), size, offset)
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self.files[file], os.O_RDONLY)
        return os.pread(self._descriptors[file], size, offset)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_descriptors": {}, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)
