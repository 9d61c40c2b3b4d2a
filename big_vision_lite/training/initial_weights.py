"""Weights that a run starts from: those of another run, or of a file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.config import from_json, read_json
from big_vision_lite.errors import UserError
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.transfer import Transfer, below
from big_vision_lite.training.trees import Tree, flatten, replaced
from big_vision_lite.weights.convert import load, pixels_of


def load_initial_weights(transfer: Transfer, params: Tree, batch_stats: Tree,
                         pixels: Any = None) -> tuple[Tree, Tree, str]:
    """Parameters and batch statistics, replaced by those of ``transfer.init``, and a one-line summary.

    Args:
      pixels: how the backbone normalises its input, its `PixelNormalization`.

    Raises:
      UserError: ``init`` does not exist, lacks an array of the backbone, holds others, has one of another shape, or was
        trained with another pixel normalization.
    """
    source = transfer.init
    run = as_path(Path(source).expanduser())
    if run.is_dir():
        saved = read_json(run / "config.json")["backbone"].get("pixels")
        expected = saved and from_json(saved)
    else:
        expected = pixels_of(source)
    if pixels is not None and expected is not None and expected != pixels:
        raise UserError(f"{source!r} was trained on pixels with mean {expected.mean} and std {expected.std}, this "
                        f"backbone has {pixels.mean} and {pixels.std}; set --backbone.pixels.mean and "
                        "--backbone.pixels.std to those of the weights")
    arrays = {"params": params, "batch_stats": batch_stats}
    model = {path: path.partition(".")[2] for path in flatten(arrays)}  # from paths in the state to those in the model
    shapes = {model[path]: leaf for path, leaf in flatten(arrays).items()}
    weights = _arrays_of_run(run, transfer.init_step) if run.is_dir() else load(source, shapes)
    loaded = {}
    for path, name in model.items():
        if not transfer.keep_head and not below(name, ("backbone",)):
            continue
        if name not in weights:
            raise UserError(f"{source!r} has no {name!r}, which this network needs; it is of another architecture")
        if tuple(weights[name].shape) != tuple(shapes[name].shape):
            raise UserError(f"{source!r}: {name!r} has shape {tuple(weights[name].shape)}, this network needs "
                            f"{tuple(shapes[name].shape)}; depth, width or classes differ")
        loaded[path] = weights[name]
    unused = [name for name in weights if below(name, ("backbone",)) and name not in shapes]
    if unused:
        raise UserError(f"{source!r} holds {unused[0]!r} ({len(unused)} such), which this network does not have; it is "
                        "of another architecture")
    arrays = replaced(arrays, loaded)
    return arrays["params"], arrays["batch_stats"], f"{len(loaded)} of {len(shapes)} arrays from {source}"


def _arrays_of_run(run: Path, step: int | None) -> dict[str, np.ndarray]:
    """What a checkpoint's evaluation uses, by name in the model. Raises: UserError when there is no such checkpoint."""
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        arrays = checkpoints.arrays(step)
    params = "ema_params" if any(name.startswith("ema_params.") for name in arrays) else "params"
    return {name.partition(".")[2]: array for name, array in arrays.items()
            if name.partition(".")[0] in (params, "batch_stats")}
