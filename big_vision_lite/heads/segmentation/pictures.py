"""Pictures of masks: the image, the truth and the prediction side by side, in VOC's colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from big_vision_lite.data.joint_transforms import VOID


def palette(count: int = 256) -> UInt8[np.ndarray, "count 3"]:
    """VOC's colour of each mask value: bits 0, 1 and 2 of the value are the highest bits of red, green and blue, bits
    3, 4 and 5 the next, and so on (VOC devkit, VOClabelcolormap)."""
    values = np.arange(count)[:, None]
    channels = np.arange(3)
    return sum((values >> (3 * place + channels) & 1) << (7 - place) for place in range(8)).astype(np.uint8)


def overlay(image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"],
            opacity: float = 0.75) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its classes in colour, the background as it is, and borders between classes in white."""
    coloured = image + opacity * (palette()[mask] - image.astype(np.float32))
    shown = np.where((mask > 0)[..., None], coloured, image)
    edge = np.zeros(mask.shape, bool)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    if min(mask.shape) > 100:  # on a tiny image a border would hide what it surrounds
        shown[edge] = 255
    return shown.astype(np.uint8)


def draw_masks(path: Path, rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], names: Sequence[str],
               most: int = 14) -> None:
    """Write a picture with a line an image: the image, its true mask (unless all of it is void) and the predicted one.

    Args:
      rows: of each image its pixels uint8 ``[h, w, 3]``, true and predicted mask uint8 ``[h, w]``.
      names: of mask values, from 0, the background.
      most: classes in the legend, those with the most pixels first.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display
    from matplotlib.patches import Patch

    truth = any((true != VOID).any() for _, true, _ in rows)
    titles = ["image", "truth", "prediction"] if truth else ["image", "prediction"]
    blocks = 2 if len(rows) > 3 else 1  # of columns, so that many images fit a screen
    lines = -(-len(rows) // blocks)
    aspect = max(image.shape[0] / image.shape[1] for image, _, _ in rows)
    width = 2.4 * blocks * len(titles) if len(rows) > 1 else 4.8 * len(titles)
    figure = Figure(figsize=(width, lines * (aspect * width / blocks / len(titles) + 0.3) + 0.8), dpi=110,
                    layout="constrained")
    axes = np.atleast_2d(figure.subplots(lines, blocks * len(titles)))
    for axis in axes.ravel():
        axis.axis("off")
    pixels = np.zeros(256, np.int64)
    for i, (image, true, predicted) in enumerate(rows):
        shown = [image, *([overlay(image, true)] if truth else []), overlay(image, predicted)]
        block = axes[i // blocks, (i % blocks) * len(titles) : (i % blocks + 1) * len(titles)]
        for axis, picture, title in zip(block, shown, titles, strict=True):
            axis.imshow(picture, interpolation="nearest" if image.shape[0] < 100 else "antialiased")
            if i < blocks:
                axis.set_title(title, fontsize=9)
        pixels += np.bincount(predicted.ravel(), minlength=256)
        if truth:
            pixels += np.bincount(true.ravel(), minlength=256)
    colours = palette() / 255
    present = [value for value in np.argsort(-pixels, kind="stable") if pixels[value] and 0 < value < len(names)]
    handles = [Patch(color=colours[value], label=names[value]) for value in present[:most]]
    if len(present) > most:
        handles.append(Patch(color="none", label=f"and {len(present) - most} more"))
    if truth and pixels[VOID]:
        handles.append(Patch(color=colours[VOID], label="void"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), max(2, int(width / 1.6))),
                      fontsize=8, frameon=False)
    figure.savefig(path)
