"""Image files, cut, changed and lying about themselves; the independent reading is Pillow's."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import Case
from fuzz.made import encoded, flat_png, oriented, png, png_chunk
from fuzz.mutate import of_bytes, pick
from PIL import Image, ImageOps, PngImagePlugin

LARGEST_COMPARED = 20_000_000
"""Pixels above which only the package decodes: the reference would need as much memory again."""


SOUND: tuple[tuple[str, str, dict], ...] = (
    ("jpg", "JPEG", {"quality": 95}),
    ("jpeg", "JPEG", {"progressive": True, "quality": 95}),
    ("jpg", "JPEG", {"mode": "L", "quality": 95}),
    ("jpg", "JPEG", {"mode": "CMYK", "quality": 95}),
    ("jpg", "JPEG", {"exif": oriented(6), "quality": 95}),
    ("JPG", "JPEG", {"subsampling": 2, "quality": 95}),
    ("jpg", "JPEG", {"restart_marker_blocks": 2, "quality": 95}),
    ("jfif", "JPEG", {"quality": 95}),
    ("png", "PNG", {}),
    ("png", "PNG", {"mode": "RGBA"}),
    ("PNG", "PNG", {"mode": "P"}),
    ("png", "PNG", {"mode": "1"}),
    ("png", "PNG", {"mode": "I;16"}),
    ("png", "PNG", {"mode": "LA"}),
    ("png", "PNG", {"exif": oriented(5)}),
    ("webp", "WEBP", {"lossless": True}),
    ("webp", "WEBP", {"mode": "RGBA", "lossless": True}),
    ("gif", "GIF", {}),
    ("gif", "GIF", {"mode": "P", "transparency": 3}),
    ("bmp", "BMP", {}),
    ("bmp", "BMP", {"mode": "1"}),
    ("tif", "TIFF", {}),
    ("tiff", "TIFF", {"compression": "tiff_lzw"}),
    ("tif", "TIFF", {"mode": "I;16"}),
    ("tif", "TIFF", {"mode": "F"}),
    ("tif", "TIFF", {"exif": oriented(8)}),
    ("tif", "TIFF", {"mode": "CMYK"}),
    ("tif", "TIFF", {"compression": "jpeg"}),
)


def jpeg_sized(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_with(marker: int, body: bytes) -> bytes:
    data = encoded("JPEG")
    return data[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + data[2:]


def jpeg_scan_end(value: int) -> bytes:
    """With Se, the end of the spectral selection, as many phones write it."""
    data = bytearray(encoded("JPEG", quality=95))
    at = data.index(b"\xff\xda")
    data[at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0] - 2] = value
    return bytes(data)


def exif_loop() -> bytes:
    """EXIF whose directory points to itself."""
    entry = struct.pack(">HHII", 0x8769, 4, 1, 8)
    return jpeg_with(
        0xE1, b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 1) + entry + struct.pack(">I", 8)
    )


def tiff(tags: dict[int, tuple[int, int, int]]) -> bytes:
    """A TIFF file of these tags: {tag: (type, count, value)}."""
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + bytes(64)


BY_HAND: tuple[tuple[str, str, object], ...] = (
    ("empty.jpg", "any", lambda: b""),
    ("empty.png", "any", lambda: b""),
    ("zeros.webp", "any", lambda: bytes(4096)),
    ("text.jpg", "any", lambda: b"<html>404 not found</html>"),
    ("png.jpg", "accepted", lambda: encoded("PNG")),
    ("jpeg.png", "accepted", lambda: encoded("JPEG", quality=95)),
    ("webp.bmp", "accepted", lambda: encoded("WEBP", lossless=True)),
    ("huge.png", "any", lambda: png(2**31 - 1, 2**31 - 1)),
    ("wide.png", "any", lambda: png(178_000_000, 1)),
    ("minus.png", "any", lambda: png(-1, -1)),
    ("none.png", "any", lambda: png(0, 10)),
    ("bits.png", "any", lambda: png(8, 8, depth=7)),
    ("colours.png", "any", lambda: png(8, 8, colours=5)),
    ("palette.png", "any", lambda: png(8, 8, colours=3)),
    ("interlace.png", "any", lambda: png(8, 8, interlace=9)),
    ("profile.png", "any", lambda: png(8, 8, more=png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000))))),
    ("text.png", "any", lambda: png(8, 8, more=png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(90_000_000))))),
    ("bomb.png", "any", lambda: flat_png(13_000, 1, 0)),
    ("grey.png", "any", lambda: flat_png(13_000, 1, 3, png_chunk(b"PLTE", bytes(6)) + png_chunk(b"tRNS", b"\0"))),
    ("over.png", "any", lambda: flat_png(14_000, 1, 0)),
    ("animated.png", "any", lambda: png(8, 8, more=png_chunk(b"acTL", struct.pack(">II", 2**31, 0)))),
    ("claims.jpg", "any", lambda: jpeg_sized(65_535, 65_535)),
    ("tall.jpg", "any", lambda: jpeg_sized(1, 65_500)),
    ("claims22.jpg", "any", lambda: jpeg_sized(22_000, 22_000)),
    ("flat.jpg", "any", lambda: jpeg_sized(0, 40)),
    ("phone.jpg", "accepted", lambda: jpeg_scan_end(0)),
    ("loop.jpg", "any", exif_loop),
    ("padded.jpg", "accepted", lambda: encoded("JPEG", quality=95)[:-2] + bytes(64) + b"\xff\xd9"),
    ("trailing.jpg", "accepted", lambda: encoded("JPEG", quality=95) + b"motion photo" * 99),
    ("half.jpg", "any", lambda: encoded("JPEG", quality=95)[:-400]),
    ("unended.jpg", "any", lambda: encoded("JPEG", quality=95)[:-2]),
    ("two.jpg", "any", lambda: encoded("JPEG", quality=95) + encoded("JPEG", seed=1)),
    ("comment.jpg", "accepted", lambda: jpeg_with(0xFE, b"\xff\xd9" * 2000)),
    ("profile.jpg", "any", lambda: jpeg_with(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000))),
    ("xmp.jpg", "accepted", lambda: jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<" * 60_000)),
    ("size.tif", "any", lambda: tiff({256: (4, 1, 2**31), 257: (4, 1, 2**31), 258: (3, 1, 8), 262: (3, 1, 1)})),
    (
        "strips.tif",
        "any",
        lambda: tiff(
            {
                256: (4, 1, 64),
                257: (4, 1, 64),
                258: (3, 1, 8),
                259: (3, 1, 1),
                262: (3, 1, 1),
                273: (4, 1, 2**31),
                278: (4, 1, 64),
                279: (4, 1, 4096),
            }
        ),
    ),
    ("count.tif", "any", lambda: tiff({256: (4, 2**31, 8), 257: (4, 1, 64), 262: (3, 1, 1)})),
    (
        "line.gif",
        "any",
        lambda: (
            b"GIF89a"
            + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0)
            + bytes(6)
            + b","
            + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0)
            + b"\x02\x01\x44\x00;"
        ),
    ),
    (
        "big.bmp",
        "any",
        lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 13_000, 13_000, 1, 24, 0, 0, 0, 0, 0, 0),
    ),
    (
        "minus.bmp",
        "any",
        lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, -8, -8, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(300),
    ),
    (
        "size.webp",
        "any",
        lambda: (
            b"RIFF"
            + struct.pack("<I", 2**32 - 1)
            + b"WEBPVP8L"
            + struct.pack("<I", 2**32 - 1)
            + b"\x2f\xff\xff\xff\x0f"
            + bytes(99)
        ),
    ),
    ("cut.heic", "any", lambda: b"\0\0\0\x18ftypheic" + bytes(40)),
    ("avif.jpg", "any", lambda: b"\0\0\0\x18ftypavif" + bytes(40)),
    ("postscript.jpg", "any", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) print quit\n"),
    ("vector.png", "any", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ("pdf.png", "any", lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"),
    ("icon.png", "any", lambda: encoded("ICO")),
    ("pixmap.bmp", "any", lambda: b"P6\n99999 99999\n255\n"),
)


def images(rng: np.random.Generator, number: int, folder: Path) -> Case:
    """One malformed file among sound ones, inspected."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / "photos" / split / name).mkdir(parents=True)
            (folder / "photos" / split / name / "0.jpg").write_bytes(encoded("JPEG", quality=95))
    if number < len(BY_HAND):
        name, expect, make = BY_HAND[number]
        data, what = make(), name
    else:
        suffix, form, options = pick(rng, SOUND)
        data, what = of_bytes(rng, encoded(form, **options))
        name, expect, what = f"changed.{suffix}", "any", f"{form} {options}: {what}"
    (folder / "photos" / "train" / "cat" / name).write_bytes(data)
    check = "fuzz.test_images:sound" if expect == "accepted" else "fuzz.test_images:equals_pillow"
    return Case(("data", "inspect", "photos"), (name,), what, expect, check)


