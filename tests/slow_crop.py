"""A crop that takes its time: in a module of its own, so that worker processes of the input can make it too."""

from __future__ import annotations

import dataclasses
import time

from big_vision_lite.data.transforms import PadCrop


@dataclasses.dataclass(frozen=True)
class SlowCrop(PadCrop):
    """`PadCrop`, some seconds an image later."""

    seconds: float = 0.05

    def __call__(self, example, rng, out):
        time.sleep(self.seconds)
        return super().__call__(example, rng, out)
