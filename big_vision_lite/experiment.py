"""``Experiment``: everything a run is. It knows its parts by their interfaces only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from big_vision_lite import config
from big_vision_lite.backbones.backbone import Backbone
from big_vision_lite.data.pipeline import Input
from big_vision_lite.errors import UserError
from big_vision_lite.heads.head import Head
from big_vision_lite.system.fields import check
from big_vision_lite.training.mesh import Mesh
from big_vision_lite.training.optimizers import Optimizer
from big_vision_lite.training.probe import Probe
from big_vision_lite.training.schedules import check_length, steps_of
from big_vision_lite.training.transfer import Branch, Transfer

MAX_BATCH_BYTES = 2**38
"""Bytes of a batch's pixels, over all machines, beyond which its size must be a mistake."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run: data, network, task, optimizer and length. Saved as config.json beside its results."""

    train: Input
    """Training data."""
    evals: dict[str, Input]
    """Evaluation data by name; the first one is the main evaluation."""
    backbone: Backbone
    head: Head
    optimizer: Optimizer
    steps: int
    """Optimizer steps of the whole run."""
    seed: int = 0
    """Seed of initialization, data order and augmentation."""
    grad_accum_steps: int = 1
    """Micro-batches per step (gradient accumulation), to fit a small device. BatchNorm sees micro-batches."""
    ema: float | None = None
    """Decay of an exponential moving average of the parameters, used by evaluation; None: no average."""
    probes: dict[str, Probe] = dataclasses.field(default_factory=dict)
    """Probes of the backbone's features by name, run with each evaluation."""
    transfer: Transfer = Transfer()
    """Weight loading, freezing and learning-rate multipliers."""
    branch: Branch | None = None
    """The run whose first steps this run shares; None: it takes all steps itself."""
    mesh: Mesh = Mesh()
    deterministic: bool = False
    """On GPUs: only bit-reproducible operations. CPUs and TPUs always are."""
    steps_per_call: int | None = None
    """With ``train.resident="device"``: steps that are dispatched to the devices together, at most as many as there are
    between lines of metrics, evaluations and checkpoints; None: 100, or 1 on CPUs, where a loop of steps is slow.
    Others are dispatched one by one."""
    log_every: int = 20
    """Steps between lines of metrics."""
    eval_every: float | None = None
    """Interval between evaluations: below 1 a share of the run, from 1 on a number of steps; None: only at the end."""
    save_every: float | None = None
    """Interval between checkpoints, as ``eval_every``; None: a tenth of the run, at least 100 steps."""
    max_checkpoints: int = 2
    """Newest checkpoints to keep."""
    keep: tuple[int, ...] = ()
    """Steps whose checkpoints are kept as well, for branches."""
    keep_best: bool = False
    """Save and keep the checkpoint of the best evaluation as well, by the main metric of the first one."""

    def __post_init__(self) -> None:
        check(self)
        counts = ("steps", "grad_accum_steps", "steps_per_call", "log_every", "max_checkpoints")
        wrong = [f"{name}={value}" for name in counts if (value := getattr(self, name)) is not None and value < 1]
        if wrong:
            raise UserError(f"Experiment: {', '.join(wrong)}; expected at least 1")
        if self.seed < 0:
            raise UserError(f"Experiment: seed={self.seed}; expected at least 0")
        for inputs in (self.train, *self.evals.values()):
            size = inputs.batch_size * math.prod(inputs.transform.shape)
            if size > MAX_BATCH_BYTES:
                raise UserError(f"Experiment: batches of {inputs.batch_size:,} images of {inputs.transform.shape} have "
                                f"{size / 1e9:,.0f} GB; expected at most {MAX_BATCH_BYTES / 1e9:,.0f} GB")
        for name, inputs in self.evals.items():
            if inputs.resident == "device":
                raise UserError(f"Experiment: evals.{name}.resident='device', which is for training; set 'host'")
        for name in ("eval_every", "save_every"):
            if getattr(self, name) is not None:
                check_length(f"Experiment: {name}", getattr(self, name))
        beyond = [step for step in self.keep if not 0 < step <= self.steps]
        if beyond:
            raise UserError(f"Experiment: keep={self.keep}; expected steps from 1 to {self.steps}")
        if self.branch is not None and self.branch.step >= self.steps:
            raise UserError(f"Experiment: branch.step={self.branch.step}; expected fewer than the run's {self.steps} "
                            "steps")
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise UserError(f"Experiment: ema={self.ema}; expected above 0 and below 1, or none")

    @property
    def view(self) -> Input:
        """How the run sees images that it does not learn from: as its first evaluation; without one, as training."""
        return next(iter(self.evals.values()), self.train)

    @property
    def eval_interval(self) -> int | None:
        """Steps between evaluations; None: only at the end."""
        return None if self.eval_every is None else max(1, steps_of(self.eval_every, self.steps))

    @property
    def save_interval(self) -> int:
        """Steps between checkpoints."""
        if self.save_every is None:
            return max(100, self.steps // 10)
        return max(1, steps_of(self.save_every, self.steps))


def load_experiment(spec: str) -> Experiment:
    """The experiment of ``FILE.py:argument=value``. Raises: UserError as `config.load`, or it returns another thing."""
    experiment = config.load(spec)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{spec}: get_config returned {type(experiment).__name__}, expected an Experiment")
    return experiment


def read_experiment(path: Path, allowed: Sequence[str] = ()) -> Experiment:
    """The experiment in a config.json. Raises: UserError as `config.read`, or the file describes something else."""
    experiment = config.read(path, allowed)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} describes a {type(experiment).__name__}; expected an Experiment")
    return experiment


WITHOUT_EFFECT = ("branch", "steps_per_call", "log_every", "eval_every", "save_every", "max_checkpoints", "keep",
                  "keep_best", "mesh", "train.threads", "train.workers", "train.prefetch", "train.resident")
"""Fields that do not change what a run learns, but for the rounding of sums over another mesh or in another program."""
