"""Pictures of poses: crops with skeletons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from big_vision_lite.data.keypoints import KeypointSet, labelled
from big_vision_lite.heads.drawing import grid, show
from big_vision_lite.heads.photo import AnnotatedPhoto
from big_vision_lite.system.palette import OKABE_ITO, TRUTH, rgb


def draw_poses(path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray], keypoints: KeypointSet,
               min_score: float) -> None:
    """Write a grid of crops with the predicted keypoints of at least ``min_score`` and the limbs between them, and the
    annotated ones as crosses."""
    from matplotlib.lines import Line2D

    images = batch["image"]
    figure, axes = grid(len(images), (2.4, 2.4 * images.shape[1] / images.shape[2]), 6)
    for i, (axis, image) in enumerate(zip(axes, images, strict=False)):
        show(axis, image)
        axis.set_autoscale_on(False)  # keypoints beyond the crop do not shrink it
        true = batch["keypoints"][i]
        true = true[labelled(true)]
        # Coordinates count edges of pixels; imshow centres pixels on whole numbers.
        axis.plot(*(true[:, :2].T - 0.5), "x", color="white", markersize=6, markeredgewidth=2.4, clip_on=True)
        axis.plot(*(true[:, :2].T - 0.5), "x", color=TRUTH, markersize=5, markeredgewidth=1.1, clip_on=True)
        _draw_skeleton(axis, outputs["points"][i] - 0.5, outputs["scores"][i] >= min_score, keypoints)
    lines = [Line2D([], [], color=OKABE_ITO[1], marker="o", markersize=4, linewidth=1.3,
                    label=f"predicted, score {min_score:.0%} or more")]
    if labelled(batch["keypoints"]).any():
        lines.append(Line2D([], [], color=TRUTH, marker="x", linestyle="", markersize=5, label="annotated"))
    figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path)


def annotate_poses(photo: UInt8[np.ndarray, "h w 3"], poses: Sequence[dict[str, Any]], keypoints: KeypointSet,
                   min_score: float) -> UInt8[np.ndarray, "H W 3"]:
    """The photo with the keypoints of at least ``min_score`` of each pose and the limbs between them. Below it stands
    how many poses there are.

    Args:
      poses: by falling score, as `TopDown.to_json` gives them.
    """
    colours, picture = [rgb(colour) for colour in OKABE_ITO], AnnotatedPhoto(photo)
    for pose in reversed(poses):
        points = [pose["keypoints"][name] for name in keypoints.names]
        for number, (start, end) in enumerate(keypoints.limbs):
            if min(points[start][2], points[end][2]) >= min_score:
                picture.line([points[start][:2], points[end][:2]], colours[number % len(colours)])
        for k, (x, y, score) in enumerate(points):
            if score >= min_score:
                picture.dot(x, y, colours[k % len(colours)])
    return picture.finish([(f"{len(poses)} poses" if len(poses) != 1 else f"score {poses[0]['score']:.0%}", None)])


def _draw_skeleton(axis: Any, points: np.ndarray, is_shown: np.ndarray, keypoints: KeypointSet) -> None:
    for number, (start, end) in enumerate(keypoints.limbs):
        if is_shown[[start, end]].all():
            axis.plot(*points[[start, end]].T, color=OKABE_ITO[number % len(OKABE_ITO)], linewidth=1.6, clip_on=True)
    for k in np.flatnonzero(is_shown):
        axis.plot(*points[k], "o", color=OKABE_ITO[k % len(OKABE_ITO)], markeredgecolor="white", markeredgewidth=0.6,
                  markersize=4.5, clip_on=True)
