"""Decoding and classification transforms against slow references: Pillow's full decode, crop and resize."""

import io
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from big_vision_lite.data.decode import DecodeError, decode, decode_crop_resize, image_size, resize
from big_vision_lite.data.transforms.image import CentreCrop, RandomCropPadded, RandomResizedCrop, Resize, ResizeCrop
from big_vision_lite.errors import BadImageError, UserError


def photo(height, width, seed=0):
    """Smooth noise of several scales, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 70), (9, 35), (27, 12)):
        noise = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        image += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + 128, 0, 255).astype(np.uint8)


def encode(image, format="JPEG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def oriented(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def upright(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


def reference(data, crop, height, width, flip=False):
    top, left, h, w = crop
    image = Image.fromarray(upright(data)).resize(
        (width, height), Image.BILINEAR, (left, top, left + w, top + h)
    )
    return np.asarray(image)[:, ::-1] if flip else np.asarray(image)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(value, format):
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    data = encode(photo(44, 61), format, exif=oriented(value), **options)
    expected = upright(data)
    whole = decode(data)
    assert image_size(data) == expected.shape[:2]
    assert whole.shape == expected.shape
    assert difference(whole, expected).max() <= 2
    for flip in (False, True):
        out = np.empty((20, 31, 3), np.uint8)
        decode_crop_resize(data, (7, 5, 20, 31), out, flip)
        np.testing.assert_array_equal(out, whole[7:27, 5:36][:, :: -1 if flip else 1])


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("shrink", [0.6, 1.3, 1.8, 2.4, 4.5, 9.0])
@pytest.mark.parametrize("sides, tolerance", [((400, 608), 2.0), ((403, 605), 4.0)])
def test_crop_resize_of_oriented_jpeg(value, shrink, sides, tolerance):
    """Above a shrink of 2.4 the decode is reduced; sides that are not whole there move the window."""
    data = encode(photo(*sides), quality=95, subsampling=0, exif=oriented(value))
    height, width = image_size(data)
    crop = (height // 9 // 8 * 8, width // 7 // 8 * 8, height // 2, width // 2)
    out = np.empty((round(crop[2] / shrink), round(crop[3] / shrink), 3), np.uint8)
    for flip in (False, True):
        decode_crop_resize(data, crop, out, flip)
        assert difference(out, reference(data, crop, *out.shape[:2], flip)).mean() < tolerance


def test_resize_does_not_alias():
    """Stripes finer than the output become grey, also if one axis shrinks and the other grows."""
    stripes = np.zeros((60, 800, 3), np.uint8)
    stripes[:, ::2] = 255
    for width in (100, 210, 300):
        out = np.empty((90, width, 3), np.uint8)
        resize(stripes, out)
        assert difference(out, np.full_like(out, 127)).max() < 50, width
    resize(np.zeros((3, 100_000, 3), np.uint8), np.empty((224, 224, 3), np.uint8))  # without allocating gigabytes
    image = photo(375, 500)
    for height, width in ((300, 250), (224, 224), (120, 170), (60, 400), (31, 45)):
        out = np.empty((height, width, 3), np.uint8)
        resize(image, out)
        assert (
            difference(out, np.asarray(Image.fromarray(image).resize((width, height), Image.BOX))).mean() < 1
        )


COLOUR = photo(37, 53)
GREY = COLOUR[..., 0]
ALPHA = cv2.resize(np.arange(256, dtype=np.uint8)[None], (53, 37))
RGBA = np.dstack([COLOUR, ALPHA])
ON_WHITE = COLOUR * (ALPHA / 255.0)[..., None] + 255.0 * (1 - ALPHA / 255.0)[..., None]
GREY_16 = (GREY.astype(np.uint16) << 8) | 77


def grey(values):
    return np.repeat(values[..., None], 3, axis=2)


def palette_with_transparency():
    image = Image.fromarray(COLOUR).quantize(16)
    image.info["transparency"] = 3
    return image


def composed(image):
    drawing = image.convert("RGBA")
    white = Image.new("RGBA", drawing.size, "white")
    return np.asarray(Image.alpha_composite(white, drawing).convert("RGB"))


MODES = {
    "jpeg": (lambda: encode(COLOUR, quality=95), None, 2),
    "jpeg progressive": (lambda: encode(COLOUR, quality=95, progressive=True), None, 2),
    "jpeg grey": (lambda: encode(GREY, quality=95), None, 2),
    "jpeg cmyk": (lambda: encode(Image.fromarray(COLOUR).convert("CMYK"), quality=95), None, 0),
    "png": (lambda: encode(COLOUR, "PNG"), COLOUR, 0),
    "png grey": (lambda: encode(GREY, "PNG"), grey(GREY), 0),
    "png 1 bit": (lambda: encode(Image.fromarray(GREY).convert("1"), "PNG"), None, 0),
    "png 16 bits": (lambda: encode(GREY_16, "PNG"), grey(GREY), 0),
    "png 16 bits colour": (
        lambda: cv2.imencode(".png", COLOUR[..., ::-1] * np.uint16(257))[1].tobytes(),
        COLOUR,
        0,
    ),
    "png palette": (lambda: encode(Image.fromarray(COLOUR).quantize(16), "PNG"), None, 0),
    "png palette, transparent": (
        lambda: encode(palette_with_transparency(), "PNG"),
        composed(palette_with_transparency()),
        0,
    ),
    "png alpha": (lambda: encode(RGBA, "PNG"), ON_WHITE, 1),
    "png grey alpha": (
        lambda: encode(Image.fromarray(np.dstack([GREY, ALPHA])), "PNG"),
        composed(Image.fromarray(np.dstack([GREY, ALPHA]))),
        1,
    ),
    "webp": (lambda: encode(COLOUR, "WEBP"), None, 0),
    "webp alpha": (lambda: encode(RGBA, "WEBP", lossless=True, exact=True), ON_WHITE, 1),
    "bmp": (lambda: encode(COLOUR, "BMP"), COLOUR, 0),
    "gif": (
        lambda: encode(GREY, "GIF", save_all=True, append_images=[Image.new("L", (53, 37))]),
        grey(GREY),
        0,
    ),
    "tiff": (lambda: encode(COLOUR, "TIFF"), COLOUR, 0),
    "tiff lzw": (lambda: encode(COLOUR, "TIFF", compression="tiff_lzw"), COLOUR, 0),
    "tiff cmyk": (lambda: encode(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), None, 0),
    "tiff 16 bits": (lambda: encode(GREY_16, "TIFF"), grey(GREY), 0),
    "heic": (lambda: encode(COLOUR, "HEIF", quality=90), None, 0),
}


@pytest.mark.parametrize("mode", MODES)
def test_formats(mode):
    make, expected, tolerance = MODES[mode]
    data = make()
    if expected is None:
        expected = upright(data)
    assert image_size(data) == (37, 53)
    image = decode(data)
    assert image.shape == (37, 53, 3) and image.dtype == np.uint8
    assert np.abs(image - expected.astype(float)).max() <= tolerance


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("mode", MODES)
def test_truncation_raises(mode):
    data = MODES[mode][0]()
    if mode == "gif":
        data = encode(GREY, "GIF")  # in an animation, data after the first frame is not read
    spare = 40 if mode.startswith(("bmp", "gif")) else 1  # the last bytes may be padding and a trailer
    out = np.empty((8, 8, 3), np.uint8)
    for length in [
        0,
        1,
        3,
        9,
        15,
        40,
        *(int(len(data) * f) for f in (0.2, 0.5, 0.8, 0.95)),
        len(data) - spare,
    ]:
        with pytest.raises(DecodeError, match=r"\w"):
            decode(data[:length])
        with pytest.raises(DecodeError):
            decode_crop_resize(data[:length], None, out)


def test_damage_raises():
    for format in ("JPEG", "PNG"):
        data = bytearray(encode(photo(80, 90), format, **({"progressive": True} if format == "JPEG" else {})))
        data[len(data) // 2 : len(data) // 2 + 30] = bytes(range(200, 230))
        with pytest.raises(DecodeError):
            decode(bytes(data))
    for other in (
        b"<html>not found</html>",
        b"\xff\xd8\xff\xe0" + bytes(100),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ):
        with pytest.raises(DecodeError):
            decode(other)


def test_too_large_is_refused_from_the_header():
    chunk = b"IHDR" + (40_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    png = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    png += bytes(4) + b"IEND" + zlib.crc32(b"IEND").to_bytes(4)
    with pytest.raises(DecodeError, match="40000 x 40000 pixels"):
        decode(png)
    jpeg = bytearray(encode(COLOUR))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = (30_000).to_bytes(2) * 2
    with pytest.raises(DecodeError, match="500 megapixels"):
        decode(bytes(jpeg))


def test_float_pixels_and_a_missing_heic_reader_are_named(monkeypatch):
    with pytest.raises(DecodeError, match="8 or 16 bits"):
        decode(encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"))
    from big_vision_lite.data import decode as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    module._register_heif.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'big_vision_lite\[heic\]'"):
        decode(b"\0\0\0\x18ftypheic" + bytes(40))


PEAK = """
import re, sys, numpy as np
from big_vision_lite.data.decode import DecodeError, decode_crop_resize
data = open(sys.argv[1], "rb").read()
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1000
out = np.ones((224, 224, 3), np.uint8)
before = peak()
try:
    decode_crop_resize(data, (1000, 2000, 3000, 4000), out, True)
