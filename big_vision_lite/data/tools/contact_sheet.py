"""A contact sheet: a grid of examples with their class names, boxes and masks, as one PNG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from big_vision_lite.data.decode import DecodeError, decode, decode_crop_resize, image_size
from big_vision_lite.data.masks import mask_values
from big_vision_lite.data.source import Example
from big_vision_lite.errors import BadImageError
from big_vision_lite.system.font import font
from big_vision_lite.system.palette import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILION, WRONG, YELLOW, rgb

TILE, GAP, COLUMNS = 256, 14, 6
TEXT, LINE = 14, 18
"""Font size and line height, in pixels."""
CAPTION_LINES = 3
COLOURS = tuple(map(rgb, (ORANGE, SKY_BLUE, GREEN, YELLOW, BLUE, VERMILION, PURPLE)))
"""One per class; with more classes than colours, one per object of an image, in turn."""
BACKGROUND, TILE_GREY, TEXT_BLACK, TEXT_GREY, BAD = (255,) * 3, (238,) * 3, (30,) * 3, (110,) * 3, rgb(WRONG)


def contact_sheet(examples: Sequence[Example | BadImageError], classes: Sequence[str], title: str) -> Image.Image:
    """The sheet, in rows of ``COLUMNS`` tiles.

    Args:
      examples: one that cannot be read or decoded gets a marked tile with the reason.
      classes: class names.
      title: a line above the tiles.
    """
    columns = max(min(COLUMNS, len(examples)), 1)
    rows = -(-len(examples) // columns)
    tile_height = TILE + CAPTION_LINES * LINE
    top = GAP + LINE + GAP // 2
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, top + rows * (tile_height + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), _fitted(title, sheet.width - 2 * GAP), TEXT_BLACK, font(TEXT))
    for i, example in enumerate(examples):
        row, column = divmod(i, columns)
        sheet.paste(tile(example, classes), (GAP + column * (TILE + GAP), top + row * (tile_height + GAP)))
    return sheet


def tile(example: Example | BadImageError, classes: Sequence[str]) -> Image.Image:
    """One example with its caption: ``TILE`` pixels wide and as high plus ``CAPTION_LINES`` lines."""
    canvas = Image.new("RGB", (TILE, TILE + CAPTION_LINES * LINE), BACKGROUND)
    canvas.paste(TILE_GREY, (0, 0, TILE, TILE))
    if isinstance(example, BadImageError):
        return _bad_tile(canvas, example.example_id, example.reason)
    try:
        height, width = image_size(example["image"])
        pixels = _scaled_to_tile(example["image"], height, width)
    except DecodeError as error:
        return _bad_tile(canvas, example["id"], str(error))
    _draw_masks(pixels, example, classes)
    image = Image.fromarray(pixels)
    _draw_boxes(image, example, classes)
    canvas.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    names = ", ".join(shorten(classes[label], 28) for label in example["labels"]) or "(no label)"
    _draw_caption(canvas, names, TEXT_BLACK, f"{width} x {height}  {example['id']}")
    return canvas


def shorten(name: str, length: int) -> str:
    """The name; if it is longer than ``length``, its start and end around an ellipsis."""
    if len(name) <= length:
        return name
    end = (length - 1) // 3
    return name[: length - 1 - end] + "…" + name[len(name) - end :]


def _scaled_to_tile(image: bytes | np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 ``[h, w, 3]``; pixels of small images become squares."""
    scale = TILE / max(height, width)
    shape = (max(round(height * scale), 1), max(round(width * scale), 1), 3)
    if scale >= 2:
        factor = math.ceil(scale)  # then slightly down, so that all squares are of equal size
        squares = np.repeat(np.repeat(decode(image), factor, axis=0), factor, axis=1)
        return cv2.resize(squares, shape[1::-1], interpolation=cv2.INTER_AREA)
    out = np.empty(shape, np.uint8)
    decode_crop_resize(image, None, out)
    return out


