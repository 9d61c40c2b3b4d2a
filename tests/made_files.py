"""Small files and examples that tests of several sources share."""

import hashlib
import io
import json
import tarfile

import numpy as np
from PIL import Image

from big_vision_lite.data.keypoints import COCO_PERSON
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.sources.csv_labels import CsvLabels
from big_vision_lite.data.sources.image_folder import ImageFolder, ImageFolderDataset
from big_vision_lite.data.sources.tar_images import TarImages
from big_vision_lite.data.sources.voc_tree import VocTree


def digest(example) -> str:
    """Over all keys and values of an example."""
    state = hashlib.sha256()
    for key, value in sorted(example.items()):
        state.update(key.encode())
        state.update(value.encode() if isinstance(value, str) else bytes(memoryview(value)))
    return state.hexdigest()


def jpeg(width=20, height=10, seed=0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def tars(folder, images=3):
    folder.mkdir(exist_ok=True)
    for c, name in enumerate(("n02", "n01")):
        with tarfile.open(folder / f"{name}.tar", "w") as file:
            for i in range(images):
                info = tarfile.TarInfo(f"{name}_{i}.JPEG")
                data = jpeg(seed=10 * c + i)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo("readme.txt")
            file.addfile(info, io.BytesIO(b""))
    return TarImages(str(folder))


def class_folders(folder, images=3) -> ImageFolder:
    """``ant/0.jpg`` to ``cow/2.jpg``, all different."""
    for c, name in enumerate(("ant", "bee", "cow")):
        (folder / name).mkdir(parents=True)
        for i in range(images):
            (folder / name / f"{i}.jpg").write_bytes(jpeg(seed=100 * c + i))
    return ImageFolder(str(folder), held_out=0)


def coco(folder, change=lambda data: None):
    """Three images of 20 x 10 pixels: with two objects, one of them a crowd; with four boxes that do not fit; empty."""
    (folder / "images").mkdir(exist_ok=True)
    for i in (3, 5, 9):
        (folder / "images" / f"{i}.jpg").write_bytes(jpeg(seed=i))
    square = [[2, 1, 6, 1, 6, 5, 2, 5]]
    boxes = [(5, 90, [2, 1, 4, 4], square, 0), (5, 7, [0, 0, 20, 10], {"size": [10, 20], "counts": [190, 10]}, 1),
             (3, 7, [-5, 2, 10, 3], [], 0), (3, 90, [15, 5, 10, 10], [], 0), (3, 13, [8, 8, 0, 2], [], 0),
             (3, 13, [30, 2, 4, 4], [], 0)]
    area = 11.5
    data = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 20, "height": 10} for i in (5, 3, 9)],
        "annotations": [{"id": k, "image_id": i, "category_id": c, "bbox": box, "segmentation": outline,
                         "iscrowd": crowd, "area": area + k} for k, (i, c, box, outline, crowd) in enumerate(boxes)],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 7, "name": "train"}, {"id": 13, "name": "sign"}],
    }
    change(data)
    (folder / "instances.json").write_text(json.dumps(data))
    return CocoJson(str(folder / "instances.json"), str(folder / "images"), masks=True)


def people(folder, change=lambda data: None, **fields):
    """Two images of 200 x 100 pixels in the format of person_keypoints: a person whose keypoints are drawn as dots, one
    without labelled keypoints and a crowd; and a person of whom some keypoints are not labelled."""
    rng = np.random.default_rng(0)
    (folder / "people").mkdir(exist_ok=True)
    boxes = {7: [(20, 10, 60, 80), (120, 10, 40, 40), (0, 0, 200, 100)], 4: [(90, 30, 50, 60)]}
    labelled = {(7, 0): 17, (4, 0): 11}
    annotations = []
    for image, of_image in boxes.items():
        pixels = np.zeros((100, 200, 3), np.uint8)
        for k, (x, y, w, h) in enumerate(of_image):
            count = labelled.get((image, k), 0)
            at = np.stack([rng.integers(x + 2, x + w - 2, 17), rng.integers(y + 2, y + h - 2, 17),
                           rng.integers(1, 3, 17)], 1)
            at[count:] = 0
            for column, row, _ in at[:count]:
                pixels[row, column] = 255
            annotations.append({"id": 10 * image + k, "image_id": image, "category_id": 1, "bbox": [x, y, w, h],
                                "area": 0.6 * w * h, "iscrowd": int(k == 2), "num_keypoints": count,
                                "keypoints": at.ravel().tolist()})
        Image.fromarray(pixels).save(folder / "people" / f"{image}.png")
    data = {"images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 100} for i in boxes],
            "annotations": annotations, "categories": [{"id": 1, "name": "person", "keypoints": COCO_PERSON.names}]}
    change(data)
    (folder / "people.json").write_text(json.dumps(data))
    return CocoJson(str(folder / "people.json"), str(folder / "people"), keypoints=True, **fields)


VOC_XML = """<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"""
VOC_OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""
VOC_SIZE = "<size><width>20</width><height>10</height><depth>3</depth></size>"


def voc(folder, objects=None, size=VOC_SIZE, classes=None):
    objects = objects or [("dog", 0, 1, 1, 20, 10), ("cat", 1, 3, 2, 6, 5)]
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg())
        text = VOC_XML.format(name=name, size=size, objects="".join(VOC_OBJECT.format(*o) for o in objects))
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    (folder / "ImageSets/Main/train.txt").write_text("b  1\n")
    (folder / "ImageSets/Main/val.txt").write_text("a\n\n")
    return VocTree(str(folder), "train", classes)


def csv_table(folder, text, **fields):
    (folder / "deep").mkdir(exist_ok=True)
    for i, name in enumerate(("x.jpg", "deep/y, z.jpg", "w.jpg")):
        (folder / name).write_bytes(jpeg(seed=i))
    (folder / "labels.csv").write_text(text)
    return CsvLabels(str(folder / "labels.csv"), **fields)


class CountsPickling(ImageFolderDataset):
    """Here, and not in its test, because worker processes import it."""

    pickled = 0

    def __getstate__(self):
        type(self).pickled += 1
        return vars(self)
