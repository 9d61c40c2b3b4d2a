"""Weights that a run starts from: those of another run, or of a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from big_vision_lite.backbones.backbone import PixelNormalization
from big_vision_lite.config import from_json, read_json
from big_vision_lite.errors import UserError, nearest, reading
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.transfer import Transfer, below
from big_vision_lite.training.trees import Tree, flatten, replaced
from big_vision_lite.weights.convert import to_ours
from big_vision_lite.weights.download import is_remote
from big_vision_lite.weights.files import SUFFIXES, Weights, read_weights


def load_initial_weights(transfer: Transfer, params: Tree, batch_stats: Tree,
                         pixels: Any = None) -> tuple[Tree, Tree, str]:
    """Parameters and batch statistics, replaced by those of ``transfer.init``, and a one-line summary.

    Args:
      pixels: how the backbone normalises its input, its `PixelNormalization`.

    Raises:
      UserError: ``init`` does not exist, is of another network, lacks an array that is to be loaded or has one of
        another shape, or was trained with another pixel normalization.
    """
    source = transfer.init
    weights = _read(source, transfer.init_step)
    expected = weights.pixels
    if pixels is not None and expected is not None and expected != pixels:
        raise UserError(f"{source!r} was trained on pixels with mean {expected.mean} and std {expected.std}, this "
                        f"backbone has {pixels.mean} and {pixels.std}; set --backbone.pixels.mean and "
                        "--backbone.pixels.std to those of the weights")
    arrays = {"params": params, "batch_stats": batch_stats}
    # By their name in the state, which begins with the name of the tree; those of the model do not.
    wanted = {path: leaf for path, leaf in flatten(arrays).items()
              if transfer.keep_head or below(path.partition(".")[2], ("backbone",))}
    values = to_ours(weights.arrays, {path.partition(".")[2]: leaf for path, leaf in wanted.items()}, source)
    loaded = {}
    for path, leaf in wanted.items():
        name = path.partition(".")[2]
        if name not in values:
            raise UserError(f"{source!r} has no {name!r}, which this network needs; it has another head")
        if values[name].shape != leaf.shape:
            raise UserError(f"{source!r}: {name!r} has shape {values[name].shape}, this network needs {leaf.shape}; "
                            "classes or heads differ")
        loaded[path] = values[name]
    part = weights.part and f", {weights.part}"
    summary = f"{len(loaded)} of {len(flatten(arrays))} arrays from {source}{part}"
    arrays = replaced(arrays, loaded)
    return arrays["params"], arrays["batch_stats"], summary


def _read(source: str, step: int | None) -> Weights:
    """Weights in any naming. Raises: UserError when there are none."""
    with reading(f"Transfer.init={source!r}", errors=RuntimeError):  # ~nobody
        path = as_path(Path(source).expanduser())
    if path.is_dir():
        return _of_run(path, step)
    if is_remote(source) or path.exists():
        return read_weights(source)
    raise UserError(f"Transfer.init={source!r}: no such run folder or weights file"
                    + nearest(str(path), map(str, _possible(path.parent))))


def _of_run(run: Path, step: int | None) -> Weights:
    """What the evaluation of a checkpoint uses. Raises: UserError when there is no such checkpoint."""
    backbone = read_json(run / "config.json").get("backbone")
    pixels = from_json(backbone.get("pixels"), (), run / "config.json") if isinstance(backbone, dict) else None
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        arrays = checkpoints.arrays(step)
    params = "ema_params" if any(name.startswith("ema_params.") for name in arrays) else "params"
    arrays = {name.partition(".")[2]: array for name, array in arrays.items()
              if name.partition(".")[0] in (params, "batch_stats")}
    return Weights(arrays, pixels if isinstance(pixels, PixelNormalization) else None)


def _possible(folder: Path) -> Iterator[Path]:
    """Runs and weights files in a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in SUFFIXES or (path / "config.json").is_file():
            yield path
