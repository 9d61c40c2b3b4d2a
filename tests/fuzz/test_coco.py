"""COCO's JSON; the independent readings are json's and pycocotools'."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import Case, must
from fuzz.made import encoded, oriented
from fuzz.mutate import NUMBERS, TEXTS, json_text, of_json_bytes, pick

HEIGHT, WIDTH = 10, 20
PHOTO = encoded("JPEG", size=(HEIGHT, WIDTH))
TURNED = encoded("JPEG", size=(WIDTH, HEIGHT), exif=oriented(6))
SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]


def coco() -> dict:
    objects = [
        (5, 90, [2, 1, 4, 4], SQUARE, 0),
        (5, 7, [0, 0, 20, 10], {"size": [10, 20], "counts": [190, 10]}, 1),
        (3, 7, [-5, 2, 10, 3], [[0.5, 2, 5, 2, 5, 5]], 0),
        (3, 90, [15.5, 5, 10, 10], [], 0),
        (3, 7, [8, 8, 0, 2], [], 0),
    ]
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 20, "height": 10, "license": 1} for i in (5, 3, 9)],
        "annotations": [
            {
                "id": k,
                "image_id": i,
                "category_id": c,
                "bbox": box,
                "segmentation": outline,
                "iscrowd": crowd,
                "area": 11.5 + k,
            }
            for k, (i, c, box, outline, crowd) in enumerate(objects)
        ],
        "categories": [{"id": 90, "name": "toothbrush", "supercategory": "x"}, {"id": 7, "name": "train"}],
    }


def put(*path_and_value):
    """A change that sets data[path...] = value."""
    *path, key, value = path_and_value

    def change(data):
        for step in path:
            data = data[step]
        data[key] = value

    return change


def outlined(outline):
    return put("annotations", 0, "segmentation", outline)


COCO_BY_HAND = (
    *(put("annotations", 0, "bbox", 2, value) for value in (*NUMBERS, "4", None, [4])),
    *(put("annotations", 0, "area", value) for value in ("x", -1, float("nan"), 10**400, [])),
    *(put("annotations", 0, "iscrowd", value) for value in ("0", "1", 2, 0.5, True, None, [], -1)),
    *(put("images", 0, "height", value) for value in (*NUMBERS, "10", 20, 11, 10.5)),
    *(put("images", 0, "id", value) for value in (*NUMBERS, "5", None)),
    *(put("images", 0, "file_name", value) for value in TEXTS),
    *(put("categories", 0, "id", value) for value in NUMBERS),
    *(put("categories", 0, "name", value) for value in TEXTS),
    *(outlined([[2, 1, 6, 1, 6, value, 2, 5]]) for value in (*NUMBERS, 1e9, -1e9, "5", None, [5])),
    *(
        outlined(value)
        for value in (
            [[2, 1, 6, 1, 6, 5, 2]],
            [[2, 1, 6, 1]],
            [[2, 2] * 3],
            [[]],
            [],
            {},
            None,
            "x",
            [[[2, 1, 6]]],
            [2, 1, 6, 1, 6, 5],
            [[2, 1, 6, 1, 6, 5], 3],
            [[1e5, 1e5, 2e5, 1e5, 2e5, 2e5]],
            [[0, 0, 1, 0] * 50_000],
            [SQUARE[0]] * 5000,
        )
    ),
    *(
        outlined({"size": size, "counts": counts})
        for size, counts in (
            ([10, 20], [200]),
            ([10, 20], [0, 200]),
            ([10, 20], [190, 20]),
            ([10, 20], [5]),
            ([10, 20], []),
            ([10, 20], [-5, 205]),
            ([20, 10], [190, 10]),
            ([10], [190, 10]),
            ([10, 20], "x"),
            ([10, 20], ""),
            ([10, 20], "PPYo0\x7f"),
            ([10, 20], "é"),
            ([10, 20], [2**31, 5]),
            ([10, 20], [2**64, 5]),
            ([10, 20], [1e400]),
            ([2**31, 2**31], [2**31]),
            ([10, 20], "a" * 9999),
            ([10, 20], ["190", 10]),
            ([10.5, 20], [190, 10]),
            ([-10, -20], [190, 10]),
            ([10, 20], [190.5, 9.5]),
            ([100_000, 100_000], [10**10]),
            ([10, 20], None),
            ([0, 0], []),
        )
    ),
    lambda data: data["annotations"].extend(dict(data["annotations"][0], id=k) for k in range(10, 300)),
    lambda data: data.update(annotations=[]),
    lambda data: data.update(images=[]),
    lambda data: data.update(categories=[]),
    lambda data: data.pop("annotations"),
    lambda data: data.pop("images"),
    lambda data: data.pop("categories"),
    lambda data: data["images"].append(dict(data["images"][0], id=77)),
    lambda data: data["images"].append(data["images"][0]),
    lambda data: data["categories"].append({"id": 1, "name": "train"}),
    lambda data: data["annotations"][0].pop("bbox"),
    lambda data: data["annotations"].append(data["annotations"][0]),
    lambda data: data["annotations"][0].pop("id"),
    lambda data: data["annotations"][0].pop("segmentation"),
    lambda data: data["annotations"][0].pop("iscrowd"),
)
COCO_TEXTS = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b'"x"',
    b"[" * 200_000,
    b'{"images":' * 50_000,
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf" + json_text(coco()),
    json_text(coco()).replace(b"[2, 1, 4, 4]", b"[2, 1, 1e999, 4]"),
    json_text(coco()).replace(b"[2, 1, 4, 4]", b"[2, 1, -Infinity, 4]"),
    json_text(coco()).replace(b'"width": 20', b'"width": ' + b"9" * 5000),
    json_text(coco()).replace(b'"5.jpg"', b'"5\\u0000.jpg"'),
    json_text(coco()) + b"x",
    json_text(coco())[:-1],
    b'{"images": [], "images": ' + json_text(coco())[12:],
    json_text(coco()).decode().encode("utf-16"),
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    b"<html>",
    json_text([coco()]),
)


def coco_files(rng: np.random.Generator, number: int, folder: Path) -> Case:
    (folder / "images").mkdir()
    for i in (3, 5, 9):
        (folder / "images" / f"{i}.jpg").write_bytes(PHOTO)
    data, by_hand = coco(), len(COCO_BY_HAND) + len(COCO_TEXTS)
    if number < len(COCO_BY_HAND):
        COCO_BY_HAND[number](data)
        text, what = json_text(data), "by hand"
    elif number < by_hand:
        text, what = COCO_TEXTS[number - len(COCO_BY_HAND)], "by hand"
    elif number == by_hand:
        text, what = json_text(data), "EXIF turns the image of id 5"
        (folder / "images" / "5.jpg").write_bytes(TURNED)
    else:
        text, what = of_json_bytes(rng, data)
    (folder / "instances.json").write_bytes(text)
    arguments = "instances.json:images=images" + pick(
        rng, (",masks=true", ",masks=true", ",masks=true,keep_empty=false", "")
    )
    return Case(
        ("data", "inspect", arguments),
        ("instances.json", "images", ".jpg"),
        f"{what}: {text!r:.60}",
        check="fuzz.test_coco:equals_pycocotools",
    )


def number(value, whole: bool = False) -> bool:
    return (type(value) is int and abs(value) < 2**63) or (not whole and type(value) is float and math.isfinite(value))


def equals_pycocotools(folder: Path, arguments: list[str]) -> str | None:
    """Classes, ids, boxes, crowds, areas and masks, or what makes the file unreadable."""
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.data.decode import decode
    from big_vision_lite.errors import BadImageError

    source = source_of(arguments[-1])
    dataset = source.open()
    try:
        expected = by_pycocotools(
            json.loads((folder / "instances.json").read_text("utf-8-sig"), parse_constant=_constant), source.keep_empty
        )
    except Exception as error:  # of any type
        return f"accepted, and no other reader would: {error!r}"
    if list(dataset.classes) != expected.pop("classes"):
        return f"classes {dataset.classes}"
    if [dataset.labels(index)[0] for index in range(len(dataset))] != list(expected):
        return f"images {[dataset.labels(index)[0] for index in range(len(dataset))]} instead of {list(expected)}"
    for index, (name, truth) in enumerate(expected.items()):
        try:
            example = dataset[index]
            image = decode(example["image"])
        except (BadImageError, ValueError):
            continue
        if image.shape[:2] != truth["size"]:
            return f"{name} has {image.shape}, and the file says {truth['size']}"
        if example.get("unlabelled") and not truth["labels"]:
            continue
        for key, field in (("boxes", "boxes"), ("box_labels", "labels"), ("crowd", "crowd"), ("area", "area")):
            values = np.array(truth[field]).reshape(example[key].shape)
            if not np.allclose(example[key], values, rtol=1e-5, atol=1e-6):
                return f"{name}: {key} {example[key]} instead of {values}"
        if source.masks:
            try:
                mask = mask_of(truth)
            except Exception as error:  # of any type
                return f"{name}: a mask that no other reader would draw: {error!r}"
            if not np.array_equal(example["instance_mask"], mask):
                return f"{name}: {np.count_nonzero(example['instance_mask'] != mask)} pixels of the mask differ"
    return None


def _constant(name: str):
    raise ValueError(f"{name} is no JSON")


def by_pycocotools(data: dict, keep_empty: bool) -> dict:
    """ "classes", and of each image by its name: "size", "boxes", "labels", "crowd", "area" and "outlines"."""
    categories = sorted(data["categories"], key=lambda category: category["id"])
    for category in categories:
        must(number(category["id"], whole=True) and isinstance(category["name"], str), category)
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    must(len(label_of) == len(categories) == len({c["name"] for c in categories}), categories)
    expected: dict = {"classes": [category["name"] for category in categories]}
    must(len({image["id"] for image in data["images"]}) == len(data["images"]), "two images of one id")
    images = {image["id"]: image for image in data["images"]}
    must({a["image_id"] for a in data.get("annotations", [])} <= images.keys(), "an unknown image")
    for id_, image in images.items():
        size = (image["height"], image["width"])
        must(number(id_, whole=True) and all(number(side) and side == int(side) >= 1 for side in size), image)
        must(isinstance(image["file_name"], str) and image["file_name"] not in expected, image)
        truth = {"size": size, "boxes": [], "labels": [], "crowd": [], "area": [], "outlines": []}
        for annotation in data.get("annotations", []):
            if annotation["image_id"] != id_:
                continue
            x, y, w, h = annotation["bbox"]
            must(all(map(number, (x, y, w, h))), annotation)
            crowd, area = annotation.get("iscrowd") or 0, annotation.get("area")
            must(type(crowd) in (int, float, bool) and crowd in (0, 1) and (area is None or number(area)), annotation)
            edges = np.clip([x, y, x + w, y + h], 0, [size[1], size[0]] * 2)
            if not (edges[2] > edges[0] and edges[3] > edges[1]):
                label_of[annotation["category_id"]]
                continue
            truth["boxes"].append(edges / ([size[1], size[0]] * 2))
            truth["labels"].append(label_of[annotation["category_id"]])
            truth["crowd"].append(bool(crowd))
            truth["area"].append(w * h if area is None else area)
            truth["outlines"].append(annotation.get("segmentation"))
        if truth["boxes"] or keep_empty:
            expected[image["file_name"]] = truth
    return expected


def mask_of(truth: dict) -> np.ndarray:
    """Later objects cover earlier ones. Raises: an error of any type when an outline cannot be drawn."""
    from pycocotools import mask as rle

    mask = np.zeros([int(side) for side in truth["size"]], np.uint8)
    for k, outline in enumerate(truth["outlines"], 1):
        if isinstance(outline, list):
            for polygon in outline:
                must(len(polygon) % 2 == 0 and all(number(x) and abs(x) <= 1e6 for x in polygon), polygon)
            outline = [polygon for polygon in outline if len(polygon) >= 6]
        elif outline is not None:
            must(outline["size"] == [*mask.shape], outline)
            if isinstance(outline["counts"], list):
                must(all(number(run, whole=True) and run >= 0 for run in outline["counts"]), outline)
                must(sum(outline["counts"]) == mask.size, outline)
        if outline:
            if isinstance(outline, list) or isinstance(outline["counts"], list):
                outline = rle.frPyObjects(outline, *mask.shape)
            mask[rle.decode(rle.merge(outline) if isinstance(outline, list) else outline) > 0] = k
    return mask


@harness.formats(450, 14, coco=coco_files)
def test_coco(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
