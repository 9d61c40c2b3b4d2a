"""Arrays of other projects' ResNets under our names, and ours under theirs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.backbones.resnet import BLOCKS
from big_vision_lite.data.cache import cache_dir
from big_vision_lite.errors import UserError
from big_vision_lite.weights.download import fetch, is_remote
from big_vision_lite.weights.files import read_file
from big_vision_lite.weights.naming import BIT, NAMINGS, SAME, TIMM_BIT, TORCHVISION, Naming, Row, depth_of

Arrays = dict[str, np.ndarray]


def load(source: str, like: Mapping[str, Any]) -> Arrays:
    """Weights of a file for the network that ``like`` describes, in its layout and dtypes.

    Args:
      source: a path, ``hf:OWNER/NAME``, or a URL, see `fetch`. The naming is recognised: torchvision's and timm's of
        ResNets, BiT's and timm's of ResNet-v2, and ours.
      like: the model's arrays or their descriptions, by name without "params." or "stats."; only shapes and dtypes
        count.

    Returns:
      Every array whose name begins with "backbone."; and of "head.kernel" and "head.bias", when both the file and
      ``like`` have a head, what the file has, of as many classes as it has them.

    Raises:
      UserError: it cannot be had or read, its naming is unknown, or it is of another network than ``like``: says how
        they differ, or names the first array that does.
    """
    path = fetch(source, cache_dir() / "weights") if is_remote(source) else Path(source).expanduser()
    tensors = read_file(path)
    found = next((naming for naming in NAMINGS if naming.recognises(tensors)), None)
    if found is not None:
        return _from(found, tensors, like, source)
    if family(tensors) is None:
        raise UserError(f"{source}: its names are of no network known here: {_some(tensors)}; expected such as "
                        "'layer1.0.conv1.weight' (torchvision, timm), 'resnet/block1/unit01/a/group_norm/gamma' (BiT) "
                        "or 'backbone.stages.0.0.conv1.kernel'")
    _same_network(family(tensors), depth_of(tensors), like, source)
    wanted = [name for name in like if _in_backbone(name) or name in tensors]
    rows = [(name, name, SAME) for name in sorted(wanted, key=lambda name: "stem" not in name)]  # it tells the width
    return _take(tensors, rows, [name for name in tensors if _in_backbone(name)], like, source)


def from_torchvision(tensors: Mapping[str, np.ndarray], like: Mapping[str, Any],
                     source: str = "these weights") -> Arrays:
    """The state dict of torchvision's or timm's ResNet, of any of our depths, as `load` returns it.

    Raises: UserError as `load`; ``source`` is what the message calls the weights.
    """
    return _from(TORCHVISION, tensors, like, source)


def from_bit(tensors: Mapping[str, np.ndarray], like: Mapping[str, Any], source: str = "these weights") -> Arrays:
    """BiT's ResNet-v2, named as in its .npz files or as in timm, as `load` returns it.

    Raises: UserError as `load`.
    """
    return _from(TIMM_BIT if TIMM_BIT.recognises(tensors) else BIT, tensors, like, source)


def to_torchvision(arrays: Mapping[str, Any]) -> Arrays:
    """A ResNet with BatchNorm, and its classifier if it has one, as torchvision and timm name and lay it out.

    Their count of batches, which only a BatchNorm without momentum uses, is left out: ``load_state_dict`` then sets 0.

    Raises:
      UserError: it is another network.
    """
    return _to(TORCHVISION, arrays)


def to_bit(arrays: Mapping[str, Any], timm: bool = False) -> Arrays:
    """A ResNet-v2, and its classifier if it has one, as BiT's .npz files name and lay it out, or as timm does.

    Raises:
      UserError: it is another network.
    """
    return _to(TIMM_BIT if timm else BIT, arrays)


def family(arrays: Iterable[str]) -> str | None:
    """Which of our networks has these names, of ours; None for none that weights are known of."""
    found = set(arrays)
    marks = {"backbone.stem_norm.mean": "BatchNorm ResNet", "backbone.stem_norm.norm.scale": "GroupNorm ResNet",
             "backbone.stages.0.0.norm1.scale": "ResNetV2"}
    return next((kind for mark, kind in marks.items() if mark in found), None)


def _from(naming: Naming, tensors: Mapping[str, np.ndarray], like: Mapping[str, Any], source: str) -> Arrays:
    depth = naming.depth_of(tensors)
    _same_network(naming.family, depth, like, source)
    rows = [row for row in naming.rows(depth) if _in_backbone(row[1])]
    head = [row for row in naming.rows(depth) if not _in_backbone(row[1])]
    has_head = any(theirs in tensors for theirs, _, _ in head)
    if has_head and all(ours in like for _, ours, _ in head):
        rows += head
    free = {theirs for theirs, _, _ in head}
    present = [name for name in tensors if name not in free and not re.fullmatch(naming.ignored, name)]
    return _take(tensors, rows, present, like, source)


def _same_network(kind: str, depth: int | None, like: Mapping[str, Any], source: str) -> None:
    ours, wanted = family(like), depth_of(like)
    if ours is None or wanted is None:
        raise UserError(f"{source}: the run's backbone is no ResNet that weights are known for: {_some(like)}; "
                        "expected backbone=ResNet(...) or ResNetV2(...)")
    if depth is None:
        raise UserError(f"{source} has blocks as no {kind} here has; expected a depth of "
                        f"{', '.join(map(str, BLOCKS))}")
    if (kind, depth) != (ours, wanted):
        raise UserError(f"{source} is a {kind} of depth {depth}, the run's backbone is a {ours} of depth {wanted}; "
                        "change the backbone or the weights")


def _take(tensors: Mapping[str, np.ndarray], rows: Iterable[Row], present: list[str], like: Mapping[str, Any],
          source: str) -> Arrays:
    """The arrays of ``rows``, checked against ``like``. ``present``: which names of the file must be among them."""
    rows = list(rows)
    unknown = sorted(set(present) - {theirs for theirs, _, _ in rows})
    if unknown:
        raise UserError(f"{source} has {_some(unknown)}, which the run's backbone has not; it is a variant of this "
                        "ResNet that cannot be built here")
    missing = [theirs for theirs, _, _ in rows if theirs not in tensors]
    if missing:
        raise UserError(f"{source} lacks {_some(missing)}; it is incomplete or of another network")
    taken = {}
    for theirs, ours, layout in rows:
        value = np.asarray(tensors[theirs])
        wanted = like.get(ours)
        if wanted is None:
            raise UserError(f"{source}: the run's backbone has no {ours!r}, for {theirs!r}; it is another ResNet")
        if value.ndim in layout.dimensions:
            value = layout.ours(value)
        if value.shape != tuple(wanted.shape) and _in_backbone(ours):
            layout_of = "" if theirs == ours else f" in the layout of {ours!r}"
            raise UserError(f"{source}: {theirs!r} has shape {value.shape}{layout_of}, the run needs "
                            f"{tuple(wanted.shape)}" + _why(ours, value.shape, tuple(wanted.shape)))
        taken[ours] = np.asarray(value, wanted.dtype)
    return taken


def _why(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if name.endswith("stem.kernel") and len(found) == 4:
        if found[:2] != wanted[:2]:
            return f"; its stem is {found[0]}x{found[1]}, the run's {wanted[0]}x{wanted[1]}: stem='imagenet' is 7x7"
        if found[3] != wanted[3]:
            return f"; its width is {found[3] / 64:g}, the run's {wanted[3] / 64:g}"
    return "; it is a variant of this ResNet that cannot be built here"


def _to(naming: Naming, arrays: Mapping[str, Any]) -> Arrays:
    kind, depth = family(arrays), depth_of(arrays)
    if kind != naming.family or depth is None:
        raise UserError(f"a {naming.title} is a {naming.family}, the run's network is a {kind or 'different one'}; "
                        "write it under this package's own names")
    rows = [row for row in naming.rows(depth) if _in_backbone(row[1]) or row[1] in arrays]
    placed = {ours for _, ours, _ in rows}
    left = [name for name in arrays if _in_backbone(name) and name not in placed]
    lacking = [ours for _, ours, _ in rows if ours not in arrays]
    if left or lacking:
        raise UserError(f"a {naming.title} of depth {depth} has no place for {_some(left)}" if left else
                        f"a {naming.title} of depth {depth} needs {_some(lacking)}, which the network has not")
    return {theirs: np.ascontiguousarray(layout.theirs(np.asarray(arrays[ours]))) for theirs, ours, layout in rows}


def _in_backbone(name: str) -> bool:
    return name.startswith("backbone.")


def _some(found: Iterable[str]) -> str:
    found = list(found)
    return ", ".join(map(repr, found[:3])) + (f", ... ({len(found)} in all)" if len(found) > 3 else "")
