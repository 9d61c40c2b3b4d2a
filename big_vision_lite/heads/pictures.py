"""Pictures of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

RIGHT, WRONG, TRUTH = "#1b6e3c", "#a3420f", "#444444"
"""Colours that stay apart for colour-blind readers, too; marks and words say the same."""
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Six of the colours of Okabe and Ito (2008), for things of many kinds; names or markers say the same."""


def grid(count: int, size: tuple[float, float], columns: int = 4) -> tuple[Any, np.ndarray]:
    """A figure for ``count`` pictures, and at least so many axes without frames, row by row.

    Args:
      size: width and height of each, in inches.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    columns = min(columns, max(count, 1))
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=110, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.axis("off")
    return figure, axes


def draw_labels(path: Path, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray,
                classes: tuple[str, ...], guesses: int = 3) -> None:
    """A grid of images, each with its true labels, if it has any, and the most probable predictions.

    Args:
      images: uint8 ``[n, h, w, 3]``.
      labels: int32 ``[n, k]``, padded with -1.
      probabilities: ``[n, c]``.
    """
    figure, axes = grid(len(images), (2.9, 3.5))
    for axis, image, true, probability in zip(axes, images, labels, probabilities, strict=False):
        true = set(true[true >= 0].tolist())
        axis.imshow(image, interpolation="nearest" if image.shape[0] < 100 else "antialiased")
        named = [_short(classes[c]) for c in sorted(true)]
        lines = []
        if named:
            lines.append(("is: " + ", ".join(named[:3]) + (f" +{len(named) - 3}" if len(named) > 3 else ""), TRUTH))
        for guess in np.argsort(-probability, kind="stable")[:guesses]:
            right = int(guess) in true
            mark, colour = ("✓ ", RIGHT) if right else ("✗ ", WRONG) if true else ("", TRUTH)
            lines.append((f"{mark}{_short(classes[guess])}  {probability[guess]:.0%}", colour))
        for i, (text, colour) in enumerate(lines):
            axis.text(0.0, -0.05 - 0.085 * i, text, transform=axis.transAxes, va="top", fontsize=8, color=colour,
                      parse_math=False)
    figure.savefig(path, bbox_inches="tight")  # beside a single image the layout leaves no room for all guesses


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[:most - 1] + "…"
