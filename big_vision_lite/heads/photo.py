"""A photo with its predictions, at its own resolution: outlines, labels that do not cover each other, a caption."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from big_vision_lite.system.font import font

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""

SMALL = 480
"""Photos whose long side has fewer pixels are enlarged by a whole factor, so that labels are legible."""
TEXT_SHARE, SMALLEST_TEXT = 0.022, 13
"""Font size as a share of the photo's side (the root of its area), and in pixels at least."""
LINE_SHARE = 1 / 8
"""Width of outlines relative to the font size."""
PAPER, INK = (255, 255, 255), (30, 30, 30)


class AnnotatedPhoto:
    """A photo to draw on.

    Args:
      photo: uint8 ``[h, w, 3]``. All coordinates are in its pixels, from edge to edge.
    """

    def __init__(self, photo: UInt8[np.ndarray, "h w 3"]):
        height, width = photo.shape[:2]
        self.factor = max(1, SMALL // max(height, width))
        if self.factor > 1:
            photo = np.repeat(np.repeat(photo, self.factor, axis=0), self.factor, axis=1)
        self._image = Image.fromarray(photo)
        self._draw = ImageDraw.Draw(self._image)
        side = math.sqrt(self._image.width * self._image.height)
        self._font = font(max(SMALLEST_TEXT, round(TEXT_SHARE * side)))
        self._labels: list[tuple[Rectangle, str, Colour]] = []

    @property
    def line_width(self) -> int:
        """Of outlines, in pixels of the picture."""
        return max(2, round(self._font.size * LINE_SHARE))

    def outline(self, box: Sequence[float], colour: Colour) -> None:
        """Draw a box (x1, y1, x2, y2)."""
        left, top, right, bottom = (float(value) * self.factor for value in box)
        self._draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour,
                             width=self.line_width)

    def label(self, box: Sequence[float], text: str, colour: Colour) -> None:
        """Put a label near a box, at a place that `finish` chooses."""
        left, top, right, bottom = (float(value) * self.factor for value in box)
        self._labels.append(((left, top, right, bottom), text, colour))

    def line(self, points: Sequence[Sequence[float]], colour: Colour) -> None:
        """Draw a line through points (x, y)."""
        self._draw.line([(x * self.factor, y * self.factor) for x, y in points], fill=colour, width=self.line_width)

    def dot(self, x: float, y: float, colour: Colour) -> None:
        """Draw a filled circle around a point."""
        radius = 1.5 * self.line_width
        x, y = x * self.factor, y * self.factor
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def finish(self, caption: Sequence[tuple[str, Colour | None]] = ()) -> UInt8[np.ndarray, "H W 3"]:
        """The picture: the photo with its labels, above the ``caption``, if any.

        Args:
          caption: texts, each with the colour of a square before it; they flow into lines. Labels for which the photo
            has no room are counted there.
        """
        hidden = self._draw_labels()
        if hidden:
            caption = [*caption, (f"{hidden} labels without room", None)]
        return np.asarray(self._with_caption(caption) if caption else self._image)

    def _draw_labels(self) -> int:
        """Draws the labels, and returns for how many there was no room."""
        texts = [_fitted(text, self._font, self._image.width) for _, text, _ in self._labels]
        sizes = [self._size(text) for text in texts]
        places = place_labels([box for box, *_ in self._labels], sizes, self._image.size)
        drawn = [(*label, text, place) for label, text, place in zip(self._labels, texts, places, strict=True)
                 if place is not None]
        for box, _, colour, _, place in drawn:  # first, so that no line crosses a label
            near = (min(max(box[0], place[0]), box[2]), min(max(box[1], place[1]), box[3]))
            at = (min(max(near[0], place[0]), place[2]), min(max(near[1], place[1]), place[3]))
            if math.dist(near, at) > self._font.size / 2:
                self._draw.line((*near, *at), fill=colour, width=max(1, self.line_width // 2))
        for _, _, colour, text, place in drawn:
            self._draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
            self._draw.text((place[0] + self._pad, place[1] + self._pad), text, _ink_on(colour), self._font,
                            anchor="la")
        return len(self._labels) - len(drawn)

    @property
    def _pad(self) -> int:
        return max(2, self._font.size // 6)

    def _size(self, text: str) -> tuple[int, int]:
        """Width and height of a label."""
        return math.ceil(self._font.getlength(text)) + 2 * self._pad, sum(self._font.getmetrics()) + 2 * self._pad

    def _with_caption(self, caption: Sequence[tuple[str, Colour | None]]) -> Image.Image:
        size, margin = self._font.size, self._font.size // 2
        line_height, room = sum(self._font.getmetrics()) + self._pad, self._image.width - 2 * margin
        x, y, placed = 0, 0, []
        for text, colour in caption:
            square = 0 if colour is None else size + margin // 2
            text = _fitted(text, self._font, room - square)
            width = square + math.ceil(self._font.getlength(text))
            if x and x + width > room:
                x, y = 0, y + line_height
            placed.append((x, y, text, colour, square))
            x += width + 2 * margin
        top = self._image.height
        whole = Image.new("RGB", (self._image.width, top + y + line_height + 2 * margin), PAPER)
        whole.paste(self._image)
        draw = ImageDraw.Draw(whole)
        for x, y, text, colour, square in placed:
            x, y = x + margin, y + top + margin
            if colour is not None:
                draw.rectangle((x, y + size // 8, x + size, y + size // 8 + size), fill=colour)
            draw.text((x + square, y), text, INK, self._font)
        return whole


def place_labels(boxes: Sequence[Rectangle], sizes: Sequence[tuple[int, int]],
                 canvas: tuple[int, int]) -> list[Rectangle | None]:
    """Places for labels, which neither overlap nor leave the canvas: at a corner of their box if one is free, otherwise
    the free place nearest to it.

    Args:
      boxes: what the labels are about; earlier ones have the first choice.
      sizes: (width, height) of each label.
      canvas: (width, height) of the picture.

    Returns:
      The rectangle of each label; None for one that no place is left for.
    """
    taken, places = np.zeros((0, 4)), []
    for (left, top, right, bottom), (width, height) in zip(boxes, sizes, strict=True):
        limit = np.array(canvas, float) - (width, height)
        place = None
        if (limit >= 0).all():
            corners = np.array([(left, top - height), (right - width, top - height), (left, bottom),
                                (right - width, bottom), (left, top), (right - width, top), (right, top),
                                (left - width, top)])
            place = _first_free(np.clip(corners, 0, limit), (width, height), taken)
            if place is None:
                grid = np.stack(np.meshgrid(np.arange(0, limit[0] + 1, max(width // 4, 1)),
                                            np.arange(0, limit[1] + 1, max(height // 2, 1))), -1).reshape(-1, 2)
                far = np.abs(grid - ((left + right - width) / 2, (top + bottom - height) / 2)).max(1)
                place = _first_free(grid[np.argsort(far, kind="stable")], (width, height), taken)
        places.append(place)
        if place is not None:
            taken = np.concatenate([taken, np.array(place)[None]])
    return places


def _first_free(corners: np.ndarray, size: tuple[int, int], taken: np.ndarray) -> Rectangle | None:
    """The rectangle of the first of upper left ``corners`` ``[n, 2]`` that overlaps none of ``taken`` ``[k, 4]``."""
    corners = np.floor(corners)
    low, high = corners[:, None], corners[:, None] + size
    overlaps = ((low < taken[None, :, 2:]) & (high > taken[None, :, :2])).all(2).any(1)
    free = np.flatnonzero(~overlaps)
    if not len(free):
        return None
    x, y = corners[free[0]].tolist()
    return x, y, x + size[0], y + size[1]


def tinted(photo: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], colours: UInt8[np.ndarray, "k 3"],
           opacity: float = 0.55) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with the classes of a mask in colour and white lines between them; the background, 0, stays as it
    is."""
    picture = np.where((mask > 0)[..., None], cv2.addWeighted(photo, 1 - opacity, colours[mask], opacity, 0.0), photo)
    width = max(1, round(math.sqrt(mask.size) / 500))
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((width + 1, width + 1), np.uint8)) > 0
    if min(mask.shape) > 100:  # on a tiny photo a line would hide what it surrounds
        picture[edge] = 255
    return picture


def _fitted(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """The text on one line, shortened to ``width`` pixels."""
    text = " ".join(text.split())
    if face.getlength(text) <= width:
        return text
    length = len(text)
    while length > 1 and face.getlength(text[:length] + "…") > width:
        length -= 1
    return text[:length] + "…"


def _ink_on(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else PAPER
