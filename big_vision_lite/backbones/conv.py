"""2-D convolution that is fast on CPUs too.

XLA's CPU backend computes most convolutions well, and some at a fraction of the speed of its own matrix product. On
CPUs, each of the three convolutions of a layer (forward, gradient of the image, gradient of the filter) takes one of
three forms, by rules of shape; docs/performance.md has the measurements behind them:

- by XLA's own convolution, the default, and the only one on other platforms;
- by matrix products, one per tap of the filter: the gradient of 1x1 filters, and feature maps smaller than the filter;
- by phases: the gradient of the image of a strided filter, as a dense convolution per remainder of the coordinates by
  the stride, where XLA's multiplies by the zeros between strides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.typing import DTypeLike
from jaxtyping import Float

from big_vision_lite.system.cpu import uses_fast_forms

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


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
    if _is_smaller(x, kernel):
        return on_cpu(lambda: by_products(x, kernel, **form), lambda: by_xla(x, kernel, **form))
    return by_xla(x, kernel, **form)


def _forward(x, kernel, strides, padding, dilation):
    return conv2d(x, kernel, strides, padding, dilation), (x, kernel)


def _backward(strides, padding, dilation, saved, gradient):
    x, kernel = saved
    form = dict(strides=strides, padding=padding, dilation=dilation)

    def of_image(conv):
        return lambda: jax.vjp(lambda x: conv(x, kernel, **form), x)[1](gradient)[0]

    if max(strides) > 1 and max(kernel.shape[:2]) > 1 and dilation == (1, 1):
        to_x = on_cpu(lambda: image_gradient_by_phases(gradient, kernel, strides, padding, x.shape[1:3]),
                       of_image(by_xla))
    elif _is_smaller(gradient, kernel):
        to_x = on_cpu(of_image(by_products), of_image(by_xla))
    else:
        to_x = of_image(by_xla)()

    def of_kernel(x: Array, gradient: Array) -> Array:
        return jax.vjp(lambda kernel: by_xla(x, kernel, **form), kernel)[1](gradient)[0]

    fast = of_kernel
    if kernel.shape[:2] == (1, 1):
        fast = partial(kernel_gradient_by_product, strides=strides, padding=padding)
    to_kernel = on_cpu(lambda: fast(_written(x), _written(gradient)), lambda: of_kernel(x, gradient))
    return to_x, to_kernel


conv2d.defvjp(_forward, _backward)


def _is_smaller(x: Array, kernel: Array) -> bool:
    """Whether a feature map is smaller than a filter."""
    return min(x.shape[1:3]) < max(kernel.shape[:2])


def on_cpu(fast: Callable[[], Array], default: Callable[[], Array]) -> Array:
    """``fast()`` where the program runs on CPUs, unless that is switched off (`system.cpu`); else ``default()``."""
    return lax.platform_dependent(cpu=fast, default=default) if uses_fast_forms() else default()


def _written(x: Array) -> Array:
    """``x``, which XLA must have in memory before it computes with it.

    The gradient of a filter needs transposed images. XLA would compute the layers that made the image once more while
    it transposes, in the transposed order, which takes three to eight times as long as transposing what is written. A
    function that must not be inlined is a border that its fusions do not cross.
    """
    return set_xla_metadata(jax.jit(lambda *x: x)(x), inlineable="false")[0]


def by_xla(x: Array, kernel: Array, strides: Pair, padding: Padding, dilation: Pair) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=_LAYOUT)


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


def kernel_gradient_by_product(x: Array, gradient: Array, strides: Pair, padding: Padding) -> Array:
    """Gradient of a 1x1 filter: the transposed image times the output's gradient."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))[:, ::strides[0], ::strides[1]]
    # The barrier has the transposed image written before it is multiplied, in half the time of a transposed product.
    transposed = lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    return (transposed @ gradient.reshape(-1, gradient.shape[-1]))[None, None]


def image_gradient_by_phases(gradient: Array, kernel: Array, strides: Pair, padding: Padding, size: Pair) -> Array:
    """Gradient of the image, of height and width ``size``, of a convolution without dilation.

    Pixel i * stride + phase gets the output's gradient at i + (phase + pad - tap) / stride times the filter's taps for
    which that is a whole number: one convolution of stride 1 per phase, whose results are interleaved.
    """
    counts = tuple(-(-n // stride) for n, stride in zip(size, strides, strict=True))

    def of_phase(*phase: int) -> Array:
        first = [(phase[d] + padding[d][0]) % strides[d] for d in (0, 1)]
        taps = kernel[first[0]::strides[0], first[1]::strides[1]]
        if not taps.size:
            return jnp.zeros((gradient.shape[0], *counts, kernel.shape[2]), gradient.dtype)
        around = []
        for d in (0, 1):
            ahead = (phase[d] + padding[d][0] - first[d]) // strides[d]  # of the output of the first tap
            around.append((taps.shape[d] - 1 - ahead, counts[d] + ahead - gradient.shape[1 + d]))
        return lax.conv_general_dilated(gradient, taps[::-1, ::-1].swapaxes(2, 3), (1, 1), around,
                                        dimension_numbers=_LAYOUT)

    rows = [jnp.stack([of_phase(down, across) for across in range(strides[1])], 3) for down in range(strides[0])]
    whole = jnp.stack(rows, 2).reshape(len(gradient), counts[0] * strides[0], counts[1] * strides[1], -1)
    return whole[:, :size[0], :size[1]]


def _outputs(x: tuple[int, ...], kernel: tuple[int, ...], strides: Pair, padding: Padding, dilation: Pair) -> Pair:
    """Height and width of the convolution's output."""
    return tuple((x[1 + d] + sum(padding[d]) - dilation[d] * (kernel[d] - 1) - 1) // strides[d] + 1 for d in (0, 1))
