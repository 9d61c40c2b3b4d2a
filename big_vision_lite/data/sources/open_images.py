"""Open Images (Kuznetsova et al. 2020) as its site distributes it since V5: csv files of image-level labels by machines
and by people, and images by id.

    ROOT/oidv7-class-descriptions.csv                    LabelName,DisplayName
    ROOT/train-annotations-machine-imagelabels.csv       ImageID,Source,LabelName,Confidence
    ROOT/oidv7-train-annotations-human-imagelabels.csv   the same, with a confidence of 1 or 0
    ROOT/train/                                          ID.jpg, in any folders, or uncompressed tar files of them

The tables are read once, into columns in the cache. TFDS's open_images_v4 is another thing: the 1.7 million images that
have boxes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from big_vision_lite.data.columns import Columns, mapped_columns, pieces, read_columns, write_columns
from big_vision_lite.data.source import Dataset, Example, Source
from big_vision_lite.data.sources.csv_table import CsvTable
from big_vision_lite.data.sources.files import (
    MAX_FILE_BYTES,
    OpenFiles,
    check_classes,
    compact,
    read_file,
    read_lines,
    sizes_and_times,
)
from big_vision_lite.data.sources.open_images_labels import ID_LENGTH, LabelTable, packed_ids
from big_vision_lite.data.sources.tar_files import TAR_ERRORS, is_tar, unreadable, visible_members
from big_vision_lite.errors import BadImageError, UserError, first_line
from big_vision_lite.system.cache import cached_file, cached_path
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.system.parse import open_regular

FORMAT = 1
MAX_OPEN_FILES = 512


@dataclasses.dataclass(frozen=True)
class OpenImages(Source):
    """Image-level labels of Open Images, any number per image. The id of an example is the image's, its classes are
    named by their LabelName ("/m/01yrx").

    A label counts if a person confirmed it, or a machine is confident enough and no person rejected it. Images without
    a file, and files without a label that counts, are left out and counted in a note.
    """

    root: str = ""
    split: Literal["train", "validation", "test"] = "train"
    labels: Literal["all", "machine", "human"] = "all"
    """Which files of labels are read."""
    min_confidence: float = 0.5
    """Of a machine's labels; files have those of at least 0.5."""
    classes: str | None = None
    """File of the classes, in the order of the model's outputs: ``LabelName,DisplayName``, or one LabelName per line.
    None: the ``*class-descriptions.csv`` of the root. Labels of other classes are left out and counted."""
    images: str | None = None
    """Folder of the images; None: ``split`` below the root."""
    check: Literal["all", "none"] = "all"
    """Whether the sizes and modification times of image files are read when the source is opened, so that a replaced
    file is noticed before a run is resumed. It takes some 3 us per file of a local disk. Those of tar files always
    are."""

    @classmethod
    def recognise(cls, path: Path) -> dict[str, Any] | None:
        return {"root": str(path)} if path.is_dir() and any(path.glob("*-annotations-*-imagelabels.csv")) else None

    def open(self) -> OpenImagesDataset:
        """Reads the files of labels and lists the images, unless that was done before and no file has changed.

        Raises:
          UserError: there are no such files or images, or one is malformed.
        """
        root = os.path.expanduser(self.root)
        files = self._label_files(Path(root))
        classes = self._class_names(Path(root))
        folder = os.path.expanduser(self.images) if self.images is not None else f"{root}/{self.split}"
        found = _list_images(folder, self.check == "all")
        stats = [(os.path.abspath(path), status.st_size, status.st_mtime_ns) for path, _ in files
                 for status in [path.stat()]]
        identity = repr((stats, classes, self.labels, self.min_confidence, found.digest))
        key = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=12).hexdigest()
        cached = cached_path("open_images", f"{key}-{FORMAT}.arrow")
        if (columns := read_columns(cached)) is None:
            table = LabelTable(files, classes, found.ids, self.min_confidence)
            with cached_file(cached) as temporary:
                write_columns(_hashed(table, metadata := {}), temporary, metadata)
                columns = dataclasses.replace(mapped_columns(temporary), path=cached)
        counts = json.loads(columns.metadata["counts"])
        if not len(columns):
            raise UserError(f"OpenImages: none of the {len(found.ids):,} images in {folder!r} has a label that counts, "
                            f"of {counts['rows']:,} rows for {counts['missing_images']:,} other images; is it the "
                            f"folder of split {self.split!r}?")
        at = np.concatenate([np.searchsorted(found.ids, packed_ids(piece.cast(pa.string()))[0])
                             for piece in pieces(columns.ids)])
        notes = tuple(f"{count:,} {what}" for name, what in NOTES.items() if (count := counts[name]))
        return OpenImagesDataset(classes, f"open_images-{columns.metadata['digest']}-{found.digest}", columns, found,
                                 at, notes)

    def _label_files(self, root: Path) -> list[tuple[Path, bool]]:
        """(path, whether the labels are a machine's) of each file. Raises: UserError."""
        kinds = ("machine", "human") if self.labels == "all" else (self.labels,)
        files = [(path, kind == "machine") for kind in kinds
                 for path in sorted(root.glob(f"*{self.split}-annotations-{kind}-imagelabels.csv"))]
        if missing := [kind for kind in kinds if not any((kind == "machine") == machine for _, machine in files)]:
            raise UserError(f"OpenImages: there is no {self.split}-annotations-{missing[0]}-imagelabels.csv in "
                            f"{self.root!r}, with or without a prefix such as oidv7-; download it, or set labels to "
                            f"{'human' if missing[0] == 'machine' else 'machine'}")
        if twice := [kind for kind in kinds if sum((kind == "machine") == machine for _, machine in files) > 1]:
            raise UserError(f"OpenImages: {self.root!r} has several files of {twice[0]} labels of {self.split}: "
                            f"{', '.join(path.name for path, _ in files)}; keep one version")
        return files

    def _class_names(self, root: Path) -> tuple[str, ...]:
        """Raises: UserError."""
        if self.classes is None:
            found = sorted(root.glob("*class-descriptions.csv"))
            if len(found) != 1:
                what = f"several files: {', '.join(path.name for path in found)}" if found else "none"
                raise UserError(f"OpenImages: expected one *class-descriptions.csv in {self.root!r}, found {what}; "
                                "name the file of the classes as classes=FILE")
            path = found[0]
        else:
            path = Path(os.path.expanduser(self.classes))
        expected = "LabelName,DisplayName, or one LabelName per line"
        if path.suffix != ".csv":
            names = tuple(read_lines(path, "OpenImages.classes", expected))
        else:
            table = CsvTable(str(path), path, "OpenImages.classes", expected)
            if "LabelName" not in table.names:
                raise UserError(f"{path} has the columns {', '.join(table.names)}; expected {expected}")
            names = tuple(name or "" for (batch,) in table.batches(["LabelName"]) for name in batch.to_pylist())
        check_classes(names, str(path))
        return names


