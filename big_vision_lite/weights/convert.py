"""Conversion of ResNets' arrays between other projects' names and layouts and ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from big_vision_lite.backbones.resnet import BLOCKS
from big_vision_lite.errors import UserError
from big_vision_lite.weights.naming import SAME, Naming, Row, depth_of, naming_of

Arrays = dict[str, np.ndarray]


def to_ours(tensors: Mapping[str, np.ndarray], like: Mapping[str, Any], source: str = "these weights") -> Arrays:
    """Weights for the network that ``like`` describes, in its names, layout and dtypes.

    Args:
      tensors: arrays in a known naming: torchvision's and timm's of ResNets, BiT's and timm's of ResNet-v2, and ours.
      like: the network's arrays, or their shapes and dtypes, by name without "params." or "batch_stats.".
      source: what they were read from, for messages.

    Returns:
      All arrays whose name begins with "backbone."; and, when both have a head, "head.kernel" and "head.bias" with the
      number of classes of ``tensors``.

    Raises:
      UserError: the naming is unknown, or this is another network than ``like``; the message says how they differ, or
        names the first array that does.
    """
    naming = naming_of(tensors)
    if naming is not None:
        return _from(naming, tensors, like, source)
    if family(tensors) is not None:
        _check_network(family(tensors), depth_of(tensors), like, source)
    elif not any(map(_in_backbone, tensors)):
        raise UserError(f"{source}: its names belong to no known network: {_abridged(tensors)}; expected names such as "
                        "'layer1.0.conv1.weight' (torchvision, timm), 'resnet/block1/unit01/a/group_norm/gamma' (BiT) "
                        "or 'backbone.stages.0.0.conv1.kernel'")
    names = [name for name in like if _in_backbone(name) or name in tensors]
    # The stem first: if the widths differ, it is the array that tells.
    rows = [(name, name, SAME) for name in sorted(names, key=lambda name: "stem" not in name)]
    return _take(tensors, rows, [name for name in tensors if _in_backbone(name)], like, source)


def to_theirs(naming: Naming, arrays: Mapping[str, Any]) -> Arrays:
    """A network, and its classifier if it has one, in the names and layout of another project.

    Without torchvision's ``num_batches_tracked``, which only a BatchNorm without momentum uses: ``load_state_dict``
    then sets 0. Running variances are copied as they are: here they are those of the batch (divided by n), in PyTorch
    estimates of the population's (by n - 1). With n the pixels of a batch, the difference is below 1e-3 from 1,000 on.

    Raises:
      UserError: the naming is for another network.
    """
    network, depth = family(arrays), depth_of(arrays)
    if network != naming.family or depth is None:
        raise UserError(f"a {naming.title} is a {naming.family}, the run's network is a {network or 'different one'}; "
                        "write it under this package's own names")
    rows = [row for row in naming.rows(depth) if _in_backbone(row[1]) or row[1] in arrays]
    known = {ours for _, ours, _ in rows}
    extra = [name for name in arrays if _in_backbone(name) and name not in known]
    missing = [ours for _, ours, _ in rows if ours not in arrays]
    if extra or missing:
        raise UserError(f"a {naming.title} of depth {depth} has no place for {_abridged(extra)}" if extra else
                        f"a {naming.title} of depth {depth} needs {_abridged(missing)}, which the network has not")
    return {theirs: np.ascontiguousarray(layout.theirs(np.asarray(arrays[ours]))) for theirs, ours, layout in rows}


def family(arrays: Iterable[str]) -> str | None:
    """Which network has these names, in our naming; None if it is none of these."""
    names = set(arrays)
    marks = {"backbone.stem_norm.mean": "BatchNorm ResNet", "backbone.stem_norm.norm.scale": "GroupNorm ResNet",
             "backbone.stages.0.0.norm1.scale": "ResNetV2"}
    return next((network for mark, network in marks.items() if mark in names), None)


def _from(naming: Naming, tensors: Mapping[str, np.ndarray], like: Mapping[str, Any], source: str) -> Arrays:
    depth = naming.depth_of(tensors)
    _check_network(naming.family, depth, like, source)
    rows = [row for row in naming.rows(depth) if _in_backbone(row[1])]
    head = [row for row in naming.rows(depth) if not _in_backbone(row[1])]
    has_head = any(theirs in tensors for theirs, _, _ in head)
    if has_head and all(ours in like for _, ours, _ in head):
        rows += head
    head_names = {theirs for theirs, _, _ in head}
    present = [name for name in tensors if name not in head_names and not re.fullmatch(naming.ignored, name)]
    return _take(tensors, rows, present, like, source)


def _check_network(network: str, depth: int | None, like: Mapping[str, Any], source: str) -> None:
    """Raises: UserError when ``like`` is another network."""
    our_network, our_depth = family(like), depth_of(like)
    if our_network is None or our_depth is None:
        raise UserError(f"{source}: the run's backbone is no ResNet that weights can be loaded for: {_abridged(like)}; "
                        "expected backbone=ResNet(...) or ResNetV2(...)")
    if depth is None:
        raise UserError(f"{source} has an unknown number of blocks for a {network}; expected a depth of "
                        f"{', '.join(map(str, BLOCKS))}")
    if (network, depth) != (our_network, our_depth):
        raise UserError(f"{source} is a {network} of depth {depth}, the run's backbone is a {our_network} of depth "
                        f"{our_depth}; change the backbone or the weights")


def _take(tensors: Mapping[str, np.ndarray], rows: list[Row], present: list[str], like: Mapping[str, Any],
          source: str) -> Arrays:
    """The arrays of ``rows``, checked against ``like``. ``present``: the file's names, all of which must be in
    ``rows``."""
    unknown = sorted(set(present) - {theirs for theirs, _, _ in rows})
    if unknown:
        raise UserError(f"{source} has {_abridged(unknown)}, which the run's backbone has not; it is an unsupported "
                        "variant or another network")
    missing = [theirs for theirs, _, _ in rows if theirs not in tensors]
    if missing:
        raise UserError(f"{source} lacks {_abridged(missing)}; it is incomplete or another network")
    arrays = {}
    for theirs, ours, layout in rows:
        value = np.asarray(tensors[theirs])
        spec = like.get(ours)
        if spec is None:
            raise UserError(f"{source}: the run's backbone has no {ours!r}, for {theirs!r}; it is another ResNet")
        if value.ndim in layout.dimensions:
            value = layout.ours(value)
        # The head may have any number of classes.
        classes = value.shape[-1:] if value.ndim else spec.shape[-1:]
        needed = tuple(spec.shape) if _in_backbone(ours) else (*spec.shape[:-1], *classes)
        if value.shape != needed:
            layout_of = "" if theirs == ours else f" in the layout of {ours!r}"
            raise UserError(f"{source}: {theirs!r} has shape {value.shape}{layout_of}, the run needs {needed}; "
                            f"{_difference(ours, value.shape, needed)}")
        if value.dtype.kind in "iub" and jnp.issubdtype(spec.dtype, jnp.floating):
            raise UserError(f"{source}: {theirs!r} holds values of type {value.dtype.name}; expected floats")
        if ours.endswith(".var") and (value < 0).any():
            raise UserError(f"{source}: {theirs!r} has variances below 0, down to {value.min():g}; the file is damaged")
        arrays[ours] = np.asarray(value, spec.dtype)
    classes = [name in arrays and arrays[name].shape[-1] for name in ("head.kernel", "head.bias") if name in like]
    if len(set(classes)) > 1:
        raise UserError(f"{source}: its classifier has weights for {classes[0] or 'no'} classes and biases for "
                        f"{classes[1] or 'none'}; it is damaged")
    return arrays


def _difference(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> str:
    if name == "head.kernel" and len(theirs) == 2:
        return f"its classifier is for {theirs[0]} features, the run's for {ours[0]}"
    if name.endswith("stem.kernel") and len(theirs) == 4:
        if theirs[:2] != ours[:2]:
            return f"its stem is {theirs[0]}x{theirs[1]}, the run's {ours[0]}x{ours[1]}: stem='imagenet' is 7x7"
        if theirs[3] != ours[3]:
            return f"its width is {theirs[3] / 64:g}, the run's {ours[3] / 64:g}"
    return "it is an unsupported variant or another network"


def _in_backbone(name: str) -> bool:
    return name.startswith("backbone.")


def _abridged(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:3])) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")
