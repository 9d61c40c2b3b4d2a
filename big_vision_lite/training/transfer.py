"""Transfer: weight loading, freezing, learning-rate multipliers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax
from flax import nnx

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.system.fields import at_least
from big_vision_lite.training.trees import Tree, flatten


@dataclasses.dataclass(frozen=True)
class Branch:
    """A run that goes on from a step of another one, its trunk, with all of its state. What it learns is what it would
    have learned from step 0 on: up to that step, both have the same recipe."""

    trunk: str
    """Run folder."""
    step: int
    """The trunk keeps a checkpoint of it: see ``Experiment.keep``."""

    def __post_init__(self) -> None:
        at_least(self, 1, "step")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What a run starts from and what of it stays fixed. Names are those in a checkpoint, such as backbone.stages.0; a
    name covers everything below it."""

    init: str | None = None
    """Run folder, weights file (.safetensors, .npz), hf:REPO or URL to start from; None: from scratch."""
    init_step: int | None = None
    """Checkpoint of the run to start from; None: the newest."""
    keep_head: bool = False
    """Load parameters outside the backbone too. Otherwise the head starts anew."""
    freeze: tuple[str, ...] = ()
    """Frozen parts, with their BatchNorm statistics; ("backbone",) for the whole backbone."""
    freeze_batchnorm: bool = False
    """Every BatchNorm of the backbone normalises by its running statistics, even where its parameters train: for
    batches of few images, as in detection."""
    lr_multipliers: dict[str, float] = dataclasses.field(default_factory=dict)
    """Factors on the learning rate by name, such as {"backbone": 0.1}; the longest matching name counts."""

    def __post_init__(self) -> None:
        negative = {name: rate for name, rate in self.lr_multipliers.items() if not rate >= 0}
        if negative:
            raise UserError(f"Transfer: lr_multipliers={negative}; expected factors of at least 0")

    @property
    def frozen_summary(self) -> str:
        """What is frozen, for tables: "nothing", "backbone", "backbone.stem, statistics of BatchNorm"."""
        return ", ".join((*self.freeze, *(("statistics of BatchNorm",) if self.freeze_batchnorm else ()))) or "nothing"

    def fix_running_stats(self, model: nnx.Module) -> None:
        """Make each BatchNorm that is to be frozen use its running statistics: a part of the model's structure."""
        for path, module in nnx.iter_graph(model):
            name = ".".join(map(str, path))
            if hasattr(module, "use_running_stats") and (
                    below(name, self.freeze) or (self.freeze_batchnorm and below(name, ("backbone",)))):
                module.use_running_stats = True

    def check(self, params: Tree) -> None:
        """Raises: UserError when a name matches no parameter, or all parameters are frozen."""
        names = list(flatten(params))
        prefixes = sorted({".".join(name.split(".")[:depth]) for name in names for depth in range(1, 9)})
        for name in (*self.freeze, *self.lr_multipliers):
            if not any(below(leaf, (name,)) for leaf in names):
                raise UserError(f"Transfer: no parameter is below {name!r}" + nearest(name, prefixes))
        if all(below(name, self.freeze) for name in names):
            raise UserError(f"Transfer: freeze={self.freeze} leaves nothing to train")

    def frozen(self, params: Tree) -> Tree:
        """For each parameter, whether it is frozen."""
        return _by_name(params, lambda name: below(name, self.freeze))

    def optimizer(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """``inner``, scaled by ``lr_multipliers``, for what trains; no update and no state for what is frozen."""
        def multiplier(name: str) -> float:
            matching = [prefix for prefix in self.lr_multipliers if below(name, (prefix,))]
            return self.lr_multipliers[max(matching, key=len)] if matching else 1.0

        def scale(updates: Tree, params: Tree | None = None) -> Tree:
            return jax.tree.map(lambda update, factor: update * factor, updates, _by_name(updates, multiplier))

        if self.lr_multipliers:
            inner = optax.chain(inner, optax.stateless(scale))
        if not self.freeze:
            return inner
        transforms = {"trained": inner, "frozen": optax.set_to_zero()}
        return optax.multi_transform(transforms, lambda params: _by_name(
            params, lambda name: "frozen" if below(name, self.freeze) else "trained"))


def below(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is one of ``prefixes``, or below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _by_name(tree: Tree, value_of: Callable[[str], Any]) -> Tree:
    return jax.tree.unflatten(jax.tree.structure(tree), [value_of(name) for name in flatten(tree)])
