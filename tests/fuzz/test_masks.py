"""Folders of images and class masks; the independent reading is Pillow's."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import Case
from fuzz.made import SPECIAL, encoded, flat_png, oriented, png, special
from fuzz.mutate import TEXTS, of_bytes, of_json_bytes, of_text, pick
from PIL import Image

SIZE = (6, 8)


def mask(values=(0, 1, 2, 255), mode: str = "L", form: str = "PNG", size: tuple[int, int] = SIZE, **options) -> bytes:
    """Columns of these values."""
    pixels = np.resize(np.array(values, np.uint16), (size[0], size[1]))
    buffer = io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray(pixels)
    else:
        image = Image.fromarray(pixels.astype(np.uint8))
        if mode == "P":
            image.putpalette([value for k in range(256) for value in (k, 255 - k, k * 7 % 256)])
        elif mode == "1":
            image = image.point(lambda value: 255 * (value > 0)).convert("1", dither=Image.Dither.NONE)
        elif mode != "L":
            image = image.convert(mode)
    image.save(buffer, form, **options)
    return buffer.getvalue()


MASKS = (
    lambda: mask((0, 255)),
    lambda: mask((255,)),
    lambda: mask((0,)),
    lambda: mask((1,)),
    lambda: mask((0, 1), "1"),
    lambda: mask(mode="P"),
    lambda: mask((0, 1, 2, 300), "I;16"),
    lambda: mask((0, 1, 2, 65_535), "I;16"),
    lambda: mask(mode="RGB"),
    lambda: mask(mode="RGBA"),
    lambda: mask(mode="LA"),
    lambda: mask(size=(8, 6)),
    lambda: mask(size=(6, 9)),
    lambda: mask(form="JPEG"),
    lambda: mask(form="GIF"),
    lambda: mask(form="TIFF"),
    lambda: mask((0, 1, 2, 3)),
    lambda: mask(exif=oriented(6)),
    lambda: b"",
    lambda: mask(exif=oriented(6), size=(8, 6)),
    lambda: mask(mode="P", transparency=1),
    lambda: png(*SIZE[::-1], depth=16, colours=2),
    lambda: flat_png(13_000, 1, 0),
    lambda: png(2**31 - 1, 2**31 - 1, colours=0),
    lambda: mask(mode="P", bits=2, values=(0, 1, 2, 3)),
)
CLASS_FILES: tuple[tuple[str, bytes], ...] = tuple(
    ("classes.txt", text.encode(errors="surrogatepass"))
    for text in (
        "",
        "\n",
        "cat\ndog\n",
        "cat\ncat\n",
        "cat\n",
        "background\ncat\ndog\n",
        "0 background\n1 cat\n2 dog\n255 void\n",
        "1 cat\n1 dog\n",
        "70000 cat\n1 dog\n2 x\n",
        "1 cat\n2 dog\n0 sky\n",
        "255 cat\n",
        "-1 cat\n",
        "1:cat\n2:dog\n",
        "1,cat\n2,dog\n",
        "1 cat\ndog\n",
        "\n".join(f"c{i}" for i in range(300)),
        "1 " + "a" * 5000 + "\n2 dog\n",
        "9" * 5000 + " cat\n",
        "\u0663 cat\n\u0661 dog\n",
        *TEXTS,
    )
) + tuple(
    ("classes.json", text)
    for text in (
        b'["cat", "dog"]',
        b'{"1": "cat", "2": "dog"}',
        b'{"1": "cat", "1": "dog"}',
        b'{"1": 1, "2": 2}',
        b'{"a": "cat"}',
        b"null",
        b"[]",
        b"{}",
        b'{"1e400": "cat"}',
        b'[{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]',
        b'[{"id": 1e400, "name": "cat"}]',
        b"[" * 100_000,
        b'{"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}',
        b'{"categories": 3}',
        b'{"categories": {"1": "cat"}}',
        b'["cat", 3]',
        b'["cat", ["dog"]]',
        b'{"1.0": "cat", "2": "dog"}',
        b'{" 1 ": "cat", "2": "dog"}',
        b'{"70000": "cat", "1": "a", "2": "b"}',
        b'{"1": "cat", "2": null}',
        b'"cat"',
        b"[NaN]",
        json.dumps(["cat", "dog"]).encode("utf-16"),
    )
)


def mask_folders(rng: np.random.Generator, number: int, folder: Path) -> Case:
    root = folder / "scenes"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(4):
        (root / "images" / f"{i}.jpg").write_bytes(encoded("JPEG", size=SIZE))
        (root / "masks" / f"{i}.png").write_bytes(mask())
    (root / "train.txt").write_text("0\n1\n2.jpg\n")
    named = ["scenes", "train.txt", "classes", "MaskFolder", "'0", "/0"]
    kind = (
        "mask"
        if number < len(MASKS)
        else "classes"
        if number < len(MASKS) + len(CLASS_FILES)
        else pick(rng, ("mask", "bytes", "text", "json", "list", "files", "files", "special"))
    )
    what = kind
    if kind == "mask":
        data = MASKS[number]() if number < len(MASKS) else mask(rng.integers(0, 300, 4), pick(rng, ("L", "P", "I;16")))
        for i in (0, *([1, 2, 3] if rng.random() < 0.3 else [])):
            (root / "masks" / f"{i}.png").write_bytes(data)
    elif kind == "classes":
        name, data = CLASS_FILES[number - len(MASKS)]
        (root / name).write_bytes(data)
        what += f" {data!r:.60}"
    elif kind == "bytes":
        data, what = of_bytes(rng, mask(mode=pick(rng, ("L", "P"))))
        (root / "masks" / "0.png").write_bytes(data)
    elif kind == "text":
        data, what = of_text(rng, "0 background\n1 cat\n2 dog\n")
        (root / "classes.txt").write_bytes(data)
    elif kind == "json":
        data, what = of_json_bytes(
            rng,
            pick(
                rng,
                (
                    ["cat", "dog"],
                    {"1": "cat", "2": "dog"},
                    {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]},
                ),
            ),
        )
        (root / "classes.json").write_bytes(data)
    elif kind == "list":
        data, what = of_text(rng, "0\n1\n2.jpg\n")
        (root / "train.txt").write_bytes(data)
    elif kind == "files":
        for _ in range(int(rng.integers(1, 4))):
            place = root / pick(rng, ("images", "masks"))
            path = pick(rng, sorted(place.iterdir()) or [place / "none.png"])
            new = place / pick(rng, ("0.PNG", "0.png", "0.JPG", "00.png", "sub/0.png", ".0.png", "é.png", "0.jpg.png"))
            new.parent.mkdir(exist_ok=True)
            if path.exists() and not new.exists():
                what += f" {path.name} is {new.name}"
                path.rename(new) if rng.random() < 0.5 else new.write_bytes(path.read_bytes())
    else:
        kind = pick(rng, SPECIAL)
        (root / "masks" / "0.png").unlink()
        special(kind, root / "masks" / "0.png")
        what += f" {kind}"
    fields = pick(
        rng, ("", "", ":split=all", ":others=background", ":unpaired=skip", ":void=(),background=none", ":split=val")
    )
    return Case(
        ("data", "inspect", f"scenes{fields}"), tuple(named), what + fields, check="fuzz.test_masks:equals_pillow"
    )


def equals_pillow(folder: Path, arguments: list[str]) -> str | None:
    """Each mask has Pillow's values, under the names that the file of classes gives them."""
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.errors import BadImageError

    source, root = source_of(arguments[-1]), folder / "scenes"
    dataset = source.open()
    files = {
        path.relative_to(root / "masks").with_suffix(""): path
        for path in (root / "masks").rglob("*")
        if path.suffix.lower() == ".png"
    }
    try:
        named = names_of(root, source)
    except Exception as error:  # of any type
        return f"accepted, and no other reader would: {error!r}"
    for index in range(len(dataset)):
        try:
            example = dataset[index]
        except BadImageError:
            continue
        id_ = example["id"]
        with Image.open(files[Path(id_).with_suffix("")]) as image:
            image.load()
            stored = np.asarray(image).astype(int)
            if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
                return f"{id_}: a mask of mode {image.mode} is accepted"
        expected = np.zeros(stored.shape, int)
        for value in np.unique(stored).tolist():
            if value in source.void:
                label = 255
            elif value == source.background:
                label = 0
            elif named is not None and value not in named:
                label = {"background": 0, "void": 255}.get(source.others)
                if label is None:
                    return f"{id_}: the value {value} has no name and is accepted"
            else:
                label = 1 + dataset.classes.index(named[value] if named is not None else str(value))
            expected[stored == value] = label
        if not np.array_equal(example["class_mask"], expected):
            return f"{id_}: {np.unique(example['class_mask'])} instead of {np.unique(expected)} of {np.unique(stored)}"
        if example["labels"].tolist() != sorted({value - 1 for value in expected.ravel().tolist()} - {-1, 254}):
            return f"{id_}: labels {example['labels']}"
        if set(np.unique(stored).tolist()) <= {0, 255} and len(dataset) == 1:
            return f"{id_}: background and void alone"
    return None


