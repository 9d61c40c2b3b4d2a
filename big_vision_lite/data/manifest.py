"""What a run learns from, in figures: how many images, labels and classes, how clean, and a hash of it all."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from big_vision_lite.data.cache import cache_dir, kept
from big_vision_lite.data.curated import Curated
from big_vision_lite.data.label_rules import Corrupt
from big_vision_lite.data.source import Records

FORMAT = 1


def manifest(records: Records) -> dict:
    """The figures of records, curated or not; made once for each fingerprint and kept in the cache.

    Returns:
      images         int
      sha256         hex digest over the ids in order, each followed by a newline, UTF-8
      labels         int, of all images together
      labels_per_image  {"mean", "max", "without": images that have none}
      class_images   for each class, in how many images it is
      classes_without, classes_under_20, classes_under_100: how many classes have 0, under 20, under 100 images
      curation       what each step did, in order
      noise          for each `LabelNoise`: {"precision", "recall", "labels", "wrong", "missing"}, counted against the
                     labels before it

    Raises:
      UserError: as `label_index`.
    """
    path = cache_dir() / "manifests" / f"{records.fingerprint.replace('/', '_')}-{FORMAT}.json"
    if path.is_file():
        return json.loads(path.read_text())
    made = _count(Curated.of(records))
    with kept(path) as temporary:
        temporary.write_text(json.dumps(made))
    return made


def _count(data: Curated) -> dict:
    digest, index = hashlib.sha256(), data.index
    classes = np.zeros(len(data.classes), np.int64)
    labels = most = without = 0
    noise = {k: {"labels": 0, "true": 0, "right": 0} for k, rule in enumerate(data.rules) if isinstance(rule, Corrupt)}
    for indices in data.order.pieces():
        digest.update(_lines(index, indices))
        keys, ragged = index.keys[indices], index.labels.take(indices)
        for k, rule in enumerate(data.rules):
            before, ragged = ragged, rule(keys, ragged)
            if k in noise:
                old, new = (r.row_of() * rule.classes + r.values for r in (before, ragged))
                for name, count in (("labels", len(new)), ("true", len(old)), ("right", np.isin(new, old).sum())):
                    noise[k][name] += int(count)
        counts = ragged.counts()
        classes += np.bincount(ragged.values, minlength=len(classes))
        labels += int(counts.sum())
        most = max(most, int(counts.max()))
        without += int((counts == 0).sum())
    return {
        "images": len(data),
        "sha256": digest.hexdigest(),
        "labels": labels,
        "labels_per_image": {"mean": labels / len(data), "max": most, "without": without},
        "classes_without": int((classes == 0).sum()),
        "classes_under_20": int((classes < 20).sum()),
        "classes_under_100": int((classes < 100).sum()),
        "curation": list(data.reports),
        "noise": [{"precision": n["right"] / max(n["labels"], 1), "recall": n["right"] / max(n["true"], 1),
                   "labels": n["labels"], "wrong": n["labels"] - n["right"], "missing": n["true"] - n["right"]}
                  for n in noise.values()],
        "class_images": classes.tolist(),
    }


def _lines(index, indices: np.ndarray) -> bytes:
    """The ids at the indices, each with a newline."""
    stop = index.id_ends[indices]
    start = np.where(indices > 0, index.id_ends[indices - 1], 0)
    blob = index.id_bytes
    return b"".join(blob[a:b].tobytes() + b"\n" for a, b in zip(start.tolist(), stop.tolist(), strict=True))
