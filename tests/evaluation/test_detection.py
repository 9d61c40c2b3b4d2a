"""COCO's and VOC's average precision: against pycocotools and against cases counted by hand."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from official_coco import coco_file, official_ap, official_metrics
from PIL import Image
from pycocotools import mask as rle

from big_vision_lite.data.curation.steps import ClassSubset, curated
from big_vision_lite.data.decode import image_size
from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.evaluation.boxes import Detections, GroundTruth, xywh
from big_vision_lite.evaluation.coco_ap import NAMES, coco_ap
from big_vision_lite.evaluation.detection import DetectionMetrics, check_objects, truth_of
from big_vision_lite.evaluation.scorable import check_labels
from big_vision_lite.evaluation.voc_ap import iou, voc_ap


def truth(rows, difficult=(), crowd=()) -> GroundTruth:
    """Of rows (image, label, x1, y1, x2, y2)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    boxes, flags = table[:, 2:], [np.isin(np.arange(len(table)), chosen) for chosen in (crowd, difficult)]
    return GroundTruth(*table[:, :2].T.astype(np.int64), boxes, np.prod(boxes[:, 2:] - boxes[:, :2], 1), *flags)


def detections(rows) -> Detections:
    """Of rows (image, label, x1, y1, x2, y2, score)."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return Detections(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:6], table[:, 6])


def random_data(seed, images=40, classes=5) -> tuple[GroundTruth, Detections]:
    """With crowds, ties among scores, images without objects or detections, and one with 130 detections of a class."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.uniform(0, 300, (n, 2))
        return np.concatenate([corner, corner + rng.uniform(4, 160, (n, 2))], 1)

    true = boxes(150)
    image, label = rng.integers(0, images - 4, 150), rng.integers(0, classes, 150)
    pick = rng.integers(0, 150, 500)
    near = true[pick] + rng.normal(0, 6, (500, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    wrong = rng.random(500) < 0.2
    many = np.full(130, image[0])
    return GroundTruth(image, label, true, np.prod(true[:, 2:] - true[:, :2], 1) * rng.uniform(0.3, 1, 150),
                 rng.random(150) < 0.08, np.zeros(150, np.bool_)), Detections(
        np.concatenate([image[pick], many, [images - 1]]),
        np.concatenate([np.where(wrong, rng.integers(0, classes, 500), label[pick]), np.full(131, label[0])]),
        np.concatenate([near, true[:1] + rng.normal(0, 9, (130, 4)) * [1, 1, 0, 0], [[1, 1, 9, 9]]]),
        rng.random(631).round(2))


@pytest.mark.parametrize("seed", range(3))
def test_coco_metrics_are_the_official_ones(seed):
    true, detected = random_data(seed)
    ours, official = coco_ap(true, detected, 40, 5), official_ap(true, detected, 40, 5)
    assert ours.metrics.keys() == official.metrics.keys() and len(ours.metrics) == 12
    for name, value in official.metrics.items():
        assert abs(ours.metrics[name] - value) < 1e-9, name
    np.testing.assert_allclose(ours.ap, official.ap, atol=1e-9)
    np.testing.assert_allclose(ours.ap50, official.ap50, atol=1e-9)
    assert 0.05 < official.metrics["AP"] < 0.9


def test_an_object_is_as_large_as_annotated(tmp_path):
    """Of area 900, small, in a box of 3600, medium: pycocotools, given files that it reads itself, says the same."""
    coco_file(tmp_path)
    data = json.loads((tmp_path / "instances.json").read_text())
    data["annotations"] = [{"id": 1, "image_id": 7, "category_id": 13, "bbox": [20, 10, 60, 60], "iscrowd": 0,
                            "area": 900}]
    (tmp_path / "instances.json").write_text(json.dumps(data))
    (tmp_path / "results.json").write_text(json.dumps(
        [{"image_id": 7, "category_id": 13, "bbox": [20, 10, 60, 50], "score": 0.5}]))
    scores = DetectionMetrics(CocoJson(str(tmp_path / "instances.json"), str(tmp_path)).open())
    scores.add(*batched(detections([(0, 0, 20, 10, 80, 60, 0.5)]), 3))
    official = official_metrics(tmp_path / "instances.json", tmp_path / "results.json")
    assert {name: scores.result()[name] for name in NAMES} == pytest.approx(official)
    assert official["AP_small"] == pytest.approx(0.7) and official["AP_medium"] is None  # at IoU 0.5 to 0.8


def test_objects_without_areas_crowds_or_difficult_ones():
    """As of a source that knows boxes only: an image of 30 x 20 pixels."""
    example = {"id": "x", "image": np.zeros((20, 30, 3), np.uint8), "box_labels": np.array([3, 1], np.int32),
               "boxes": np.array([[0.1, 0.2, 0.4, 0.7], [0, 0, 1, 1]], np.float32)}
    true = truth_of(example)
    np.testing.assert_allclose(true.boxes, [[3, 4, 12, 14], [0, 0, 30, 20]], atol=1e-5)
    np.testing.assert_allclose(true.area, [90, 600], rtol=1e-5)
    assert true.label.tolist() == [3, 1] and not true.crowd.any() and not true.difficult.any()
    table = truth_of({**example, "crowd": np.array([True, False]), "difficult": np.array([False, True]),
                      "area": np.float32([7, 8])})
    assert (table.area.tolist(), table.crowd.tolist(), table.difficult.tolist()) == ([7, 8], [True, False],
                                                                                     [False, True])


@pytest.mark.parametrize("score", [coco_ap, official_ap])
def test_no_detections_and_classes_without_objects(score):
    true = truth([(0, 1, 10, 10, 50, 50)])
    none = score(true, detections([]), 2, 3)
    assert none.metrics["AP"] == 0 and none.metrics["AP_small"] is none.metrics["AP_large"] is None
    all_ = score(true, detections([(0, 1, 10, 10, 50, 50, 0.5), (1, 2, 0, 0, 9, 9, 0.9)]), 2, 3)
    assert all_.metrics["AP"] == pytest.approx(1) and np.isnan(all_.ap[[0, 2]]).all()  # class 2 has no object


def test_voc_by_hand():
    """Correct, wrong, correct, and one of three objects missed: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3."""
    true = truth([(0, 0, 0, 0, 10, 10), (1, 0, 0, 0, 10, 10), (1, 0, 50, 50, 60, 60)])
    detected = detections([(1, 0, 0, 0, 10, 9, 0.7), (0, 0, 0, 0, 10, 10, 0.9), (0, 0, 30, 30, 40, 40, 0.8)])
    result = voc_ap(true, detected, 2)
    assert result.area[0] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert result.eleven[0] == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 0) / 11)
    assert np.isnan(result.area[1]) and np.isnan(result.eleven[1]) and result.objects.tolist() == [3, 0]
    nothing = voc_ap(true, detections([]), 1)
    assert nothing.area[0] == nothing.eleven[0] == 0


