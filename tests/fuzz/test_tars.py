"""Tar files of images; the independent reading is the module tarfile's."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import Case
from fuzz.made import NAMES, PHOTO, SUFFIXES, encoded
from fuzz.mutate import of_bytes, pick


def member(name: str, data: bytes = PHOTO, kind: bytes = tarfile.REGTYPE, link: str = "", **headers) -> tuple:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.pax_headers = len(data), kind, link, headers
    return info, data


def archive(*members: tuple, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def photos(*names: str, form: int = tarfile.PAX_FORMAT) -> bytes:
    return archive(*(member(name, encoded("JPEG", seed=k, size=(8, 8))) for k, name in enumerate(names)), form=form)


def nested(depth: int) -> bytes:
    data = photos("0.jpg")
    for level in range(depth):
        data = archive(member(f"{level}.tar", data))
    return data


def lying_size(size: str) -> bytes:
    """The first header claims another size, with a right checksum."""
    data = bytearray(photos("0.jpg", "1.jpg"))
    data[124:136] = size.encode().ljust(12, b"\0")
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    return bytes(data)


SOUND = photos("0.jpg", "1.jpg", "2.jpg")
BY_HAND: tuple = (
    lambda: b"",
    lambda: bytes(10_240),
    lambda: bytes(512),
    lambda: SOUND[:-10_240],
    lambda: SOUND + SOUND,
    lambda: gzip.compress(SOUND),
    lambda: nested(1),
    lambda: nested(2),
    lambda: nested(60),
    lambda: nested(360),
    lambda: archive(),
    lambda: SOUND.rstrip(b"\0"),
    lambda: photos("a/0.jpg", "b/0.jpg", "./c.jpg"),
    lambda: photos("0.jpg", "0.jpg"),
    lambda: photos("./0.jpg", "0.jpg"),
    lambda: photos("/0.jpg"),
    lambda: photos("../0.jpg"),
    lambda: photos(".0.jpg", "__MACOSX/._0.jpg", "1.jpg"),
    lambda: photos("a" * 300 + ".jpg"),
    lambda: photos("é.jpg", "é.jpg"),
    lambda: photos("0.JPG", "0.jpg"),
    lambda: photos("0.jfif", "1.jpg"),
    lambda: photos("0.txt"),
    lambda: archive(member("0.jpg"), member("0.cls", b"3"), member("1.jpg"), member("1.cls", b"7")),
    lambda: archive(member("0.jpg"), member("0.json", b'{"label": 3}'), member("0.txt", b"a cat")),
    lambda: archive(member("0.jpg", b"", tarfile.SYMTYPE, "1.jpg"), member("1.jpg")),
    lambda: archive(member("0.jpg", b"", tarfile.LNKTYPE, "1.jpg"), member("1.jpg")),
    lambda: archive(member("0.jpg", b"", tarfile.FIFOTYPE), member("1.jpg")),
    lambda: archive(member("0.jpg", b"", tarfile.CHRTYPE), member("1.jpg")),
    lambda: archive(member("d.jpg", b"", tarfile.DIRTYPE), member("1.jpg")),
    lambda: archive(member("0.jpg", b""), member("1.jpg")),
    lambda: archive(member("0.jpg", PHOTO, b"Q"), member("1.jpg")),
    lambda: archive(member("0.jpg", PHOTO, b"S"), member("1.jpg")),
    lambda: archive(member("0.jpg", **{"size": "99999999999"}), member("1.jpg")),
    lambda: archive(member("0.jpg", **{"size": "x"})),
    lambda: archive(
        member("0.jpg", **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999999"})
    ),
    lambda: archive(member("0.jpg", **{"GNU.sparse.map": "0,1,x"})),
    lambda: archive(member("0.jpg", **{"path": "../../x.jpg"})),
    lambda: archive(member("0.jpg", **{"path": "x\0y.jpg"})),
    lambda: archive(member("0.jpg", **{"mtime": "nan"})),
    lambda: lying_size("77777777777"),
    lambda: lying_size("00000000000"),
    lambda: lying_size("-0000000001"),
    lambda: lying_size("zzz"),
    lambda: lying_size("\x7f" + "\x7f" * 10),
    lambda: photos(*map("{}.jpg".format, range(2000)), form=tarfile.USTAR_FORMAT),
    lambda: archive(member("in.tar", SOUND), member("0.jpg")),
    lambda: archive(member("in.tar", b"no tar"), member("0.jpg")),
    lambda: archive(member("in.tar", gzip.compress(SOUND))),
    lambda: archive(member("a.tar", SOUND), member("x/a.tar", photos("9.jpg"))),
)


def tars(rng: np.random.Generator, number: int, folder: Path) -> Case:
    (folder / "tars").mkdir()
    data, what = SOUND, "sound"
    if number < len(BY_HAND):
        data, what = BY_HAND[number](), f"by hand {number}"
    elif rng.random() < 0.2:
        names = [pick(rng, (*NAMES, "x.jpg", "a/x.jpg")) for _ in range(3)]
        data, what = photos(*names, form=pick(rng, (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))), ascii(names)
    else:
        data = pick(rng, (SOUND, SOUND, archive(member("a.tar", SOUND), member("b.tar", photos("9.jpg")))))
        data, what = of_bytes(rng, data)
    name = pick(rng, ("cat.tar", "cat.tar", "cat.tar", ".cat.tar", "é.tar", "cat.x.tar"))
    (folder / "tars" / name).write_bytes(data)
    (folder / "tars" / "dog.tar").write_bytes(photos("0.jpg"))
    if rng.random() < 0.2:
        (folder / "tars" / "0.jpg").write_bytes(PHOTO)
    place = pick(rng, ("tars", "tars", f"tars/{name}"))
    return Case(
        ("data", "inspect", place),
        (".tar", "tars", "TarImages"),
        f"{what}, {place}",
        check="fuzz.test_tars:equals_tarfile",
    )


def equals_tarfile(folder: Path, arguments: list[str]) -> str | None:
    """Every image of every tar file, nested ones included, under its own name."""
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.errors import BadImageError

    dataset, place = source_of(arguments[-1]).open(), folder / arguments[-1]
    expected: dict[str, bytes] = {}
    files = [place] if place.is_file() else sorted(place.glob("[!.]*.tar"))
    other = [name for file in files for name in _members(file.stem, file.read_bytes(), expected)]
    found = {}
    for index in range(len(dataset)):
        id_, (label,) = dataset.labels(index)
        if not id_.startswith(dataset.classes[label]):
            return f"{id_!r} has the class {dataset.classes[label]!r}"
        try:
            found[id_] = dataset[index]["image"]
        except BadImageError:
            found[id_] = None
    if other and any(name.endswith((".cls", ".json")) for name in other):
        return f"a WebDataset's shards are classes: {dataset.classes}"
    for id_ in {*found} | {*expected}:
        if id_ not in found or id_ not in expected:
            return f"{id_!r} is read: {id_ in found}, by tarfile: {id_ in expected}"
        if found[id_] is not None and found[id_] != expected[id_]:
            return f"{id_!r} has other bytes"
    return None


def _members(name: str, data: bytes, images: dict[str, bytes]) -> list[str]:
    """Adds the images of a tar file, and returns the other names."""
    others = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=False) as tar:
        for info in tar:
            file = info.name.rpartition("/")[2]
            if not info.isreg() or file.startswith("."):
                continue
            content = tar.extractfile(info).read()
            if info.name.endswith(".tar"):
                others += _members(file.removesuffix(".tar"), content, images)
            elif file.lower().endswith((*SUFFIXES, ".heic")):
                images[f"{name}/{info.name.removeprefix('./')}"] = content
            else:
                others.append(file)
    return others


@harness.formats(260, 10, tars=tars)
def test_tars(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
