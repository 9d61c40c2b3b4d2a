"""Max-pooling whose gradient is fast on CPUs too.

XLA's CPU backend computes the gradient of a maximum over windows on one core, by arrays of indices that are larger than
the image: it took a third of a small ResNet's training step. On CPUs this is instead a comparison per position of the
window, which XLA fuses into one pass. Other platforms use XLA's operation. Measured in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from big_vision_lite.backbones.conv import on_cpu

_AS_MAXIMA = contextvars.ContextVar("as_maxima", default=False)


@contextlib.contextmanager
def as_maxima() -> Iterator[None]:
    """Trace max-pooling as maxima of slices, for converters to formats that pad other than XLA does: jax2onnx."""
    token = _AS_MAXIMA.set(True)
    try:
        yield
    finally:
        _AS_MAXIMA.reset(token)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: Float[Array, "b h w c"], size: int, stride: int, padding: int = 0) -> Float[Array, "b h2 w2 c"]:
    """Maximum over square windows; ``padding`` pixels of -inf on all sides. The gradient goes to a window's first
    maximum, by rows, as that of ``nnx.max_pool`` does."""
    if _AS_MAXIMA.get():
        return by_maximum(x, size, stride, padding)
    return on_cpu(lambda: by_maximum(x, size, stride, padding), lambda: by_xla(x, size, stride, padding))


def _forward(x, size, stride, padding):
    return max_pool(x, size, stride, padding), x


def _backward(size, stride, padding, x, gradient):
    # The maxima are computed again: that is quicker than reading them.
    return (on_cpu(lambda: gradient_by_comparison(x, gradient, size, stride, padding),
                   lambda: jax.vjp(lambda x: by_xla(x, size, stride, padding), x)[1](gradient)[0]),)


max_pool.defvjp(_forward, _backward)


def by_xla(x: Array, size: int, stride: int, padding: int) -> Array:
    return nnx.max_pool(x, (size, size), strides=(stride, stride), padding=((padding, padding),) * 2)


def by_maximum(x: Array, size: int, stride: int, padding: int) -> Array:
    return reduce(jnp.maximum, _positions(x, size, stride, padding).values())


def gradient_by_comparison(x: Array, gradient: Array, size: int, stride: int, padding: int) -> Array:
    """Gradient of the pooling with respect to ``x``.

    Each window first gets the number of its first maximum's position. Pixels whose coordinates have the same remainders
    by the stride lie at the same positions of the windows around them, so that each class of them is a few shifted
    comparisons.
    """
    positions = _positions(x, size, stride, padding)
    maxima = reduce(jnp.maximum, positions.values())
    none = size * size
    first = jnp.full(maxima.shape, none, jnp.uint8)
    for (row, column), values in reversed(positions.items()):
        first = jnp.where(values == maxima, jnp.uint8(row * size + column), first)
    height, width = (-(-n // stride) for n in x.shape[1:3])
    margin = size  # at least as far as windows reach beyond the image
    ends = [(margin, margin + -(-n // stride)) for n in x.shape[1:3]]
    first = jnp.pad(first, ((0, 0), *ends, (0, 0)), constant_values=none)
    gradient = jnp.pad(gradient, ((0, 0), *ends, (0, 0)))

    def of_class(down: int, across: int) -> Array:
        """Gradient of the pixels (i * stride + down, j * stride + across)."""
        total = jnp.zeros((x.shape[0], height, width, x.shape[3]), gradient.dtype)
        for row in range((down + padding) % stride, size, stride):
            for column in range((across + padding) % stride, size, stride):
                top, left = (down + padding - row) // stride + margin, (across + padding - column) // stride + margin
                window = (slice(None), slice(top, top + height), slice(left, left + width))
                total += jnp.where(first[window] == row * size + column, gradient[window], 0)
        return total

    rows = [jnp.stack([of_class(down, across) for across in range(stride)], 3) for down in range(stride)]
    whole = jnp.stack(rows, 2).reshape(x.shape[0], height * stride, width * stride, x.shape[3])
    return whole[:, :x.shape[1], :x.shape[2]]


def _positions(x: Array, size: int, stride: int, padding: int) -> dict[tuple[int, int], Array]:
    """For each position (row, column) in a window, by rows: its values in all windows, ``[b, h2, w2, c]``."""
    height, width = ((n + 2 * padding - size) // stride + 1 for n in x.shape[1:3])
    around = (padding, padding)
    x = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=-jnp.inf)
    return {(row, column): x[:, row:row + (height - 1) * stride + 1:stride,
                             column:column + (width - 1) * stride + 1:stride]
            for row in range(size) for column in range(size)}
