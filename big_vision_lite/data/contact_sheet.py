"""A contact sheet: examples of a source in a grid, with their class names, boxes and masks, as one PNG."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from big_vision_lite.data.decode import DecodeError, decode, decode_crop_resize, image_size
from big_vision_lite.data.source import Example
from big_vision_lite.errors import BadImageError

TILE, GAP, COLUMNS = 256, 14, 6
TEXT, LINE = 14, 18
"""Height of letters and of lines, in pixels."""
CAPTION_LINES = 3
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Okabe and Ito's, which stay apart for colour-blind readers, too. Each class has one of them; where there are more
classes than colours, the objects of an image take them in turn."""
BACKGROUND, GROUND, INK, QUIET, BAD = (255, 255, 255), (238, 238, 238), (30, 30, 30), (110, 110, 110), (163, 66, 15)


def contact_sheet(examples: Sequence[Example | BadImageError], classes: Sequence[str], title: str = "") -> Image.Image:
    """The sheet, as many rows of ``COLUMNS`` tiles as needed.

    Args:
      examples: see `data.source.Example`. One that cannot be read, or whose image cannot be decoded, gets a marked
        tile with the reason.
      classes: their names.
      title: one line above.
    """
    columns = max(min(COLUMNS, len(examples)), 1)
    rows = -(-len(examples) // columns)
    tile_height = TILE + CAPTION_LINES * LINE
    top = GAP + (LINE + GAP // 2 if title else 0)
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, top + rows * (tile_height + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, GAP), _fitted(title, sheet.width - 2 * GAP), INK, _font())
    for i, example in enumerate(examples):
        row, column = divmod(i, columns)
        sheet.paste(tile(example, classes), (GAP + column * (TILE + GAP), top + row * (tile_height + GAP)))
    return sheet


def write_contact_sheet(path: Path, examples: Sequence[Example | BadImageError], classes: Sequence[str],
                        title: str = "") -> None:
    """Write `contact_sheet` as PNG. Raises: OSError."""
    contact_sheet(examples, classes, title).save(path, format="PNG")


def tile(example: Example | BadImageError, classes: Sequence[str]) -> Image.Image:
    """One example with its caption: ``TILE`` pixels wide, and ``CAPTION_LINES`` lines higher than wide."""
    made = Image.new("RGB", (TILE, TILE + CAPTION_LINES * LINE), BACKGROUND)
    made.paste(GROUND, (0, 0, TILE, TILE))
    if isinstance(example, BadImageError):
        return _bad_tile(made, example.example_id, example.reason)
    try:
        height, width = image_size(example["image"])
        shown = _shrunk_or_enlarged(example["image"], height, width)
    except DecodeError as error:
        return _bad_tile(made, example["id"], str(error))
    _draw_masks(shown, example, classes)
    image = Image.fromarray(shown)
    _draw_boxes(image, example, classes)
    made.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    names = ", ".join(short(classes[label], 28) for label in example["labels"]) or "(no label)"
    draw = ImageDraw.Draw(made)
    for i, line in enumerate(_wrapped(names, CAPTION_LINES - 1)):
        draw.text((0, TILE + 2 + i * LINE), line, INK, _font())
    draw.text((0, TILE + 2 + (CAPTION_LINES - 1) * LINE), _fitted(f"{width} x {height}  {example['id']}", TILE), QUIET,
              _font(12))
    return made


def short(name: str, most: int) -> str:
    """The name, or its beginning and end around an ellipsis when it is longer than ``most`` letters."""
    if len(name) <= most:
        return name
    end = (most - 1) // 3
    return name[: most - 1 - end] + "…" + name[len(name) - end :]


def read_mask(mask: bytes | np.ndarray) -> np.ndarray:
    """uint8 or uint16 ``[height, width]`` of an example's mask, which may be an encoded PNG (plain or of a palette)."""
    values = np.asarray(Image.open(io.BytesIO(mask))) if isinstance(mask, bytes) else mask
    return values.reshape(values.shape[:2])


def _shrunk_or_enlarged(image: bytes | np.ndarray, height: int, width: int) -> np.ndarray:
    scale = TILE / max(height, width)
    shape = (max(round(height * scale), 1), max(round(width * scale), 1), 3)
    if scale >= 2:
        times = math.ceil(scale)  # then a little smaller, so that all squares come out alike
        squares = np.repeat(np.repeat(decode(image), times, axis=0), times, axis=1)
        return cv2.resize(squares, shape[1::-1], interpolation=cv2.INTER_AREA)
    out = np.empty(shape, np.uint8)
    decode_crop_resize(image, None, out)
    return out


def _colour(example: Example, k: int, classes: Sequence[str]) -> tuple[int, int, int]:
    """Of the k-th object, counted from 0."""
    if "box_labels" in example and len(classes) <= len(COLOURS):
        return COLOURS[int(example["box_labels"][k])]
    return COLOURS[k % len(COLOURS)]


def _draw_masks(shown: np.ndarray, example: Example, classes: Sequence[str]) -> None:
    """Each object's pixels tinted and outlined; 255 of a class mask, "ignored" by convention, stays as it is."""
    instances = "instance_mask" in example
    if not instances and "class_mask" not in example:
        return
    found = example["instance_mask" if instances else "class_mask"]
    mask = cv2.resize(read_mask(found), shown.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    for value in np.unique(mask):
        if value == 0 or (value == 255 and not instances):
            continue
        inside = (mask == value).astype(np.uint8)
        k = int(value) - 1
        colour = _colour(example, k, classes) if instances else COLOURS[k % len(COLOURS)]
        where = inside.astype(bool)
        shown[where] = (0.75 * shown[where] + 0.25 * np.array(colour)).astype(np.uint8)
        outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, outlines, -1, colour, 1)


def _draw_boxes(image: Image.Image, example: Example, classes: Sequence[str]) -> None:
    if "boxes" not in example:
        return
    draw, font = ImageDraw.Draw(image), _font(12)
    corners = []
    for k, (ymin, xmin, ymax, xmax) in enumerate(example["boxes"].tolist()):
        left, top = xmin * image.width, ymin * image.height
        right, bottom = max(xmax * image.width - 1, left), max(ymax * image.height - 1, top)
        draw.rectangle((left, top, right, bottom), outline=_colour(example, k, classes), width=2)
        corners.append((left, top, bottom))
    # Names come last, so that no box crosses them; with many objects they would hide the image.
    if "box_labels" not in example or len(corners) > 12:
        return
    taken: list[tuple[float, float, float, float]] = []
    for k, ((left, top, bottom), label) in enumerate(zip(corners, example["box_labels"].tolist(), strict=True)):
        name = short(classes[label], 20)
        width = min(draw.textlength(name, font) + 4, image.width)
        left = min(max(left, 0.0), image.width - width)
        places = [(left, y, left + width, y + 15) for y in (top - 15, top + 2, bottom, bottom - 17)]
        inside = [p for p in places if p[1] >= 0 and p[3] <= image.height]
        free = [p for p in inside if not any(_overlap(p, other) for other in taken)]
        if not free:
            continue
        taken.append(free[0])
        colour = _colour(example, k, classes)
        draw.rectangle(free[0], fill=colour)
        light = np.dot(colour, (0.299, 0.587, 0.114)) > 120
        draw.text((free[0][0] + 2, free[0][1]), name, (0, 0, 0) if light else (255, 255, 255), font)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _bad_tile(made: Image.Image, id_: str, reason: str) -> Image.Image:
    draw = ImageDraw.Draw(made)
    draw.rectangle((0, 0, TILE - 1, TILE - 1), outline=BAD, width=4)
    middle, arm = TILE // 2, TILE // 8
    for sign in (1, -1):
        draw.line((middle - arm, middle - sign * arm, middle + arm, middle + sign * arm), BAD, 8)
    for i, line in enumerate(_wrapped("cannot be read: " + reason, CAPTION_LINES - 1)):
        draw.text((0, TILE + 2 + i * LINE), line, BAD, _font())
    draw.text((0, TILE + 2 + (CAPTION_LINES - 1) * LINE), _fitted(id_, TILE), QUIET, _font(12))
    return made


def _wrapped(text: str, lines: int) -> list[str]:
    """The text in at most so many lines of a tile's width."""
    wrapped = textwrap.wrap(text, width=TILE * 2 // TEXT - 2, max_lines=lines, placeholder=" …")
    return [_fitted(line, TILE) for line in wrapped]


def _fitted(line: str, width: int) -> str:
    """The line, shortened to ``width`` pixels."""
    most = len(line)
    while most > 1 and _font().getlength(short(line, most)) > width:
        most -= 1
    return short(line, most)


def _font(size: int = TEXT) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the letters of most alphabets."""
    if size not in _FONTS:
        import matplotlib

        _FONTS[size] = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
    return _FONTS[size]


_FONTS: dict[int, ImageFont.FreeTypeFont] = {}
