"""Names of metrics and numbers in words, for titles and axes."""

from __future__ import annotations

from collections.abc import Mapping

from big_vision_lite.heads.head import MainMetric

METRICS: Mapping[str, str] = {
    "top1": "top-1 accuracy", "top5": "top-5 accuracy", "superclass_top1": "top-1 accuracy among superclasses",
    "mAP": "mAP", "mAP_instance": "mAP weighted by frequency", "precision@1": "precision of the best label",
    "precision@5": "precision of the five best labels", "AP": "COCO AP", "AP50": "AP at IoU 0.5",
    "AP75": "AP at IoU 0.75", "VOC_AP50": "VOC AP at IoU 0.5", "VOC07_AP50": "VOC 2007 AP at IoU 0.5",
    "mIoU": "mean IoU", "mIoU_true": "mean IoU of the classes in the truth", "pixel_accuracy": "pixel accuracy",
    "loss": "loss",
}


def metric(name: str) -> str:
    """A metric's name in words, such as "top-1 accuracy on test" for test/top1."""
    split, _, key = name.rpartition("/")
    words = METRICS.get(key, key.replace("_", " "))
    return f"{words} on {split}" if split else words


def label(main: MainMetric) -> str:
    """The metric in words with its unit, such as "rmse on test (px, lower is better)"."""
    notes = [main.unit] * bool(main.unit) + ["lower is better"] * (not main.higher_is_better)
    return metric(main.name) + (f" ({', '.join(notes)})" if notes else "")


def title(text: str) -> str:
    """With a capital first letter, as in a title; names such as mAP stay as they are."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def count(value: float) -> str:
    """A number with three digits or more, such as "1.85" or "12,345"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Such as "138 s", "12.5 min" or "3.4 h"."""
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