def test_voc_counts_an_object_once_and_ignores_difficult_ones():
    true = truth([(0, 0, 0, 0, 10, 10), (0, 0, 20, 0, 30, 10), (0, 0, 40, 0, 50, 10)], difficult=[1], crowd=[2])
    twice = [(0, 0, 0, 0, 10, 10, 0.5), (0, 0, 0, 0, 10, 9, 0.9)]
    optional = [(0, 0, 20, 0, 30, 10, 0.95), (0, 0, 20, 0, 30, 9, 0.94), (0, 0, 40, 0, 50, 10, 0.93)]
    result = voc_ap(true, detections(twice + optional), 1)
    assert result.objects.tolist() == [1] and result.area[0] == result.eleven[0] == 1  # the wrong one comes last
    late = voc_ap(true, detections([(0, 0, 0, 0, 10, 10, 0.5), (0, 0, 70, 0, 80, 9, 0.9), *optional]), 1)
    assert late.area[0] == 0.5
    # Only objects of the same class and image count, from the threshold up.
    half = detections([(0, 0, 0, 0, 10, 5, 0.9)])
    assert voc_ap(true, half, 1).area[0] == 1 and voc_ap(true, half, 1, 0.51).area[0] == 0
    assert voc_ap(true, detections([(1, 0, 0, 0, 10, 10, 0.9)]), 1).area[0] == 0
    assert np.nanmax(voc_ap(true, detections([(0, 1, 0, 0, 10, 10, 0.9)]), 2).area) == 0


