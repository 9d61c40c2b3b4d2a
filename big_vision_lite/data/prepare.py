"""Any source as a TFDS data set of ArrayRecord files, without TensorFlow.

    prepare({"train": ImageFolder("/photos").open()}, Path("~/tensorflow_datasets"), "photos")
    Tfds("photos", "train")

Work is done in ``DATA_DIR/NAME/incomplete.1.0.0``, shard by shard; after a stop of any kind the same call goes on. The
folder gets its final name, the version, in the last step.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from big_vision_lite.data.decode import DecodeError, decode, image_size
from big_vision_lite.data.shard_writer import locked, on_all_cores, quiet, write_records
from big_vision_lite.data.shards import Part, check_parts
from big_vision_lite.data.source import Example, Records
from big_vision_lite.data.tfds_layout import OBJECT_KEYS
from big_vision_lite.errors import BadImageError, UserError, nearest

VERSION = "1.0.0"
SHARD_IMAGES = 4096
SOURCE = "source.json"
"""In the folder of a prepared data set: the fingerprints of what it was made from."""
_STORED = {name: (key, dtype) for key, (name, dtype) in OBJECT_KEYS.items()}
"""What an `Example` knows of objects, the feature that keeps it, and its type."""


def prepare(splits: dict[str, Records], data_dir: Path, name: str, *, processes: int | None = None,
            on_bad_image: str = "raise", shard_images: int = SHARD_IMAGES) -> Path:
    """Write the splits, or go on writing them, and return the folder of the finished data set.

    JPEG and PNG files are kept byte by byte; other formats become PNG. Ids, labels, boxes with what is known of them,
    and masks are kept, if the first example that can be read has them.

    Args:
      data_dir: a local folder.
      name: of the data set: letters, digits and ``_``.
      processes: that write; None: one a core.
      on_bad_image: when an image or its header cannot be read: "raise" stops and names it, "skip" leaves it out and
        lists it in bad_images.txt.

    Raises:
      UserError: another source was prepared under this name, a bad image, a name or class that TFDS cannot store, or a
        disk that is full.
    """
    _check(splits, data_dir, name, on_bad_image)
    source = {split: [records.fingerprint, len(records), shard_images] for split, records in splits.items()}
    folder = data_dir.expanduser() / name / VERSION
    work = folder.with_name(f"incomplete.{VERSION}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / "lock"):
            if _same_source(folder, source, f"name another data set than {name!r}"):
                return folder
            begun = (work / SOURCE).is_file()  # it is written first of all
            if not begun or not _same_source(work, source, f"remove {work}, in which a preparation was begun"):
                work.mkdir(exist_ok=True)
                _write_text(work / SOURCE, json.dumps(source))
            _write(splits, work, name, processes, on_bad_image, shard_images)
            work.rename(folder)
    except OSError as error:
        raise UserError(f"cannot prepare {name} in {folder.parent}: {error}; make room there, and start again to go "
                        "on, or name another data_dir") from error
    return folder


def _check(splits: dict[str, Records], data_dir: Path, name: str, on_bad_image: str) -> None:
    """Raises: UserError for what would fail later, or be read back as something else."""
    if place := re.match(r"([a-z0-9]{2,}):/+(.*)", str(data_dir)):
        raise UserError(f"data_dir is {place[1]}://{place[2]}, and data sets are written to local folders; name one, "
                        "and copy it there when it is finished")
    if on_bad_image not in ("raise", "skip"):
        raise UserError(f"on_bad_image is {on_bad_image!r}{nearest(on_bad_image, ('raise', 'skip'))}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} cannot name a data set; expected lower-case letters, digits and _, as in my_photos")
    first, classes = next(iter(splits)), next(iter(splits.values())).classes
    for split, records in splits.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise UserError(f"{split!r} cannot name a split; expected letters, digits and _, as in train")
        if records.classes != classes:
            raise UserError(f"split {split!r} has other classes than {first!r}; they must be equal")
    seen: set[str] = set()
    for class_ in classes:  # TFDS writes one a line, and strips lines as it reads them
        if class_ in seen or class_ != class_.strip() or not class_ or re.search(r"[\r\n\ud800-\udfff]", class_):
            raise UserError(f"class {class_!r} cannot be stored; expected names that differ, in UTF-8 on one line, "
                            "without spaces at their ends: rename it")
        seen.add(class_)


def _same_source(folder: Path, source: dict, what_else: str) -> bool:
    """Whether the folder is there and of this source. Raises: UserError when it is of another."""
    if not folder.is_dir():
        return False
    path = folder / SOURCE
    found = json.loads(path.read_text()) if path.is_file() else None
    if found != source:
        raise UserError(f"{folder} is there already and of another source (or of other splits or shard sizes); "
                        f"{what_else}")
    return True


def _write_text(path: Path, text: str) -> None:
    """All of it or nothing, whenever the process is stopped."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    partial.replace(path)


