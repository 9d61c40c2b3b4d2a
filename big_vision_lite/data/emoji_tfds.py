"""Emoji scenes as a TFDS data set: composed once into ArrayRecord files, without TensorFlow.

A config is made of one `EmojiScenes` a split. Its name and version tell everything that decides the content,
so another number of images, another size or another generator means another folder:

    ~/tensorflow_datasets/emoji_scenes/twemoji_48px_train-1000000_3f8a6c1e/1.0.0
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from big_vision_lite.data.emoji_art import ATTRIBUTION
from big_vision_lite.data.emoji_scenes import SPLITS, VERSION, EmojiScenes, vocabulary
from big_vision_lite.data.shard_writer import locked, on_all_cores, quiet, write_records
from big_vision_lite.data.source import Records
from big_vision_lite.data.tfds_source import TfdsRecords, default_data_dir
from big_vision_lite.errors import UserError

SHARD_IMAGES = 4096


@dataclasses.dataclass
class EmojiScenesConfig(tfds.core.BuilderConfig):
    """One `EmojiScenes` for each split; they differ in nothing but ``split``, ``images`` and ``seed``."""

    scenes: tuple[EmojiScenes, ...] = ()


def config(*scenes: EmojiScenes) -> EmojiScenesConfig:
    """The config of these splits, named after what they contain."""
    scenes = tuple(dataclasses.replace(s, prepared=False, data_dir=None) for s in scenes)
    first = scenes[0]
    counts = "_".join(f"{s.split}-{s.length}" for s in scenes)
    content = hashlib.blake2b("".join(s.fingerprint for s in scenes).encode(), digest_size=4).hexdigest()
    return EmojiScenesConfig(
        name=f"{first.style}_{first.size}px_{counts}_{content}",
        description=f"Scenes of {len(vocabulary(first.classes).names)} classes. {ATTRIBUTION[first.style]}",
        scenes=scenes,
    )


class Builder(tfds.core.GeneratorBasedBuilder):
    """The TFDS data set ``emoji_scenes``."""

    name = "emoji_scenes"
    VERSION = tfds.core.Version(f"{VERSION}.0.0")
    BUILDER_CONFIGS = [config(*(EmojiScenes(split) for split in SPLITS))]  # noqa: RUF012 (TFDS's way)

    def _info(self) -> tfds.core.DatasetInfo:
        first = self.builder_config.scenes[0]
        return self.dataset_info_from_configs(
            features=_features(first.size, vocabulary(first.classes).names),
            description="Emoji composed into labelled scenes with boxes and masks.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {s.split: self._generate_examples(s, 0, s.length) for s in self.builder_config.scenes}

    def _generate_examples(self, scenes: EmojiScenes, start: int, stop: int) -> Iterator[tuple[int, dict]]:
        return _examples(scenes, start, stop)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        # Every process writes shards of its own. TFDS's writer would hold a whole split in memory, and would
        # ask for TensorFlow beyond 1 GB.
        infos = []
        for scenes in self.builder_config.scenes:
            template = self._get_filename_template(split_name=scenes.split)
            count = -(-scenes.length // SHARD_IMAGES)
            paths = [template.sharded_filepath(shard_index=k, num_shards=count) for k in range(count)]
            jobs = [(os.fspath(path), scenes, k * SHARD_IMAGES, min((k + 1) * SHARD_IMAGES, scenes.length))
                    for k, path in enumerate(paths)]
            shards = on_all_cores(_write_shard, jobs, f"composing {scenes.style} scenes, {scenes.split}", scenes.length)
            infos.append(
                tfds.core.SplitInfo(
                    name=scenes.split,
                    shard_lengths=[images for images, _ in shards],
                    num_bytes=sum(size for _, size in shards),
                    filename_template=template,
                )
            )
        self.info.set_splits(tfds.core.splits.SplitDict(infos))


def open_prepared(scenes: EmojiScenes) -> Records:
    """The scenes from ArrayRecord files, which are written first if they are not there.

    A preparation works in a folder ``incomplete.*`` that becomes the finished one in its last step; when it
    is killed, the next one starts over. A second process that asks for the same scenes waits for the first.

    Raises:
      UserError: a field is out of range, or the files cannot be written.
    """
    chosen = config(scenes)
    folder = Path(default_data_dir(scenes.data_dir), Builder.name, chosen.name, str(Builder.VERSION))
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.parent / "lock"):
                for leftover in folder.parent.glob("incomplete.*"):
                    shutil.rmtree(leftover)
                with quiet():
                    builder = Builder(config=chosen, data_dir=default_data_dir(scenes.data_dir))
                    builder.download_and_prepare(file_format="array_record")
        except OSError as error:
            reason = f"cannot prepare emoji scenes in {folder}: {error}"
            raise UserError(f"{reason}; make room there or name another data_dir") from error
    return PreparedScenes(scenes, os.fspath(folder))


class PreparedScenes(TfdsRecords):
    """The same examples as `ComposedScenes`, but with masks as PNG."""

    def __init__(self, scenes: EmojiScenes, folder: str):
        super().__init__(folder, scenes.split, label_key="labels")
        self.multi_label = scenes.objects != (1, 1)
        self.fingerprint = scenes.fingerprint
        self._size = scenes.size

    def image_sizes(self) -> np.ndarray:
        return np.full((len(self), 2), self._size, np.int32)


def _features(size: int, names: tuple[str, ...]) -> tfds.features.FeaturesDict:
    label = tfds.features.ClassLabel(names=names)
    mask = {"shape": (size, size, 1), "encoding_format": "png"}
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg"),
            "labels": tfds.features.Sequence(label),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": label,
                    "visible": tfds.features.Scalar(np.float32),
                }
            ),
            "instance_mask": tfds.features.Image(dtype=np.uint8, **mask),
            "class_mask": tfds.features.Image(dtype=np.uint16, **mask),
        }
    )


def _examples(scenes: EmojiScenes, start: int, stop: int) -> Iterator[tuple[int, dict]]:
    records = scenes.open()
    for index in range(start, stop):
        example = records[index]
        objects = zip(example["boxes"].tolist(), example["box_labels"], example["visible"], strict=True)
        stored = {
            "id": example["id"],
            "image": example["image"],
            "labels": example["labels"],
            "objects": [
                {"bbox": tfds.features.BBox(*box), "label": label, "visible": visible}
                for box, label, visible in objects
            ],
            "instance_mask": cv2.imencode(".png", example["instance_mask"])[1].tobytes(),
            "class_mask": cv2.imencode(".png", example["class_mask"])[1].tobytes(),
        }
        yield index, stored


def _write_shard(path: str, scenes: EmojiScenes, start: int, stop: int) -> tuple[int, int]:
    """Composes and writes one shard; returns how many images it has and their size in bytes."""
    features = _features(scenes.size, vocabulary(scenes.classes).names)
    return write_records(path, (features.serialize_example(example) for _, example in _examples(scenes, start, stop)))
