"""What a source holds: its classes and their frequencies, image sizes and formats, boxes and masks, and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from big_vision_lite.data.contact_sheet import read_mask, short, write_contact_sheet
from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.label_index import label_index
from big_vision_lite.data.source import Example, Records
from big_vision_lite.errors import BadImageError, UserError

SAMPLE = 512
"""Images whose headers are read, spread evenly over the source."""
SHOWN = 24
"""Examples on the contact sheet."""
RARE = (20, 100)
"""Classes with fewer images than these are counted."""


def inspect(records: Records, name: str, out: Path | None = None) -> dict[str, Any]:
    """Print what a source holds, write a contact sheet to ``out``, and return the figures.

    Args:
      records: ids and labels of all are read (from the label index, where there is one), images of a sample.
      name: to be printed.
      out: a PNG file; None: no sheet.

    Raises:
      UserError: ids are not unique, labels are out of range, or ``out`` cannot be written.
    """
    found = {"name": name, **of_labels(records), **of_images(records)}
    _show(found, records.classes, Console(soft_wrap=False, highlight=False))
    if out is not None:
        title = f"{name}: {len(records):,} images, {len(records.classes):,} classes"
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_contact_sheet(out, records.read(spread(len(records), SHOWN)), records.classes, title)
        except OSError as error:
            raise UserError(f"cannot write the contact sheet {str(out)!r}: {error.strerror or error}; name another "
                            "file") from None
        Console(soft_wrap=True, highlight=False).print(f"contact sheet: {out}", markup=False)
        found["contact_sheet"] = str(out)
    return found


def spread(size: int, most: int) -> list[int]:
    """Up to ``most`` different indices from the first to the last of ``size``."""
    return np.unique(np.linspace(0, size - 1, min(most, size)).astype(int)).tolist() if size else []


def of_labels(records: Records) -> dict[str, Any]:
    """Figures of all examples' labels. Raises: UserError, as `label_index.label_index`."""
    images = np.zeros(len(records.classes), np.int64)
    per_image: Counter[int] = Counter()
    for labels in _all_labels(records):
        images += np.bincount(labels.values, minlength=len(images))
        per_image.update(labels.counts().tolist())
    return {"images": len(records), "multi_label": records.multi_label, "classes": len(records.classes),
            "fingerprint": records.fingerprint, "labels": int(images.sum()),
            "labels_per_image": dict(sorted(per_image.items())), "images_per_class": images.tolist(),
            "classes_without_images": int((images == 0).sum()),
            "rare_classes": {bound: int((images < bound).sum()) for bound in RARE}}


def _all_labels(records: Records) -> Iterator[Any]:
    """Pieces of the labels of all examples (`data.ragged.Ragged`)."""
    if hasattr(records, "labels_at"):  # curated: the source's index, and rules applied to many at once
        for indices in records.order.pieces():
            yield records.labels_at(indices)
    else:
        yield label_index(records).labels


def of_images(records: Records, sample: int = SAMPLE) -> dict[str, Any]:
    """Figures of a sample's images, boxes and masks. Only masks are decoded; sizes are those of upright images."""
    indices = spread(len(records), sample)
    sizes, formats, bytes_, bad = [], Counter(), [], []
    objects, sides, visible, masks, covered = [], [], [], Counter(), []
    for start in range(0, len(indices), 32):
        for example in records.read(indices[start : start + 32]):
            try:
                if isinstance(example, BadImageError):
                    raise example
                height, width = image_size(example["image"])
            except (BadImageError, DecodeError) as error:
                id_ = error.example_id if isinstance(error, BadImageError) else example["id"]
                bad.append([id_, getattr(error, "reason", str(error))])
                continue
            sizes.append((height, width))
            formats[format_of(example["image"])] += 1
            bytes_.append(len(example["image"]) if isinstance(example["image"], bytes) else example["image"].nbytes)
            if "boxes" in example:
                objects.append(len(example["boxes"]))
                sides.append(_sides(example, height, width))
                visible.append(example.get("visible", np.zeros(0, np.float32)))
            for kind in ("instance_mask", "class_mask"):
                if kind in example:
                    masks[kind] += 1
                    covered.append(float((read_mask(example[kind]) > 0).mean()))
    found: dict[str, Any] = {"sample": len(indices), "formats": dict(formats.most_common()), "unreadable": bad}
    if sizes:
        height, width = np.array(sizes).T
        found |= {"height": _range(height), "width": _range(width), "aspect": _range(width / height),
                  "bytes": _range(np.array(bytes_))}
    if objects:
        found |= {"objects_per_image": _range(np.array(objects)), "images_without_objects": objects.count(0)}
        if len(all_sides := np.concatenate(sides)):
            small, medium = int((all_sides < 32).sum()), int((all_sides < 96).sum())
            found |= {"object_side": _range(all_sides),
                      "objects_by_size": {"small": small, "medium": medium - small, "large": len(all_sides) - medium}}
        if len(seen := np.concatenate(visible)):
            found["visible"] = _range(seen)
        if counts := getattr(getattr(records, "source", records), "count", None):
            found["boxes_fitted"] = {"boxes": counts.boxes, "clipped": counts.clipped, "dropped": counts.dropped}
    if masks:
        found |= {"masks": dict(masks), "covered": _range(np.array(covered))}
    return found


