"""A backbone that implements the declared interface, nothing more, and compiles quickly."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from big_vision_lite.backbones.backbone import Backbone, BackboneModule, ModuleList


@dataclasses.dataclass(frozen=True)
class Toy(Backbone):
    strides: tuple[int, int, int, int] = (2, 4, 8, 16)

    def build(self, rngs):
        return ToyModule(self.strides, rngs)


class ToyModule(BackboneModule):
    channels = (4, 8, 8, 8)

    def __init__(self, strides, rngs):
        self.strides = strides
        steps = [after // before for before, after in zip((1, *strides), strides, strict=False)]
        inputs = (3, *self.channels)
        self.stages = ModuleList([nnx.Conv(inputs[i], self.channels[i], (3, 3), strides=step, padding=1, rngs=rngs)
                                  for i, step in enumerate(steps)])

    def begin(self, images, train):
        return images.astype(jnp.float32) / 127.5 - 1.0

    def stage(self, index, x, train, keys=None):
        return nnx.relu(self.stages[index](x))
