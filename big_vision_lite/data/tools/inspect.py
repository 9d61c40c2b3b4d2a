"""Statistics of a source (class frequencies, image sizes and formats, boxes and masks) and a contact sheet."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.masks import mask_values
from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.data.tools.contact_sheet import contact_sheet, shorten
from big_vision_lite.errors import BadImageError, UserError, writing

SAMPLE = 512
"""Images whose headers are read, evenly spaced over the source."""
SHEET_EXAMPLES = 24
FREQUENT_SHOWN, RARE_SHOWN = 12, 6
"""Classes in the table: the most and the least frequent ones."""
BAR = 24
"""Characters of the longest bar."""


def inspect(dataset: Dataset, name: str, out: Path | None = None) -> dict[str, Any]:
    """Print and return the statistics of a dataset, and write a contact sheet to ``out``.

    Args:
      dataset: all ids and labels are read (from the label index, if there is one), but only a sample of the images.
      name: the title.
      out: a PNG file; None: no sheet.

    Raises:
      UserError: ids are not unique, labels are out of range, or ``out`` is no PNG file or cannot be written.
    """
    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"the contact sheet is {str(out)!r}; expected a name that ends in .png")
    statistics = {"name": name, "multi_label": dataset.multi_label, "classes": len(dataset.classes),
                  "fingerprint": dataset.fingerprint, **manifest(dataset), **image_statistics(dataset)}
    console = Console(highlight=False)
    console.print(_summary(statistics))
    console.print(_class_table(np.array(statistics["class_images"]), dataset.classes))
    for note in dataset.notes:
        console.print(note, markup=False, style="yellow")
    for id_, reason in statistics["unreadable"][:5]:
        console.print(f"cannot be read: {id_}: {reason}", markup=False, style="red")
    if out is not None:
        title = f"{name}: {len(dataset):,} images, {len(dataset.classes):,} classes"
        sheet = contact_sheet(dataset.read(evenly_spaced(len(dataset), SHEET_EXAMPLES)), dataset.classes, title)
        with writing(f"the contact sheet {out}", "name another file"):
            out.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(out, format="PNG")
        console.print(f"contact sheet: {out}", markup=False, soft_wrap=True)
    return statistics


def evenly_spaced(size: int, count: int) -> list[int]:
    """At most ``count`` distinct indices from the first to the last of ``size``."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(int)).tolist() if size else []


def image_statistics(dataset: Dataset) -> dict[str, Any]:
    """Of images, boxes and masks of a sample. Only masks are decoded; sizes are those of upright images."""
    indices = evenly_spaced(len(dataset), SAMPLE)
    sizes, formats, file_sizes, unreadable = [], Counter(), [], []
    objects, box_sides, visible, masks, covered = [], [], [], Counter(), []
    for start in range(0, len(indices), 32):
        for example in dataset.read(indices[start : start + 32]):
            try:
                if isinstance(example, BadImageError):
                    raise example
                height, width = image_size(example["image"])
            except (BadImageError, DecodeError) as error:
                id_ = error.example_id if isinstance(error, BadImageError) else example["id"]
                unreadable.append([id_, getattr(error, "reason", str(error))])
                continue
            sizes.append((height, width))
            formats[format_of(example["image"])] += 1
            file_sizes.append(len(example["image"]) if isinstance(example["image"], bytes) else example["image"].nbytes)
            if "boxes" in example:
                objects.append(len(example["boxes"]))
                box_sides.append(_box_sides(example, height, width))
                visible.append(example.get("visible", np.zeros(0, np.float32)))
            for kind in ("instance_mask", "class_mask"):
                if kind in example:
                    masks[kind] += 1
                    covered.append(float((mask_values(example, kind) > 0).mean()))
    statistics: dict[str, Any] = {"sample": len(indices), "formats": dict(formats.most_common()),
                                  "unreadable": unreadable}
    if sizes:
        height, width = np.array(sizes).T
        statistics |= {"height": _range(height), "width": _range(width), "aspect": _range(width / height),
                       "bytes": _range(np.array(file_sizes))}
    if objects:
        statistics |= {"objects_per_image": _range(np.array(objects)), "images_without_objects": objects.count(0)}
        if len(sides := np.concatenate(box_sides)):
            small, medium = int((sides < 32).sum()), int((sides < 96).sum())
            statistics |= {"object_side": _range(sides), "objects_by_size": {
                "small": small, "medium": medium - small, "large": len(sides) - medium}}
        if len(fractions := np.concatenate(visible)):
            statistics["visible"] = _range(fractions)
        if counts := getattr(getattr(dataset, "source", dataset), "count", None):
            statistics["boxes_fitted"] = dataclasses.asdict(counts)
    if masks:
        statistics |= {"masks": dict(masks), "covered": _range(np.array(covered))}
    return statistics


