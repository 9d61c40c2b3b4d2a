"""VOC's XML; the independent reading is ElementTree's."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from fuzz import harness
from fuzz.harness import Case, must
from fuzz.made import encoded, oriented
from fuzz.mutate import of_bytes, of_text, pick

HEIGHT, WIDTH = 10, 20
PHOTO = encoded("JPEG", size=(HEIGHT, WIDTH))
TURNED = encoded("JPEG", size=(WIDTH, HEIGHT), exif=oriented(6))


XML = """<?xml version="1.0" encoding="UTF-8"?>
<annotation><filename>a.jpg</filename><size><width>20</width><height>10</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>3.5</xmin><ymin>2</ymin><xmax>6</xmax><ymax>5</ymax></bndbox></object>
</annotation>
"""
LAUGHS = (
    "<!DOCTYPE x [<!ENTITY a '"
    + "b" * 100
    + "'>"
    + "".join(f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 40}'>" for i in range(6))
    + "]>"
)


def tagged(tag: str, *values: str) -> list[bytes]:
    """The XML with the first element of this name holding each of these texts."""
    start, end = XML.index(f"<{tag}>") + len(tag) + 2, XML.index(f"</{tag}>")
    return [(XML[:start] + value + XML[end:]).encode() for value in values]


VOC_BY_HAND: tuple[bytes, ...] = (
    b"",
    b"<html/>",
    b"<annotation/>",
    b"<annotation>",
    b"not xml",
    XML.replace("UTF-8", "utf-7").encode(),
    XML.replace("UTF-8", "no-such").encode(),
    XML.replace("UTF-8", "shift_jis").encode(),
    XML.replace("UTF-8", "UTF-16").encode("utf-16"),
    XML.replace("UTF-8", "UTF-16").encode(),
    XML.replace("UTF-8", "idna").encode(),
    XML.replace("UTF-8", "rot13").encode(),
    XML.replace("UTF-8", "big5").encode(),
    XML.replace("UTF-8", "ISO-8859-1").replace("dog", "hélas").encode("latin-1"),
    XML.replace("<annotation>", LAUGHS + "<annotation>").replace(">dog<", ">&g;<").encode(),
    XML.replace("<annotation>", "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/hostname'>]><annotation>")
    .replace(">dog<", ">&x;<")
    .encode(),
    *tagged(
        "xmin",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "",
        " 1 ",
        "0",
        "-5",
        "25",
        "20.5",
        "x",
        "1_0",
        "٣",
        "0x1",
        "1,5",
        "<b>1</b>",
    ),
    *tagged("width", "0", "-20", "10", "21", "1e10", "99999999999", "nan", "x", "20.0", "20.7", "", "1e400", "10<b/>"),
    *tagged("difficult", "2", "-1", "True", "", "Unspecified", " 1 ", "1.0"),
    *tagged("name", "", " ", "a\nb", "a" * 5000, "[b]", "é", "\u202e"),
    XML.replace("<xmin>1</xmin>", "<xmin>20</xmin>").replace("<xmax>20</xmax>", "<xmax>1</xmax>").encode(),
    XML.replace("xmin", "t").replace("xmax", "xmin").replace("<t>", "<xmax>").replace("</t>", "</xmax>").encode(),
    XML.replace("<depth>", "\0<depth>").encode(),
    XML.replace("<size>", "<size/><size>").encode(),
    (XML + XML).encode(),
    XML.replace("<bndbox>", "<bndbox><xmin>9</xmin></bndbox><bndbox>").encode(),
    ("<a>" * 20_000).encode(),
    XML.replace("</annotation>", "<object><part>" * 2000 + "</part></object>" * 2000 + "</annotation>").encode(),
    XML.encode() + b"\0" * 100,
    XML.replace("<annotation>", "<annotation xmlns='http://x'>").encode(),
    XML.replace("object>", "Object>").encode(),
    XML.replace("<size>", "<size2>").replace("</size>", "</size2>").encode(),
)


def voc_trees(rng: np.random.Generator, number: int, folder: Path) -> Case:
    root = folder / "voc"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    listed = b"a\nb\n"
    for name in ("a", "b", "c"):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(PHOTO)
        (root / "Annotations" / f"{name}.xml").write_text(XML)
    if number < len(VOC_BY_HAND):
        data, what = VOC_BY_HAND[number], "by hand"
    elif rng.random() < 0.15:
        data, (listed, what) = XML.encode(), of_text(rng, "a\nb  1\nc -1\n")
        what = f"the list: {what}"
    elif rng.random() < 0.05:
        (root / "JPEGImages" / "a.jpg").write_bytes(pick(rng, (TURNED, b"", encoded("JPEG", size=(11, 20)))))
        data, what = XML.encode(), "another image"
    else:
        data, what = pick(rng, (of_bytes, lambda rng, data: of_text(rng, data.decode())))(rng, XML.encode())
    (root / "Annotations" / "a.xml").write_bytes(data)
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(listed)
    return Case(
        ("data", "inspect", "voc"),
        ("a.xml", "train", "a.jpg", "voc"),
        f"{what}: {data!r:.60}",
        check="fuzz.test_voc:equals_element_tree",
    )


def equals_element_tree(folder: Path, arguments: list[str]) -> str | None:
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.data.decode import decode
    from big_vision_lite.errors import BadImageError

    dataset, dropped = source_of(arguments[-1]).open(), 0
    for index in range(len(dataset)):
        try:
            example = dataset[index]
        except BadImageError:
            continue
        name = example["id"].rpartition(".")[0]
        try:
            root = ElementTree.parse(folder / "voc" / "Annotations" / f"{name}.xml").getroot()
            must(root.tag == "annotation", root.tag)
            height, width = decode(example["image"]).shape[:2]
            sides = [root.findtext(f"size/{side}") for side in ("height", "width")]
            known = all(side and side.strip() and float(side) > 0 for side in sides)
            must(not known or [float(side) for side in sides] == [height, width], sides)
            boxes, labels, difficult = [], [], []
            for element in root.iter("object"):
                x1, y1, x2, y2 = (
                    float(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                must(all(map(math.isfinite, (x1, y1, x2, y2))), x1, y1, x2, y2)
                edges = np.clip([x1 - 1, y1 - 1, x2, y2], 0, [width, height] * 2)
                label = element.findtext("name").strip()
                must(label and len(label.splitlines()) == 1, label)
                if edges[2] > edges[0] and edges[3] > edges[1]:
                    boxes.append(edges / ([width, height] * 2))
                    labels.append(dataset.classes.index(label))
                    difficult.append(int(element.findtext("difficult") or "0") != 0)
                else:
                    dropped += 1
        except Exception as error:  # of any type
            return f"accepted, and no other reader would: {error!r}"
        if (
            not np.allclose(example["boxes"], np.array(boxes).reshape(-1, 4), atol=1e-6)
            or example["box_labels"].tolist() != labels
            or example["difficult"].tolist() != difficult
        ):
            return f"{name}: {example} instead of {boxes} {labels} {difficult}"
    if dropped and "dropped" not in Path(f"{folder}.log", "stdout").read_text():
        return f"{dropped} objects dropped without a word"
    return None


@harness.formats(250, 10, voc=voc_trees)
def test_voc(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
