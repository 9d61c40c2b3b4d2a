"""RoIAlign (He et al. 2017): features of boxes by bilinear interpolation, 2 x 2 samples per bin."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

_SAMPLES = 2
"""Samples per bin and axis. A number that depends on the box, as elsewhere, would need dynamic shapes."""


def roi_levels(rois: Float[Array, "*n 4"], strides: Sequence[int], levels: int) -> Int[Array, "*n"]:
    """Index of the map, finest first, that each box takes its features from: where it is 14 to 28 cells wide (Lin et
    al. 2017, equation 1, for any strides)."""
    side = jnp.sqrt(jnp.maximum((rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1]), 1e-12))
    level = jnp.floor(jnp.log2(side / (14.0 * strides[0])) + 1e-6)
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)


def roi_align(features: Sequence[Float[Array, "b _ _ c"]], rois: Float[Array, "b r 4"], strides: Sequence[int],
              bins: int, aligned: bool = True) -> Float[Array, "b r p p c"]:
    """Features of each box in ``bins`` x ``bins`` bins.

    CPUs and GPUs read the cells needed; TPUs multiply each map by one matrix per box. Both are equal up to rounding.

    Samples up to one cell outside a map take the value at its border; those farther out are 0. Boxes get no gradient.

    Args:
      features: maps of the images, finest first; with several, `roi_levels` chooses one for each box.
      rois: (x1, y1, x2, y2) in pixels of the image.
      strides: pixels per cell of each map.
      aligned: whether the centre of the first cell is half a cell from the border, like a pixel of an image. Otherwise
        it is on the border, and boxes are at least one cell wide, as in older detectors.
    """
    shapes = tuple(f.shape[1:3] for f in features)
    levels = roi_levels(rois, strides, len(features))
    spec = _Spec(shapes, tuple(strides), bins, aligned)
    return _align(spec, tuple(features), lax.stop_gradient(rois), levels)


class _Spec(NamedTuple):
    """The static arguments of a call."""

    shapes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    bins: int
    aligned: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _align(spec, features, rois, levels):
    return lax.platform_dependent(features, rois, levels, tpu=jax.vmap(partial(_matmul, spec)),
                                  default=jax.vmap(partial(_gather, spec)))


def _forward(spec, features, rois, levels):
    like = tuple(jax.ShapeDtypeStruct(f.shape, f.dtype) for f in features)
    return _align(spec, features, rois, levels), (rois, levels, _Static(like))


@jax.tree_util.register_static
class _Static(tuple):
    """Shapes for the backward pass."""


def _backward(spec, saved, gradient):
    rois, levels, like = saved

    def by_matmul(gradient, rois, levels):
        transpose = jax.linear_transpose(lambda *f: jax.vmap(partial(_matmul, spec))(f, rois, levels), *like)
        return transpose(gradient)

    def by_gather(gradient, rois, levels):
        return tuple(g.astype(f.dtype) for g, f in
                     zip(jax.vmap(partial(_scatter, spec))(gradient, rois, levels), like, strict=True))

    return lax.platform_dependent(gradient, rois, levels, tpu=by_matmul, default=by_gather), None, None


_align.defvjp(_forward, _backward)


def _points(spec, rois: Float[Array, "r 4"], levels: Int[Array, " r"]) -> tuple[Array, ...]:
    """Sample positions of each box along both axes, in cells of its map: y and x ``[r, bins * samples]``, and the map's
    height and width ``[r, 1]``."""
    shape = jnp.asarray(np.array(spec.shapes, np.int32))[levels]
    scale = jnp.asarray(1.0 / np.array(spec.strides, np.float32))[levels][:, None]
    boxes = rois.astype(jnp.float32) * scale - (0.5 if spec.aligned else 0.0)
    size = boxes[:, 2:] - boxes[:, :2]
    if not spec.aligned:
        size = jnp.maximum(size, 1.0)
    count = spec.bins * _SAMPLES
    steps = jnp.asarray((np.arange(count, dtype=np.float32) + 0.5) / count)
    x, y = (boxes[:, i:i + 1] + size[:, i:i + 1] * steps for i in (0, 1))
    return y, x, shape[:, :1], shape[:, 1:]


def _cells(position: Array, length: Array) -> tuple[Array, Array, Array]:
    """The lower neighbour of each position, and the weights of it and the next cell."""
    outside = (position < -1.0) | (position > length)
    inside = jnp.clip(position, 0.0, (length - 1).astype(jnp.float32))
    low = jnp.minimum(jnp.floor(inside).astype(jnp.int32), jnp.maximum(length - 2, 0))
    upper = inside - low
    share = jnp.where(outside, 0.0, 1.0 / _SAMPLES)
    return low, (1.0 - upper) * share, upper * share


def _terms(spec, rois, levels):
    """The 16 terms of each bin's sum: row in the concatenated maps ``[r, bins, bins]``, and weight."""
    starts = np.cumsum([0, *(h * w for h, w in spec.shapes)])[:-1]
    start = jnp.asarray(starts.astype(np.int32))[levels][:, None, None]
    y, x, height, width = _points(spec, rois, levels)
    (top, *y_weights), (left, *x_weights) = _cells(y, height), _cells(x, width)
    split = partial(jnp.reshape, shape=(rois.shape[0], spec.bins, _SAMPLES))
    top, left, *weights = map(split, (top, left, *y_weights, *x_weights))
    rows, factors = [], []
    for i in range(_SAMPLES):
        for j in range(_SAMPLES):
            for down in (0, 1):
                for right in (0, 1):
                    at_y = jnp.minimum(top[:, :, i] + down, height - 1)
                    at_x = jnp.minimum(left[:, :, j] + right, width - 1)
                    rows.append(start + at_y[:, :, None] * width[:, :, None] + at_x[:, None])
                    factors.append(weights[down][:, :, i, None] * weights[2 + right][:, None, :, j])
    return rows, factors


