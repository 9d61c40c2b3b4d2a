"""Encoded images to uint8 RGB pixels, reading no more of a file than the wanted pixels need.

JPEG, the format of nearly all photos, is decoded by libjpeg-turbo at a quarter, half or full of its
resolution, whichever still has a pixel for every pixel of the result, and down to the last row that is wanted.
Ordinary PNG goes through OpenCV; everything else (CMYK, alpha, 16 bits, WebP, BMP, GIF, TIFF, HEIC) through
Pillow.

Every result is upright (all 8 EXIF orientations). Damage in what was read is an error, and so is a file cut off on
its way: it is never a photo with a grey half, nor a crop of the half that is there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import math
import struct
import threading
import zlib
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from big_vision_lite.errors import UserError

MAX_PIXELS_JPEG = 500_000_000
"""Larger JPEG files are refused. They are rarely decoded in full, so the limit is above any camera's."""
MAX_PIXELS = 178_956_970
"""Larger images of other formats, which are always decoded in full, are refused. It is Pillow's limit."""

MILD_SHRINK = 1.5
"""Up to this factor bilinear interpolation is as close to an ideal (Lanczos) resize as the mean over areas;
beyond, it aliases: on a photo of fine structure 33 dB against 34 at 1.5, 27 against 34 at 1.9."""

WORTH_SKIPPING = 16_384
"""Pixels below the wanted rows of a JPEG file that are worth not being decoded."""

SCRATCH = 16_000_000
"""Most bytes that a thread keeps for pixels on their way, a buffer."""

cv2.setNumThreads(0)  # the pipeline keeps every core busy with an image of its own


class DecodeError(ValueError):
    """Damaged, too large or of an unknown format; the message is the reason. The caller knows which image."""


class Header(NamedTuple):
    """What the first bytes of an image tell."""

    height: int  # in pixels of the upright image
    width: int
    orientation: int  # EXIF's, 1 to 8, of the pixels as ``reader`` gives them
    reader: str  # "array", "jpeg", "png" or "pillow"


# From stored to upright pixels: whether to transpose, then whether to flip rows, then columns.
_UPRIGHT = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def image_size(image: bytes | np.ndarray) -> tuple[int, int]:
    """(height, width) in pixels after EXIF orientation, without decoding.

    Raises:
      DecodeError: not an image, damaged in its header, or too large.
    """
    return read_header(image)[:2]


def read_header(image: bytes | np.ndarray) -> Header:
    """Size and orientation, without decoding. For uint8 ``[h, w, 3]`` it is the array's own size.

    Raises:
      DecodeError: not an image, damaged in its header (of PNG: anywhere), or too large.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image must be uint8 [h, w, 3], not {image.dtype} {list(image.shape)}")
        return Header(*image.shape[:2], 1, "array")
    if image[:2] == b"\xff\xd8":
        header = _jpeg_header(image)
    elif image[:8] == b"\x89PNG\r\n\x1a\n":
        header = _png_header(image)
    else:
        header = _pillow_header(image)
    limit = MAX_PIXELS_JPEG if header.reader == "jpeg" else MAX_PIXELS
    if header.height * header.width > limit:
        raise DecodeError(
            f"{header.width} x {header.height} pixels are more than the {limit / 1e6:.0f} megapixels allowed"
        )
    return header


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """The whole image, upright, at its full resolution: uint8 ``[height, width, 3]``.

    Transparent pixels are put on white, the page that such drawings are made for. 16-bit values keep their
    upper 8 bits, so that the range of values maps to 0 to 255.

    Raises:
      DecodeError: damaged, truncated, too large, or of an unknown format.
      UserError: a HEIC file, and the reader for it is not installed.
    """
    header = read_header(image)
    out = np.empty((header.height, header.width, 3), np.uint8)
    decode_crop_resize(image, None, out, header=header)
    return out


def decode_crop_resize(
    image: bytes | np.ndarray,
    crop: tuple[float, float, float, float] | None,
    out: np.ndarray,
    flip: bool = False,
    header: Header | None = None,
    antialias: bool = True,
) -> None:
    """Decode a window of the image and resize it into ``out``.

    Args:
      image: an encoded file, or uint8 ``[h, w, 3]``.
      crop: (top, left, height, width) in pixels of the upright image at full resolution; None for all of it.
        Its edges move to whole pixels of the decoded image, by at most half a pixel of the file or of
        ``out``, whichever is larger. It lies within the image.
      out: uint8 ``[H, W, 3]``, C-contiguous, for example one image of a batch. On an error its content is
        undefined.
      flip: mirror left to right.
      header: of ``image``, if it was read already.
      antialias: see ``resize``.

    Raises:
      DecodeError, UserError: as ``decode``.
    """
    if out.dtype != np.uint8 or out.ndim != 3 or out.shape[2] != 3 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 [H, W, 3], not {out.dtype} {list(out.shape)}")
    header = header or read_header(image)
    top, left, height, width = crop or (0, 0, header.height, header.width)
    out_height, out_width, _ = out.shape
    transpose, flip_rows, flip_columns = _UPRIGHT[header.orientation]

    # The window moves to where the file stores it: few pixels are turned upright instead of all.
    if flip_rows:
        top = header.height - top - height
    if flip_columns:
        left = header.width - left - width
    if transpose:
        top, left, height, width, out_height, out_width = left, top, width, height, out_width, out_height

    eighths = 8
    if header.reader == "jpeg":
        enough = (n for n in (1, 2, 4) if height * n >= 8 * out_height and width * n >= 8 * out_width)
        eighths = next(enough, 8)
    pixels, available = _pixels(image, header, eighths, top + height)
    rows = _whole_pixels(top, height, eighths, available)
    columns = _whole_pixels(left, width, eighths, pixels.shape[1])
    pixels = pixels[rows, columns]

    flip_columns ^= flip
    if not (transpose or flip_rows or flip_columns):
        resize(pixels, out, antialias)
        return
    if pixels.shape[:2] != (out_height, out_width):
        resized = _stored.array(out_height, out_width, 3)
        resize(pixels, resized, antialias)
        pixels = resized
    if transpose:
        pixels = cv2.transpose(pixels)
    if flip_rows or flip_columns:
        cv2.flip(pixels, -1 if flip_rows and flip_columns else int(flip_columns), dst=out)
    else:
        out[...] = pixels


def _whole_pixels(start: float, length: float, eighths: int, available: int) -> slice:
    """The window [start, start + length) on the grid of the image decoded at ``eighths`` / 8."""
    count = min(max(round(length * eighths / 8), 1), available)
    first = min(max(round(start * eighths / 8), 0), available - count)
    return slice(first, first + count)


class _Scratch(threading.local):
    """A thread's own memory for pixels between two steps: fresh pages cost as much as what is written to them."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)

    def array(self, *shape: int) -> np.ndarray:
        """uint8 of any content, until the next call in this thread."""
        size = math.prod(shape)
        if size > SCRATCH:
            return np.empty(shape, np.uint8)
        if size > len(self.memory):
            self.memory = np.empty(size, np.uint8)
        return self.memory[:size].reshape(shape)