def _colour(example: Example, k: int, classes: Sequence[str]) -> tuple[int, int, int]:
    """The colour of the k-th object, counted from 0."""
    if "box_labels" in example and len(classes) <= len(COLOURS):
        return COLOURS[int(example["box_labels"][k])]
    return COLOURS[k % len(COLOURS)]


def _draw_masks(pixels: np.ndarray, example: Example, classes: Sequence[str]) -> None:
    """Tints and outlines each object, or each class but void (255)."""
    instances = "instance_mask" in example
    if not instances and "class_mask" not in example:
        return
    mask = mask_values(example, "instance_mask" if instances else "class_mask")
    mask = cv2.resize(mask, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    for value in np.unique(mask):
        if value == 0 or (value == 255 and not instances):
            continue
        inside = (mask == value).astype(np.uint8)
        k = int(value) - 1
        colour = _colour(example, k, classes) if instances else COLOURS[k % len(COLOURS)]
        where = inside.astype(bool)
        pixels[where] = (0.75 * pixels[where] + 0.25 * np.array(colour)).astype(np.uint8)
        outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(pixels, outlines, -1, colour, 1)


def _draw_boxes(image: Image.Image, example: Example, classes: Sequence[str]) -> None:
    if "boxes" not in example:
        return
    draw, face = ImageDraw.Draw(image), font(12)
    corners = []
    for k, (x1, y1, x2, y2) in enumerate(example["boxes"].tolist()):
        left, top = x1 * image.width, y1 * image.height
        right, bottom = max(x2 * image.width - 1, left), max(y2 * image.height - 1, top)
        draw.rectangle((left, top, right, bottom), outline=_colour(example, k, classes), width=2)
        corners.append((left, top, bottom))
    # Names are drawn last, so that no box crosses them, and not with many objects: they would hide the image.
    if "box_labels" not in example or len(corners) > 12:
        return
    taken: list[tuple[float, float, float, float]] = []
    for k, ((left, top, bottom), label) in enumerate(zip(corners, example["box_labels"].tolist(), strict=True)):
        name = shorten(classes[label], 20)
        width = min(draw.textlength(name, face) + 4, image.width)
        left = min(max(left, 0.0), image.width - width)
        places = [(left, y, left + width, y + 15) for y in (top - 15, top + 2, bottom, bottom - 17)]
        place = next((p for p in places if p[1] >= 0 and p[3] <= image.height
                      and not any(_overlap(p, other) for other in taken)), None)
        if place is None:
            continue
        taken.append(place)
        colour = _colour(example, k, classes)
        draw.rectangle(place, fill=colour)
        light = np.dot(colour, (0.299, 0.587, 0.114)) > 120
        draw.text((place[0] + 2, place[1]), name, (0, 0, 0) if light else (255, 255, 255), face)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _bad_tile(canvas: Image.Image, id_: str, reason: str) -> Image.Image:
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, TILE - 1, TILE - 1), outline=BAD, width=4)
    middle, arm = TILE // 2, TILE // 8
    for sign in (1, -1):
        draw.line((middle - arm, middle - sign * arm, middle + arm, middle + sign * arm), BAD, 8)
    _draw_caption(canvas, "cannot be read: " + reason, BAD, id_)
    return canvas


def _draw_caption(canvas: Image.Image, text: str, colour: tuple[int, int, int], last_line: str) -> None:
    draw = ImageDraw.Draw(canvas)
    lines = textwrap.wrap(text, width=TILE * 2 // TEXT - 2, max_lines=CAPTION_LINES - 1, placeholder=" …")
    for i, line in enumerate(lines):
        draw.text((0, TILE + 2 + i * LINE), _fitted(line, TILE), colour, font(TEXT))
    draw.text((0, TILE + 2 + (CAPTION_LINES - 1) * LINE), _fitted(last_line, TILE), TEXT_GREY, font(12))


def _fitted(line: str, width: int) -> str:
    """The line, shortened to ``width`` pixels."""
    length = len(line)
    while length > 1 and font(TEXT).getlength(shorten(line, length)) > width:
        length -= 1
    return shorten(line, length)
