"""COCO json, VOC trees, csv files and tar files: read as they are meant, and refused where they are broken."""

import contextlib
import io
import json
import pickle

import numpy as np
import pytest
from made_files import jpeg, tars
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.coco_json import CocoJson, instance_mask
from big_vision_lite.data.csv_labels import CsvLabels
from big_vision_lite.data.decode import DecodeError
from big_vision_lite.data.image_folder import ImageFolder
from big_vision_lite.data.label_index import label_index
from big_vision_lite.data.tar_images import TarImages
from big_vision_lite.data.voc_tree import VOC_CLASSES, VocTree
from big_vision_lite.errors import BadImageError, UserError


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


def test_coco_is_what_pycocotools_reads(tmp_path):
    """Random polygons, crowds and boxes, all inside their images."""
    rng = np.random.default_rng(0)

    def change(data):
        data["images"] = [{"id": 7 * i + 3, "file_name": name, "width": 200, "height": 100}
                          for i, name in enumerate(("9.jpg", "3.jpg", "5.jpg"))]
        data["annotations"] = []
        for k in range(60):
            left, top, width, height = (round(float(x), 2) for x in rng.uniform([0, 0, 5, 5], [120, 60, 80, 40]))
            around = np.sort(rng.uniform(0, 2 * np.pi, 12))
            polygon = np.stack([left + width * (1 + np.cos(around)) / 2, top + height * (1 + np.sin(around)) / 2], 1)
            outline = [np.round(polygon.ravel()[:12], 2).tolist(), np.round(polygon.ravel()[12:], 2).tolist()]
            if crowd := k % 10 == 0:
                runs = rle.encode(np.asfortranarray(rng.integers(0, 2, (100, 200), np.uint8)))
                outline = {"size": [100, 200], "counts": runs["counts"].decode()}
            data["annotations"].append({"id": k, "image_id": 7 * int(rng.integers(2)) + 3, "category_id": 7,
                                        "bbox": [left, top, width, height], "area": float(k), "iscrowd": int(crowd),
                                        "segmentation": outline})

    records = coco(tmp_path, change).open()
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(tmp_path / "instances.json"))
    assert (records.count.clipped, records.count.dropped) == (0, 0)
    for example in records.read(range(3)):
        found = reference.loadAnns(reference.getAnnIds([example["image_id"]]))
        ymin, xmin, ymax, xmax = (example["boxes"] * [100, 200, 100, 200]).T
        xywh = np.array([a["bbox"] for a in found]).reshape(-1, 4)
        np.testing.assert_allclose(np.stack([xmin, ymin, xmax - xmin, ymax - ymin], 1), xywh, atol=1e-4)
        assert [records.category_ids[label] for label in example["box_labels"]] == [a["category_id"] for a in found]
        assert example["crowd"].tolist() == [a["iscrowd"] == 1 for a in found]
        assert example["area"].tolist() == [a["area"] for a in found]
        mask = np.zeros((100, 200), np.uint8)
        for k, annotation in enumerate(found, 1):
            mask[reference.annToMask(annotation) == 1] = k
        np.testing.assert_array_equal(example["instance_mask"], mask)


def test_masks_are_drawn_from_polygons_and_from_both_kinds_of_run_lengths():
    diagonal = np.eye(10, 20, dtype=np.uint8)
    runs = {"size": [10, 20], "counts": [0, 1] + [10, 1] * 9 + [100]}
    polygons = [[15, 0, 20, 0, 20, 2, 15, 2], [0, 8, 2, 8, 2, 10, 0, 10]]
    outlines = [rle.encode(np.asfortranarray(diagonal)), None, [], runs, polygons]
    mask = instance_mask(outlines, 10, 20)
    assert (mask[:2, 15:] == 5).all() and (mask[8:, :2] == 5).all() and (mask == 5).sum() == 14
    np.testing.assert_array_equal(mask == 4, diagonal == 1)  # over the first one
    assert not instance_mask([[[2, 1, 6, 5]]], 10, 20).any()  # a line, which pycocotools takes for a box
    size = [10, 20]
    for wrong in ({"size": [5, 5], "counts": [5, 20]}, {"size": size, "counts": [5, 2000]}, {"size": size}, "x"):
        with pytest.raises(DecodeError, match="segmentation of its object 2 cannot be drawn on 20 x 10 pixels"):
            instance_mask([None, wrong], 10, 20)


