"""2-D convolution that is fast on CPUs too.

XLA's CPU backend handles most convolutions well, but is up to 50 times slower than its own matrix product on three
kinds: the gradient of 1x1 filters, the gradient of 3x3 filters on large images, and anything on feature maps smaller
than the filter. On CPUs these are computed as a sum over the filter's taps, one matrix product per tap; other platforms
always use ``lax.conv_general_dilated``. Measured in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

_LARGE = 24
"""Output height from which products win for the gradient of a 3x3 filter."""
_TINY = 3
"""Output height up to which products win for everything."""


def conv_general_dilated(lhs, rhs, window_strides, padding, *, rhs_dilation=None, **_):
    """A replacement for ``lax.conv_general_dilated`` inside ``nnx.Conv``: NHWC, explicit padding, one group."""
    return conv2d(lhs, rhs, tuple(window_strides), tuple(map(tuple, padding)), tuple(rhs_dilation or (1, 1)))


def same_conv(inputs: int, outputs: int, size: int, *, kernel_init: nnx.Initializer, dtype: DTypeLike, rngs: nnx.Rngs,
              stride: int = 1, dilation: int = 1, use_bias: bool = True, kind: type[nnx.Conv] = nnx.Conv) -> nnx.Conv:
    """A convolution of odd ``size`` with symmetric padding."""
    pad = dilation * (size // 2)
    return kind(inputs, outputs, (size, size), strides=(stride, stride), padding=((pad, pad), (pad, pad)),
                kernel_dilation=(dilation, dilation), use_bias=use_bias, dtype=dtype, kernel_init=kernel_init,
                conv_general_dilated=conv_general_dilated, rngs=rngs)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv2d(x: Float[Array, "b h w i"], kernel: Float[Array, "p q i o"], strides: Pair, padding: Padding,
           dilation: Pair = (1, 1)) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation of ``x`` with ``kernel``, as ``lax.conv_general_dilated`` defines it."""
    form = dict(strides=strides, padding=padding, dilation=dilation)
    height = _outputs(x.shape, kernel.shape, **form)[0]
    return _choose(height <= _TINY, lambda conv: conv(x, kernel, **form))


def _choose(products: bool, compute: Callable[[Callable], Array]) -> Array:
    if not products:
        return compute(by_xla)
    return lax.platform_dependent(cpu=lambda: compute(by_products), default=lambda: compute(by_xla))


def _forward(x, kernel, strides, padding, dilation):
    return conv2d(x, kernel, strides, padding, dilation), (x, kernel)


def _backward(strides, padding, dilation, saved, gradient):
    x, kernel = saved
    form = dict(strides=strides, padding=padding, dilation=dilation)
    size, height = max(kernel.shape[:2]), gradient.shape[1]
    to_x = _choose(height <= _TINY, lambda conv: jax.vjp(lambda x: conv(x, kernel, **form), x)[1](gradient)[0])
    products = size == 1 or (size <= 3 and (height >= _LARGE or height <= _TINY))
    to_kernel = _choose(products, lambda conv: jax.vjp(lambda k: conv(x, k, **form), kernel)[1](gradient)[0])
    return to_x, to_kernel


conv2d.defvjp(_forward, _backward)


def by_xla(x: Array, kernel: Array, strides: Pair, padding: Padding, dilation: Pair) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def by_products(x: Array, kernel: Array, strides: Pair, padding: Padding, dilation: Pair) -> Array:
    """The same sum, as one matrix product over channels per tap of the filter."""
    height, width = _outputs(x.shape, kernel.shape, strides, padding, dilation)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def tap(row: int, column: int) -> Array:
        top, left = row * dilation[0], column * dilation[1]
        window = x[:, top:top + (height - 1) * strides[0] + 1:strides[0],
                   left:left + (width - 1) * strides[1] + 1:strides[1]]
        return jnp.einsum("bhwi,io->bhwo", window, kernel[row, column])

    return sum(tap(row, column) for row in range(kernel.shape[0]) for column in range(kernel.shape[1]))


def _outputs(x: tuple[int, ...], kernel: tuple[int, ...], strides: Pair, padding: Padding, dilation: Pair) -> Pair:
    """Height and width of the convolution's output."""
    return tuple((x[1 + d] + sum(padding[d]) - dilation[d] * (kernel[d] - 1) - 1) // strides[d] + 1 for d in (0, 1))
