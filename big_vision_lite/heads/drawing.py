"""Pictures of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite.system.palette import RIGHT, TRUTH, WRONG


def grid(count: int, size: tuple[float, float], columns: int = 4, legend: float = 0.0) -> tuple[Any, np.ndarray]:
    """A figure for ``count`` pictures, and its axes, at least ``count``, row by row and without frames.

    Args:
      size: width and height of each picture, in inches.
      legend: further inches of height.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    columns = min(columns, max(count, 1))
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + legend), dpi=110, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.axis("off")
    return figure, axes


def draw_labels(path: Path, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray,
                classes: tuple[str, ...], guesses: int = 3) -> None:
    """Write a grid of images, each with its true labels, if any, and its most probable predictions.

    Args:
      images: uint8 ``[n, h, w, 3]``.
      labels: int32 ``[n, k]``, padded with -1.
      probabilities: ``[n, c]``.
    """
    figure, axes = grid(len(images), (2.9, 3.5))
    for axis, image, padded, probability in zip(axes, images, labels, probabilities, strict=False):
        true = set(padded[padded >= 0].tolist())
        show(axis, image)
        names = [_shortened(classes[c]) for c in sorted(true)]
        lines = []
        if names:
            lines.append(("is: " + ", ".join(names[:3]) + (f" +{len(names) - 3}" if len(names) > 3 else ""), TRUTH))
        for guess in np.argsort(-probability, kind="stable")[:guesses]:
            mark, colour = ("✓ ", RIGHT) if int(guess) in true else ("✗ ", WRONG) if true else ("", TRUTH)
            lines.append((f"{mark}{_shortened(classes[guess])}  {probability[guess]:.0%}", colour))
        for i, (text, colour) in enumerate(lines):
            axis.text(0.0, -0.05 - 0.085 * i, text, transform=axis.transAxes, va="top", fontsize=8, color=colour,
                      parse_math=False)
    figure.savefig(path, bbox_inches="tight")  # for a single image the layout leaves no room for all guesses


def show(axis: Any, image: np.ndarray) -> None:
    """An image on an axis; small ones with hard pixels."""
    axis.imshow(image, interpolation="nearest" if image.shape[0] < 100 else "antialiased")


def _shortened(name: str, length: int = 26) -> str:
    return name if len(name) <= length else name[:length - 1] + "…"
