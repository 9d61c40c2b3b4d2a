"""Any source as a TFDS dataset of ArrayRecord files, without TensorFlow.

    prepare({"train": ImageFolder("/photos").open()}, Path("~/tensorflow_datasets"), "photos")
    Tfds("photos", "train")

Shards are written in ``DATA_DIR/NAME/incomplete.1.0.0``, which is renamed to the version when all are complete. After
an interruption of any kind, the same call resumes. A second process that asks for the same dataset waits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from big_vision_lite.data.decode import DecodeError, decode, image_size
from big_vision_lite.data.source import OBJECT_ARRAYS, Dataset, Example
from big_vision_lite.data.sources.emoji_art import ATTRIBUTION
from big_vision_lite.data.sources.emoji_scenes import VERSION as SCENES_VERSION
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.record_files import Part, check_parts
from big_vision_lite.data.sources.tfds import TfdsDataset, default_data_dir
from big_vision_lite.data.sources.tfds_features import swap_xy
from big_vision_lite.data.tools.shard_writer import locked, on_all_cores, quiet, write_records
from big_vision_lite.errors import BadImageError, UserError, nearest
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.paths import scheme

VERSION = "1.0.0"
SHARD_IMAGES = 4096
SOURCE = "source.json"
"""In the folder of a prepared dataset: the fingerprints of what it was prepared from."""


def prepare(splits: dict[str, Dataset], data_dir: Path, name: str, *, processes: int | None = None,
            on_bad_image: str = "raise", shard_images: int = SHARD_IMAGES) -> Path:
    """Write the splits, or resume writing them, and return the folder of the finished dataset.

    JPEG and PNG files are stored unchanged, other formats as PNG. Boxes, the `OBJECT_ARRAYS` and masks are stored if
    the first readable example has them.

    Args:
      data_dir: a local folder.
      name: of the dataset: lower-case letters, digits and ``_``.
      processes: worker processes; None: one per core.
      on_bad_image: when an image or its header cannot be read: "raise" stops and names it, "skip" leaves it out and
        lists it in bad_images.txt.
      shard_images: images per file.

    Raises:
      UserError: another source was prepared under this name, a bad image, a name or class that TFDS cannot store, or a
        full disk.
    """
    _check_names(splits, data_dir, name, on_bad_image)
    folder = data_dir.expanduser() / name / VERSION
    _prepare(splits, folder, name, f"Prepared from {type(next(iter(splits.values()))).__name__}.", processes,
             on_bad_image, shard_images)
    return folder


@dataclasses.dataclass(frozen=True)
class PreparedEmojiScenes(EmojiScenes):
    """Emoji scenes that the first ``open`` composes into ArrayRecord files, in a folder named after their content:

        ~/tensorflow_datasets/emoji_scenes/twemoji_48px_train-1000000_3f8a6c1e/1.0.0
    """

    data_dir: str | None = None
    """TFDS's data directory; None for ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``."""

    def open(self) -> Dataset:
        scenes = super().open()
        content = hashlib.blake2b(self.fingerprint.encode(), digest_size=4).hexdigest()
        folder = Path(default_data_dir(self.data_dir), "emoji_scenes",
                      f"{self.style}_{self.size}px_{self.split}-{self.length}_{content}", f"{SCENES_VERSION}.0.0")
        if not folder.is_dir():
            scenes.multi_label = True  # labels are stored as a list even if each scene has one
            description = f"Scenes of {len(scenes.classes)} classes. {ATTRIBUTION[self.style]}"
            _prepare({self.split: scenes}, folder, "emoji_scenes", description, shard_images=SHARD_IMAGES,
                     options="group_size:1")
        return _PreparedScenes(self, os.fspath(folder))


class _PreparedScenes(TfdsDataset):
    """The examples of `EmojiScenes`, but with masks as PNG."""

    def __init__(self, source: EmojiScenes, folder: str):
        super().__init__(folder, source.split, label_key="labels")
        self.multi_label = source.objects != (1, 1)
        self.fingerprint = source.fingerprint
        self._size = source.size

    def image_sizes(self) -> np.ndarray:
        return np.full((len(self), 2), self._size, np.int32)