class _Shared:
    """Records that many jobs need. A job takes along only the name of a file, which each process reads once: the list
    of a large source's files may take gigabytes."""

    def __init__(self, records: Records, path: str):
        self.records, self._path = records, path
        self._written = False

    def __reduce__(self):
        if not self._written:
            with open(self._path, "wb") as file:
                pickle.dump(self.records, file, protocol=pickle.HIGHEST_PROTOCOL)
            self._written = True
        return _shared, (self._path,)


@functools.lru_cache(maxsize=1)
def _shared(path: str) -> _Shared:
    with open(path, "rb") as file:
        return _Shared(pickle.load(file), path)


def _write(splits: dict[str, Records], work: Path, name: str, processes: int | None, on_bad_image: str,
           shard_images: int) -> None:
    import tensorflow_datasets as tfds

    keys = _keys(next(iter(splits.values())), on_bad_image)
    infos, bad = [], []
    for split, records in splits.items():
        count = -(-len(records) // shard_images)
        template = tfds.core.ShardedFileTemplate(data_dir=work, dataset_name=name, split=split,
                                                 filetype_suffix="array_record")
        paths = [os.fspath(template.sharded_filepath(shard_index=k, num_shards=count)) for k in range(count)]
        shared = _Shared(records, os.fspath(work / ".records"))
        jobs = [(path, shared, k * shard_images, min((k + 1) * shard_images, len(records)), keys, on_bad_image)
                for k, path in enumerate(paths)]
        results = on_all_cores(_write_shard, jobs, f"preparing {name}, {split}", len(records), processes)
        if not sum(images for images, _, _ in results):
            raise UserError(f"no image of split {split!r} can be read; nothing was prepared")
        bad += [line for _, _, lines in results for line in lines]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=[images for images, _, _ in results],
                                         num_bytes=sum(size for _, size, _ in results), filename_template=template))
    if bad:
        (work / "bad_images.txt").write_text("".join(f"{line}\n" for line in bad))
    records = next(iter(splits.values()))
    with quiet():
        tfds.folder_dataset.write_metadata(data_dir=work, features=_features(records.classes, records.multi_label,
                                           keys), split_infos=infos, version=VERSION, check_data=False,
                                           filename_template=infos[0].filename_template,
                                           description=f"Prepared from {type(records).__name__}.")
    for path in (*work.glob("*.done.json"), work / ".records"):
        path.unlink(missing_ok=True)


def _keys(records: Records, on_bad_image: str) -> frozenset[str]:
    """What the first example that can be read has."""
    for index in range(len(records)):
        try:
            return frozenset(records[index])
        except BadImageError:
            if on_bad_image == "raise":
                raise
    return frozenset()