except DecodeError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def peak_memory(path, data):
    """(megabytes that decoding takes, the error message)."""
    path.write_bytes(data)
    run = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    return float(run.stdout), run.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_48_megapixels(tmp_path):
    """Decoded at full resolution it would take 144 MB."""
    photo_48 = cv2.resize(photo(60, 80), (8000, 6000))
    memory, _ = peak_memory(tmp_path / "photo.jpg", simplejpeg.encode_jpeg(photo_48, 85, colorsubsampling="420"))
    assert memory < 30


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("image", "chunk", "message"), [
    (COLOUR, b"zTXta\0\0", ""), (RGBA, b"iCCPa\0\0", "too large"), (COLOUR, b"IDAT", "bytes of data for 53 x 37"),
])
def test_memory_of_compressed_chunks(tmp_path, image, chunk, message):
    """Each would take 128 MB; Pillow decodes images with alpha, OpenCV those without."""
    content = chunk + zlib.compress(bytes(128_000_000))
    chunk = (len(content) - 4).to_bytes(4) + content + zlib.crc32(content).to_bytes(4)
    png = encode(image, "PNG")
    memory, error = peak_memory(tmp_path / "bomb.png", png[:33] + chunk + png[33:])
    assert memory < 30 and message in error


def example(image, **more):
    return {"id": "a/b.jpg", "image": image, "labels": np.array([3], np.int32), **more}