def test_eleven_points_count_recalls_that_are_just_reached():
    true = truth([(i, 0, 0, 0, 10, 10) for i in range(10)])
    detected = detections([(i, 0, 0, 0, 10, 10, 1 - i / 10) for i in range(3)])
    assert voc_ap(true, detected, 1).eleven[0] == pytest.approx(4 / 11)  # 0, 0.1, 0.2 and 0.3


def test_intersection_over_union():
    """pycocotools', and 0 for boxes without area."""
    rng = np.random.default_rng(0)
    first, second = np.sort(rng.uniform(size=(2, 60, 2, 2)), 2).reshape(2, 60, 4)
    expected = np.diag(rle.iou(xywh(first), xywh(second), np.zeros(60, np.uint8)))
    np.testing.assert_allclose(iou(first, second), expected)
    assert expected.max() > 0.2 and (expected == 0).any()
    point = np.array([[3.0, 4, 3, 4]])
    assert iou(point, point) == 0 and iou(first[:1], first[:1]) == pytest.approx(1)


def test_voc_equals_a_plain_loop():
    true, detected = random_data(7)
    true = true._replace(difficult=np.random.default_rng(0).random(150) < 0.1)
    detected = detected._replace(score=np.random.default_rng(1).permutation(631) / 631)
    result = voc_ap(true, detected, 5)
    for c in range(5):
        matched, correct = set(), []
        for d in sorted(np.flatnonzero(detected.label == c), key=lambda d: -detected.score[d]):
            near = [(iou(detected.boxes[d][None], true.boxes[t][None])[0], -t) for t in range(150)
                    if true.image[t] == detected.image[d] and true.label[t] == c]
            overlap, t = max(near, default=(0, 0))
            if overlap >= 0.5 and (true.difficult[-t] or true.crowd[-t]):
                continue
            correct.append(overlap >= 0.5 and -t not in matched)
            matched |= {-t} if correct[-1] else set()
        objects = int(((true.label == c) & ~true.difficult & ~true.crowd).sum())
        precision, recall = np.cumsum(correct) / np.arange(1, len(correct) + 1), np.cumsum(correct) / objects
        best = [max(precision[recall >= r - 1e-12], default=0) for r in np.linspace(0, 1, 11)]
        assert result.eleven[c] == pytest.approx(np.mean(best))
        steps = [max(precision[k:]) / objects for k in np.flatnonzero(correct)]
        assert result.area[c] == pytest.approx(sum(steps))


@dataclasses.dataclass(eq=False)
class InMemory(Dataset):
    true: GroundTruth
    images: int
    classes: tuple[str, ...] = ("a", "b", "c", "d", "e")
    multi_label: bool = True
    fingerprint: str = "boxes in memory"
    reads: int = 0

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Example:
        self.reads += 1
        at = self.true.image == index
        boxes = (self.true.boxes[at] / 512).astype(np.float32)
        return {"id": str(index), "image": np.zeros((512, 512, 3), np.uint8), "labels": np.unique(self.true.label[at]),
                "boxes": boxes, "box_labels": self.true.label[at].astype(np.int32), "crowd": self.true.crowd[at],
                "area": self.true.area[at].astype(np.float32), "difficult": self.true.difficult[at]}


