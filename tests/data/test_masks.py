"""Class masks are decoded as numbers; errors say what is wrong with a mask."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.masks import class_mask, decode_mask
from big_vision_lite.errors import BadImageError

MASK = np.repeat(np.array([[0, 1, 2, 1]], np.uint8), 3, 0)


def flipped(data: bytes) -> bytes:
    """One bit of the last pixels is wrong."""
    at = data.index(b"IEND") - 14
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def huge() -> bytes:
    header = b"IHDR" + (60_000).to_bytes(4) * 2 + b"\x08\0\0\0\0"
    data = png(MASK)
    return data[:12] + header + zlib.crc32(header).to_bytes(4) + data[33:]


def png(pixels, palette=None) -> bytes:
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_palettes_are_read_as_indices_and_16_bits_as_numbers():
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 756
    np.testing.assert_array_equal(decode_mask(png(MASK, palette), "x"), MASK)  # the indices, not the colours
    for mask in (png(MASK.astype(np.uint16)), MASK[..., None].astype(np.uint16)):
        np.testing.assert_array_equal(class_mask({"id": "x", "class_mask": mask}, (3, 4)), MASK)


@pytest.mark.parametrize(("mask", "message"), [
    (png(np.zeros((3, 4, 3), np.uint8)), r"image 'x' .* a colour image \(RGB\), not class numbers"),
    (png(MASK)[:40], r"its mask cannot be decoded \(truncated PNG"),
    (flipped(png(MASK)), r"its mask cannot be decoded \(damaged PNG: wrong checksum"),
    (huge(), r"its mask cannot be decoded \(60000 x 60000 pixels exceed the limit"),
    (png(MASK[:2]), "4 x 2 pixels and the image 4 x 3; expected the same size"),
    (MASK.astype(np.uint16) + 300, "the value 302; expected 0 to 255, for at most 254 classes"),
])
def test_what_is_no_class_mask_is_refused(mask, message):
    with pytest.raises(BadImageError, match=message):
        class_mask({"id": "x", "class_mask": mask}, (3, 4))
