"""Features of images from a trained run: they compare images by more than their pixels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.runs.predict import ImageFiles, view_for
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.mesh import replicated
from big_vision_lite.training.step import TrainState
from big_vision_lite.training.trainer import Trainer


class Embedder:
    """uint8 ``[n, size, size, 3]`` to float32 ``[n, channels]``: the spatial mean of the backbone's last stage.

    Picklable: only the run's folder is pickled; every process opens it for itself, on one of its devices.

    Raises:
      UserError: as `open_run`.
    """

    BATCH = 64
    """Images per call of the network; the last batch is padded, so that one program serves all."""

    def __init__(self, run: Path):
        self.run = as_path(run).resolve()
        self.size: int = max(self._opened[1][:2])

    @functools.cached_property
    def _opened(self):
        trainer, state, _ = open_run(self.run)
        step = functools.partial(trainer.feature_step, state.eval_params, state.batch_stats)
        inputs = trainer.experiment.view
        return step, inputs.transform.single_view.shape, replicated(trainer.mesh)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        step, _, sharding = self._opened
        features = []
        for start in range(0, len(images), self.BATCH):
            batch = images[start : start + self.BATCH]
            padded = np.zeros((self.BATCH, *batch.shape[1:]), np.uint8)
            padded[: len(batch)] = batch
            features.append(np.asarray(step(jax.device_put(padded, sharding)))[: len(batch)])
        return np.concatenate(features) if features else np.zeros((0, 1), np.float32)

    def __getstate__(self) -> dict:
        return {"run": self.run, "size": self.size}


def features_of(trainer: Trainer, state: TrainState, images: Sequence[Path | np.ndarray]) -> np.ndarray:
    """float32 ``[n, channels]``: as `Embedder`, for files or uint8 ``[h, w, 3]`` of any sizes, seen as the run's first
    evaluation sees its images.

    Raises:
      BadImageError: an image cannot be read.
    """
    view = view_for(trainer, len(images))
    view = dataclasses.replace(view, transform=view.transform.single_view, on_bad_image="raise")
    rows: dict[int, np.ndarray] = {}
    for batch in trainer.batches(view, ImageFiles(images, trainer.data), seed=None, targets=lambda example: {}):
        vectors = trainer.feature_step(state.eval_params, state.batch_stats,
                                       trainer.to_devices({"image": batch["image"]})["image"])
        rows |= {index: row for index, row in zip(batch["index"].tolist(), np.asarray(vectors), strict=True)
                 if index >= 0}
    return np.stack([rows[index] for index in range(len(images))])
