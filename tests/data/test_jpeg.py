"""JPEG files that make libjpeg warn: read as Pillow reads them if no pixel is lost, refused otherwise."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.decode import DecodeError, decode, decode_crop_resize, read_header

PIXELS = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)


def jpeg(mode="RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


PLAIN, PROGRESSIVE, RESTARTS = jpeg(), jpeg(progressive=True), jpeg(restart_marker_rows=1)
SOS, APP0, EOI = b"\xff\xda", b"\xff\xe0", b"\xff\xd9"
CUT = PLAIN[:-500] + EOI
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07"
BAD_ICC = b"\xff\xe2\0\x14ICC_PROFILE\0\x05\x03abcd"


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def insert(data: bytes, more: bytes, before: bytes) -> bytes:
    at = data.rindex(before) if before == EOI else data.index(before)
    return data[:at] + more + data[at:]


def scan_parameters(data: bytes, value: bytes) -> bytes:
    """With another spectral selection in the header of its only scan."""
    end = data.index(SOS) + 2 + int.from_bytes(data[data.index(SOS) + 2 :][:2])
    return data[: end - 3] + value + data[end:]


def after_first_scan(more: bytes) -> bytes:
    end = re.compile(rb"\xff[^\0\xff\xd0-\xd7]").search(PROGRESSIVE, PROGRESSIVE.index(SOS) + 14).start()
    return PROGRESSIVE[:end] + more + PROGRESSIVE[end:]


HARMLESS = {
    "nothing": PLAIN,
    "Se=0, of Samsung's phones": scan_parameters(PLAIN, b"\0\0\0"),
    "Se=63, Ah=3": scan_parameters(PLAIN, b"\0\x3f\x30"),
    "zeros before the end": insert(PLAIN, bytes(254), EOI),
    "ones before the end": insert(PLAIN, b"\xff" * 99, EOI),
    "garbage before the end": insert(PLAIN, b"any\x12\x34\xff\0\x77thing", EOI),
    "garbage after the end": PLAIN + b"any\xff\xd8thing" + PLAIN[:1000],
    "zeros between segments": insert(insert(PLAIN, bytes(7), b"\xff\xdb"), bytes(9), SOS),
    "zeros between scans": after_first_scan(bytes(9)),
    "zeros before a restart": insert(insert(RESTARTS, bytes(20), b"\xff\xd3"), bytes(9), b"\xff\xd6"),
    "JFIF 9": PLAIN.replace(b"JFIF\0\1", b"JFIF\0\x09"),
    "Adobe's transform 7": insert(PLAIN, ADOBE, APP0),
    "a bad colour profile": insert(PLAIN, BAD_ICC, b"\xff\xdb"),
    "several": insert(insert(scan_parameters(PLAIN, b"\0\0\0"), bytes(7), SOS), bytes(30), EOI),
    "grey": insert(jpeg("L"), bytes(30), EOI),
    "CMYK": insert(jpeg("CMYK"), bytes(30), EOI),
}


@pytest.mark.parametrize("fault", HARMLESS)
def test_faults_that_cost_no_pixel(fault):
    data = HARMLESS[fault]
    sound = {"grey": jpeg("L"), "CMYK": jpeg("CMYK"), "zeros between scans": PROGRESSIVE,
             "zeros before a restart": RESTARTS}.get(fault, PLAIN)
    np.testing.assert_array_equal(decode(data), pillow(data))
    np.testing.assert_array_equal(decode(data), decode(sound))
    reduced, expected = np.empty((2, 40, 60, 3), np.uint8)
    decode_crop_resize(data, None, reduced)
    decode_crop_resize(sound, None, expected)
    np.testing.assert_array_equal(reduced, expected)


@pytest.mark.parametrize("before", [b"\xff\xe0", b"\xff\xe1", b"\xff\xdb"])
def test_orientation_of_mended_files(before):
    """Also if it follows excess bytes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = insert(jpeg(exif=exif), b"\xff\0any", before)
    np.testing.assert_array_equal(decode(data), np.rot90(decode(PLAIN), -1))
    assert read_header(data)[:3] == (300, 200, 6)


@pytest.mark.parametrize(("data", "message"), [
    (PLAIN[:2] + PLAIN[3:], "unknown image format"),
    (PLAIN[:-2], "Premature end of JPEG file"),
    (CUT, "premature end of data segment"),
    (scan_parameters(CUT, b"\0\0\0"), "premature end of data segment"),
    (insert(CUT, BAD_ICC, b"\xff\xdb"), "premature end of data segment"),
    (insert(PLAIN[:-500], bytes(300), b"\xff\xdb") + EOI, "premature end of data segment"),
    (PROGRESSIVE[: len(PROGRESSIVE) // 2] + EOI, "premature end of data segment"),
    (jpeg("CMYK")[:-500] + EOI, "premature end of data segment"),
    (RESTARTS.replace(b"\xff\xd3", b""), "extraneous bytes before marker 0xd4"),
    (after_first_scan(b"any thing"), "extraneous bytes before marker 0xc4"),
])
def test_lost_pixels(data, message):
    """Pillow reads all but the first two, mostly with grey pixels."""
    with pytest.raises(DecodeError, match=message):
        decode(data)


def test_whatever_is_read_is_read_as_by_pillow():
    """Of a file with one byte changed anywhere, mended or not."""
    rng, read = np.random.default_rng(0), 0
    files = [HARMLESS["several"], insert(PROGRESSIVE, bytes(9), EOI), RESTARTS, insert(PLAIN, ADOBE, APP0)]
    for turn in range(240):
        data = bytearray(files[turn % 4])
        at = rng.integers(2, 700) if turn % 2 else rng.integers(2, len(data))
        data[at] ^= 1 << rng.integers(8)
        try:
            if max(read_header(bytes(data))[:2]) > 2000:
                continue
            pixels = decode(bytes(data))
        except DecodeError:
            continue
        read += 1
        np.testing.assert_array_equal(pixels, pillow(bytes(data)), f"turn {turn}, byte {at}")
    assert 60 < read < 200