NOTES = {
    "missing_images": "images have labels and no file; they are left out",
    "unlabelled_images": "images have no label that counts; they are left out",
    "other_classes": "labels are of classes that are not in the list; they are left out",
}
"""Of `LabelCounts`: what users are told."""


def _hashed(table: LabelTable, metadata: dict[str, str]) -> Iterator[Columns]:
    """The table's columns; then ``metadata`` has their digest and counts."""
    digest = hashlib.blake2b(repr(tuple(table.classes)).encode(), digest_size=8)
    for columns in table.columns():
        for array in (columns.keys, columns.labels.ends, columns.labels.values):
            digest.update(np.ascontiguousarray(array))
        yield columns
    metadata |= {"digest": digest.hexdigest(), "counts": json.dumps(dataclasses.asdict(table.counts))}


class _Images(NamedTuple):
    """Where the images are, sorted by id."""

    ids: np.ndarray  # uint64 [n]
    paths: tuple[str, ...]  # folders, or tar files
    path_of: np.ndarray  # int32 [n]
    places: np.ndarray | None  # int64 [n, 2]: offset and size in the tar file
    digest: str


def _list_images(folder: str, check: bool) -> _Images:
    """All images in a folder.

    Args:
      check: whether the digest is of sizes and times of image files too.

    Raises:
      UserError: there are none, an id is there twice, or a tar file is damaged.
    """
    paths, names, places = [], [], []
    tars = sorted(f"{folder}/{name}" for name in os.listdir(folder) if is_tar(name)) if os.path.isdir(folder) else []
    if tars:
        with concurrent.futures.ThreadPoolExecutor(min(16, 2 * usable_cores())) as pool:
            for path, (members, at) in zip(tars, pool.map(_tar_members, tars), strict=True):
                paths.append(path)
                names.append(members)
                places.append(at)
    else:
        for path, _, files in sorted(os.walk(folder)):
            paths.append(path)
            names.append(_packed_names(files))
    ids = np.concatenate([np.zeros(0, np.uint64), *names])
    order = np.argsort(ids, kind="stable")
    path_of = np.repeat(np.arange(len(paths), dtype=np.int32), [len(each) for each in names])[order]
    ids = ids[order]
    if not len(ids):
        raise UserError(f"there is no image in {folder!r}; expected files such as 000002b66c9c498e.jpg, in any "
                        "folders, or uncompressed tar files of them")
    if len(repeats := np.flatnonzero(ids[1:] == ids[:-1])):
        at = int(repeats[0])
        raise UserError(f"image {int(ids[at]):016x} is in {paths[path_of[at]]} and in {paths[path_of[at + 1]]}; "
                        "expected each once: remove one")
    stats, below_root = np.zeros((0, 2), np.int64), [os.path.relpath(path, "/") for path in paths]
    if tars:
        stats = sizes_and_times("/", compact(below_root))
    elif check:
        files = zip(path_of.tolist(), ids.tolist(), strict=True)
        stats = sizes_and_times("/", compact(f"{below_root[path]}/{id_:016x}.jpg" for path, id_ in files))
    digest = hashlib.blake2b(ids.tobytes() + stats.tobytes(), digest_size=8).hexdigest()
    return _Images(ids, tuple(paths), path_of, np.concatenate(places)[order] if tars else None, digest)