def test_an_outline_that_cannot_be_drawn_is_a_bad_image(tmp_path):
    records = coco(tmp_path, lambda d: d["annotations"][1].update(segmentation={"size": [1, 1], "counts": [1]})).open()
    with pytest.raises(BadImageError, match=r"'5.jpg' cannot be read: the segmentation of its object 2"):
        records[0]


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.pop("categories"), "has no list 'categories'"),
    (lambda d: d["images"].append(d["images"][0]), "two images of id 5"),
    (lambda d: d["annotations"][2].update(image_id=4), "annotation 2 is of image 4, which is not among"),
    (lambda d: d["annotations"][1].update(category_id=8), "annotation 1 is of category 8, which is not among"),
    (lambda d: d["images"][1].update(file_name="33.jpg"), "there is no file .*33.jpg' \\(1 such\\)"),
    (lambda d: d["images"][1].update(file_name="../images/3.jpg"), "leads out of its folder"),
    (lambda d: d["images"][1].pop("width"), r"images\[1\] \(id 3\) lacks 'width'; expected a number"),
    (lambda d: d["images"][1].update(width=0), "image 3 has height 10 and width 0"),
    (lambda d: d["images"][1].update(id="3"), r"images\[1\] \(id '3'\) has id='3'; expected a whole number"),
    (lambda d: d["images"].append("9.jpg"), r"images\[3\] is not an object with id, file_name"),
    (lambda d: d["images"][1].update(file_name="5.jpg"), "two images of file name '5.jpg'"),
    (lambda d: d["annotations"][3].pop("category_id"), r"annotations\[3\] \(id 3\) lacks 'category_id'"),
    (lambda d: d["annotations"][1].update(bbox=[]), r"annotation 1 has bbox=\[\]; expected the four numbers"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, 3, "x"]), r"annotation 1 has bbox=\[1, 2, 3, 'x'\]"),
    (lambda d: d["annotations"].extend(d["annotations"][:1] * 255), "'5.jpg' has 257 objects, and a mask of them"),
    (lambda d: d["categories"][1].update(id=90), "two categories of one id"),
    (lambda d: d["categories"][1].update(name="sign"), "names the class 'sign' twice"),
    (lambda d: (d["categories"].clear(), d["annotations"].clear()), "names no class"),
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
    for size in ("", SIZE.replace("20", "0"), SIZE.replace("10", "unknown")):  # then from the image
        np.testing.assert_array_equal(voc(tmp_path, size=size).open()[0]["boxes"], example["boxes"])
    own = voc(tmp_path, [("zebra", 0, 1, 1, 5, 5), ("ant", 0, 0, -3, 25, 5), ("ant", 0, 8, 8, 7, 9)]).open()
    assert own.classes == ("ant", "zebra") and own.count == type(own.count)(boxes=3, clipped=1, dropped=1)
    assert own.fingerprint != records.fingerprint


def test_voc_lists_with_flags_and_names_with_spaces(tmp_path):
    voc(tmp_path)
    for folder, ending in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (tmp_path / folder / f"b.{ending}").rename(tmp_path / folder / f"b 1.{ending}")
        (tmp_path / folder / f"._a.{ending}").write_bytes(b"\0")  # what a Mac leaves
    sets = tmp_path / "ImageSets/Main"
    (sets / "cat_train.txt").write_text("\ufeffa -1\nb 1\n")
    (sets / "cat_val.txt").write_text("a  0\nb 1  1\n")
    for split, ids in (("cat_train", ["b 1.jpg"]), ("cat_val", ["a.jpg", "b 1.jpg"]), ("all", ["a.jpg", "b 1.jpg"])):
        records = VocTree(str(tmp_path), split).open()
        assert [records.labels(i)[0] for i in range(len(records))] == ids