def format_of(image: bytes | np.ndarray) -> str:
    """The file format, from the first bytes."""
    if isinstance(image, np.ndarray):
        return "array"
    for start, name in ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"),
                        (b"II*\0", "TIFF"), (b"MM\0*", "TIFF")):
        if image.startswith(start):
            return name
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "WebP"
    return {b"avif": "AVIF"}.get(image[8:12], "HEIC") if image[4:8] == b"ftyp" else "unknown"


def _box_sides(example: Example, height: int, width: int) -> np.ndarray:
    """float ``[n]``: the square root of each box's area, in pixels."""
    x1, y1, x2, y2 = example["boxes"].astype(np.float64).reshape(-1, 4).T
    return np.sqrt((y2 - y1) * height * (x2 - x1) * width)


def _range(values: np.ndarray) -> list[float]:
    """[minimum, median, maximum]"""
    return [float(values.min()), float(np.median(values)), float(values.max())]


def _summary(statistics: dict[str, Any]) -> Table:
    from rich.markup import escape

    table = Table(title=escape(statistics["name"]), title_justify="left", show_header=False)
    rows = [("images", f"{statistics['images']:,}"),
            ("labels per image", "mean {mean:.2f}, at most {max}; {without:,} images without labels".format(
                **statistics["labels_per_image"]) + (" (multi-label)" if statistics["multi_label"] else "")),
            ("classes", "{classes:,}: {classes_under_20:,} with fewer than 20 images, {classes_under_100:,} with fewer "
                        "than 100, {classes_without:,} without images".format(**statistics)),
            ("fingerprint", escape(statistics["fingerprint"])),
            ("sample", f"{statistics['sample']:,} images, {len(statistics['unreadable'])} of them unreadable"),
            ("formats", ", ".join(f"{name} {count:,}" for name, count in statistics["formats"].items()) or "none")]
    ranges = (("height", "height", "{:,.0f}", " pixels"), ("width", "width", "{:,.0f}", " pixels"),
              ("width / height", "aspect", "{:.2f}", ""), ("bytes per image", "bytes", "{:,.0f}", ""),
              ("objects per image", "objects_per_image", "{:,.0f}", ""),
              ("object size", "object_side", "{:,.0f}", " pixels (square root of the box area)"),
              ("visible fraction", "visible", "{:.2f}", " of each object"),
              ("mask coverage", "covered", "{:.0%}", " of the pixels"))
    for label, key, form, unit in ranges:
        if key in statistics:
            low, median, high = (form.format(value) for value in statistics[key])
            rows.append((label, f"{low} to {high}, median {median}{unit}"))
    if sizes := statistics.get("objects_by_size"):
        rows.append(("objects by size", f"small (below 32 pixels) {sizes['small']:,}, medium {sizes['medium']:,}, "
                                        f"large (96 and more) {sizes['large']:,}"))
    if counts := statistics.get("boxes_fitted"):
        rows.append(("boxes of the source", "{boxes:,}: {clipped:,} clipped to the image, {dropped:,} dropped as "
                                            "empty".format(**counts)))
    if masks := statistics.get("masks"):
        rows.append(("masks", ", ".join(f"{kind} of {count:,} images" for kind, count in masks.items())))
    for row in rows:
        table.add_row(*row)
    return table


def _class_table(images: np.ndarray, classes: tuple[str, ...]) -> Table:
    """The most and the least frequent classes."""
    from rich.markup import escape

    table = Table(title="classes by number of images", title_justify="left")
    table.add_column("class")
    for column in ("id", "images", "share"):
        table.add_column(column, justify="right")
    table.add_column("", overflow="crop")
    order = np.argsort(-images, kind="stable")
    hidden = len(order) - FREQUENT_SHOWN - RARE_SHOWN
    rows = np.concatenate([order[:FREQUENT_SHOWN], [-1], order[-RARE_SHOWN:]]) if hidden > 0 else order
    for label in rows.tolist():
        if label < 0:
            table.add_row(f"... {hidden:,} more")
            continue
        length = round(BAR * images[label] / max(images.max(), 1))
        table.add_row(escape(shorten(classes[label], 32)), str(label), f"{images[label]:,}",
                      f"{images[label] / max(images.sum(), 1):.2%}", "█" * length)
    return table