_blocks, _stored = _Scratch(), _Scratch()


def resize(source: np.ndarray, out: np.ndarray, antialias: bool = True) -> None:
    """Resize uint8 ``[h, w, 3]`` into ``out``, uint8 ``[H, W, 3]`` and contiguous.

    With antialiasing it is bilinear as far as it does not alias; a stronger reduction goes to a multiple of the
    wanted size first and ends with the mean of whole blocks. That is as faithful as INTER_AREA in one step (within
    1 dB of it at most factors, 2 dB at worst, against Lanczos) and twice as fast between 1.5 and 3, where random
    crops are, because OpenCV has vector code only for the mean of 2 x 2. Without, it is bilinear at every reduction.
    """
    height, width, _ = source.shape
    out_height, out_width, _ = out.shape
    if (height, width) == (out_height, out_width):
        out[...] = source
        return
    down, across = (math.ceil(s / MILD_SHRINK) for s in (height / out_height, width / out_width))
    if not antialias or down == across == 1:
        cv2.resize(source, (out_width, out_height), dst=out, interpolation=cv2.INTER_LINEAR)
        return
    blocks = _blocks.array(max(down, 2) * out_height, max(across, 2) * out_width, 3)
    cv2.resize(source, blocks.shape[1::-1], dst=blocks, interpolation=cv2.INTER_LINEAR)
    cv2.resize(blocks, (out_width, out_height), dst=out, interpolation=cv2.INTER_AREA)


