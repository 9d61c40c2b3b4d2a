"""A slow crop, in a module of its own so that worker processes of the input can import it."""

from __future__ import annotations

import dataclasses
import time

from big_vision_lite.data.transforms.image import RandomCropPadded


@dataclasses.dataclass(frozen=True)
class SlowCrop(RandomCropPadded):
    """`RandomCropPadded` after a delay per image."""

    seconds: float = 0.05

    def __call__(self, example, rng, out):
        time.sleep(self.seconds)
        return super().__call__(example, rng, out)
