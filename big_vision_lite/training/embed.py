"""Images as the features of a trained run: what compares them beyond their pixels."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np

from big_vision_lite.remote import place
from big_vision_lite.training.evaluate import open_run
from big_vision_lite.training.mesh import replicated
from big_vision_lite.training.probe import feature_step


class Embedder:
    """uint8 ``[n, size, size, 3]`` to float32 ``[n, channels]``: the mean of the backbone's last stage over places.

    Picklable: only the run's folder travels; every process opens it for itself, on one of its devices.

    Raises:
      UserError: as `open_run`.
    """

    BATCH = 64
    """Images at a time; the last batch is filled up, so that one program serves all."""

    def __init__(self, run: Path):
        self.run = place(run).resolve()
        self.size: int = max(self._opened[1][:2])

    @functools.cached_property
    def _opened(self):
        job, state, _ = open_run(self.run)
        step = functools.partial(feature_step(job), state.best_params, state.stats)
        inputs = next(iter(job.experiment.evals.values()), job.experiment.train)
        return step, inputs.transform.shape, replicated(job.mesh)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        features, _, sharding = self._opened
        found = []
        for start in range(0, len(images), self.BATCH):
            piece = images[start : start + self.BATCH]
            padded = np.zeros((self.BATCH, *piece.shape[1:]), np.uint8)
            padded[: len(piece)] = piece
            found.append(np.asarray(features(jax.device_put(padded, sharding)))[: len(piece)])
        return np.concatenate(found) if found else np.zeros((0, 1), np.float32)

    def __getstate__(self) -> dict:
        return {"run": self.run, "size": self.size}
