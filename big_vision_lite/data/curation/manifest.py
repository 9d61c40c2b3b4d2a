"""The manifest of a dataset: how many images, labels and classes it has, how clean they are, and a hash of the ids."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from big_vision_lite.data.columns import offsets_and_bytes
from big_vision_lite.data.curation.curated import Curated
from big_vision_lite.data.curation.label_rules import Corrupt
from big_vision_lite.data.ragged import among
from big_vision_lite.data.source import Dataset
from big_vision_lite.system.cache import cached_bytes, cached_path

FORMAT = 1


def manifest(dataset: Dataset) -> dict:
    """The manifest of a dataset, curated or not; counted once per fingerprint and cached.

    Returns:
      images            number of images
      sha256            hex digest of the ids in order, each followed by a newline, in UTF-8
      labels            number of labels of all images
      labels_per_image  {"mean", "max", "without": number of images without labels}
      class_images      number of images of each class
      classes_without, classes_under_20, classes_under_100: number of classes with 0, under 20, under 100 images
      curation          what each step did, in order
      noise             of each `LabelNoise`: {"precision", "recall", "labels", "wrong", "missing"}, against the labels
                        before it

    Raises:
      UserError: as `label_index`.
    """
    path = cached_path("manifests", f"{dataset.fingerprint.replace('/', '_')}-{FORMAT}.json")
    return json.loads(cached_bytes(path, lambda: json.dumps(_count(Curated.of(dataset))).encode()))


def _count(data: Curated) -> dict:
    digest, index = hashlib.sha256(), data.index
    class_images = np.zeros(len(data.classes), np.int64)
    labels = max_labels = without = 0
    noise = {k: {"labels": 0, "true": 0, "right": 0} for k, rule in enumerate(data.rules) if isinstance(rule, Corrupt)}
    for indices in data.order.chunks():
        digest.update(_lines(index.ids_at(indices)))
        keys, after = index.keys_at(indices), index.labels_at(indices)
        for k, rule in enumerate(data.rules):
            before, after = after, rule(keys, after)
            if k in noise:
                true, given = (ragged.rows() * rule.classes + ragged.values for ragged in (before, after))
                for name, count in (("labels", len(given)), ("true", len(true)), ("right", among(given, true).sum())):
                    noise[k][name] += int(count)
        counts = after.counts()
        class_images += np.bincount(after.values, minlength=len(class_images))
        labels += int(counts.sum())
        max_labels = max(max_labels, int(counts.max()))
        without += int((counts == 0).sum())
    return {
        "images": len(data),
        "sha256": digest.hexdigest(),
        "labels": labels,
        "labels_per_image": {"mean": labels / len(data), "max": max_labels, "without": without},
        "classes_without": int((class_images == 0).sum()),
        "classes_under_20": int((class_images < 20).sum()),
        "classes_under_100": int((class_images < 100).sum()),
        "curation": list(data.reports),
        "noise": [{"precision": n["right"] / max(n["labels"], 1), "recall": n["right"] / max(n["true"], 1),
                   "labels": n["labels"], "wrong": n["labels"] - n["right"], "missing": n["true"] - n["right"]}
                  for n in noise.values()],
        "class_images": class_images.tolist(),
    }


def _lines(ids: pa.LargeBinaryArray) -> np.ndarray:
    """The bytes of all ids, each followed by a newline."""
    nothing, newline = (pa.scalar(text, pa.large_binary()) for text in (b"", b"\n"))
    return offsets_and_bytes(pc.binary_join_element_wise(ids, nothing, newline))[1]