def _prepare(splits: dict[str, Dataset], folder: Path, name: str, description: str, processes: int | None = None,
             on_bad_image: str = "raise", shard_images: int = SHARD_IMAGES,
             options: str = "group_size:1,uncompressed") -> None:
    """Write the splits to ``folder``, whose name is the version, unless they are there. Raises: UserError."""
    source = {split: [dataset.fingerprint, len(dataset), shard_images] for split, dataset in splits.items()}
    work = folder.with_name(f"incomplete.{folder.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / "lock"):
            if _same_source(folder, source, f"choose a name other than {name!r}"):
                return
            begun = (work / SOURCE).is_file()  # the first file written
            if not begun or not _same_source(work, source, f"remove {work}, an unfinished preparation"):
                work.mkdir(exist_ok=True)
                write_text(work / SOURCE, json.dumps(source))
            _write_splits(splits, work, name, description, processes, on_bad_image, shard_images, options)
            work.rename(folder)
    except OSError as error:
        raise UserError(f"cannot prepare {name} in {folder.parent}: {error}; make room there and start again to "
                        "resume, or name another data_dir") from error


def _check_names(splits: dict[str, Dataset], data_dir: Path, name: str, on_bad_image: str) -> None:
    """Raises: UserError for what would fail later, or be read back as something else."""
    if scheme(data_dir):
        raise UserError(f"data_dir is {str(data_dir).replace(':/', '://')}, but datasets are written to local folders; "
                        "name one and copy the finished dataset")
    if on_bad_image not in ("raise", "skip"):
        raise UserError(f"on_bad_image is {on_bad_image!r}{nearest(on_bad_image, ('raise', 'skip'))}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"dataset name {name!r} is invalid; expected lower-case letters, digits and _, as in "
                        "my_photos")
    first, classes = next(iter(splits)), next(iter(splits.values())).classes
    for split, dataset in splits.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise UserError(f"split name {split!r} is invalid; expected letters, digits and _, as in train")
        if dataset.classes != classes:
            raise UserError(f"split {split!r} has other classes than {first!r}; expected the same classes in all")
    seen: set[str] = set()
    for class_ in classes:  # TFDS writes one per line and strips the lines that it reads
        if class_ in seen or class_ != class_.strip() or not class_ or re.search(r"[\r\n\ud800-\udfff]", class_):
            raise UserError(f"class {class_!r} cannot be stored; expected unique names in UTF-8, on one line, without "
                            "leading or trailing spaces: rename it")
        seen.add(class_)


def _same_source(folder: Path, source: dict, remedy: str) -> bool:
    """Whether the folder exists. Raises: UserError when it was prepared from another source."""
    if not folder.is_dir():
        return False
    path = folder / SOURCE
    if not path.is_file() or json.loads(path.read_text()) != source:
        raise UserError(f"{folder} exists and was prepared from another source, other splits or another shard size; "
                        f"{remedy}")
    return True


class _SharedDataset:
    """A dataset that pickles as the name of a file, which each process reads once: pickled into every job, the file
    list of a large source could take gigabytes."""

    def __init__(self, dataset: Dataset, path: str):
        self.dataset, self._path = dataset, path
        self._written = False

    def __reduce__(self):
        if not self._written:
            with open(self._path, "wb") as file:
                pickle.dump(self.dataset, file, protocol=pickle.HIGHEST_PROTOCOL)
            self._written = True
        return _load_shared, (self._path,)


@functools.lru_cache(maxsize=1)
def _load_shared(path: str) -> _SharedDataset:
    with open(path, "rb") as file:
        return _SharedDataset(pickle.load(file), path)


def _write_splits(splits: dict[str, Dataset], work: Path, name: str, description: str, processes: int | None,
                  on_bad_image: str, shard_images: int, options: str) -> None:
    import tensorflow_datasets as tfds

    first = next(iter(splits.values()))
    keys = _example_keys(first, on_bad_image)
    infos, bad = [], []
    for split, dataset in splits.items():
        count = -(-len(dataset) // shard_images)
        template = tfds.core.ShardedFileTemplate(data_dir=work, dataset_name=name, split=split,
                                                 filetype_suffix="array_record")
        paths = [os.fspath(template.sharded_filepath(shard_index=k, num_shards=count)) for k in range(count)]
        shared = _SharedDataset(dataset, os.fspath(work / ".dataset"))
        jobs = [(path, shared, k * shard_images, min((k + 1) * shard_images, len(dataset)), keys, on_bad_image, options)
                for k, path in enumerate(paths)]
        results = on_all_cores(_write_shard, jobs, f"preparing {name}, {split}", len(dataset), processes)
        if not sum(images for images, _, _ in results):
            raise UserError(f"split {split!r} has no readable image; nothing was prepared")
        bad += [line for _, _, lines in results for line in lines]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=[images for images, _, _ in results],
                                         num_bytes=sum(size for _, size, _ in results), filename_template=template))
    if bad:
        (work / "bad_images.txt").write_text("".join(f"{line}\n" for line in bad))
    with quiet():
        tfds.folder_dataset.write_metadata(data_dir=work, features=_features(first.classes, first.multi_label, keys),
                                           split_infos=infos, version=work.name.removeprefix("incomplete."),
                                           check_data=False, filename_template=infos[0].filename_template,
                                           description=description)
    for path in (*work.glob("*.done.json"), work / ".dataset"):
        path.unlink(missing_ok=True)


