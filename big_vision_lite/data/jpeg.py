"""JPEG files that break rules in ways that cost no pixel, as those of many phones and webcams do.

libjpeg warns of these as it warns of damage, and keeps the text of a file's first warning only. So a fault that is
known to be harmless is mended in a copy of the file, which then has to decode without any warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

ATTEMPTS = 8
_EXCESS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x(..)")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither a stuffed byte nor a restart within the scan
_MARKER = re.compile(rb"\xff[^\x00\xff]")
SOI, EOI, SOS, APP0, APP1, APP14, APP15, COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)


def decode_mended(data: bytes, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    """What ``decode`` returns for the file without its harmless faults.

    Harmless are parameters of a sequential scan other than 0 to 63 (Samsung's phones write 0 to 0), unknown versions of
    JFIF and unknown colour transforms of Adobe, anything in the metadata, excess bytes between segments and at the end
    of the image, and padding, which is a repeated byte, after other scans or before a restart.

    Args:
      decode: raises ValueError with libjpeg's text for any warning.

    Raises:
      ValueError: from ``decode``, for another fault.
    """
    mended = b"".join(_mended(data))
    for _ in range(ATTEMPTS):
        try:
            return decode(mended)
        except ValueError as error:
            if not (excess := _EXCESS.match(str(error))):
                raise
            mended = _without_excess(mended, int(excess[1]), int(excess[2], 16))
    return decode(mended)


def exif_data(data: bytes) -> bytes:
    """The EXIF data, as a TIFF file; empty if there are none."""
    at = 2
    while at + 1 < len(data) and data[at] == 0xFF and (APP0 <= data[at + 1] <= APP15 or data[at + 1] == COM):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 10 : end]
        at = end
    if at + 1 < len(data) and data[at] == 0xFF and data[at + 1] not in (0, 0xFF):
        return b""  # metadata come before all else
    # Bytes that belong to no segment. This is not done for all files, because it takes 10 us.
    headers = (data[start + 4 : end] for marker, start, end in _segments(data, scans=False) if marker == APP1)
    return next((header[6:] for header in headers if header[:6] == b"Exif\0\0"), b"")


def _segments(data: bytes, scans: bool = True) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment up to the first scan, or with ``scans``, and their data, of the image."""
    start = 0
    while match := _MARKER.search(data, start):
        marker, start = data[match.start() + 1], match.start()
        end = start + 2 if marker in (SOI, EOI) else start + 2 + int.from_bytes(data[start + 2 : start + 4])
        if marker == SOS:
            if not scans:
                break
            after = _AFTER_SCAN.search(data, end)
            end = after.start() if after else len(data)
        yield marker, start, end
        if marker == EOI:
            break
        start = end


def _mended(data: bytes) -> Iterator[bytes]:
    """The segments, one after the other, without metadata: they have only the pixels' faults."""
    sequential = True
    for marker, start, end in _segments(data):
        segment = bytearray(data[start:end])
        sequential = sequential and marker not in PROGRESSIVE
        if marker == APP0 and segment[4:9] == b"JFIF\0":
            segment[9:10] = b"\1"
        elif marker == APP14 and segment[4:9] == b"Adobe" and segment[15:16] in (b"\0", b"\1"):  # RGB, YCbCr
            pass
        elif APP0 <= marker <= APP15 or marker == COM:
            continue
        elif marker == SOS and sequential:
            components = segment[4]
            segment[5 + 2 * components : 8 + 2 * components] = b"\0\x3f\0"
        yield bytes(segment)


def _without_excess(data: bytes, count: int, marker: int) -> bytes:
    """Without ``count`` bytes before a marker within or after a scan. There may be several such markers, but for the
    end of the image; the first after padding is taken, and if that is the wrong one, the file does not decode."""
    markers = re.compile(b"\xff" + re.escape(bytes([marker])))
    ends = [match.start() for kind, start, end in _segments(data) if kind == SOS
            for match in markers.finditer(data, start, end + 2)]
    for end in ends:
        if marker == EOI or len(set(data[end - count : end])) == 1:
            return data[: end - count] + data[end:]
    return data