def _packed_names(names: list[str]) -> np.ndarray:
    """The ids of those file names that are an id and .jpg."""
    stems = [name[:ID_LENGTH] for name in names if name.endswith(".jpg") and len(name) == ID_LENGTH + 4
             and name.isascii()]
    ids, valid = packed_ids(pa.array(stems, pa.string()))
    return ids[valid]


def _tar_members(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and offset and size of each image; read from the cache, or from the headers of the tar file."""
    status = os.stat(file)
    key = repr((os.path.abspath(file), status.st_size, status.st_mtime_ns))
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    path = cached_path("open_images", f"{digest}-{FORMAT}.npz")
    try:
        with open(path, "rb") as stored, np.load(stored, allow_pickle=False) as arrays:
            return arrays["ids"], arrays["places"]
    except Exception:  # missing or damaged, for which there are many errors: read again
        pass
    names, places = [], []
    try:
        with open(open_regular(file), "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as opened:
            for member, start in visible_members(opened, file, 0, status.st_size, status.st_size):
                name = member.name.rpartition("/")[2]
                if len(_packed_names([name])):
                    names.append(name)
                    places.append((start, member.size))
    except TAR_ERRORS as error:
        raise UserError(unreadable(file, error)) from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {first_line(error)}") from None
    ids, at = _packed_names(names), np.array(places, np.int64).reshape(-1, 2)
    with contextlib.suppress(OSError), cached_file(path) as temporary:
        np.savez(temporary, ids=ids, places=at)
    return ids, at


@dataclasses.dataclass(eq=False)
class OpenImagesDataset(Dataset):
    """The images of a split that have a file and a label."""

    classes: tuple[str, ...]
    fingerprint: str
    columns: Columns
    images: _Images
    at: np.ndarray
    """int64 ``[n]``: the place of each among ``images``."""
    notes: tuple[str, ...] = ()

    multi_label = True

    def __post_init__(self) -> None:
        self.files = OpenFiles(self.images.paths, MAX_OPEN_FILES) if self.images.places is not None else None

    def __len__(self) -> int:
        return len(self.at)

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        index = range(len(self))[index]
        return self.columns.id(index), self.columns.labels.row(index)

    def label_columns(self) -> Columns:
        return self.columns

    def __getitem__(self, index: int) -> Example:
        id_, labels = self.labels(index)
        at = int(self.at[range(len(self))[index]])
        path = int(self.images.path_of[at])
        if self.files is None:
            return {"id": id_, "image": read_file(f"{self.images.paths[path]}/{id_}.jpg", id_), "labels": labels}
        offset, size = self.images.places[at].tolist()
        if size > MAX_FILE_BYTES:
            raise BadImageError(id_, f"it has {size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
        try:
            image = self.files.read(path, offset, size)
        except OSError as error:
            raise BadImageError(id_, first_line(error)) from error
        if len(image) < size:
            raise BadImageError(id_, f"{self.files.paths[path]} is shorter than when it was indexed")
        return {"id": id_, "image": image, "labels": labels}
