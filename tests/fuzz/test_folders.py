"""Folders of images and csv files; the independent readings are os.walk and the module csv."""

from __future__ import annotations

import csv
import os
import posixpath
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import Case
from fuzz.made import NAMES, SPECIAL, SUFFIXES, special, tree
from fuzz.mutate import of_text, pick

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}

LAYOUTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("flat", ("{c}/{i}.jpg",)),
    ("splits", ("train/{c}/{i}.jpg", "val/{c}/{i}.jpg")),
    ("capitals", ("Training/{c}/{i}.jpg", "Testing/{c}/{i}.jpg")),
    ("upper", ("TRAIN/{c}/{i}.jpg", "TEST/{c}/{i}.jpg")),
    ("below", ("archive/train/{c}/{i}.jpg", "archive/val/{c}/{i}.jpg")),
    ("deep", ("{c}/a/b/{i}.jpg",)),
    ("no classes", ("{i}.jpg",)),
    ("split, no classes", ("train/{i}.jpg", "val/{i}.jpg")),
    ("split and classes", ("train/{c}/{i}.jpg", "{c}/{i}.jpg")),
    ("only test", ("test/{c}/{i}.jpg",)),
    ("both spellings", ("val/{c}/{i}.jpg", "validation/{c}/{i}.jpg", "train/{c}/{i}.jpg")),
    ("case", ("train/{c}/{i}.jpg", "Train/{c}/{i}.jpg")),
    ("class and images", ("{c}/{i}.jpg", "{i}.jpg")),
    ("other class in val", ("train/{c}/{i}.jpg", "val/{c}x/{i}.jpg")),
    ("a class named test", ("test/{i}.jpg", "cat/{i}.jpg")),
    ("images", ("images/{c}/{i}.jpg", "masks/{c}/{i}.png")),
    ("nothing", ()),
    ("other files", ("{c}/{i}.txt",)),
    ("voc", ("Annotations/{i}.xml", "JPEGImages/{i}.jpg")),
    ("long", ("/".join(["deep"] * 60) + "/{c}/{i}.jpg",)),
)


def folders(rng: np.random.Generator, number: int, folder: Path) -> Case:
    """A layout with something odd in it."""
    root = folder / "photos"
    root.mkdir()
    layout, patterns = LAYOUTS[number % len(LAYOUTS)]
    classes = pick(
        rng,
        (
            ("cat", "dog"),
            ("cat", "dog"),
            ("cat",),
            ("é", "é"),
            ("Cat", "cat"),
            ("x\ny", "z"),
            ("0", "1", "2"),
            (".cat", "dog"),
            ("[b]", "[/b]"),
            ("\udcff", "dog"),
        ),
    )
    for pattern in patterns:
        for name in classes:
            tree(root, *(pattern.format(c=name, i=i) for i in range(int(rng.integers(1, 5)))))
    what, places = f"{layout} {classes!a}", [path for path in sorted(root.rglob("*")) if path.is_dir()] or [root]
    for _ in range(int(rng.integers(3))):
        place, kind = pick(rng, places), pick(rng, ("special", "special", "name", "empty class", "bad image", "case"))
        if kind == "special":
            kind = pick(rng, SPECIAL)
            special(kind, place / f"{kind}.jpg")
        elif kind == "name":
            kind = pick(rng, NAMES)
            tree(place, kind)
        elif kind == "empty class":
            (place / "empty").mkdir(exist_ok=True)
        elif kind == "bad image":
            tree(place, "bad.png", data=rng.bytes(int(rng.integers(100))))
        else:
            tree(place, "0.JPG", "0.png")
        what += f", {kind!a} in {place.relative_to(root)!s:.20}"
    split = pick(rng, ("", "", ":split=val", ":split=train", ":split=test", ":split=Train", ":held_out=0.3"))
    named = ("photos", "split", "class", "held_out", *map(str, classes))
    return Case(("data", "inspect", f"photos{split}"), named, what + split, check="fuzz.test_folders:lists_all_files")


def lists_all_files(folder: Path, arguments: list[str]) -> str | None:
    """Ids are files whose folder is their class, and over all splits none is left out."""
    import dataclasses

    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.data.sources.image_folder import ImageFolder
    from big_vision_lite.errors import BadImageError, UserError

    source = source_of(arguments[-1])
    if not isinstance(source, ImageFolder):
        return None
    root, read = folder / "photos", set()
    for split in ("train", "validation", "test", "Train", "TRAIN", "Training", "Testing", "TEST"):
        try:
            dataset = dataclasses.replace(source, split=split).open()
        except UserError:
            continue
        for index in range(len(dataset)):
            id_, (label,) = dataset.labels(index)
            parts, name = id_.split("/"), dataset.classes[label]
            if name not in parts[:-1][:2]:
                return f"{id_!r} has the class {name!r}"
            read.add(id_)
            try:
                dataset[index]
            except BadImageError:
                continue
            if not (root / id_).is_file():
                return f"{id_!r} is no file"
        if (
            all(name.lower() in SPLITS for name in dataset.classes)
            and len(dataset.classes) > 1
            and any(path.is_dir() for name in dataset.classes for path in root.rglob(f"{name}/*"))
        ):
            return f"splits are classes: {dataset.classes}"
        for name in dataset.classes:
            for place in root.rglob(name):
                inside = {path.name.lower() for path in place.iterdir()} if place.is_dir() else set()
                if len(inside) > 1 and inside <= SPLITS and all(path.is_dir() for path in place.iterdir()):
                    return f"a folder of splits is a class: {name}"
    text = Path(f"{folder}.log", "stdout").read_text(errors="replace")
    tops = {id_.partition("/")[0] for id_ in read}  # splits, beside which other folders are other splits, or classes
    for parent, _, files in os.walk(root):
        for file in files:
            path = Path(parent, file).relative_to(root)
            hidden = any(part.startswith(".") for part in path.parts)
            if hidden or not file.lower().endswith(SUFFIXES) or len(path.parts) < 2 or str(path) in read:
                continue
            if path.parts[0] not in tops or (path.parts[0].lower() in SPLITS and len(path.parts) < 3):
                continue
            if "are ignored" not in text:
                return f"{str(path)!r} is left out without a word; read are {sorted(read)[:9]}"
    return None