@pytest.mark.parametrize(("masks", "folder"), [("class", "SegmentationClass"), ("class_aug", "SegmentationClassAug")])
def test_voc_masks(tmp_path, masks, folder):
    voc(tmp_path)
    source = VocTree(str(tmp_path), "val", masks=masks)
    with pytest.raises(UserError, match=r"there is no ImageSets/Segmentation/val.txt"):
        source.open()
    (tmp_path / "ImageSets/Segmentation").mkdir()
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b\n")
    with pytest.raises(UserError, match=rf"no mask .*{folder}/b.png' of split 'val' \(1 such\)"):
        source.open()
    pixels = np.zeros((10, 20), np.uint8)
    pixels[2:5, 3:9], pixels[:, 19] = VOC_CLASSES.index("cat") + 1, 255
    image = Image.fromarray(pixels)
    if masks == "class":
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    (tmp_path / folder).mkdir()
    image.save(tmp_path / folder / "b.png")
    records = source.open()
    example = pickle.loads(pickle.dumps(records))[0]
    assert example["id"] == "b.jpg" and example["class_mask"].dtype == np.uint16
    np.testing.assert_array_equal(example["class_mask"], pixels)
    assert records.fingerprint != VocTree(str(tmp_path), "train").open().fingerprint  # also of b alone
    (tmp_path / folder / "b.png").write_bytes(b"none")
    with pytest.raises(BadImageError, match=r"'b.jpg' cannot be read: its mask .*b.png"):
        records[0]
    voc(tmp_path, [("zebra", 0, 1, 1, 5, 5)])
    with pytest.raises(UserError, match=r"classes that VOC has not, such as 'zebra'; give VocTree.classes"):
        source.open()


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
    (lambda f: (f / "Annotations/b.xml").write_text(XML.format(name="b", size=SIZE, objects=OBJECT.format(
        " ", 0, 1, 1, 2, 2))), "object without a name or without four numbers"),
    (lambda f: (f / "ImageSets/Main/train.txt").write_bytes(b"\xe9\n"), "cannot read .*train.txt.*in UTF-8"),
])
def test_voc_that_is_broken(tmp_path, spoil, message):
    source = voc(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        source.open()


def test_voc_with_a_class_that_is_not_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"b.xml has an object of class 'dog'; did you mean 'dogs'"):
        voc(tmp_path, classes=("cat", "dogs")).open()
    with pytest.raises(UserError, match=r"VocTree.classes names the class 'cat' twice"):
        voc(tmp_path, classes=("cat", "dog", "cat")).open()


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
    absolute = table(tmp_path, f"path, label\n{tmp_path}/deep/../x.jpg,red\n./w.jpg,apple\n").open()
    assert [absolute.labels(i)[0] for i in range(2)] == ["x.jpg", "w.jpg"]  # the same on every machine
    names = tmp_path / "names.txt"
    names.write_text("red\nblue\napple\n")
    single = table(tmp_path, "path,label\nx.jpg,red\nw.jpg,apple\n", classes=str(names)).open()
    assert not single.multi_label and [e["labels"].tolist() for e in single.read(range(2))] == [[0], [2]]


@pytest.mark.parametrize(("text", "fields", "message"), [
    ("path,labels\nx.jpg,a\nnone.jpg,a\nnor.jpg,b\n", {}, r"csv line 3: there is no file .*none.jpg' \(2 such\)"),
    ("path,labels\nx.jpg,a\nw.jpg,a\n./x.jpg,b\n", {}, "line 4: 'x.jpg' is there already in line 2"),
    ("path,labels,split\nx.jpg,a,val\nx.jpg,a,train\n", {"split": "val"}, "line 3: 'x.jpg' is there already"),
    ("path,labels\nx.jpg,a\ndeep/y, z.jpg,a\n", {}, "line 3 has more values than there are columns"),
    ("path,labels\nx.jpg,\n", {}, "names no class"),
    ("path,labels\nx.jpg,a\n", {"classes": ("a", "b", "a")}, "CsvLabels.classes names the class 'a' twice"),
    ("file,labels\nx.jpg,a\n", {}, "has the columns file, labels; expected path,labels"),
    ("path,labels\nx.jpg,a\n", {"split": "val"}, "expected path,labels,split"),
    ("path,labels,split\nx.jpg,a,train\n", {"split": "trian"}, "no rows of split 'trian'; did you mean 'train'"),
    ("path,labels\n", {}, "has no rows; expected path,labels"),
    ("path,labels\nx.jpg\n", {}, "line 2 has no path or no labels"),
    ("path,labels\nx.jpg,a;b\n", {"multi_label": False}, "line 2: 2 labels; expected one"),
    ("path,labels\nx.jpg,aple\n", {"classes": ("apple",)}, "line 2: there is no class 'aple'; did you mean 'apple'"),
    ("path,labels\n../x.jpg,a\n", {}, "line 2: '../x.jpg' leads out of its folder"),
    ("path,labels\n/etc/passwd,a\n", {}, "leads out of its folder"),
])
def test_csv_that_is_broken(tmp_path, text, fields, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, text, **fields).open()


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