def format_of(image: bytes | np.ndarray) -> str:
    """The name of a file's format by its first bytes."""
    if isinstance(image, np.ndarray):
        return "array"
    for start, name in ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"),
                        (b"II*\0", "TIFF"), (b"MM\0*", "TIFF")):
        if image.startswith(start):
            return name
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "WebP"
    return {b"avif": "AVIF"}.get(image[8:12], "HEIC") if image[4:8] == b"ftyp" else "unknown"


def _sides(example: Example, height: int, width: int) -> np.ndarray:
    """float ``[n]``: the square root of each box's area, in pixels."""
    ymin, xmin, ymax, xmax = example["boxes"].astype(np.float64).reshape(-1, 4).T
    return np.sqrt((ymax - ymin) * height * (xmax - xmin) * width)


def _range(values: np.ndarray) -> list[float]:
    """[least, median, most]"""
    return [float(values.min()), float(np.median(values)), float(values.max())]


def _show(found: dict[str, Any], classes: tuple[str, ...], console: Console) -> None:
    console.print(_summary(found))
    console.print(_classes_table(np.array(found["images_per_class"]), classes))
    for id_, reason in found["unreadable"][:5]:
        console.print(f"cannot be read: {id_}: {reason}", markup=False, style="red")


def _summary(found: dict[str, Any]) -> Table:
    from rich.markup import escape

    table = Table(title=escape(found["name"]), title_justify="left", show_header=False)
    per_image = found["labels_per_image"]
    mean = found["labels"] / max(found["images"], 1)
    rare = ", ".join(f"{count:,} with fewer than {bound}" for bound, count in found["rare_classes"].items())
    rows = [("images", f"{found['images']:,}"),
            ("labels an image", f"{min(per_image)} to {max(per_image)}, mean {mean:.2f}"
             + (" (multi-label)" if found["multi_label"] else "") if per_image else "none"),
            ("classes", f"{found['classes']:,}: {rare}, {found['classes_without_images']:,} without images"),
            ("fingerprint", escape(found["fingerprint"])),
            ("sample", f"{found['sample']:,} images, {len(found['unreadable'])} of them unreadable"),
            ("formats", ", ".join(f"{name} {count:,}" for name, count in found["formats"].items()) or "none")]
    ranges = (("height", "height", "{:,.0f}", " pixels"), ("width", "width", "{:,.0f}", " pixels"),
              ("width / height", "aspect", "{:.2f}", ""), ("bytes an image", "bytes", "{:,.0f}", ""),
              ("objects an image", "objects_per_image", "{:,.0f}", ""),
              ("side of an object", "object_side", "{:,.0f}", " pixels (root of the box's area)"),
              ("visible share", "visible", "{:.2f}", " of an object"),
              ("pixels in masks", "covered", "{:.0%}", ""))
    for label, key, form, unit in ranges:
        if key in found:
            least, median, most = (form.format(value) for value in found[key])
            rows.append((label, f"{least} to {most}, median {median}{unit}"))
    if sizes := found.get("objects_by_size"):
        rows.append(("objects by size", f"small (below 32 pixels) {sizes['small']:,}, medium {sizes['medium']:,}, "
                                        f"large (96 and more) {sizes['large']:,}"))
    if counts := found.get("boxes_fitted"):
        rows.append(("boxes of the source", "{boxes:,}: {clipped:,} clipped to the image, {dropped:,} left out as "
                                            "empty".format(**counts)))
    if masks := found.get("masks"):
        rows.append(("masks", ", ".join(f"{kind} of {count:,} images" for kind, count in masks.items())))
    for row in rows:
        table.add_row(*row)
    return table


def _classes_table(images: np.ndarray, classes: tuple[str, ...], top: int = 12, tail: int = 6, bar: int = 24) -> Table:
    """The most and the least frequent classes."""
    from rich.markup import escape

    table = Table(title="classes by number of images", title_justify="left")
    table.add_column("class")
    for column in ("id", "images", "share"):
        table.add_column(column, justify="right")
    table.add_column("", overflow="crop")
    order = np.argsort(-images, kind="stable")
    shown = order if len(order) <= top + tail else np.concatenate([order[:top], [-1], order[-tail:]])
    for label in shown.tolist():
        if label < 0:
            table.add_row(f"... {len(order) - top - tail:,} more", "", "", "", "")
            continue
        length = round(bar * images[label] / max(images.max(), 1))
        table.add_row(escape(short(classes[label], 32)), str(label), f"{images[label]:,}",
                      f"{images[label] / max(images.sum(), 1):.2%}", "█" * length)
    return table