def names_of(root: Path, source) -> dict[int, str] | None:
    """{value: name}; None where nothing names them. Raises: an error of any type when the file of classes has none."""
    first = 0 if source.background is None else 1
    if (root / "classes.txt").is_file():
        lines = [line.strip() for line in (root / "classes.txt").read_text("utf-8-sig").splitlines() if line.strip()]
        pairs = [line.replace(":", " ").replace(",", " ").split(None, 1) for line in lines]
        if all(len(pair) == 2 and pair[0].isdecimal() for pair in pairs):
            named = [(int(value), name) for value, name in pairs]
        else:
            named = list(
                enumerate(lines, 0 if lines[0].lower() in ("background", "__background__", "_background_") else first)
            )
    elif (root / "classes.json").is_file():
        entries = json.loads((root / "classes.json").read_text("utf-8-sig"), parse_constant=int)
        if isinstance(entries, dict) and "categories" in entries:
            entries = entries["categories"]
        if isinstance(entries, dict):
            named = [(int(value), name) for value, name in entries.items()]
        elif isinstance(entries[0], dict):
            named = [(entry["id"], entry["name"]) for entry in entries]
        else:
            named = list(enumerate(entries, 0 if entries[0].lower() in ("background", "__background__") else first))
    else:
        return None
    for value, name in named:
        if type(value) is not int or not 0 <= value < 65_536 or not isinstance(name, str) or not name.strip():
            raise ValueError(f"{value!r}: {name!r:.50}")
    if len(dict(named)) < len(named):
        raise ValueError("a value twice")
    return dict(named)


@harness.formats(220, 10, masks=mask_folders)
def test_masks(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
