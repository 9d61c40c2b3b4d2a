"""Two views of each image, for learning without labels."""

from __future__ import annotations

import dataclasses

import numpy as np

from big_vision_lite.data.decode import DecodeError, decode, read_header
from big_vision_lite.data.source import Example
from big_vision_lite.data.transforms.image import ImageTransform, RandomResizedCrop, Resize, Transform
from big_vision_lite.data.transforms.photometric import ColorJitter, GaussianBlur, RandomGrey, Solarize
from big_vision_lite.errors import BadImageError, UnusableImageError, UserError


@dataclasses.dataclass(frozen=True)
class TwoViews(Transform):
    """Two random views of each image, one above the other: uint8 ``[2 h, w, 3]``, for `heads.self_supervised`."""

    first: ImageTransform = RandomResizedCrop()
    """Makes the upper view."""
    second: ImageTransform | None = None
    """Makes the lower view, of the same size; None: as the upper one, with random choices of its own."""

    def __post_init__(self) -> None:
        if self.second is not None and self.second.shape != self.first.shape:
            raise UserError(f"TwoViews: first makes {self.first.shape[:2]} pixels and second {self.second.shape[:2]}; "
                            "expected equal sizes")
        if self.augment:
            raise UserError("TwoViews: augment is for the views; set first.augment and second.augment")

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.first.shape
        return 2 * height, width, channels

    @property
    def single_view(self) -> Transform:
        return Resize(self.first.size)

    def __call__(self, example: Example, rng: np.random.Generator, out: np.ndarray) -> Example:
        """As `Transform`, with "views": 2 in the example.

        Raises:
          BadImageError: also for an image of a single pixel, whose views would be equal.
        """
        height, width, _ = self.first.shape
        try:
            header = read_header(example["image"])
            # Small images are decoded once for both views; of large ones, each view decodes what it needs at less cost.
            if header.height < 2 * height and header.width < 2 * width:
                example = example | {"image": decode(example["image"])}
        except DecodeError as error:
            raise BadImageError(example["id"], str(error)) from error
        if max(header.height, header.width) < 2:
            raise UnusableImageError(example["id"], "it has 1 x 1 pixels, and two views of it would be the same; "
                                                    "expected at least 2 pixels: remove it, or set on_bad_image=mask")
        transformed = self.first(example, rng, out[:height])
        (self.second or self.first)(example, rng, out[height:])
        return transformed | {"views": 2}


def simclr_views(size: int, blur: bool | None = None, strength: float = 1.0) -> TwoViews:
    """The views of Chen et al. (2020), appendix A: crops of 8 to 100 % of the area, flips, jitter, grey and blur.

    Args:
      size: width and height of a view in pixels.
      blur: None: from 64 pixels on; the paper does without it on CIFAR-10.
      strength: of the colour jitter, at most 1; the paper has 1 on ImageNet and 0.5 on CIFAR-10.
    """
    blurred = (GaussianBlur(),) if (size >= 64 if blur is None else blur) else ()
    jitter = ColorJitter(0.8, 0.8 * strength, 0.8 * strength, 0.8 * strength, 72 * strength)
    return TwoViews(RandomResizedCrop(size, augment=(jitter, RandomGrey(), *blurred)))


def byol_views(size: int, blur: bool | None = None) -> TwoViews:
    """The views of Grill et al. (2020), appendix B, which differ from each other: the first is always blurred, the
    second rarely, but solarized at times.

    Args:
      size, blur: as of `simclr_views`.
    """
    jitter, blurred = ColorJitter(0.8, 0.4, 0.4, 0.2, 36), size >= 64 if blur is None else blur
    first, second = (((GaussianBlur(probability),) if blurred else ()) for probability in (1.0, 0.1))
    return TwoViews(RandomResizedCrop(size, augment=(jitter, RandomGrey(), *first)),
                    RandomResizedCrop(size, augment=(jitter, RandomGrey(), *second, Solarize())))
