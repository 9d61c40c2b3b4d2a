"""Pictures of detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from big_vision_lite.heads.detection.matching import OBJECT, PADDING
from big_vision_lite.heads.drawing import grid, show
from big_vision_lite.heads.photo import AnnotatedPhoto
from big_vision_lite.system.palette import OKABE_ITO, TRUTH, rgb

SHOWN = 0.3
"""Scores from which detections are drawn."""


def draw_boxes(path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray], classes: tuple[str, ...],
               min_score: float = SHOWN) -> None:
    """Write a grid of images with their detections of at least ``min_score``, and their annotations as dashed boxes."""
    from matplotlib.lines import Line2D

    images = batch["image"]
    tallest = max((height / width for height, width in batch["size"].tolist()), default=1.0)
    figure, axes = grid(len(images), (3.4, 3.4 * tallest))
    for i, (axis, image) in enumerate(zip(axes, images, strict=False)):
        height, width = batch["size"][i]
        show(axis, image[:height, :width])
        for box, kind in zip(batch["boxes"][i], batch["kind"][i], strict=True):
            if kind != PADDING:
                _outline(axis, box, TRUTH if kind == OBJECT else "#999999", linestyle="--", linewidth=0.9)
        visible = outputs["valid"][i] & (outputs["scores"][i] >= min_score)
        for k in np.flatnonzero(visible)[::-1]:  # the best on top
            label, colour = outputs["labels"][i][k], OKABE_ITO[outputs["labels"][i][k] % len(OKABE_ITO)]
            box = outputs["boxes"][i][k]
            _outline(axis, box, colour, linestyle="-", linewidth=1.3)
            axis.text(box[0], box[1], f"{classes[label]} {outputs['scores'][i][k]:.0%}", fontsize=6, color="white",
                      va="top" if box[1] < 0.05 * height else "bottom", parse_math=False, clip_on=True,
                      bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6})
    lines = [Line2D([], [], color=TRUTH, linewidth=1.3, label=f"detected, score {min_score:.0%} or more")]
    if (batch["kind"] != PADDING).any():
        lines.append(Line2D([], [], color=TRUTH, linestyle="--", linewidth=0.9, label="annotated"))
    figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path)


def _outline(axis: Any, box: np.ndarray, colour: str, **line: Any) -> None:
    from matplotlib.patches import Rectangle

    # Box coordinates are edges of pixels; imshow centres pixels on whole numbers.
    axis.add_patch(Rectangle((box[0] - 0.5, box[1] - 0.5), box[2] - box[0], box[3] - box[1], fill=False,
                             edgecolor=colour, **line))


def annotate_boxes(photo: UInt8[np.ndarray, "h w 3"], detections: Sequence[dict[str, Any]], classes: tuple[str, ...],
                   min_score: float) -> UInt8[np.ndarray, "H W 3"]:
    """The photo with its detections of at least ``min_score``: the best are on top, and have the first choice of where
    their label is. Below it stands how many there are of each class.

    Args:
      detections: by falling score, as `FasterRCNN.to_json` gives them.
    """
    shown = [one for one in detections if one["score"] >= min_score]
    numbers, counts = {name: number for number, name in enumerate(classes)}, dict[str, int]()
    colours = {one["label"]: rgb(OKABE_ITO[numbers[one["label"]] % len(OKABE_ITO)]) for one in shown}
    picture = AnnotatedPhoto(photo)
    for one in reversed(shown):
        picture.outline(one["box"], colours[one["label"]])
    for one in shown:
        picture.label(one["box"], f"{one['label']} {one['score']:.0%}", colours[one["label"]])
        counts[one["label"]] = counts.get(one["label"], 0) + 1
    caption = [(f"{count} {name}", colours[name]) for name, count in sorted(counts.items(), key=lambda item: -item[1])]
    return picture.finish(caption or [(f"nothing with a score of {min_score:.0%} or more", None)])
