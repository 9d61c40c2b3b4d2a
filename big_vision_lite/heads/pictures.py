"""Pictures of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

RIGHT, WRONG, TRUTH = "#1b6e3c", "#a3420f", "#444444"
"""Colours that stay apart for colour-blind readers, too; marks and words say the same."""


def draw_labels(path: Path, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray,
                classes: tuple[str, ...], columns: int = 4, guesses: int = 3) -> None:
    """A grid of images, each with its true labels, if it has any, and the most probable predictions.

    Args:
      images: uint8 ``[n, h, w, 3]``.
      labels: int32 ``[n, k]``, padded with -1.
      probabilities: ``[n, c]``.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    columns = min(columns, max(len(images), 1))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.9 * columns, 3.5 * rows), dpi=110, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.axis("off")
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
    figure.savefig(path)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[:most - 1] + "…"
