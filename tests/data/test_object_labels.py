"""Class subsets of sources with objects: boxes and masks follow the labels, down to a head's metrics."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.curation.object_labels import renumber_objects
from big_vision_lite.data.curation.steps import ClassSubset, LabelNoise, curated
from big_vision_lite.data.masks import VOID
from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.source import OBJECT_ARRAYS, Dataset, ObjectArray
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.mask_folder import MaskFolder
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.tools.prepare import prepare
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.segmentation import Segmentation


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def masks(tmp_path):
    """Three images of 6 x 4: with cat and dog, with dog and void, and with cow."""
    for name, rows in {"a": [1, 1, 2, 0], "b": [0, 2, 2, 255], "c": [0, 0, 3, 0]}.items():
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "masks" / f"{name}.png").write_bytes(png(np.array(rows, np.uint8)[:, None].repeat(6, 1)))
    return MaskFolder(str(tmp_path), "all", classes=("cat", "dog", "cow"))


@pytest.mark.parametrize("form", [lambda m: m, lambda m: m.astype(np.uint16), png], ids=["uint8", "uint16", "png"])
def test_objects_are_renumbered(form):
    mask = np.array([[0, 1, 2, 3], [3, 2, 1, VOID]], np.uint8)
    instances = np.array([[0, 1, 2, 3], [4, 0, 0, 1]], np.uint8)
    example = {"id": "x", "labels": [0, 1, 2], "class_mask": form(mask), "instance_mask": form(instances),
               "boxes": np.arange(16, dtype=np.float32).reshape(4, 4), "box_labels": np.array([2, 0, 1, 2], np.int32),
               "crowd": np.array([True, False, False, True])}
    found = renumber_objects(example, np.array([1, -1, 0], np.int32))
    assert found["class_mask"].tolist() == [[0, 2, 0, 1], [1, 0, 2, VOID]]
    assert found["instance_mask"].tolist() == [[0, 1, 2, 0], [3, 0, 0, 1]]
    assert found["box_labels"].tolist() == [0, 1, 0] and found["crowd"].tolist() == [True, False, True]
    np.testing.assert_array_equal(found["boxes"], example["boxes"][[0, 1, 3]])
    assert found.keys() == {"class_mask", "instance_mask", "boxes", "box_labels", "crowd"}
    with pytest.raises(BadImageError, match=r"'x'.* values 3; expected 0 \(background\), 1 to 2"):
        renumber_objects({"id": "x", "class_mask": example["class_mask"]}, np.array([0, -1], np.int32))
    with pytest.raises(BadImageError, match=r"instance_mask has the value 4; expected at most 3"):
        renumber_objects({**example, "box_labels": np.zeros(3, np.int32), "boxes": example["boxes"][:3],
                    "crowd": np.zeros(3, bool)}, np.arange(3, dtype=np.int32))


def test_a_few_of_more_classes_than_a_byte_holds():
    # With 300 classes 255 is a class; the numbers of a small subset fit into a byte.
    mask = np.array([[0, 7, 255, 300]], np.uint16)
    table = np.full(300, -1, np.int32)
    table[[6, 254, 299]] = [0, 1, 2]
    found = renumber_objects({"id": "x", "class_mask": mask}, table)["class_mask"]
    assert found.tolist() == [[0, 1, 2, 3]] and found.dtype == np.uint8
    dataset = EmojiScenes("train", 12, size=32, classes=300, objects=(3, 4)).open()
    some = tuple(dataset.classes[c] for c in sorted({int(c) for i in range(12) for c in dataset[i]["labels"]})[::3])
    chosen = curated(dataset, [ClassSubset(some)])
    for i in range(len(chosen)):
        example = chosen[i]
        assert np.isin(example["class_mask"], [0, *(example["labels"] + 1)]).all()
        assert set(example["box_labels"].tolist()) == set(example["labels"].tolist())
        for k, (label, box) in enumerate(zip(example["box_labels"], example["boxes"] * 32, strict=True), 1):
            y, x = np.nonzero(example["instance_mask"] == k)
            assert (example["class_mask"][y, x] == label + 1).all()
            assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == pytest.approx(box)


@pytest.mark.parametrize("kept", [253, 254, 255, 256, 257])
def test_masks_have_a_type_that_holds_every_class(kept):
    table = np.where(np.arange(300) < kept, np.arange(300), -1).astype(np.int32)
    found = renumber_objects({"id": "x", "class_mask": np.arange(301, dtype=np.uint16)[None]}, table)["class_mask"]
    assert found.tolist() == [[*range(kept + 1), *[0] * (300 - kept)]]
    assert (found.dtype == np.uint8) == (kept < VOID)


def test_a_subset_of_a_subset_and_noise(masks):
    dataset = masks.open()
    two = curated(dataset, [ClassSubset(("dog", "cow")), ClassSubset(("dog",))])
    assert two.classes == ("dog",) and [two[i]["id"] for i in range(2)] == ["a.jpg", "b.jpg"]
    assert two[0]["class_mask"][:, 0].tolist() == [0, 0, 1, 0] and two[1]["class_mask"][:, 0].tolist() == [0, 1, 1, 255]
    assert pickle.loads(pickle.dumps(two))[1]["class_mask"][:, 0].tolist() == [0, 1, 1, 255]
    noisy = curated(dataset, [ClassSubset(("cat", "dog")), LabelNoise(0.5)])
    assert "class_mask" not in noisy[0]
    with pytest.raises(UserError, match=r"'a.jpg' has no class mask.*ClassSubset"):
        Segmentation(size=8).targets({**noisy[0], "size": (4, 6), "original_size": (4, 6), "scale": (1, 1),
                                      "key": (0, 0)})


def test_heads_learn_from_a_class_subset(masks):
    head, view = Segmentation(size=(4, 6)), ResizeToFit(4, 6, buckets=((4, 6),), random=False)
    inputs = Input(masks, view, 2, curate=(ClassSubset(("dog",)),))
    batch = BatchMaker(inputs.open(), inputs, head.targets, None)(0)
    assert batch["class_mask"][:, :, 0].tolist() == [[0, 0, 1, 0], [0, 1, 1, 255]]
    scores = head.metrics(inputs.open())
    right = np.where(np.arange(2) == np.minimum(batch["class_mask"], 1)[..., None], 9, -9).astype(np.float32)
    scores.add({"scores": right, "loss": np.zeros(2, np.float32)}, batch)
    assert scores.result()["mIoU"] == 1.0 and set(scores.result()) >= {"IoU/background", "IoU/dog"}
    scenes = EmojiScenes("train", 6, size=32, classes=6, objects=(2, 3))
    first = scenes.open()
    inputs = Input(scenes, ResizeToFit(32, 32, random=False), 6, curate=(ClassSubset(first.classes[:3], "keep"),))
    boxes = BatchMaker(inputs.open(), inputs, FasterRCNN(max_boxes=3).targets, None)(0)
    for i in range(6):
        kept = first[i]["box_labels"] < 3
        assert (boxes["kind"][i] == 1).sum() == kept.sum()
        np.testing.assert_array_equal(boxes["box_labels"][i][: kept.sum()], first[i]["box_labels"][kept])


def test_a_bad_mask_is_one_bad_image(masks, tmp_path):
    dataset = curated(masks.open(), [ClassSubset(("cat", "dog"), "keep")])
    (tmp_path / "masks" / "b.png").write_bytes(b"no image")
    found = dataset.read([0, 1, 2])
    assert isinstance(found[1], BadImageError)
    assert found[0]["class_mask"].max() == 2 and not found[2]["class_mask"].any()
    with pytest.raises(BadImageError, match=r"'b\.jpg'"):
        dataset[1]


@dataclasses.dataclass(eq=False)
class OneImage(Dataset):
    """An image of 20 x 30 with a box in the middle and two beside it, and an array about them."""

    about: dict
    classes: tuple[str, ...] = ("a", "b", "c")
    multi_label: bool = True
    fingerprint: str = "one image"

    def __len__(self):
        return 1

    def __getitem__(self, index):
        boxes = np.array([[8, 12, 12, 18], [9, 10, 11, 20], [0, 0, 3, 3]], np.float32) / np.float32([20, 30, 20, 30])
        return {"id": "x", "image": png(np.zeros((30, 20, 3), np.uint8)), "labels": np.arange(3, dtype=np.int32),
                "boxes": boxes, "box_labels": np.arange(3, dtype=np.int32), **self.about}


@pytest.mark.parametrize("array", [ObjectArray("weight", np.float32), ObjectArray("corners", np.int64, (4, 2))])
def test_an_array_about_objects_is_added_in_one_place(array, tmp_path, monkeypatch):
    name = array.feature
    monkeypatch.setitem(OBJECT_ARRAYS, name, array)
    values = np.random.default_rng(0).uniform(1, 99, (3, *array.shape)).astype(array.dtype)
    dataset = curated(OneImage({name: values}), [ClassSubset(("b", "c"))])
    np.testing.assert_array_equal(dataset[0][name], values[1:])
    prepare({"train": dataset}, tmp_path, "mine", processes=1)
    read = Tfds("mine", "train", str(tmp_path)).open()
    assert read[0][name].dtype == array.dtype
    for opened in (dataset, read):
        np.testing.assert_array_equal(opened[0][name], values[1:])
        np.testing.assert_array_equal(opened[0]["boxes"], dataset[0]["boxes"])
        window = ScaleJitter((12, 8), (1.0, 1.0), random=False)  # in the middle, without the box in the corner
        transformed = window(opened[0], np.random.default_rng(0), np.zeros(window.shape, np.uint8))
        np.testing.assert_array_equal(transformed[name], values[1:2])
        assert transformed["box_labels"].tolist() == [0]
