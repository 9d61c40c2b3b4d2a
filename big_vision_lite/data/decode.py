"""Encoded images to uint8 RGB pixels.

JPEG, the format of nearly all photos, is decoded by libjpeg-turbo at the smallest of 1/8, 1/4, 1/2 and full resolution
that has a pixel for every output pixel. Ordinary PNG goes through OpenCV, everything else (CMYK, alpha, 16 bits, WebP,
BMP, GIF, TIFF, HEIC) through Pillow.

Every result is upright (all 8 EXIF orientations). A damaged or truncated file is an error, never a half-grey photo.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from big_vision_lite.data.jpeg import decode_mended, exif_data
from big_vision_lite.errors import UserError, first_line

MAX_PIXELS_JPEG = 500_000_000
"""Larger JPEG files are refused. They are rarely decoded in full, so the limit is above any camera's."""
MAX_PIXELS = 178_956_970
"""Larger images of other formats, which are always decoded in full, are refused. It is Pillow's limit."""

MILD_SHRINK = 1.5
"""Up to this factor, bilinear interpolation is about as close to an ideal (Lanczos) resize as the mean over areas is;
above it, it aliases. On a photo with fine structure: 33 dB against 34 at a factor of 1.5, 27 against 34 at 1.9."""

MAX_SCRATCH = 16_000_000
"""Bytes above which a thread's scratch buffer is not kept for the next image."""

BAND_PIXELS = 4_000_000
"""Of an image that Pillow decodes, so many pixels are converted at a time."""

cv2.setNumThreads(0)  # the pipeline decodes one image per core
warnings.filterwarnings("ignore", module=r"PIL\.")  # of large images, which have a limit here, and of damaged metadata


class DecodeError(ValueError):
    """An image is damaged, too large or of an unknown format. The message gives the reason but not which image."""


class Header(NamedTuple):
    """What is known about an image before it is decoded."""

    height: int  # of the upright image, in pixels
    width: int
    orientation: int  # EXIF orientation, 1 to 8, of the pixels that ``reader`` returns
    reader: str  # "array", "jpeg", "png" or "pillow"