def _example_keys(dataset: Dataset, on_bad_image: str) -> frozenset[str]:
    """The keys of the first readable example."""
    for index in range(len(dataset)):
        try:
            return frozenset(dataset[index])
        except BadImageError:
            if on_bad_image == "raise":
                raise
    return frozenset()


@functools.lru_cache(maxsize=4)
def _features(classes: tuple[str, ...], multi_label: bool, keys: frozenset[str]):
    """TFDS's features of examples with these keys."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=list(classes))
    features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(None, None, 3))}
    features |= {"labels": tfds.features.Sequence(label)} if multi_label else {"label": label}
    if "image_id" in keys:
        features["image/id"] = tfds.features.Scalar(np.int64)
    if "boxes" in keys:
        objects = {"bbox": tfds.features.BBoxFeature(), "label": label}
        for name, (feature, dtype, shape, _) in OBJECT_ARRAYS.items():
            if name in keys:
                objects[feature] = (tfds.features.Tensor(shape=shape, dtype=dtype) if shape
                                    else tfds.features.Scalar(dtype))
        features["objects"] = tfds.features.Sequence(objects)
    for mask, dtype in (("instance_mask", np.uint8), ("class_mask", np.uint16)):
        if mask in keys:
            features[mask] = tfds.features.Image(shape=(None, None, 1), dtype=dtype, encoding_format="png")
    return tfds.features.FeaturesDict(features)


def _write_shard(path: str, shared: _SharedDataset, start: int, stop: int, keys: frozenset[str], on_bad_image: str,
                 options: str) -> tuple[int, int, list[str]]:
    """Write one shard, unless it is complete already. Returns its images, its bytes, and a line per bad image."""
    done, dataset = Path(f"{path}.done.json"), shared.dataset
    if done.is_file():
        count, size, bad = json.loads(done.read_text())
        must_rewrite = bad and on_bad_image == "raise"  # written with "skip", and now nothing may be left out
        if not must_rewrite and _is_complete(path, count):
            return count, size, bad
    features, bad = _features(dataset.classes, dataset.multi_label, keys), []

    def serialized() -> Iterator[bytes]:
        for index in range(start, stop):
            try:
                example = dataset[index]
                yield _serialized(example, _stored(example, dataset.multi_label, keys), features)
            except BadImageError as error:
                if on_bad_image == "raise":
                    raise
                bad.append(str(error))

    try:
        count, size = write_records(path, serialized(), options)
    except RuntimeError as error:  # raised by ArrayRecord's writer, for instance when the disk is full
        raise OSError(_one_line(error)) from error
    result = count, size, bad
    write_text(done, json.dumps(result))
    return result


def _is_complete(path: str, count: int) -> bool:
    try:
        check_parts([Part(path, 0, count, count)], "array_record")
    except UserError:
        return False
    return True


def _serialized(example: Example, stored: dict, features) -> bytes:
    """The example as bytes that are always the same: by default, the order of a protocol buffer's map is random."""
    try:
        return _serializer(features).get_tf_example(features.encode_example(stored)).SerializeToString(
            deterministic=True)
    except Exception as error:  # TFDS raises several kinds
        raise UserError(f"example {example['id']!r} cannot be stored: {_one_line(error)}; correct the source"
                        ) from error


@functools.lru_cache(maxsize=4)
def _serializer(features):
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(features.get_serialized_info())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _stored(example: Example, multi_label: bool, keys: frozenset[str]) -> dict:
    """The example as the input of `_features`. Raises: BadImageError."""
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
        raise UserError(f"example {example['id']!r} has {len(labels)} labels, but the source has one label per image; "
                        "remove the others, or make the source multi_label")
    # A file name need not be UTF-8. A single label of -1 stands for an unknown one.
    stored = {"id": example["id"].encode(errors="surrogateescape"), "image": image}
    stored |= {"labels": labels} if multi_label else {"label": labels[0] if len(labels) else -1}
    if "image_id" in keys:
        stored["image/id"] = example["image_id"]
    if "boxes" in keys:
        boxes = swap_xy(example["boxes"]).tolist()
        arrays = {a.feature: example[name].tolist() for name, a in OBJECT_ARRAYS.items() if name in keys}
        stored["objects"] = [
            {"bbox": tfds.features.BBox(*box), "label": label, **{name: values[i] for name, values in arrays.items()}}
            for i, (box, label) in enumerate(zip(boxes, example["box_labels"], strict=True))]
    for mask in ("instance_mask", "class_mask"):
        if mask in keys:
            value = example[mask]
            stored[mask] = value if isinstance(value, bytes) else cv2.imencode(".png", value)[1].tobytes()
    return stored