def apply(transform, image, seed):
    out = np.zeros(transform.shape, np.uint8)
    transform(example(image), np.random.default_rng(seed), out)
    return out


WINDOWS = [
    RandomResizedCrop(64),
    RandomResizedCrop((48, 96), area=(0.5, 1.0)),
    ResizeCrop(90, 64),
    ResizeCrop(90, 64, random=False),
    CentreCrop(64, 80),
    Resize((50, 70)),
]


@pytest.mark.parametrize("transform", WINDOWS, ids=repr)
def test_windows_match_a_slow_reference(transform):
    data = encode(photo(150, 201), quality=95, exif=oriented(6))
    windows = set()
    for seed in range(8):
        crop, flip = transform.window(201, 150, np.random.default_rng(seed))
        windows.add((crop, flip))
        out = apply(transform, data, seed)
        assert difference(out, reference(data, crop, *transform.shape[:2], flip)).mean() < 2.5
        np.testing.assert_array_equal(out, apply(transform, data, seed))
        # In the stored orientation, a window between pixels may be rounded the other way.
        assert difference(out, apply(transform, upright(data), seed)).mean() < 5
    random = isinstance(transform, RandomResizedCrop | ResizeCrop) and transform.random
    assert len(windows) == (8 if random else 1)


def test_random_crop_padded_matches_a_slow_reference():
    image = photo(32, 32)
    transform = RandomCropPadded(32, 4)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    legal = {}
    for top in range(9):
        for left in range(9):
            window = padded[top : top + 32, left : left + 32]
            legal[window.tobytes()] = legal[window[:, ::-1].tobytes()] = (top, left)
    offsets = [legal[apply(transform, image, seed).tobytes()] for seed in range(800)]
    counts = np.unique(np.array(offsets), axis=0, return_counts=True)[1]
    assert len(counts) == 81 and counts.max() < 30  # each of the 81 offsets about 10 times
    jpeg = encode(photo(32, 32), quality=95)
    np.testing.assert_array_equal(apply(transform, jpeg, 5), apply(transform, decode(jpeg), 5))
    assert apply(RandomCropPadded(24, 0, flip=False), image, 0).shape == (24, 24, 3)


