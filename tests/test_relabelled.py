"""A vocabulary on sources with objects: boxes and masks follow the labels, down to the scores of a head."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.curation import LabelNoise, Vocabulary, curated
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.joint_transforms import VOID, Fit
from big_vision_lite.data.mask_folder import MaskFolder
from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.relabelled import relabelled
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.segmentation import Segmentation


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def masks(tmp_path):
    """Three images of 6 x 4: two cats and a dog, a dog and void, and a value that is no class."""
    for name, rows in {"a": [1, 1, 2, 0], "b": [0, 2, 2, 255], "c": [0, 0, 3, 0]}.items():
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "masks" / f"{name}.png").write_bytes(png(np.array(rows, np.uint8)[:, None].repeat(6, 1)))
    return MaskFolder(str(tmp_path), "all", classes=("cat", "dog", "cow"))


@pytest.mark.parametrize("form", [lambda m: m, lambda m: m.astype(np.uint16), png], ids=["uint8", "uint16", "png"])
def test_objects_follow_the_numbers(form):
    mask = np.array([[0, 1, 2, 3], [3, 2, 1, VOID]], np.uint8)
    instances = np.array([[0, 1, 2, 3], [4, 0, 0, 1]], np.uint8)
    example = {"id": "x", "labels": [0, 1, 2], "class_mask": form(mask), "instance_mask": form(instances),
               "boxes": np.arange(16, dtype=np.float32).reshape(4, 4), "box_labels": np.array([2, 0, 1, 2], np.int32),
               "crowd": np.array([True, False, False, True])}
    found = relabelled(example, np.array([1, -1, 0], np.int32))
    assert found["class_mask"].tolist() == [[0, 2, 0, 1], [1, 0, 2, VOID]]
    assert found["instance_mask"].tolist() == [[0, 1, 2, 0], [3, 0, 0, 1]]
    assert found["box_labels"].tolist() == [0, 1, 0] and found["crowd"].tolist() == [True, False, True]
    np.testing.assert_array_equal(found["boxes"], example["boxes"][[0, 1, 3]])
    assert found.keys() == {"class_mask", "instance_mask", "boxes", "box_labels", "crowd"}
    with pytest.raises(BadImageError, match=r"'x'.* values 3; expected 0 \(background\), 1 to 2"):
        relabelled({"id": "x", "class_mask": example["class_mask"]}, np.array([0, -1], np.int32))
    with pytest.raises(BadImageError, match=r"instance_mask has the value 4; expected at most 3"):
        relabelled({**example, "box_labels": np.zeros(3, np.int32), "boxes": example["boxes"][:3],
                    "crowd": np.zeros(3, bool)}, np.arange(3, dtype=np.int32))


def test_of_more_classes_than_a_byte_holds_few_are_chosen():
    # There 255 is a class; with a vocabulary of few, what was above a byte is within it.
    mask = np.array([[0, 7, 255, 300]], np.uint16)
    table = np.full(300, -1, np.int32)
    table[[6, 254, 299]] = [0, 1, 2]
    found = relabelled({"id": "x", "class_mask": mask}, table)["class_mask"]
    assert found.tolist() == [[0, 1, 2, 3]] and found.dtype == np.uint8
    records = EmojiScenes("train", 12, size=32, classes=300, objects=(3, 4)).open()
    some = tuple(records.classes[c] for c in sorted({int(c) for i in range(12) for c in records[i]["labels"]})[::3])
    chosen = curated(records, [Vocabulary(some)])
    for i in range(len(chosen)):
        example = chosen[i]
        assert np.isin(example["class_mask"], [0, *(example["labels"] + 1)]).all()
        assert set(example["box_labels"].tolist()) == set(example["labels"].tolist())
        for k, (label, box) in enumerate(zip(example["box_labels"], example["boxes"] * 32, strict=True), 1):
            y, x = np.nonzero(example["instance_mask"] == k)
            assert (example["class_mask"][y, x] == label + 1).all()
            assert [y.min(), x.min(), y.max() + 1, x.max() + 1] == pytest.approx(box)


def test_a_vocabulary_in_a_vocabulary_and_noise(masks):
    records = masks.open()
    two = curated(records, [Vocabulary(("dog", "cow")), Vocabulary(("dog",))])
    assert two.classes == ("dog",) and [two[i]["id"] for i in range(2)] == ["a.jpg", "b.jpg"]
    assert two[0]["class_mask"][:, 0].tolist() == [0, 0, 1, 0] and two[1]["class_mask"][:, 0].tolist() == [0, 1, 1, 255]
    assert pickle.loads(pickle.dumps(two))[1]["class_mask"][:, 0].tolist() == [0, 1, 1, 255]
    noisy = curated(records, [Vocabulary(("cat", "dog")), LabelNoise(0.5)])
    assert "class_mask" not in noisy[0]
    with pytest.raises(UserError, match=r"'a.jpg' has no class mask.* no curation but a Vocabulary"):
        Segmentation(size=8).targets({**noisy[0], "size": (4, 6), "original_size": (4, 6), "scale": (1, 1),
                                      "key": (0, 0)})


def test_heads_learn_of_a_vocabulary(masks):
    head, view = Segmentation(size=(4, 6)), Fit(4, 6, buckets=((4, 6),), random=False)
    inputs = Input(masks, view, 2, curate=(Vocabulary(("dog",)),))
    batch = BatchMaker(inputs.open(), inputs, head.targets, None)(0)
    assert batch["class_mask"][:, :, 0].tolist() == [[0, 0, 1, 0], [0, 1, 1, 255]]
    scores = head.scores(inputs.open())
    right = np.where(np.arange(2) == np.minimum(batch["class_mask"], 1)[..., None], 9, -9).astype(np.float32)
    scores.add({"scores": right, "loss": np.zeros(2, np.float32)}, batch)
    assert scores.result()["mIoU"] == 1.0 and set(scores.result()) >= {"IoU/background", "IoU/dog"}
    scenes = EmojiScenes("train", 6, size=32, classes=6, objects=(2, 3))
    first = scenes.open()
    inputs = Input(scenes, Fit(32, 32, random=False), 6, curate=(Vocabulary(first.classes[:3], "keep"),))
    boxes = BatchMaker(inputs.open(), inputs, FasterRCNN(max_boxes=3).targets, None)(0)
    for i in range(6):
        kept = first[i]["box_labels"] < 3
        assert (boxes["kind"][i] == 1).sum() == kept.sum()
        np.testing.assert_array_equal(boxes["box_labels"][i][: kept.sum()], first[i]["box_labels"][kept])


def test_a_bad_mask_is_one_bad_image(masks, tmp_path):
    records = curated(masks.open(), [Vocabulary(("cat", "dog"), "keep")])
    (tmp_path / "masks" / "b.png").write_bytes(b"no image")
    found = records.read([0, 1, 2])
    assert isinstance(found[1], BadImageError)
    assert found[0]["class_mask"].max() == 2 and not found[2]["class_mask"].any()
    with pytest.raises(BadImageError, match=r"'b\.jpg'"):
        records[1]