def _gather(spec, features: tuple[Array, ...], rois: Array, levels: Array) -> Array:
    flat = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
    total = 0.0
    for rows, factors in zip(*_terms(spec, rois, levels), strict=True):
        total = total + flat[rows].astype(jnp.float32) * factors[..., None]
    return total.astype(flat.dtype)


def _scatter(spec, gradient: Array, rois: Array, levels: Array) -> tuple[Array, ...]:
    """The transpose of `_gather`."""
    sizes = [h * w for h, w in spec.shapes]
    rows, factors = (jnp.stack(t) for t in _terms(spec, rois, levels))
    gradient = gradient.astype(jnp.float32)

    def add(flat, term):
        rows, factors = term
        return flat.at[rows].add(gradient * factors[..., None], mode="promise_in_bounds"), None

    flat, _ = lax.scan(add, jnp.zeros((sum(sizes), gradient.shape[-1]), jnp.float32), (rows, factors))
    parts = jnp.split(flat, np.cumsum(sizes)[:-1].tolist())
    return tuple(part.reshape(*shape, -1) for part, shape in zip(parts, spec.shapes, strict=True))


def _matmul(spec, features: tuple[Array, ...], rois: Array, levels: Array) -> Array:
    y, x, height, width = _points(spec, rois, levels)
    total = 0.0
    for level, map_ in enumerate(features):
        on_level = (levels == level).astype(map_.dtype)[:, None, None]
        vertical = _matrix(*_cells(y, height), map_.shape[0], spec.bins).astype(map_.dtype) * on_level
        horizontal = _matrix(*_cells(x, width), map_.shape[1], spec.bins).astype(map_.dtype)
        rows = jnp.einsum("rph,hwc->rpwc", vertical, map_, preferred_element_type=jnp.float32).astype(map_.dtype)
        total = total + jnp.einsum("rqw,rpwc->rpqc", horizontal, rows, preferred_element_type=jnp.float32)
    return total.astype(features[0].dtype)


def _matrix(low: Array, lower: Array, upper: Array, length: int, bins: int) -> Array:
    """Interpolation along an axis, averaged over the samples of a bin, as a matrix ``[r, bins, length]``."""
    cells = jnp.arange(length)
    weights = (jnp.where(low[..., None] == cells, lower[..., None], 0.0)
               + jnp.where(low[..., None] + 1 == cells, upper[..., None], 0.0))
    return weights.reshape(low.shape[0], bins, _SAMPLES, length).sum(2)