def test_random_resized_crop_is_legal_and_covers_its_range():
    transform = RandomResizedCrop(224)
    rng = np.random.default_rng(0)
    windows = [transform.window(375, 500, rng) for _ in range(4000)]
    top, left, h, w = np.array([crop for crop, _ in windows]).T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 375).all() and (left + w <= 500).all()
    area, aspect = h * w / (375 * 500), w / h
    assert area.min() > 0.075 and area.max() <= 1.0 and aspect.min() > 0.74 and aspect.max() < 1.35
    assert area.min() < 0.09 and area.max() > 0.95 and aspect.min() < 0.76 and aspect.max() > 1.32
    assert 0.45 < np.mean([flip for _, flip in windows]) < 0.55
    assert abs(np.mean((top + h / 2) / 375) - 0.5) < 0.01 and abs(np.mean((left + w / 2) / 500) - 0.5) < 0.01
    for height, width in ((1, 1), (1, 900), (900, 1), (10, 1000)):
        (top, left, h, w), _ = transform.window(height, width, rng)
        assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0
        apply(transform, np.zeros((height, width, 3), np.uint8), 0)


def test_transformed_examples_keep_labels_and_lose_objects():
    batch = np.zeros((3, 64, 64, 3), np.uint8)
    before = example(encode(COLOUR), boxes=np.zeros((1, 4)), instance_mask=b"", caption="a cat")
    after = RandomResizedCrop(64)(before, np.random.default_rng(0), batch[1])
    assert set(after) == {"id", "labels", "caption", "key"} and "image" in before
    assert batch[1].any() and not batch[0].any() and not batch[2].any()


@pytest.mark.parametrize("transform", [*WINDOWS, RandomCropPadded(32)], ids=lambda t: type(t).__name__)
def test_bad_images_carry_their_id(transform):
    with pytest.raises(BadImageError, match=r"'a/b\.jpg'") as caught:
        apply(transform, encode(COLOUR)[:-200], 0)
    assert caught.value.example_id == "a/b.jpg" and "remature" in caught.value.reason


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomResizedCrop(0),
        lambda: RandomResizedCrop(area=(0.5, 1.5)),
        lambda: RandomResizedCrop(aspect=(2.0, 1.0)),
        lambda: ResizeCrop(resize=200, size=224),
        lambda: CentreCrop(224, 200),
        lambda: RandomCropPadded(32, 32),
    ],
)
def test_fields_are_checked(make):
    with pytest.raises(UserError):
        make()
