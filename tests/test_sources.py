"""COCO json, VOC trees, csv files and tar files: read as they are meant, and refused where they are broken."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.coco_json import CocoJson, instance_mask
from big_vision_lite.data.csv_labels import CsvLabels
from big_vision_lite.data.image_folder import ImageFolder
from big_vision_lite.data.label_index import label_index
from big_vision_lite.data.tar_images import TarImages
from big_vision_lite.data.voc_tree import VOC_CLASSES, VocTree
from big_vision_lite.errors import BadImageError, UserError


def jpeg(width=20, height=10, seed=0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def coco(folder, change=lambda data: None):
    """Three images of 20 x 10: two objects of which one is a crowd; three boxes that do not fit; none."""
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


def test_coco(tmp_path):
    records = coco(tmp_path).open()
    assert records.classes == ("train", "sign", "toothbrush") and records.category_ids == (7, 13, 90)
    first, second, third = (records[i] for i in range(3))
    assert (first["id"], first["image_id"], first["labels"].tolist()) == ("5.jpg", 5, [0, 2])
    np.testing.assert_allclose(first["boxes"], [[0.1, 0.1, 0.5, 0.3], [0, 0, 1, 1]], atol=1e-7)
    assert first["crowd"].tolist() == [False, True] and first["area"].tolist() == [11.5, 12.5]
    assert first["box_labels"].tolist() == [2, 0] and first["image"] == jpeg(seed=5)
    mask = first["instance_mask"]
    assert (mask[1:5, 2:6] == 1).all() and (mask == 1).sum() == 16
    assert (mask[:, 19] == 2).all() and (mask == 2).sum() == 10
    np.testing.assert_allclose(second["boxes"], [[0.2, 0, 0.5, 0.25], [0.5, 0.75, 1, 1]], atol=1e-7)
    assert (records.count.boxes, records.count.clipped, records.count.dropped) == (6, 2, 2)
    assert second["labels"].tolist() == [0, 2] and third["labels"].tolist() == [] and third["boxes"].shape == (0, 4)
    kept = CocoJson(str(tmp_path / "instances.json"), str(tmp_path / "images"), keep_empty=False).open()
    assert len(kept) == 2 and kept.fingerprint != records.fingerprint


def test_masks_are_drawn_from_polygons_and_from_both_kinds_of_run_lengths():
    diagonal = np.eye(10, 20, dtype=np.uint8)
    runs = {"size": [10, 20], "counts": [0, 1] + [10, 1] * 9 + [100]}
    polygons = [[15, 0, 20, 0, 20, 2, 15, 2], [0, 8, 2, 8, 2, 10, 0, 10]]
    outlines = [rle.encode(np.asfortranarray(diagonal)), None, [], runs, polygons]
    mask = instance_mask(outlines, 10, 20)
    assert (mask[:2, 15:] == 5).all() and (mask[8:, :2] == 5).all() and (mask == 5).sum() == 14
    np.testing.assert_array_equal(mask == 4, diagonal == 1)  # over the first one


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.pop("categories"), "has no list 'categories'"),
    (lambda d: d["images"].append(d["images"][0]), "two images of id 5"),
    (lambda d: d["annotations"][2].update(image_id=4), "annotation 2 is of image 4, which is not among"),
    (lambda d: d["annotations"][1].update(category_id=8), "annotation 1 is of category 8, which is not among"),
    (lambda d: d["images"][1].update(file_name="33.jpg"), "there is no file .*33.jpg' \\(1 such\\)"),
    (lambda d: d["images"][1].update(file_name="../images/3.jpg"), "leads out of its folder"),
    (lambda d: d["images"][1].pop("width"), "an entry lacks 'width'"),
    (lambda d: d["categories"][1].update(id=90), "two categories of one id or name"),
    (lambda d: (d["images"].clear(), d["annotations"].clear()), "has no images; choose another"),
])
def test_coco_that_is_broken(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        coco(tmp_path, change).open()


def test_coco_files_that_are_not_there(tmp_path):
    source = coco(tmp_path)
    text = (tmp_path / "instances.json").read_text()
    (tmp_path / "instances.json").write_text(text[:100])
    with pytest.raises(UserError, match=r"is not valid JSON .*it may have been cut"):
        source.open()
    with pytest.raises(UserError, match=r"cannot read CocoJson.annotations"):
        CocoJson(str(tmp_path / "none.json"), str(tmp_path)).open()


XML = """<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"""
OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""
SIZE = "<size><width>20</width><height>10</height><depth>3</depth></size>"


def voc(folder, objects=None, size=SIZE, classes=None):
    objects = objects or [("dog", 0, 1, 1, 20, 10), ("cat", 1, 3, 2, 6, 5)]
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg())
        text = XML.format(name=name, size=size, objects="".join(OBJECT.format(*o) for o in objects))
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    (folder / "ImageSets/Main/train.txt").write_text("b  1\n")
    (folder / "ImageSets/Main/val.txt").write_text("a\n\n")
    return VocTree(str(folder), "train", classes)


def test_voc(tmp_path):
    records = voc(tmp_path).open()
    assert records.classes == VOC_CLASSES and len(records) == 1
    example = records[0]
    assert example["id"] == "b.jpg" and example["difficult"].tolist() == [False, True]
    assert [records.classes[i] for i in example["box_labels"]] == ["dog", "cat"]
    np.testing.assert_allclose(example["boxes"], [[0, 0, 1, 1], [0.1, 0.1, 0.5, 0.3]], atol=1e-7)  # from pixel 1 to 10
    assert len(VocTree(str(tmp_path), "all").open()) == 2
    no_size = voc(tmp_path, size="").open()  # then from the image
    np.testing.assert_array_equal(no_size[0]["boxes"], example["boxes"])
    own = voc(tmp_path, [("zebra", 0, 1, 1, 5, 5), ("ant", 0, 0, -3, 25, 5), ("ant", 0, 8, 8, 7, 9)]).open()
    assert own.classes == ("ant", "zebra") and own.count == type(own.count)(boxes=3, clipped=1, dropped=1)
    assert own.fingerprint != records.fingerprint


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda f: (f / "Annotations/b.xml").write_text(XML.format(name="b", size="", objects="")) and
     (f / "JPEGImages/b.jpg").write_bytes(b"none"), r"b.xml has no <size>, and the image has none either"),
    (lambda f: (f / "Annotations/b.xml").unlink(), "cannot read .*b.xml.*each image of a split needs its xml"),
    (lambda f: (f / "Annotations/b.xml").write_text("<annotation><si"), "b.xml is not valid XML .*cut"),
    (lambda f: (f / "JPEGImages/b.jpg").unlink(), r"has no image 'b' of split 'train' \(1 such\)"),
    (lambda f: (f / "ImageSets/Main/train.txt").write_text("b\na\nb\n"), "names 'b' twice"),
    (lambda f: (f / "ImageSets/Main/train.txt").write_text("\n"), "names no image"),
    (lambda f: (f / "ImageSets/Main/train.txt").rename(f / "ImageSets/Main/trian.txt"), "did you mean 'trian'"),
    (lambda f: (f / "Annotations/b.xml").write_text(XML.format(name="b", size=SIZE, objects="<object/>")),
     "object without a name or without four numbers"),
])
def test_voc_that_is_broken(tmp_path, spoil, message):
    source = voc(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        source.open()


def test_voc_with_a_class_that_is_not_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"b.xml has an object of class 'dog'; did you mean 'dogs'"):
        voc(tmp_path, classes=("cat", "dogs")).open()


def table(folder, text, **fields):
    (folder / "deep").mkdir(exist_ok=True)
    for i, name in enumerate(("x.jpg", "deep/y, z.jpg", "w.jpg")):
        (folder / name).write_bytes(jpeg(seed=i))
    (folder / "labels.csv").write_text(text)
    return CsvLabels(str(folder / "labels.csv"), **fields)


def test_csv(tmp_path):
    text = 'path,labels,split\nx.jpg,red;apple,train\n"deep/y, z.jpg",,train\nw.jpg,apple,val\n'
    records = table(tmp_path, text, split="train").open()
    assert records.classes == ("apple", "red") and records.multi_label and len(records) == 2
    assert records[0]["labels"].tolist() == [0, 1] and records[1]["id"] == "deep/y, z.jpg"
    assert records[1]["labels"].tolist() == [] and records[1]["image"] == jpeg(seed=1)
    names = tmp_path / "names.txt"
    names.write_text("red\nblue\napple\n")
    single = table(tmp_path, "path,label\nx.jpg,red\nw.jpg,apple\n", classes=str(names)).open()
    assert not single.multi_label and [e["labels"].tolist() for e in single.read(range(2))] == [[0], [2]]


@pytest.mark.parametrize(("text", "fields", "message"), [
    ("path,labels\nx.jpg,a\nnone.jpg,a\nnor.jpg,b\n", {}, r"csv line 3: there is no file .*none.jpg' \(2 such\)"),
    ("path,labels\nx.jpg,a\nw.jpg,a\nx.jpg,b\n", {}, "line 4: 'x.jpg' is there already in line 2"),
    ("file,labels\nx.jpg,a\n", {}, "has the columns file, labels; expected path,labels"),
    ("path,labels\nx.jpg,a\n", {"split": "val"}, "expected path,labels,split"),
    ("path,labels,split\nx.jpg,a,train\n", {"split": "trian"}, "no rows of split 'trian'; did you mean 'train'"),
    ("path,labels\n", {}, "has no rows; expected path,labels"),
    ("path,labels\nx.jpg\n", {}, "line 2 has no labels"),
    ("path,labels\nx.jpg,a;b\n", {"multi_label": False}, "line 2: 2 labels; expected one"),
    ("path,labels\nx.jpg,aple\n", {"classes": ("apple",)}, "line 2: there is no class 'aple'; did you mean 'apple'"),
    ("path,labels\n../x.jpg,a\n", {}, "line 2: '../x.jpg' leads out of its folder"),
    ("path,labels\n/etc/passwd,a\n", {}, "leads out of its folder"),
])
def test_csv_that_is_broken(tmp_path, text, fields, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, text, **fields).open()


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


def test_tar_files_and_a_tar_of_them(tmp_path):
    records = tars(tmp_path / "tars").open()
    assert records.classes == ("n01", "n02") and len(records) == 6
    assert [records.labels(i)[0] for i in range(6)] == [f"{n}/{n}_{i}.JPEG" for n in ("n01", "n02") for i in range(3)]
    assert [e["image"] for e in records.read(range(6))] == [jpeg(seed=s) for s in (10, 11, 12, 0, 1, 2)]
    with tarfile.open(tmp_path / "all.tar", "w") as outer:
        for name in ("n02", "n01"):
            outer.add(tmp_path / "tars" / f"{name}.tar", f"winter/{name}.tar")
    nested = TarImages(str(tmp_path / "all.tar")).open()
    for a, b in zip(nested.read(range(6)), records.read(range(6)), strict=True):
        assert (a["id"], a["image"], a["labels"].tolist()) == (b["id"], b["image"], b["labels"].tolist())

def test_tar_files_in_splits(tmp_path):
    whole = tars(tmp_path / "tars", 30).open()
    parts = [TarImages(str(tmp_path / "tars"), split, 0.3).open() for split in ("train", "validation", "test")]
    ids = sorted(part.labels(i)[0] for part in parts for i in range(len(part)))
    assert ids == sorted(whole.labels(i)[0] for i in range(60)) and len({part.fingerprint for part in parts}) == 3


def test_tar_files_that_are_cut(tmp_path):
    source = tars(tmp_path / "tars")
    file = tmp_path / "tars" / "n01.tar"
    whole = file.read_bytes()
    file.write_bytes(whole[: 512 + 100])
    with pytest.raises(UserError, match=r"n01.tar (is cut: 'n01_0.JPEG' ends at byte|is not a whole)"):
        source.open()
    file.write_bytes(whole)
    records = source.open()
    file.write_bytes(whole[:700])  # while it is read
    with pytest.raises(BadImageError, match=r"n01.tar is shorter than when it was listed"):
        records[2]
    file.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(UserError, match=r"n01.tar is not a whole, uncompressed tar file"):
        source.open()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "all.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"no tar file in .*all.tar.gz is compressed"):
        TarImages(str(tmp_path / "empty")).open()


def test_all_can_be_scanned_and_handed_to_another_process(tmp_path):
    opened = []
    for make in (coco, voc, lambda f: table(f, "path,labels\nx.jpg,a\n"), tars):
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        opened.append(make(folder).open())
    for records in opened:
        index = label_index(records)
        copy = pickle.loads(pickle.dumps(records))
        for i in range(len(records)):
            example = records[i]
            assert records.labels(i)[0] == example["id"] == index.id(i) == copy[i]["id"]
            assert records.labels(i)[1].tolist() == example["labels"].tolist() == index.labels.row(i).tolist()
            assert copy[i]["image"] == example["image"]


def test_sources_are_recognised_on_the_command_line(tmp_path):
    for name, make in (("voc", voc), ("tars", tars), ("coco", coco)):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    table(tmp_path, "path,labels\nx.jpg,a\n")
    assert source_of(f"{tmp_path}/voc:split=val") == VocTree(f"{tmp_path}/voc", "val")
    assert source_of(f"{tmp_path}/tars:held_out=0.2,split=test") == TarImages(f"{tmp_path}/tars", "test", 0.2)
    assert source_of(f"{tmp_path}/labels.csv:multi_label=true") == CsvLabels(f"{tmp_path}/labels.csv", multi_label=True)
    images = f"{tmp_path}/coco/images"
    assert source_of(f"{tmp_path}/coco/instances.json:images={images}") == CocoJson(f"{tmp_path}/coco/instances.json",
                                                                                   images)
    assert source_of(str(tmp_path)) == ImageFolder(str(tmp_path))
    assert source_of("imagenet2012:5.1.0:split=train[:1%]").split == "train[:1%]"
    for spec, message in ((f"{tmp_path}/voc:spilt=val", "VocTree has no field 'spilt'; did you mean 'split'"),
                          (f"{tmp_path}/tars:held_out=x", "held_out='x' is not float"),
                          (f"{tmp_path}/none.csv", "there is no file"), ("./none", "there is nothing at './none'")):
        with pytest.raises(UserError, match=message):
            source_of(spec)
