"""Images in tar files, one a class, as ImageNet-21k is given out: ``n01440764.tar``, ``n01443537.tar``, ..."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import tarfile
import threading
from pathlib import Path

import numpy as np

from big_vision_lite.data.cache import cache_dir, kept
from big_vision_lite.data.files import Strings
from big_vision_lite.data.image_folder import EXTENSIONS, SPLITS, hashed_split
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.errors import BadImageError, UserError, nearest

FORMAT = 1
KEPT_OPEN = 512
"""Up to so many files stay open; a process may have few, and ImageNet-21k is 21,841."""


@dataclasses.dataclass(frozen=True)
class TarImages(Source):
    """Images at random from uncompressed tar files, each of which is a class; nothing is unpacked.

    Or from one tar file of such tar files, as the whole of ImageNet-21k comes. The classes are the sorted names of the
    files without ``.tar``; the id of an example is ``CLASS/MEMBER``. The first look at the files lists their members
    and keeps the list (`cache_dir`).
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
          UserError: there are no tar files or no images, or a file is compressed, damaged or cut.
        """
        split = next((name for name, aliases in SPLITS.items() if self.split in aliases), None)
        if split is None and self.split != "all":
            raise UserError(f"TarImages.split is {self.split!r}; expected one of all, {', '.join(SPLITS)}"
                            + nearest(self.split, ["all", *SPLITS]))
        files = self._files()
        stats = [os.stat(file) for file in files]
        identity = repr([(os.path.basename(f), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)])
        digest = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=8).hexdigest()
        names, ids, label_of, file_of, places = _index(files, digest)
        chosen = np.arange(len(label_of))
        if split:
            here = [hashed_split(ids.at(i), self.held_out) == split for i in range(len(label_of))]
            chosen = np.flatnonzero(here)
        if not len(chosen):
            raise UserError(f"no image of {self.path!r} falls into split {self.split!r} at held_out={self.held_out:g}")
        fingerprint = f"tar-{digest}-{self.split}-{self.held_out:g}"
        return TarRecords(tuple(names), False, fingerprint, tuple(files), chosen, ids, label_of, file_of, places)

    def _files(self) -> list[str]:
        path = Path(self.path).expanduser()
        if path.is_file():
            return [str(path)]
        found = sorted(str(p) for p in path.glob("*.tar")) if path.is_dir() else []
        if not found:
            packed = sorted(p.name for p in path.glob("*.tar.*")) if path.is_dir() else []
            hint = f"; {packed[0]} is compressed: unpack it with `tar -xf` first" if packed else ""
            raise UserError(f"there is no tar file in {self.path!r}; expected a folder of CLASS.tar, or one tar of them"
                            + hint)
        return found


def _index(files: list[str], digest: str) -> tuple[list[str], Strings, np.ndarray, np.ndarray, np.ndarray]:
    """Class names, ids, and for each image its label, its file, and (offset, size) in that."""
    path = cache_dir() / "tar" / f"{digest}-{FORMAT}.npz"
    if not path.is_file():
        with concurrent.futures.ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            listed = list(pool.map(_members, range(len(files)), files))
        found = sorted(entry for entries in listed for entry in entries)
        if not found:
            raise UserError(f"{files[0]!r} holds no images ({', '.join(sorted(EXTENSIONS))})"
                            + (f", nor do {len(files) - 1} others" if len(files) > 1 else ""))
        names = sorted({name for name, *_ in found})
        number = {name: i for i, name in enumerate(names)}
        ids, classes = Strings.of(f"{name}/{member}" for name, member, *_ in found), Strings.of(names)
        arrays = {"id_ends": ids.ends, "id_bytes": np.frombuffer(ids.joined, np.uint8), "class_ends": classes.ends,
                  "class_bytes": np.frombuffer(classes.joined, np.uint8),
                  "label_of": np.array([number[name] for name, *_ in found], np.int32),
                  "file_of": np.array([file for _, _, file, _, _ in found], np.int32),
                  "places": np.array([place for *_, place in found], np.int64)[:, :2]}
        with kept(path) as temporary:
            np.savez(temporary, **arrays)
    else:
        arrays = dict(np.load(path, allow_pickle=False))
    classes = Strings(arrays["class_ends"], arrays["class_bytes"].tobytes())
    names = [classes.at(i) for i in range(len(classes.ends))]
    ids = Strings(arrays["id_ends"], arrays["id_bytes"].tobytes())
    return names, ids, arrays["label_of"], arrays["file_of"], arrays["places"]


def _members(number: int, file: str) -> list[tuple[str, str, int, int, tuple[int, int]]]:
    """(class, member, number of the file, its order, (offset, size)) of each image. Raises: UserError."""
    found = []
    size = os.path.getsize(file)

    def walk(opened: tarfile.TarFile, name: str, base: int) -> None:
        for member in opened:
            start = base + member.offset_data
            if start + member.size > size:
                raise UserError(f"{file} is cut: {member.name!r} ends at byte {start + member.size:,} and the file at "
                                f"{size:,}; copy it again")
            if not member.isfile():
                continue
            if member.name.endswith(".tar"):
                with tarfile.open(fileobj=opened.extractfile(member), mode="r:") as inner:
                    walk(inner, Path(member.name).stem, start)
            elif member.name.rpartition(".")[2].lower() in EXTENSIONS:
                found.append((name, member.name.removeprefix("./"), number, len(found), (start, member.size)))

    try:
        with tarfile.open(file, mode="r:") as opened:
            walk(opened, Path(file).stem, 0)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{file} is not a whole, uncompressed tar file ({error}); copy or unpack it again") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    return found


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
