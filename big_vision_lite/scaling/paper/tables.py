"""Published values, each with how well it is known, in tables that set our own results beside them.

The paper is Sun, Shrivastava, Singh and Gupta, "Revisiting Unreasonable Effectiveness of Data in Deep Learning Era",
ICCV 2017, arXiv 1707.02968. Its follow-ups: Kolesnikov et al., "Big Transfer", 2020 (BiT); Mahajan et al., "Exploring
the limits of weakly supervised pretraining", 2018. A run stands in a table if its factors ``table`` and ``row`` say so,
or `bvl report --table --row`; configs/paper/ has a study for each table.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

Tag = Literal["S", "S2", "M-hi", "M-med", "M-lo"]
"""S: read in the primary source; S2: read in a later paper, a survey or notes; M: from memory, with high, medium or low
confidence."""
_PROVENANCE = {"S": "reported", "S2": "reported, by a second source"}


@dataclasses.dataclass(frozen=True)
class Reported:
    """A reported value."""

    value: float
    tag: Tag

    @property
    def provenance(self) -> str:
        """How well it is known, in words."""
        return _PROVENANCE.get(self.tag, "reported, unverified")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    metric: str | None = None
    """Last part of the metric's name in results.csv; None: not measured here."""
    factor: float = 100.0
    """From our unit to the paper's."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, or the known values of a figure."""

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[Reported | None, ...]]
    """A value per column by row name; None: unknown."""
    note: str = ""

    def ours(self, results: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], list[float]]:
        """Our values per (row, column), in the paper's units: one per finished run of results.csv."""
        values: dict[tuple[str, str], list[float]] = {}
        for result in results:
            row = str(result.get("row", ""))
            if result.get("table") != self.name or row not in self.rows or result.get("status", "done") != "done":
                continue
            for column in self.columns:
                value = _metric(result, column.metric)
                if value is not None:
                    values.setdefault((row, column.name), []).append(value * column.factor)
        return values

    def cells(self, results: Sequence[Mapping[str, str]]) -> list[tuple[str, str, str, str, str]]:
        """(row, column, reported, ours, difference) as text."""
        ours, cells = self.ours(results), []
        for row, values in self.rows.items():
            for column, reported in zip(self.columns, values, strict=True):
                measured = ours.get((row, column.name), [])
                theirs = f"{reported.value:g} ({reported.provenance})" if reported else "unknown"
                mean = statistics.fmean(measured) if measured else None
                own = "not run" if mean is None else f"{mean:.4g}" + (
                    f" ({min(measured):.4g} to {max(measured):.4g}, {len(measured)} runs)" if len(measured) > 1 else "")
                difference = f"{mean - reported.value:+.4g}" if measured and reported else ""
                cells.append((row, column.name, theirs, own, difference))
        return cells

    def text(self, results: Sequence[Mapping[str, str]] = ()) -> str:
        """The table as lines: each reported value with its provenance, ours (mean over runs), and the difference."""
        rows = [("", "", "reported", "ours", "difference"), *self.cells(results)]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join((*filter(None, (self.title, self.source, self.note, self.scale_warning(results))), *lines))

    def scale_warning(self, results: Sequence[Mapping[str, str]]) -> str:
        """A warning if ours are small studies."""
        mini = any(r.get("table") == self.name and r.get("scale") == "mini" for r in results)
        return ("Ours are of small stand-ins (scale=mini): compare the order of rows and their distances, not the "
                "values" if mini else "")


def _metric(result: Mapping[str, str], name: str | None) -> float | None:
    for key, text in result.items():
        if name is not None and key.rpartition("/")[2].lower() == name.lower() and text not in ("", None):
            try:
                return float(text)
            except ValueError:
                return None
    return None


def _rows(tag: Tag, rows: Mapping[str, tuple[float | None, ...]]) -> dict[str, tuple[Reported | None, ...]]:
    return {name: tuple(None if v is None else Reported(v, tag) for v in values) for name, values in rows.items()}


