"""Starting from what was learnt elsewhere: what is taken over, what stays fixed, and how fast the rest moves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from big_vision_lite.config import from_json
from big_vision_lite.errors import UserError, nearest
from big_vision_lite.remote import place
from big_vision_lite.training.checkpoints import Checkpoints, flatten
from big_vision_lite.training.step import Tree


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What a run takes over and holds fixed. Names are those of a checkpoint, such as backbone.stages.0; a name stands
    for all that is below it."""

    init: str | None = None
    """A run's folder, a file of weights (.safetensors, .npz), hf:REPO or a URL; None: from scratch."""
    init_step: int | None = None
    """Which checkpoint of a run; None: the newest."""
    keep_head: bool = False
    """Take over what is outside the backbone too. Otherwise the head starts anew."""
    freeze: tuple[str, ...] = ()
    """What does not move, running statistics of BatchNorm included: ("backbone",) for the whole of it."""
    freeze_statistics: bool = False
    """Every BatchNorm of the backbone normalises by its running statistics, also where its parameters move: for
    batches of few images, as in detection."""
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    """Factors on the learning rate; the longest name that fits counts. {"backbone": 0.1}"""

    def __post_init__(self) -> None:
        wrong = {name: rate for name, rate in self.rates.items() if not rate >= 0}
        if wrong:
            raise UserError(f"Transfer: rates={wrong}; expected factors of at least 0")

    @property
    def held(self) -> str:
        """What stays as it is, for tables: "nothing", "backbone", "backbone.stem, statistics of BatchNorm"."""
        return ", ".join((*self.freeze, *(("statistics of BatchNorm",) if self.freeze_statistics else ()))) or "nothing"

    def fix_statistics(self, model: nnx.Module) -> None:
        """Tell each BatchNorm that is to keep its running statistics. It is part of the model's structure."""
        for path, module in nnx.iter_graph(model):
            name = ".".join(map(str, path))
            if hasattr(module, "fixed") and (_below(name, self.freeze) or (self.freeze_statistics
                                                                           and _below(name, ("backbone",)))):
                module.fixed = True

    def check(self, params: Tree) -> None:
        """Raises: UserError when a name is not that of any parameter, or nothing is left to learn."""
        names = list(flatten(params))
        heads = sorted({".".join(name.split(".")[:depth]) for name in names for depth in range(1, 9)})
        for name in (*self.freeze, *self.rates):
            if not any(_below(leaf, (name,)) for leaf in names):
                raise UserError(f"Transfer: no parameter is below {name!r}" + nearest(name, heads))
        if all(_below(name, self.freeze) for name in names):
            raise UserError(f"Transfer: freeze={self.freeze} leaves nothing to learn")

    def frozen(self, params: Tree) -> Tree:
        """For each parameter, whether it stays as it is."""
        return _by_name(params, lambda name: _below(name, self.freeze))

    def optimizer(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """``inner`` for what moves, scaled by ``rates``; nothing, and no state, for what is frozen."""
        def rate(name: str) -> float:
            fitting = [prefix for prefix in self.rates if _below(name, (prefix,))]
            return self.rates[max(fitting, key=len)] if fitting else 1.0

        def scale(updates: Tree, params: Tree | None = None) -> Tree:
            return jax.tree.map(lambda update, factor: update * factor, updates, _by_name(updates, rate))

        if self.rates:
            inner = optax.chain(inner, optax.stateless(scale))
        if not self.freeze:
            return inner
        kinds = {"moves": inner, "frozen": optax.set_to_zero()}
        return optax.multi_transform(
            kinds, lambda params: _by_name(params, lambda name: "frozen" if _below(name, self.freeze) else "moves"))

    def take_over(self, params: Tree, stats: Tree, pixels: Any = None) -> tuple[Tree, Tree, str]:
        """Parameters and statistics with those of ``init`` in their places; and what was done, in words.

        Args:
          pixels: how the network's input is scaled, its `Pixels`.

        Raises:
          UserError: ``init`` is not there, lacks an array of the backbone, has more of it, has one of another shape, or
            was trained on pixels of another scale.
        """
        expected = expected_pixels(self.init)
        if pixels is not None and expected is not None and expected != pixels:
            raise UserError(f"{self.init!r} was trained on pixels with mean {expected.mean} and std {expected.std}, "
                            f"this backbone has {pixels.mean} and {pixels.std}; set --backbone.pixels.mean and "
                            "--backbone.pixels.std to those of the weights")
        here = flatten({"params": params, "stats": stats})
        found = read_arrays(self.init, self.init_step, {name.partition(".")[2]: leaf for name, leaf in here.items()})
        backbone = {name for name in here if _below(name.partition(".")[2], ("backbone",))}
        taken = {}
        for name in here:
            if name not in backbone and not self.keep_head:
                continue
            value = found.get(name.partition(".")[2])
            if value is None:
                raise UserError(f"{self.init!r} has no {name.partition('.')[2]!r}, which this network needs; it is of "
                                "another architecture")
            if tuple(value.shape) != tuple(here[name].shape):
                raise UserError(f"{self.init!r}: {name.partition('.')[2]!r} has shape {tuple(value.shape)}, this "
                                f"network needs {tuple(here[name].shape)}; depth, width or classes differ")
            taken[name] = value
        known = {name.partition(".")[2] for name in here}
        more = [name for name in found if _below(name, ("backbone",)) and name not in known]
        if more:
            raise UserError(f"{self.init!r} holds {more[0]!r} ({len(more)} such), which this network does not have; it "
                            "is of another architecture")
        both = replaced({"params": params, "stats": stats}, taken)
        return both["params"], both["stats"], f"{len(taken)} of {len(here)} arrays from {self.init}"


def replaced(tree: Tree, values: dict[str, Any]) -> Tree:
    """The tree with some arrays, by their dotted names, in the places and dtypes of those that were there."""
    leaves = [jax.device_put(np.asarray(values[name], leaf.dtype), leaf.sharding) if name in values else leaf
              for name, leaf in flatten(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def expected_pixels(source: str) -> Any:
    """The `Pixels` of a run's config, or what a file of weights expects; None when neither tells. Raises: UserError."""
    path = place(Path(source).expanduser())
    if not path.is_dir():
        from big_vision_lite.weights import pixels_of

        return pixels_of(source)
    try:
        saved = json.loads((path / "config.json").read_text())["backbone"]["pixels"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whatever is wrong with the run, reading its arrays tells
    return from_json(saved)


def read_arrays(source: str, step: int | None, like: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a run's checkpoint or of a file of weights, under the names that they have in a model.

    Args:
      like: shapes of the model to be filled, by name; files of other projects are recognised by them.

    Raises:
      UserError: there is no such run, checkpoint or file, or it cannot be read as weights.
    """
    path = place(Path(source).expanduser())
    if path.is_dir():
        checkpoints = Checkpoints(path / "checkpoints")
        try:
            found = checkpoints.arrays(step)
        finally:
            checkpoints.close()
        kinds = ("average", "stats") if any(name.startswith("average.") for name in found) else ("params", "stats")
        return {name.partition(".")[2]: value for name, value in found.items() if name.partition(".")[0] in kinds}
    from big_vision_lite.weights import load

    return load(source, like)


def _below(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _by_name(tree: Tree, value: Any) -> Tree:
    names = flatten(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [value(name) for name in names])
