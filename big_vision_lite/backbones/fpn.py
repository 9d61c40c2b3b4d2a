"""Feature pyramid networks (Lin et al. 2017): maps of equal channels at every stride, each seeing the coarser ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from big_vision_lite.backbones.backbone import ModuleList
from big_vision_lite.backbones.conv import same_conv


class FeaturePyramid(nnx.Module):
    """From stage outputs, finest first, each at half the resolution of the previous one, to maps of ``channels``
    channels at the same resolutions plus one coarser: res2 to res5 give P2 to P6."""

    def __init__(self, inputs: Sequence[int], channels: int, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
        conv = partial(same_conv, kernel_init=init, dtype=dtype, rngs=rngs)
        self.inner = ModuleList([conv(channels_in, channels, 1) for channels_in in inputs])
        self.outer = ModuleList([conv(channels, channels, 3) for _ in inputs])

    def __call__(self, features: Sequence[Float[Array, "b _ _ _"]]) -> tuple[Float[Array, "b _ _ c"], ...]:
        coarser, maps = None, []
        for x, inner, outer in reversed(list(zip(features, self.inner, self.outer, strict=True))):
            x = inner(x)
            if coarser is not None:
                coarser = jnp.repeat(jnp.repeat(coarser, 2, 1), 2, 2)
                x += coarser[:, :x.shape[1], :x.shape[2]]
            coarser = x
            maps.insert(0, outer(x))
        return (*maps, maps[-1][:, ::2, ::2])