CSV = """path,labels,split
x.jpg,cat,train
"deep/y, z.jpg",cat;dog,train
w.jpg,,val
v.jpg,dog,val
"""
CSV_BY_HAND = (
    "",
    "path,labels\n",
    "path\nx.jpg\n",
    "labels,path\ncat,x.jpg\n",
    "path,label\nx.jpg,cat\n",
    "path,labels\nx.jpg\n",
    "path,labels\nx.jpg,cat,dog\n",
    "path;labels\nx.jpg;cat\n",
    "path\tlabels\nx.jpg\tcat\n",
    "\ufeffpath,labels\nx.jpg,cat",
    "path,labels\r\nx.jpg,cat\r\n",
    "path,labels\rx.jpg,cat\r",
    'path,labels\n"x.jpg,cat\n',
    'path,labels\n"x.jpg","a\nb"\n',
    "path,labels\n../x.jpg,cat\n",
    "path,labels\n/etc/passwd,cat\n",
    "path,labels\nx.jpg,cat\nx.jpg,dog\n",
    "path,labels\n./x.jpg,cat\nx.jpg,dog\n",
    "path,labels\nx.jpg,cat;cat\n",
    "path,labels\nx.jpg,;;;\n",
    "path,labels\nX.JPG,cat\n",
    "path,labels\nx.jpg,\0\n",
    "path,labels\n" + "x" * 200_000 + ",cat\n",
    "path,labels\nx.jpg," + ";".join(map(str, range(30_000))) + "\n",
    "path,path,labels\nx.jpg,w.jpg,cat\n",
    "path,labels,labels\nx.jpg,cat,dog\n",
    " path , labels \n x.jpg , cat \n",
    "path,labels\n\n\nx.jpg,cat\n\n",
    "path,labels\n# comment,cat\n",
    "path,labels\ndeep,cat\n",
    "path,labels\n,cat\n",
    "path,labels\nx.jpg,[red]cat[/red]\n",
    "path,labels\nx.jpg,cat\n" + "".join(f"w{i}.jpg,dog\n" for i in range(20_000)),
    "path,labels\npipe.jpg,cat\n",
    "path,labels\nzero.jpg,cat\n",
    "path,labels\ndeep\\y, z.jpg,cat\n",
    "path,labels\nnowhere.jpg,cat\n",
    'path,labels\n"deep/y, z.jpg",cat',
    "Path,Labels\nx.jpg,cat\n",
    "path,labels,split\nx.jpg,cat,\n",
)


def csv_files(rng: np.random.Generator, number: int, folder: Path) -> Case:
    """A csv file beside its images."""
    tree(folder, "x.jpg", "deep/y, z.jpg", "w.jpg", "v.jpg")
    special("pipe", folder / "pipe.jpg")
    special("zero", folder / "zero.jpg")
    data, what = (CSV_BY_HAND[number].encode(), "by hand") if number < len(CSV_BY_HAND) else of_text(rng, CSV)
    (folder / "labels.csv").write_bytes(data)
    fields = pick(rng, ("", "", "", ":split=train", ":multi_label=false", ":root=deep"))
    return Case(
        ("data", "inspect", f"labels.csv{fields}"),
        ("labels.csv", ".jpg"),
        f"{what} {data!r:.200}",
        check="fuzz.test_folders:equals_csv",
    )


def equals_csv(folder: Path, arguments: list[str]) -> str | None:
    """Paths and labels are those that the module csv reads."""
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.errors import BadImageError

    source = source_of(arguments[-1])
    dataset = source.open()
    csv.field_size_limit(2**30)
    with (folder / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file, strict=True) if row]
    header = [name.strip() for name in header]
    if len({*header}) < len(header):
        return f"two columns of one name: {header}"
    path, labels = header.index("path"), header.index("labels" if "labels" in header else "label")
    expected = {}
    for row in rows:
        if len(row) != len(header) and len(row) <= max(path, labels):
            return f"a row of {len(row)} values: {row}"
        if source.split is None or source.split in row[header.index("split") :][:1]:
            names = {name.strip() for name in row[labels].split(";")} - {""}
            expected[posixpath.normpath(row[path].strip().replace("\\", "/"))] = names
    found = {}
    for index in range(len(dataset)):
        id_, ids = dataset.labels(index)
        found[id_] = {dataset.classes[label] for label in ids}
        try:
            if dataset[index]["image"] != Path(folder, source.root or "", id_).read_bytes():
                return f"{id_} has other bytes"
        except BadImageError:
            continue
    return None if found == expected else f"{found} instead of {expected}"[:500]


@harness.formats(250, 12, folders=folders)
def test_folders(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)


@harness.formats(200, 10, csv=csv_files)
def test_csv(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
