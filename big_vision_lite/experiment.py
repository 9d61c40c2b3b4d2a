"""``Experiment``: everything a run is. It knows the parts by their interfaces, not how any of them works."""

from __future__ import annotations

import dataclasses

from big_vision_lite.backbones.backbone import Backbone
from big_vision_lite.data.pipeline import Input
from big_vision_lite.errors import UserError
from big_vision_lite.heads.head import Head
from big_vision_lite.training.mesh import Mesh
from big_vision_lite.training.optimizers import Optimizer
from big_vision_lite.training.probe import Probe
from big_vision_lite.training.transfer import Transfer


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run: data, network, task, optimiser and length. Saved as config.json beside its results."""

    train: Input
    """What it learns from."""
    evals: dict[str, Input]
    """What it is scored on, by name; the first is the one that counts."""
    backbone: Backbone
    head: Head
    optimizer: Optimizer
    steps: int
    """Optimiser steps in all."""
    seed: int = 0
    """Of initialisation, order and augmentation."""
    accumulate: int = 1
    """Pieces in which a batch goes through the network, to fit a small device. BatchNorm then sees pieces."""
    ema: float | None = None
    """Decay of an exponential moving average of the parameters, which evaluation then uses; None: no average."""
    probes: dict[str, Probe] = dataclasses.field(default_factory=dict)
    """Probes of the backbone's features, by name, made with each evaluation."""
    transfer: Transfer = Transfer()
    """What it starts from, and what of it stays fixed."""
    mesh: Mesh = Mesh()
    deterministic: bool = False
    """On GPUs: only operations that give the same bits each time. CPUs and TPUs always do."""
    log_every: int = 20
    """Steps between lines of metrics."""
    eval_every: int | None = None
    """Steps between evaluations; None: at the end alone."""
    save_every: int | None = None
    """Steps between checkpoints; None: a tenth of the run, at least 100."""
    keep: int = 2
    """Newest checkpoints to keep."""

    def __post_init__(self) -> None:
        wrong = [f"{name}={getattr(self, name)}" for name in
                 ("steps", "accumulate", "log_every", "eval_every", "save_every", "keep")
                 if getattr(self, name) is not None and getattr(self, name) < 1]
        if wrong:
            raise UserError(f"Experiment: {', '.join(wrong)}; expected at least 1")
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise UserError(f"Experiment: ema={self.ema}; expected above 0 and below 1, or none")

    @property
    def save_interval(self) -> int:
        """Steps between checkpoints."""
        return self.save_every or max(100, self.steps // 10)


WITHOUT_EFFECT = ("log_every", "eval_every", "save_every", "keep", "train.threads", "train.workers", "train.prefetch",
                  "evals", "probes", "mesh")
"""Fields that may differ when a run is resumed: the parameters it ends with do not depend on them, but for the
rounding of sums over another mesh."""