def _pixels(image: bytes | np.ndarray, header: Header, eighths: int, bottom: float) -> tuple[np.ndarray, int]:
    """uint8 [h, w, 3], not yet upright, and h; of JPEG ``eighths`` / 8 of the full size, rounded up. Rows below
    ``bottom`` (of the full size) may be missing; h counts them."""
    if header.reader == "array":
        pixels = image
    elif header.reader == "jpeg":
        height, width = (header.width, header.height) if header.orientation >= 5 else header[:2]
        least = {"min_height": -(-height * eighths // 8), "min_width": -(-width * eighths // 8)} if eighths < 8 else {}
        # Two rows more (decoded ones): edges move to whole pixels, and chroma is interpolated between rows.
        rows = math.ceil(bottom) + 16 // eighths
        if (height - rows) * width >= WORTH_SKIPPING:
            pixels = _first_rows(image, rows, width, eighths)
            if pixels is not None:
                return pixels, -(-height * eighths // 8)
        pixels = _simplejpeg(image, **least)
    elif header.reader == "png":
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is None:
            raise DecodeError("damaged PNG")
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    else:
        pixels = _pillow_pixels(image)
    return pixels, pixels.shape[0]


def _first_rows(data: bytes, rows: int, width: int, eighths: int) -> np.ndarray | None:
    """The upper ``rows`` (before scaling) of a JPEG file, at the same values as of the whole; None where that cannot
    be had: progressive files, restart markers, damage.

    The decoder is given the file with a smaller height in its header. It then reports that data are left before the
    end of the image, and this as its first complaint: what it decoded is sound, and the file not cut off.
    """
    at, height_at = 2, 0
    while data[at : at + 1] == b"\xff" and at + 10 < len(data):
        kind = data[at + 1]
        if kind == 0xDA:  # the pixels, expected to be one scan of all components
            break
        if kind == 0xC0:
            height_at = at + 5
        elif kind == 0xDD or (0xC1 <= kind <= 0xCF and kind != 0xC4):
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    if not height_at or data[at : at + 2] != b"\xff\xda" or data[at + 4] != data[height_at + 4]:
        return None
    shape = (-(-rows * eighths // 8), -(-width * eighths // 8), 3)
    out = np.empty(shape, np.uint8)
    shorter = b"".join((data[:height_at], rows.to_bytes(2), data[height_at + 2 :]))
    try:
        simplejpeg.decode_jpeg(shorter, min_height=shape[0], min_width=shape[1], buffer=out.reshape(-1))
    except ValueError as error:
        if not str(error).endswith("extraneous bytes before marker 0xd9"):
            return None
    return out


def _simplejpeg(data: bytes, **least) -> np.ndarray:
    try:  # strict by default: libjpeg's warnings, such as a premature end, are errors
        return simplejpeg.decode_jpeg(data, **least)
    except ValueError as error:
        raise DecodeError(str(error)) from None


def _jpeg_header(data: bytes) -> Header:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _pillow_header(data)  # rare ways of subsampling, or damage: then Pillow gives the reason
    if space in ("CMYK", "YCCK"):
        return _pillow_header(data)
    orientation = 1
    at = 2
    while at + 10 < len(data) and data[at] == 0xFF and (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 10 : end])
            break
        at = end
    if orientation >= 5:
        height, width = width, height
    return Header(height, width, orientation, "jpeg")


def _exif_orientation(tiff: bytes) -> int:
    """EXIF's orientation; 1 where there is none or it is unreadable, for the pixels may be fine."""
    try:
        exif = Image.Exif()
        exif.load(tiff)
        value = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if value in _UPRIGHT else 1


def _png_header(data: bytes) -> Header:
    """Reads all chunks: EXIF may follow the pixels, and Pillow does not look at the checksums of pixels."""
    at, kind, seen, orientation = 8, b"", set(), 1
    view = memoryview(data)
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", data, at)
            (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
            if zlib.crc32(view[at + 4 : at + 8 + length]) != checksum:
                raise DecodeError(f"damaged PNG: wrong checksum at byte {at}")
            if kind == b"IHDR":
                width, height, depth, colours = struct.unpack_from(">IIBB", data, at + 8)
            if kind == b"eXIf":
                orientation = _exif_orientation(data[at + 8 : at + 8 + length])
            seen.add(kind)
            at += 12 + length
    except struct.error:
        raise DecodeError(f"truncated PNG of {len(data)} bytes") from None
    if b"IHDR" not in seen or not width or not height:
        raise DecodeError("damaged PNG: no size")
    if orientation >= 5:
        height, width = width, height
    plain = depth <= 8 and colours in (0, 2, 3) and not seen & {b"tRNS", b"acTL"}
    return Header(height, width, *((orientation, "png") if plain else (1, "pillow")))


def _pillow_header(data: bytes) -> Header:
    with _pillow_reasons():
        image = _pillow_open(data)
        width, height = image.size
        if image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            height, width = width, height  # of TIFF, Pillow gives the upright size itself
    return Header(height, width, 1, "pillow")


def _pillow_open(data: bytes) -> Image.Image:
    if not data:
        raise DecodeError("the file is empty")
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        _register_heif()
    return Image.open(io.BytesIO(data))


def _pillow_pixels(data: bytes) -> np.ndarray:
    with _pillow_reasons():
        image = ImageOps.exif_transpose(_pillow_open(data))
        if image.mode.startswith("I;16"):  # Pillow's own conversion would clip to 255
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise DecodeError("32-bit pixels have no agreed range; convert the file to 8 or 16 bits")
        if image.has_transparency_data:
            drawing = image.convert("RGBA")
            image = Image.new("RGB", drawing.size, "white")
            image.paste(drawing, mask=drawing)
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _pillow_reasons():
    """Pillow's readers raise OSError, SyntaxError, struct.error, IndexError and others for damage."""
    try:
        yield
    except (DecodeError, UserError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DecodeError("not an image of a known format, or damaged at its start") from None
    except Exception as error:
        raise DecodeError(str(error) or type(error).__name__) from error


@functools.cache
def _register_heif() -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        raise UserError("HEIC images need one more package: pip install 'big_vision_lite[heic]'")
    import pillow_heif

    pillow_heif.register_heif_opener()