# How to turn stored pixels upright: transpose first, then flip rows, then flip columns.
UPRIGHT = {
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
      DecodeError: not an image, a damaged header, or too large.
    """
    return read_header(image)[:2]


def read_header(image: bytes | np.ndarray) -> Header:
    """Size and orientation, without decoding. An array, uint8 ``[h, w, 3]``, is upright already.

    Raises:
      DecodeError: not an image, a damaged header (in PNG: damage anywhere), or too large.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image must be uint8 [h, w, 3], not {image.dtype} {list(image.shape)}")
        return Header(*image.shape[:2], 1, "array")
    if image[:3] == b"\xff\xd8\xff":
        header = _jpeg_header(image)
    elif image[:8] == b"\x89PNG\r\n\x1a\n":
        header = _png_header(image)
    else:
        header = _pillow_header(image)
    if not header.height * header.width:
        raise DecodeError("it has no pixels")
    limit = MAX_PIXELS_JPEG if header.reader == "jpeg" else MAX_PIXELS
    if header.height * header.width > limit:
        raise DecodeError(f"{header.width} x {header.height} pixels exceed the limit of {limit / 1e6:.0f} megapixels")
    return header


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """The whole image, upright, at its full resolution: uint8 ``[height, width, 3]``.

    Transparent pixels are composited on white. 16-bit values keep their upper 8 bits.

    Raises:
      DecodeError: damaged, truncated, too large, or of an unknown format.
      UserError: a HEIC file while pillow_heif is not installed.
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
      crop: (top, left, height, width) within the image, in pixels of the upright image at full resolution; None for
        all of it. Edges are rounded to whole pixels of the decoded image: they move by at most half a pixel of the
        file or of ``out``, whichever is larger.
      out: uint8 ``[H, W, 3]``, C-contiguous, for example one image of a batch. Undefined after an error.
      flip: mirror left to right.
      header: the header of ``image``, if already read.
      antialias: see ``resize``.

    Raises:
      DecodeError, UserError: as ``decode``.
    """
    if out.dtype != np.uint8 or out.ndim != 3 or out.shape[2] != 3 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 [H, W, 3], not {out.dtype} {list(out.shape)}")
    header = header or read_header(image)
    top, left, height, width = crop or (0, 0, header.height, header.width)
    out_height, out_width, _ = out.shape
    transpose, flip_rows, flip_columns = UPRIGHT[header.orientation]

    # The window is moved to where the file stores it, so that only its pixels are turned upright.
    if flip_rows:
        top = header.height - top - height
    if flip_columns:
        left = header.width - left - width
    if transpose:
        top, left, height, width, out_height, out_width = left, top, width, height, out_width, out_height

    eighths = 8
    if header.reader == "jpeg":
        sufficient = (n for n in (1, 2, 4) if height * n >= 8 * out_height and width * n >= 8 * out_width)
        eighths = next(sufficient, 8)
    pixels = _pixels(image, header, eighths)
    rows = _whole_pixels(top, height, eighths, pixels.shape[0])
    columns = _whole_pixels(left, width, eighths, pixels.shape[1])
    pixels = pixels[rows, columns]

    flip_columns ^= flip
    if not (transpose or flip_rows or flip_columns):
        resize(pixels, out, antialias)
        return
    if pixels.shape[:2] != (out_height, out_width):
        resized = _resized.array(out_height, out_width, 3)
        resize(pixels, resized, antialias)
        pixels = resized
    if transpose:
        pixels = cv2.transpose(pixels)
    if flip_rows or flip_columns:
        cv2.flip(pixels, -1 if flip_rows and flip_columns else int(flip_columns), dst=out)
    else:
        out[...] = pixels


def _whole_pixels(start: float, length: float, eighths: int, available: int) -> slice:
    """The window [start, start + length) on the pixel grid of the image decoded at ``eighths`` / 8."""
    count = min(max(round(length * eighths / 8), 1), available)
    first = min(max(round(start * eighths / 8), 0), available - count)
    return slice(first, first + count)


class _Scratch(threading.local):
    """Reused memory, one buffer per thread: faulting in fresh pages costs as much as writing the pixels."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)

    def array(self, *shape: int) -> np.ndarray:
        """uint8, uninitialised, valid until the next call in this thread."""
        size = math.prod(shape)
        if size > MAX_SCRATCH:
            return np.empty(shape, np.uint8)
        if size > len(self.memory):
            self.memory = np.empty(size, np.uint8)
        return self.memory[:size].reshape(shape)


_blocks, _resized = _Scratch(), _Scratch()


def resize(source: np.ndarray, out: np.ndarray, antialias: bool = True) -> None:
    """Resize uint8 ``[h, w, 3]`` into ``out``, uint8 ``[H, W, 3]`` and contiguous.

    With antialiasing, mild reductions are bilinear; stronger ones go bilinearly to a multiple of the target size and
    then take the mean of whole blocks. That is as faithful as INTER_AREA in one step (within 1 dB of it at most
    factors, 2 dB at worst, against Lanczos) and twice as fast between 1.5 and 3, where random crops are, because OpenCV
    has vector code only for the mean of 2 x 2. Without antialiasing, every reduction is bilinear.
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


def _pixels(image: bytes | np.ndarray, header: Header, eighths: int) -> np.ndarray:
    """uint8 ``[h, w, 3]``, not yet upright; of JPEG at ``eighths`` / 8 of the full size, rounded up."""
    if header.reader == "array":
        return image
    if header.reader == "jpeg":
        height, width = (header.width, header.height) if header.orientation >= 5 else header[:2]
        scaled = {"min_height": -(-height * eighths // 8), "min_width": -(-width * eighths // 8)} if eighths < 8 else {}
        return _jpeg_pixels(image, **scaled)
    if header.reader == "png":
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is None:
            raise DecodeError("damaged PNG")
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return _pillow_pixels(image)


def _jpeg_pixels(data: bytes, **options: Any) -> np.ndarray:
    """uint8 ``[h, w, channels]``. Raises: DecodeError for any warning of libjpeg that costs pixels."""
    decode = functools.partial(simplejpeg.decode_jpeg, **options)  # strict: it raises for warnings
    with contextlib.suppress(ValueError):
        return decode(data)
    try:
        return decode_mended(data, decode)
    except ValueError as error:
        raise DecodeError(str(error)) from None


def _jpeg_header(data: bytes) -> Header:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: no header before the end
        return _pillow_header(data)  # rare chroma subsampling, or damage, for which Pillow gives the reason
    if space in ("CMYK", "YCCK"):
        return _pillow_header(data)
    tiff = exif_data(data)
    orientation = _exif_orientation(tiff) if tiff else 1
    if orientation >= 5:
        height, width = width, height
    return Header(height, width, orientation, "jpeg")


def _exif_orientation(tiff: bytes) -> int:
    """The EXIF orientation; 1 when it is missing or unreadable, since the pixels may be fine."""
    try:
        exif = Image.Exif()
        exif.load(tiff)
        value = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if value in UPRIGHT else 1


def _png_header(data: bytes) -> Header:
    """Reads all chunks: EXIF may follow the pixels, and Pillow does not verify the checksums of pixels."""
    at, kind, seen, orientation, stored = 8, b"", set(), 1, 0
    view = memoryview(data)
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", data, at)
            (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
            if zlib.crc32(view[at + 4 : at + 8 + length]) != checksum:
                raise DecodeError(f"damaged PNG: wrong checksum at byte {at}")
            if kind == b"IHDR":
                width, height, depth, colours = struct.unpack_from(">IIBB", data, at + 8)
            if kind == b"IDAT":
                stored += length
            if kind == b"eXIf":
                orientation = _exif_orientation(data[at + 8 : at + 8 + length])
            seen.add(kind)
            at += 12 + length
    except struct.error:
        raise DecodeError(f"truncated PNG of {len(data)} bytes") from None
    if b"IHDR" not in seen or not width or not height:
        raise DecodeError("damaged PNG: no size")
    if stored > 16 * height * width + 2 * height + 65536:  # readers would inflate it all, to a thousand times its size
        raise DecodeError(f"damaged PNG: {stored:,} bytes of data for {width} x {height} pixels")
    if orientation >= 5:
        height, width = width, height
    plain = depth <= 8 and colours in (0, 2, 3) and not seen & {b"tRNS", b"acTL"}
    return Header(height, width, *((orientation, "png") if plain else (1, "pillow")))


def _pillow_header(data: bytes) -> Header:
    with decode_errors():
        image = _pillow_open(data)
        width, height = image.size
        if image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            height, width = width, height  # for TIFF, Pillow returns the upright size itself
    return Header(height, width, 1, "pillow")


def _pillow_open(data: bytes) -> Image.Image:
    if not data:
        raise DecodeError("the file is empty")
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        _register_heif()
    return Image.open(io.BytesIO(data))


def _pillow_pixels(data: bytes) -> np.ndarray:
    if data[:2] == b"\xff\xd8":
        _check_jpeg(data)
    with decode_errors():
        image = _pillow_open(data)
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(1, BAND_PIXELS // image.width)
        for top in range(0, image.height, rows):  # each copy of a whole image could take a gigabyte
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            pixels[top : top + rows] = _rgb(band)
        return pixels


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 ``[h, w, 3]``."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips to 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise DecodeError("32-bit pixels have no standard range; convert the file to 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba)
    return np.asarray(image.convert("RGB"))


def _check_jpeg(data: bytes) -> None:
    """Raises: DecodeError for damage in a JPEG that Pillow decodes, because Pillow ignores it."""
    try:
        simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # chroma subsampling that only Pillow reads
        return
    _jpeg_pixels(data, colorspace="CMYK", min_height=1, min_width=1)


@contextlib.contextmanager
def decode_errors() -> Iterator[None]:
    """Maps errors to `DecodeError`: for damage, Pillow raises OSError, SyntaxError, struct.error, IndexError, ..."""
    try:
        yield
    except (DecodeError, UserError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DecodeError("unknown image format, or damage at the start of the file") from None
    except Exception as error:
        raise DecodeError(first_line(error)) from error


@functools.cache
def _register_heif() -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        raise UserError("HEIC images need pillow_heif: pip install 'big_vision_lite[heic]'")
    import pillow_heif

    pillow_heif.register_heif_opener()