_SUN = "Sun et al. 2017"
_BIT = "Kolesnikov et al. 2020, BiT with ResNet-152x4"
_TOP = (Column("top-1", "top1"), Column("top-5", "top5"))
_AP = (Column("AP@.5", "AP50"), Column("AP@[.5,.95]", "AP"))
_MINIVAL = ("minival* is 8,000 images of val2014 whose list is not public here: scores without that list are on "
            "val2017")

TABLES: dict[str, Table] = {table.name: table for table in (
    Table("imagenet", "ImageNet validation, ResNet-101 fine-tuned, single crop (%)", _SUN, _TOP,
          {"MSRA checkpoint": (Reported(76.4, "S"), Reported(92.9, "M-hi")),
           **_rows("M-hi", {"random": (77.5, 93.9), "300M": (79.2, 94.7)})}),
    Table("coco", "COCO test-dev detection, Faster R-CNN with ResNet-101 (%)", _SUN, _AP,
          {"He et al.": (Reported(53.3, "M-hi"), Reported(32.2, "M-hi")),
           "ImageNet": (Reported(53.6, "M-hi"), Reported(34.3, "S")),
           "300M": (Reported(56.9, "M-hi"), Reported(36.7, "M-hi")),
           "ImageNet+300M": (Reported(58.0, "S"), Reported(37.4, "S")),
           "Inception-ResNet-v2": (Reported(56.3, "M-med"), Reported(35.5, "M-med"))},
          "ImageNet+300M starts from the ImageNet model and goes on with JFT-300M; 300M starts from random weights "
          "(unverified). Of ImageNet+300M, AP@.75 is 40.1, and AP of small, medium and large objects 17.5, 41.1 and "
          "51.2 (reported). Test-dev is scored by COCO's server: bvl evaluate RUN --source JSON --submission FILE "
          "writes what it takes"),
    Table("voc07", "VOC 2007 test detection, trained on 07+12 trainval (%)", _SUN, (Column("AP@.5", "VOC07_AP50"),),
          _rows("M-hi", {"ImageNet": (76.3,), "300M": (81.4,), "ImageNet+300M": (81.3,)})),
    Table("voc12", "VOC 2012 val segmentation, DeepLab-ASPP-L (%)", _SUN, (Column("mIoU", "mIoU"),),
          _rows("M-hi", {"ImageNet": (73.6,), "300M": (75.3,), "ImageNet+300M": (76.5,)})),
    Table("keypoints", "COCO test-dev keypoints, pipeline of Papandreou et al. (%)", _SUN,
          (Column("AP", "AP"), Column("AP@.5", "AP50"), Column("AR", "AR"), Column("AR@.5", "AR50")),
          _rows("M-med", {"CMU Pose": (61.8, 84.9, 66.5, 87.2), "ImageNet": (62.4, 84.0, 66.7, 86.6),
                          "300M": (64.8, 85.8, 69.4, 88.5), "ImageNet+300M": (64.4, 85.7, 69.1, 88.2)}),
          "Only the pretraining of the second stage differs between the rows. Ours are on val2017, with annotated "
          "boxes unless a detector's are given"),
    Table("data_size", "COCO minival* against pretraining images, fine-tuned (%)", _SUN,
          (Column("AP@[.5,.95]", "AP"),),
          {"10M": (None,), "30M": (None,), "100M": (None,), "300M": (Reported(36.8, "M-med"),)},
          "The paper draws the other points and prints no values: about linear in the logarithm of the images, with no "
          "end at 300M (reported); frozen features gain more (unverified). " + _MINIVAL),
    Table("training_length", "COCO minival* against the steps of pretraining on JFT-300M (%)", _SUN,
          (Column("AP@[.5,.95]", "AP"),), _rows("M-med", {"12M": (35.0,), "24M": (36.1,), "36M": (36.8,)}),
          "Steps are of 32 images. " + _MINIVAL),
    Table("classes", "COCO minival* against the classes of 30M pretraining images (%)", _SUN,
          (Column("AP@[.5,.95]", "AP"),), _rows("M-lo", {"1K": (31.2,), "18K": (31.9,)}), _MINIVAL),
    Table("capacity", "COCO minival* of ResNets pretrained on ImageNet and on JFT-300M (%)", _SUN,
          (Column("AP@[.5,.95]", "AP"),),
          {**{f"ResNet-{depth}, {data}": (None,) for depth in (50, 101, 152) for data in ("ImageNet", "300M")},
           "ResNet-50, gain": (Reported(1.87, "S2"),), "ResNet-152, gain": (Reported(3.0, "S2"),)},
          "A bar chart without values. The gains from 300M over ImageNet are those of Google's post of July 2017, as "
          "the press reports them"),
    Table("duplicates", "Images of evaluation sets that have near-duplicates in JFT-300M", _SUN,
          (Column("near-duplicates"), Column("images")),
          {"ImageNet val": (Reported(5_536, "M-hi"), Reported(50_000, "M-hi")),
           **_rows("M-med", {"COCO minival*": (1_648, 8_000), "VOC 2007 test": (201, 4_952),
                             "VOC 2012 val": (84, 1_449)})},
          "Scores without them are unknown; they moved little (unverified). bvl data duplicates counts ours"),
    Table("bit", "BiT by size of the pretraining set (%)", _BIT,
          (Column("ILSVRC", "top1"), Column("CIFAR-10"), Column("CIFAR-100"), Column("Pets"), Column("Flowers"),
           Column("VTAB-1k"), Column("COCO AP, R101x3")),
          _rows("S", {"BiT-S (1.28M)": (81.30, 97.51, 86.21, 93.97, 89.89, 66.87, 41.7),
                      "BiT-M (14.2M)": (85.39, 98.91, 92.17, 94.46, 99.30, 70.64, 43.2),
                      "BiT-L (300M)": (87.54, 99.37, 93.51, 96.62, 99.63, 76.29, 43.8)})),
    Table("bit_r50", "BiT-M ResNet-50x1, ILSVRC fine-tuned (%)", "big_transfer README", (Column("top-1", "top1"),),
          {"BiT-S": (None,), **_rows("S", {"BiT-M": (80.68,)})}),
    Table("bit_few_shot", "BiT-L on ILSVRC by images per class (%)", _BIT, (Column("top-1", "top1"),),
          _rows("S", {"5": (72.0,), "10": (76.8,), "100": (84.1,)})),
    Table("bit_norm", "ResNet-50 on ILSVRC from scratch, batch 4,096, and transferred (%)", _BIT,
          (Column("top-1", "top1"), Column("VTAB-1k")),
          _rows("S", {"BN": (75.6, 67.72), "BN + WS": (75.8, 66.78), "GN": (70.2, 68.77), "GN + WS": (76.0, 70.39)})),
    Table("bit_duplicates", "BiT with near-duplicates of the test set in pretraining, and without (%)", _BIT,
          (Column("all", "top1"), Column("without"), Column("near-duplicates", factor=1)),
          _rows("S", {"ILSVRC val, JFT": (87.8, 87.9, 6_470), "ILSVRC val, ImageNet-21k": (84.5, 85.3, 3_834),
                      "ILSVRC val, ILSVRC": (80.3, 81.3, 879), "CIFAR-10, JFT": (99.4, 99.3, 435),
                      "CIFAR-10, ImageNet-21k": (98.5, 98.4, 687), "CIFAR-10, ILSVRC": (97.2, 97.2, 82),
                      "CIFAR-100, JFT": (93.6, 93.4, 491), "CIFAR-100, ImageNet-21k": (91.2, 90.7, 890),
                      "CIFAR-100, ILSVRC": (85.3, 85.2, 136), "Pets, JFT": (96.8, 96.4, 600),
                      "Pets, ImageNet-21k": (94.6, 94.5, 80), "Pets, ILSVRC": (93.7, 93.6, 58),
                      "Flowers, JFT": (99.7, 99.7, 412), "Flowers, ImageNet-21k": (99.5, 99.5, 335),
                      "Flowers, ILSVRC": (91.0, 91.0, 0)})),
    Table("weak", "ImageNet after 940M images with hashtags (%)", "Mahajan et al. 2018, by the models' README",
          (Column("top-1"), Column("top-5")),
          _rows("S", {"ResNeXt-101 32x8d": (82.2, 96.4), "32x16d": (84.2, 97.2), "32x32d": (85.1, 97.5),
                      "32x48d": (85.4, 97.6)})),
)}