def sound(folder: Path, arguments: list[str]) -> str | None:
    return equals_pillow(folder, arguments, sound=True)


def equals_pillow(folder: Path, arguments: list[str], sound: bool = False) -> str | None:
    """Every image of a source that the package decodes is Pillow's."""
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.data.decode import DecodeError, decode, image_size
    from big_vision_lite.errors import BadImageError

    dataset = source_of(arguments[-1]).open()
    ids = [dataset.labels(index)[0] for index in range(len(dataset))]
    files = {str(path.relative_to(folder / "photos")) for path in (folder / "photos" / "train").rglob("*.*")}
    if set(ids) != files:
        return f"{sorted(set(ids) ^ files)} are not read"
    for index, id_ in enumerate(ids):
        try:
            image = dataset[index]["image"]
            height, width = image_size(image)
            decoded = decode(image)
        except (BadImageError, DecodeError) as error:
            if sound:
                return f"{id_} is sound, and refused: {error}"
            continue
        if decoded.shape != (height, width, 3):
            return f"{id_}: decoded to {decoded.shape}, of size {height} x {width}"
        if height * width > LARGEST_COMPARED:
            continue
        try:
            expected = by_pillow((folder / "photos" / id_).read_bytes())
        except Exception as error:  # of any type
            return f"{id_}: accepted, and Pillow says {error!r}"
        if expected.shape != decoded.shape:
            return f"{id_}: {decoded.shape}, and Pillow's is {expected.shape}"
        if (difference := np.abs(expected.astype(int) - decoded).max()) > 2:
            return f"{id_}: differs from Pillow's by up to {difference}"
    return None


def by_pillow(data: bytes) -> np.ndarray:
    """Upright, on white, uint8 [h, w, 3]."""
    Image.MAX_IMAGE_PIXELS = None  # limits of Pillow's own
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**30
    image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) // 256).astype(np.uint8)[..., None], 3, 2)
    if image.has_transparency_data:
        drawing = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing)
    return np.asarray(image.convert("RGB"))


@harness.formats(400, 14, images=images)
def test_images(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
