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
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from big_vision_lite.data.decode import DecodeError, decode, image_size
from big_vision_lite.data.shard_writer import locked, on_all_cores, quiet, write_records
from big_vision_lite.data.source import Example, Records
from big_vision_lite.data.tfds_layout import OBJECT_KEYS
from big_vision_lite.errors import BadImageError, UserError

VERSION = "1.0.0"
SHARD_IMAGES = 4096
_STORED = {name: (key, dtype) for key, (name, dtype) in OBJECT_KEYS.items()}
"""What an `Example` knows of objects, the feature that keeps it, and its type."""


def prepare(splits: dict[str, Records], data_dir: Path, name: str, *, processes: int | None = None,
            on_bad_image: Literal["raise", "skip"] = "raise", shard_images: int = SHARD_IMAGES) -> Path:
    """Write the splits, or go on writing them, and return the folder of the finished data set.

    JPEG and PNG files are kept byte by byte; other formats become PNG. Ids, labels, boxes with what is known of them,
    and masks are kept, if the first example of the first split has them.

    Args:
      name: of the data set: letters, digits and ``_``.
      processes: that write; None: one a core.
      on_bad_image: when an image's header cannot be read, stop and name it, or leave it out and list it in
        bad_images.txt.

    Raises:
      UserError: another source was prepared under this name, a bad image, an unsuitable name, or a disk that is full.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} cannot name a data set; expected lower-case letters, digits and _, as in my_photos")
    first = next(iter(splits.values()))
    if different := [split for split, records in splits.items() if records.classes != first.classes]:
        raise UserError(f"split {different[0]!r} has other classes than {next(iter(splits))!r}; they must be equal")
    source = {split: [records.fingerprint, len(records), shard_images] for split, records in splits.items()}
    folder = data_dir.expanduser() / name / VERSION
    work = folder.with_name(f"incomplete.{VERSION}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / "lock"):
            if _same_source(folder, source, f"name another data set than {name!r}"):
                return folder
            if not _same_source(work, source, f"remove {work}, in which a preparation was begun"):
                work.mkdir(exist_ok=True)
                (work / "source.json").write_text(json.dumps(source))
            _write(splits, work, name, processes, on_bad_image, shard_images)
            work.rename(folder)
    except OSError as error:
        raise UserError(f"cannot prepare {name} in {folder.parent}: {error}; make room there, and start again to go "
                        "on, or name another data_dir") from error
    return folder


def _same_source(folder: Path, source: dict, what_else: str) -> bool:
    """Whether the folder is there and of this source. Raises: UserError when it is of another."""
    if not folder.is_dir():
        return False
    path = folder / "source.json"
    found = json.loads(path.read_text()) if path.is_file() else None
    if found != source:
        raise UserError(f"{folder} is there already and of another source (or of other splits); {what_else}")
    return True


def _write(splits: dict[str, Records], work: Path, name: str, processes: int | None, on_bad_image: str,
           shard_images: int) -> None:
    import tensorflow_datasets as tfds

    example = next(iter(splits.values()))[0]
    keys = frozenset(example)
    infos, bad = [], []
    for split, records in splits.items():
        count = -(-len(records) // shard_images)
        template = tfds.core.ShardedFileTemplate(data_dir=work, dataset_name=name, split=split,
                                                 filetype_suffix="array_record")
        paths = [os.fspath(template.sharded_filepath(shard_index=k, num_shards=count)) for k in range(count)]
        jobs = [(path, records, k * shard_images, min((k + 1) * shard_images, len(records)), keys, on_bad_image)
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
    for path in work.glob("*.done.json"):
        path.unlink()


@functools.lru_cache(maxsize=4)
def _features(classes: tuple[str, ...], multi_label: bool, keys: frozenset[str]):
    """The features of examples that have these keys."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=list(classes))
    features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(None, None, 3))}
    features |= {"labels": tfds.features.Sequence(label)} if multi_label else {"label": label}
    if "boxes" in keys:
        objects = {"bbox": tfds.features.BBoxFeature(), "label": label}
        objects |= {stored: tfds.features.Scalar(dtype) for known, (stored, dtype) in _STORED.items() if known in keys}
        features["objects"] = tfds.features.Sequence(objects)
    for mask, dtype in (("instance_mask", np.uint8), ("class_mask", np.uint16)):
        if mask in keys:
            features[mask] = tfds.features.Image(shape=(None, None, 1), dtype=dtype, encoding_format="png")
    return tfds.features.FeaturesDict(features)


def _write_shard(path: str, records: Records, start: int, stop: int, keys: frozenset[str],
                 on_bad_image: str) -> tuple[int, int, list[str]]:
    """Write one shard, or find that it is there. Returns how many images, their bytes, and lines about bad images."""
    done = Path(f"{path}.done.json")
    if done.is_file() and os.path.isfile(path):
        return tuple(json.loads(done.read_text()))
    features, bad = _features(records.classes, records.multi_label, keys), []

    def serialized() -> Iterator[bytes]:
        for index in range(start, stop):
            try:
                stored = _stored(records[index], records.multi_label, keys)
            except BadImageError as error:
                if on_bad_image == "raise":
                    raise
                bad.append(str(error))
                continue
            yield features.serialize_example(stored)

    count, size = write_records(path, serialized(), "group_size:1,uncompressed")
    result = count, size, bad
    done.write_text(json.dumps(result))
    return result


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
    stored = {"id": example["id"], "image": image} | ({"labels": labels} if multi_label else {"label": labels[0]})
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
