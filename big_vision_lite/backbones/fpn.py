"""Feature pyramid networks (Lin et al. 2017): maps of equal channels at every stride, each seeing the coarser ones."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from big_vision_lite.backbones.backbone import ModuleList
from big_vision_lite.backbones.conv import conv_general_dilated


class FeaturePyramid(nnx.Module):
    """Stage outputs, finest first and each of half the resolution of the one before, to as many maps of ``channels``
    and one coarser: P2 to P6 of res2 to res5."""

    def __init__(self, inputs: Sequence[int], channels: int, dtype: DTypeLike, rngs: nnx.Rngs):
        def conv(count: int, size: int) -> nnx.Conv:
            pad = (size // 2, size // 2)
            return nnx.Conv(count, channels, (size, size), padding=(pad, pad), dtype=dtype,
                            kernel_init=nnx.initializers.variance_scaling(1.0, "fan_in", "uniform"),
                            conv_general_dilated=conv_general_dilated, rngs=rngs)

        self.inner = ModuleList([conv(count, 1) for count in inputs])
        self.outer = ModuleList([conv(channels, 3) for _ in inputs])

    def __call__(self, features: Sequence[Float[Array, "b _ _ _"]]) -> tuple[Float[Array, "b _ _ c"], ...]:
        above, maps = None, []
        for x, inner, outer in reversed(list(zip(features, self.inner, self.outer, strict=True))):
            x = inner(x)
            if above is not None:
                above = jnp.repeat(jnp.repeat(above, 2, 1), 2, 2)
                x += above[:, :x.shape[1], :x.shape[2]]
            above = x
            maps.insert(0, outer(x))
        return (*maps, maps[-1][:, ::2, ::2])