@functools.lru_cache(maxsize=4)
def _features(classes: tuple[str, ...], multi_label: bool, keys: frozenset[str]):
    """The features of examples that have these keys."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=list(classes))
    features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(None, None, 3))}
    features |= {"labels": tfds.features.Sequence(label)} if multi_label else {"label": label}
    if "image_id" in keys:
        features["image/id"] = tfds.features.Scalar(np.int64)
    if "boxes" in keys:
        objects = {"bbox": tfds.features.BBoxFeature(), "label": label}
        objects |= {stored: tfds.features.Scalar(dtype) for known, (stored, dtype) in _STORED.items() if known in keys}
        features["objects"] = tfds.features.Sequence(objects)
    for mask, dtype in (("instance_mask", np.uint8), ("class_mask", np.uint16)):
        if mask in keys:
            features[mask] = tfds.features.Image(shape=(None, None, 1), dtype=dtype, encoding_format="png")
    return tfds.features.FeaturesDict(features)


def _write_shard(path: str, shared: _Shared, start: int, stop: int, keys: frozenset[str],
                 on_bad_image: str) -> tuple[int, int, list[str]]:
    """Write one shard, or find that it is there. Returns how many images, their bytes, and lines about bad images."""
    done, records = Path(f"{path}.done.json"), shared.records
    if done.is_file():
        count, size, bad = json.loads(done.read_text())
        left_out = bad and on_bad_image == "raise"  # it was begun with "skip", and now nothing may be lost
        if not left_out and _is_whole(path, count):
            return count, size, bad
    features, bad = _features(records.classes, records.multi_label, keys), []

    def serialized() -> Iterator[bytes]:
        for index in range(start, stop):
            try:
                example = records[index]
                yield _serialized(example, _stored(example, records.multi_label, keys), features)
            except BadImageError as error:
                if on_bad_image == "raise":
                    raise
                bad.append(str(error))

    try:
        count, size = write_records(path, serialized(), "group_size:1,uncompressed")
    except RuntimeError as error:  # what ArrayRecord's writer raises, for instance when the disk is full
        raise OSError(_one_line(error)) from error
    result = count, size, bad
    _write_text(done, json.dumps(result))
    return result


def _is_whole(path: str, count: int) -> bool:
    try:
        check_parts([Part(path, 0, count, count)], "array_record")
    except UserError:
        return False
    return True


def _serialized(example: Example, stored: dict, features) -> bytes:
    """The same bytes every time: the order of a protocol buffer's map would otherwise be up to chance."""
    try:
        return _serializer(features).get_tf_example(features.encode_example(stored)).SerializeToString(
            deterministic=True)
    except Exception as error:  # TFDS raises several kinds
        raise UserError(f"example {example['id']!r} cannot be stored: {_one_line(error)}; correct it in its source"
                        ) from error


@functools.lru_cache(maxsize=4)
def _serializer(features):
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(features.get_serialized_info())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _stored(example: Example, multi_label: bool, keys: frozenset[str]) -> dict:
    """An example as TFDS's features take it. Raises: BadImageError."""
    import tensorflow_datasets as tfds

    image = example["image"]
    try:
        image_size(image)
        if isinstance(image, np.ndarray) or not image.startswith((b"\xff\xd8", b"\x89PNG\r\n\x1a\n")):
            pixels = decode(image)
            image = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
    except DecodeError as error:
        raise BadImageError(example["id"], str(error)) from error
    labels = example["labels"]
    if not multi_label and len(labels) > 1:
        raise UserError(f"example {example['id']!r} has {len(labels)} labels in a source of one label an image; give "
                        "it one, or call the source multi_label")
    # A name of a file need not be UTF-8. Of a single label, -1 stands for one that is not known.
    stored = {"id": example["id"].encode(errors="surrogateescape"), "image": image}
    stored |= {"labels": labels} if multi_label else {"label": labels[0] if len(labels) else -1}
    if "image_id" in keys:
        stored["image/id"] = example["image_id"]
    if "boxes" in keys:
        more = [(name, example[known].tolist()) for known, (name, _) in _STORED.items() if known in keys]
        stored["objects"] = [
            {"bbox": tfds.features.BBox(*box), "label": label, **{name: values[i] for name, values in more}}
            for i, (box, label) in enumerate(zip(example["boxes"].tolist(), example["box_labels"], strict=True))]
    for mask in ("instance_mask", "class_mask"):
        if mask in keys:
            value = example[mask]
            stored[mask] = value if isinstance(value, bytes) else cv2.imencode(".png", value)[1].tobytes()
    return stored
