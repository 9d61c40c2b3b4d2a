"""Pictures of masks: image, truth and prediction side by side, in VOC's colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from big_vision_lite.data.masks import VOID
from big_vision_lite.heads.drawing import grid, show
from big_vision_lite.heads.photo import AnnotatedPhoto, tinted


def palette(count: int = 256) -> UInt8[np.ndarray, "count 3"]:
    """VOC's colour of each mask value: bits 0, 1 and 2 of the value are the highest bits of red, green and blue, bits
    3, 4 and 5 the second highest, and so on (VOC devkit, VOClabelcolormap)."""
    values, channels = np.arange(count)[:, None], np.arange(3)
    return sum((values >> (3 * bit + channels) & 1) << (7 - bit) for bit in range(8)).astype(np.uint8)


def overlay(image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"],
            opacity: float = 0.75) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its classes in colour and white borders between them; the background is left as it is."""
    coloured = image + opacity * (palette()[mask] - image.astype(np.float32))
    picture = np.where((mask > 0)[..., None], coloured, image)
    edge = np.zeros(mask.shape, bool)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    if min(mask.shape) > 100:  # on a tiny image a border would hide what it surrounds
        picture[edge] = 255
    return picture.astype(np.uint8)


def indexed(mask: UInt8[np.ndarray, "h w"]) -> Image.Image:
    """A mask as an image with a palette, as VOC stores them: its values are the classes, its colours VOC's."""
    image = Image.fromarray(mask)
    image.putpalette(palette().tobytes())
    return image


def draw_masks(path: Path, rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], names: Sequence[str],
               max_names: int = 14) -> None:
    """Write a picture of each image, its true mask (unless all masks are void) and its predicted one.

    Args:
      rows: for each image, pixels uint8 ``[h, w, 3]``, true and predicted mask uint8 ``[h, w]``.
      names: of mask values from 0, the background.
      max_names: classes in the legend, those with the most pixels first.
    """
    from matplotlib.patches import Patch

    truth = any((true != VOID).any() for _, true, _ in rows)
    titles = ["image", "truth", "prediction"] if truth else ["image", "prediction"]
    blocks = 2 if len(rows) > 3 else 1  # side by side, so that many images fit a screen
    aspect = max(image.shape[0] / image.shape[1] for image, _, _ in rows)
    side, columns = 2.4 if len(rows) > 1 else 4.8, blocks * len(titles)
    figure, axes = grid(-(-len(rows) // blocks) * columns, (side, aspect * side + 0.3), columns, legend=0.8)
    pixels = np.zeros(256, np.int64)
    for i, (image, true, predicted) in enumerate(rows):
        pictures = [image, *([overlay(image, true)] if truth else []), overlay(image, predicted)]
        for axis, picture, title in zip(axes[i * len(titles):], pictures, titles, strict=False):
            show(axis, picture)
            if i < blocks:
                axis.set_title(title, fontsize=9)
        pixels += np.bincount(predicted.ravel(), minlength=256)
        if truth:
            pixels += np.bincount(true.ravel(), minlength=256)
    colours = palette() / 255
    present = [value for value in np.argsort(-pixels, kind="stable") if pixels[value] and 0 < value < len(names)]
    handles = [Patch(color=colours[value], label=names[value]) for value in present[:max_names]]
    if len(present) > max_names:
        handles.append(Patch(color="none", label=f"and {len(present) - max_names} more"))
    if truth and pixels[VOID]:
        handles.append(Patch(color=colours[VOID], label="void"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", fontsize=8, frameon=False,
                      ncols=min(len(handles), max(2, int(side * columns / 1.6))))
    figure.savefig(path)


def annotate_mask(photo: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"],
                  names: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """The photo with a mask of its size over it, and the share of each class below, largest first.

    Args:
      names: of mask values from 0, the background.
    """
    counts = np.bincount(mask.ravel(), minlength=len(names))
    order = [value for value in np.argsort(-counts, kind="stable").tolist() if counts[value]]
    colours = palette()
    return AnnotatedPhoto(tinted(photo, mask, colours)).finish(
        [(f"{names[value]} {counts[value] / mask.size:.1%}", tuple(colours[value].tolist()) if value else None)
         for value in order])