class WithoutBoxes(Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        return {"id": "7.jpg", "image": b"", "labels": np.zeros(1, np.int32)}


def batched(detected: Detections, images, most=160):
    """All detections in one batch, with a padding slot."""
    arrays = (np.zeros((images + 1, most, 4), np.float32), np.zeros((images + 1, most), np.float32),
              np.zeros((images + 1, most), np.int32), np.zeros((images + 1, most), np.bool_))
    for i in range(images):
        at = np.flatnonzero(detected.image == i)
        place = np.random.default_rng(i).permutation(most)[: len(at)]
        columns = detected.boxes, detected.score, detected.label, np.ones(len(detected.score))
        for array, values in zip(arrays, columns, strict=True):
            array[i, np.sort(place)] = values[at]
    index = np.append(np.arange(images), -1)
    return (*arrays, index, index >= 0)


def test_scores_of_batches():
    true, detected = random_data(3)
    dataset = InMemory(true, 40)
    scores, shuffled = DetectionMetrics(dataset), DetectionMetrics(dataset)
    everything = batched(detected, 40)
    scores.add(*everything[:5], np.ones(41, np.bool_))  # an index of -1 is padding, whatever the mask says
    for piece in np.array_split(np.random.default_rng(0).permutation(41), 5):
        shuffled.add(*(array[piece] for array in everything))
    result = scores.result()
    assert shuffled.result() == result and dataset.reads == 40 and result["images"] == 40
    direct = official_ap(true, detected, 40, 5)
    for name, value in direct.metrics.items():
        assert abs(result[name] - value) < 2e-3, name  # fractions and areas are float32
    order = np.argsort(detected.image, kind="stable")  # which decides among ties
    by_image = Detections(*(column[order] for column in detected))
    assert abs(result["VOC_AP50"] - np.nanmean(voc_ap(true, by_image, 5).area)) < 2e-3
    table = scores.per_class()
    assert table.keys() == set("abcde")
    assert np.mean([row["AP"] for row in table.values()]) == pytest.approx(result["AP"])
    with pytest.raises(ValueError, match="added twice"):
        scores.add(*everything)
    # A masked image does not count, neither its objects nor its detections.
    part = DetectionMetrics(dataset)
    part.add(*everything[:5], everything[5] & (np.arange(41) != 7))
    without = [type(table)(*(column[table.image != 7] for column in table)) for table in (true, detected)]
    assert part.result()["images"] == 39
    assert abs(part.result()["AP"] - coco_ap(*without, 40, 5).metrics["AP"]) < 2e-3


def test_scores_that_do_not_exist():
    """Without images, objects, or any but crowds; and with difficult objects only, which COCO's metrics count."""
    nothing = {**dict.fromkeys(NAMES), "VOC_AP50": None, "VOC07_AP50": None}
    assert DetectionMetrics(InMemory(truth([]), 3)).result() == {**nothing, "images": 0}
    objects = [(0, 1, 10, 10, 50, 50), (2, 0, 10, 10, 50, 50)]
    for dataset in (InMemory(truth([]), 3), InMemory(truth(objects, crowd=[0, 1]), 3)):
        for found in ([], [(0, 1, 10, 10, 50, 50, 0.5)]):
            scores = DetectionMetrics(dataset)
            scores.add(*batched(detections(found), 3))
            assert scores.result() == {**nothing, "images": 3} and scores.per_class() == {}
        with pytest.raises(UserError, match="none of its 3 images has an object that is not a crowd, so that nothing"):
            check_objects(dataset)
    difficult = InMemory(truth(objects, difficult=[0, 1]), 3)
    scores = DetectionMetrics(difficult)
    scores.add(*batched(detections([(0, 1, 10, 10, 50, 50, 0.5)]), 3))
    check_objects(difficult)
    assert scores.result()["AP"] == pytest.approx(0.5) and scores.result()["VOC_AP50"] is None
    assert scores.per_class() == {"a": {"AP": 0, "AP50": 0, "objects": 0},
                                  "b": {"AP": pytest.approx(1), "AP50": pytest.approx(1), "objects": 0}}


def test_one_object_is_enough_to_score(tmp_path):
    """Of three images one cannot be read, one has an object, and one has none; then that one cannot be read either."""
    dataset = coco_file(tmp_path).open()
    (tmp_path / "7.jpg").write_bytes(b"none")
    check_objects(dataset)
    check_labels(dataset)
    (tmp_path / "9.jpg").write_bytes(b"none")
    with pytest.raises(BadImageError, match=r"'7\.jpg'"):
        check_objects(dataset)
    with pytest.raises(UserError, match="none of its 3 images has a label"):
        check_labels(InMemory(truth([]), 3))
    with pytest.raises(UserError, match=r"image '7\.jpg' has no boxes"):
        check_objects(WithoutBoxes(dataset))


def test_what_cannot_be_added_is_refused():
    dataset = InMemory(truth([]), 3)
    for label in (5, -1):
        wrong = batched(detections([(0, label, 0, 0, 1, 1, 0.5)]), 3)
        with pytest.raises(ValueError, match=f"label {label}; expected 0 to 4"):
            DetectionMetrics(dataset).add(*wrong)
    for column in (0, 1):  # boxes, scores
        wrong = batched(detections([(2, 1, 0, 0, 1, 1, 0.5)]), 3)
        wrong[column][2] = np.nan
        with pytest.raises(UserError, match="in image number 2 is not finite; training has diverged"):
            DetectionMetrics(dataset).add(*wrong)
    with pytest.raises(UserError, match=r"image 'x' has no boxes; .* such as CocoJson or VocTree"):
        truth_of({"id": "x", "image": b"", "labels": np.zeros(0, np.int32)})


def test_results_are_written_with_the_ids_of_the_annotations(tmp_path):
    dataset = coco_file(tmp_path).open()
    assert DetectionMetrics(dataset).category_ids() == [13, 70, 90]
    part = curated(curated(dataset, (ClassSubset(("brush", "sign"), "keep"),)), (ClassSubset(("brush",)),))
    assert DetectionMetrics(part).category_ids() == [90]
    with pytest.raises(UserError, match="InMemory does not know COCO's ids"):
        DetectionMetrics(InMemory(truth([]), 3)).category_ids()
    detected = detections([(0, 2, 21, 11, 80, 50, 0.9), (0, 0, 100, 50, 130, 70, 0.8), (1, 2, 100, 40, 150, 90, 0.7),
                  (1, 2, 5, 5, 46, 44, 0.6), (2, 0, 1, 1, 9, 9, 0.95)])
    scores = DetectionMetrics(dataset)
    scores.add(*batched(detected, 3))
    path = tmp_path / "results.json"
    scores.write_coco_results(path)
    rows = json.loads(path.read_text())
    assert rows[0] == {"image_id": 7, "category_id": 90, "bbox": [21, 11, 59, 39], "score": pytest.approx(0.9)}
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(7, 90), (7, 13), (9, 90), (9, 90), (4, 13)]
    official = official_metrics(tmp_path / "instances.json", path)
    for name, value in scores.result().items():
        if name in NAMES:
            assert value == pytest.approx(official[name], abs=1e-9), name
    coco_file(tmp_path, (9, 13, [50, 50, 0, 10], 0))  # without area: our reader drops it, COCO wants it detected
    assert official_metrics(tmp_path / "instances.json", path)["AP"] < official["AP"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        scores.result()
    assert not printed.getvalue()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_results_are_of_the_image_as_annotated(tmp_path, orientation):
    """Annotations of the stored pixels of a photo that EXIF turns: results go back to where these are."""
    source, exif = coco_file(tmp_path), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (200, 100)).save(tmp_path / "7.jpg", exif=exif)
    dataset = source.open()
    example = dataset[0]
    assert image_size(example["image"]) == (200, 100)
    scores, boxes = DetectionMetrics(dataset), example["boxes"] * np.float32([100, 200, 100, 200])
    ones = np.ones((1, 2), np.float32)
    scores.add(boxes[None], ones, example["box_labels"][None], ones > 0, np.array([0]), np.array([True]))
    scores.write_coco_results(tmp_path / "results.json")
    rows = json.loads((tmp_path / "results.json").read_text())
    np.testing.assert_allclose([row["bbox"] for row in rows], [[20, 10, 60, 40], [100.5, 50.25, 30, 20]], atol=1e-3)
    alone = {"images": 1, "AP": pytest.approx(1)}
    assert {name: scores.result()[name] for name in alone} == alone
    with pytest.raises(UserError, match=r"cannot write .*none/results.json: No such file"):
        scores.write_coco_results(tmp_path / "none/results.json")
