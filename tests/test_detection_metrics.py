"""COCO's and VOC's average precision: against pycocotools and against cases counted by hand."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from made_files import jpeg

from big_vision_lite.data.coco_json import CocoJson
from big_vision_lite.data.source import Example, Records
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation import coco_ap as coco_module
from big_vision_lite.evaluation.boxes import Found, Truth
from big_vision_lite.evaluation.coco_ap import coco_ap, official_ap
from big_vision_lite.evaluation.detection import DetectionScores, category_ids, truth_of
from big_vision_lite.evaluation.voc_ap import iou, voc_ap


def truth(rows, difficult=(), crowd=()) -> Truth:
    """Of rows (image, label, xmin, ymin, xmax, ymax)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    boxes, flags = table[:, 2:], [np.isin(np.arange(len(table)), chosen) for chosen in (crowd, difficult)]
    return Truth(*table[:, :2].T.astype(np.int64), boxes, np.prod(boxes[:, 2:] - boxes[:, :2], 1), *flags)


def found(rows) -> Found:
    """Of rows (image, label, xmin, ymin, xmax, ymax, score)."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return Found(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:6], table[:, 6])


def random_data(seed, images=40, classes=5) -> tuple[Truth, Found]:
    """With crowds, ties among scores, images without objects or detections, and one with 130 detections of a class."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.uniform(0, 300, (n, 2))
        return np.concatenate([corner, corner + rng.uniform(4, 160, (n, 2))], 1)

    there = boxes(150)
    image, label = rng.integers(0, images - 4, 150), rng.integers(0, classes, 150)
    pick = rng.integers(0, 150, 500)
    near = there[pick] + rng.normal(0, 6, (500, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    wrong = rng.random(500) < 0.2
    many = np.full(130, image[0])
    return Truth(image, label, there, np.prod(there[:, 2:] - there[:, :2], 1) * rng.uniform(0.3, 1, 150),
                 rng.random(150) < 0.08, np.zeros(150, np.bool_)), Found(
        np.concatenate([image[pick], many, [images - 1]]),
        np.concatenate([np.where(wrong, rng.integers(0, classes, 500), label[pick]), np.full(131, label[0])]),
        np.concatenate([near, there[:1] + rng.normal(0, 9, (130, 4)) * [1, 1, 0, 0], [[1, 1, 9, 9]]]),
        rng.random(631).round(2))


@pytest.mark.parametrize("seed", range(3))
def test_the_fast_way_is_the_official_way(seed):
    pytest.importorskip("hotcoco")
    there, seen = random_data(seed)
    fast, official = (coco_ap(there, seen, 40, 5, official=o) for o in (False, True))
    assert fast.figures.keys() == official.figures.keys() and len(fast.figures) == 12
    for name, value in official.figures.items():
        assert abs(fast.figures[name] - value) < 1e-9, name
    np.testing.assert_allclose(fast.ap, official.ap, atol=1e-9)
    np.testing.assert_allclose(fast.ap50, official.ap50, atol=1e-9)
    assert 0.05 < official.figures["AP"] < 0.9


@pytest.mark.parametrize("official", [False, True])
def test_nothing_found_and_classes_without_objects(official):
    there = truth([(0, 1, 10, 10, 50, 50)])
    none = coco_ap(there, found([]), 2, 3, official)
    assert none.figures["AP"] == 0 and "AP_small" not in none.figures and "AP_large" not in none.figures
    all_ = coco_ap(there, found([(0, 1, 10, 10, 50, 50, 0.5), (1, 2, 0, 0, 9, 9, 0.9)]), 2, 3, official)
    assert all_.figures["AP"] == pytest.approx(1) and np.isnan(all_.ap[[0, 2]]).all()  # class 2 has no object


def test_without_the_fast_package_pycocotools_does_all(monkeypatch):
    there, seen = random_data(0)
    usual = coco_ap(there, seen, 40, 5, official=True).figures
    monkeypatch.setattr(coco_module.importlib.util, "find_spec", lambda name: None)
    assert coco_ap(there, seen, 40, 5).figures == usual


def test_voc_by_hand():
    """Right, wrong, right, and one of three objects not found: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3."""
    there = truth([(0, 0, 0, 0, 10, 10), (1, 0, 0, 0, 10, 10), (1, 0, 50, 50, 60, 60)])
    seen = found([(1, 0, 0, 0, 10, 9, 0.7), (0, 0, 0, 0, 10, 10, 0.9), (0, 0, 30, 30, 40, 40, 0.8)])
    result = voc_ap(there, seen, 2)
    assert result.area[0] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert result.eleven[0] == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 0) / 11)
    assert np.isnan(result.area[1]) and np.isnan(result.eleven[1]) and result.objects.tolist() == [3, 0]
    nothing = voc_ap(there, found([]), 1)
    assert nothing.area[0] == nothing.eleven[0] == 0


def test_voc_finds_an_object_once_and_ignores_difficult_ones():
    there = truth([(0, 0, 0, 0, 10, 10), (0, 0, 20, 0, 30, 10), (0, 0, 40, 0, 50, 10)], difficult=[1], crowd=[2])
    twice = [(0, 0, 0, 0, 10, 10, 0.5), (0, 0, 0, 0, 10, 9, 0.9)]
    optional = [(0, 0, 20, 0, 30, 10, 0.95), (0, 0, 20, 0, 30, 9, 0.94), (0, 0, 40, 0, 50, 10, 0.93)]
    result = voc_ap(there, found(twice + optional), 1)
    assert result.objects.tolist() == [1] and result.area[0] == result.eleven[0] == 1  # the second is wrong, and later
    late = voc_ap(there, found([(0, 0, 0, 0, 10, 10, 0.5), (0, 0, 70, 0, 80, 9, 0.9), *optional]), 1)
    assert late.area[0] == 0.5
    # Of its own class and image only; and the threshold itself counts.
    half = found([(0, 0, 0, 0, 10, 5, 0.9)])
    assert voc_ap(there, half, 1).area[0] == 1 and voc_ap(there, half, 1, 0.51).area[0] == 0
    assert voc_ap(there, found([(1, 0, 0, 0, 10, 10, 0.9)]), 1).area[0] == 0
    assert np.nanmax(voc_ap(there, found([(0, 1, 0, 0, 10, 10, 0.9)]), 2).area) == 0


def test_eleven_points_count_recalls_that_are_just_reached():
    there = truth([(i, 0, 0, 0, 10, 10) for i in range(10)])
    seen = found([(i, 0, 0, 0, 10, 10, 1 - i / 10) for i in range(3)])
    assert voc_ap(there, seen, 1).eleven[0] == pytest.approx(4 / 11)  # 0, 0.1, 0.2 and 0.3


def test_voc_equals_a_plain_loop():
    there, seen = random_data(7)
    there = there._replace(difficult=np.random.default_rng(0).random(150) < 0.1)
    seen = seen._replace(score=np.random.default_rng(1).permutation(631) / 631)
    result = voc_ap(there, seen, 5)
    for c in range(5):
        taken, right = set(), []
        for d in sorted(np.flatnonzero(seen.label == c), key=lambda d: -seen.score[d]):
            near = [(iou(seen.boxes[d][None], there.boxes[t][None])[0], -t) for t in range(150)
                    if there.image[t] == seen.image[d] and there.label[t] == c]
            overlap, t = max(near, default=(0, 0))
            if overlap >= 0.5 and (there.difficult[-t] or there.crowd[-t]):
                continue
            right.append(overlap >= 0.5 and -t not in taken)
            taken |= {-t} if right[-1] else set()
        objects = int(((there.label == c) & ~there.difficult & ~there.crowd).sum())
        precision, recall = np.cumsum(right) / np.arange(1, len(right) + 1), np.cumsum(right) / objects
        best = [max(precision[recall >= r - 1e-12], default=0) for r in np.linspace(0, 1, 11)]
        assert result.eleven[c] == pytest.approx(np.mean(best))
        steps = [max(precision[k:]) / objects for k in np.flatnonzero(right)]
        assert result.area[c] == pytest.approx(sum(steps))


@dataclasses.dataclass(eq=False)
class InMemory(Records):
    there: Truth
    images: int
    classes: tuple[str, ...] = ("a", "b", "c", "d", "e")
    multi_label: bool = True
    fingerprint: str = "boxes in memory"
    reads: int = 0

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Example:
        self.reads += 1
        at = self.there.image == index
        boxes = (self.there.boxes[at][:, [1, 0, 3, 2]] / 512).astype(np.float32)
        return {"id": str(index), "image": np.zeros((512, 512, 3), np.uint8), "labels": np.unique(self.there.label[at]),
                "boxes": boxes, "box_labels": self.there.label[at].astype(np.int32), "crowd": self.there.crowd[at],
                "area": self.there.area[at].astype(np.float32)}


def batched(seen: Found, images, most=160):
    """One batch of all: padded, one padding slot more, and one image masked that has detections."""
    arrays = (np.zeros((images + 1, most, 4), np.float32), np.zeros((images + 1, most), np.float32),
              np.zeros((images + 1, most), np.int32), np.zeros((images + 1, most), np.bool_))
    for i in range(images):
        at = np.flatnonzero(seen.image == i)
        place = np.random.default_rng(i).permutation(most)[: len(at)]
        for array, values in zip(arrays, (seen.boxes, seen.score, seen.label, np.ones(len(seen.score))), strict=True):
            array[i, np.sort(place)] = values[at]
    index = np.append(np.arange(images), -1)
    return (*arrays, index, index >= 0)


def test_scores_of_batches():
    there, seen = random_data(3)
    records = InMemory(there, 40)
    scores, shuffled = DetectionScores(records), DetectionScores(records)
    everything = batched(seen, 40)
    scores.add(*everything)
    for piece in np.array_split(np.random.default_rng(0).permutation(41), 5):
        shuffled.add(*(array[piece] for array in everything))
    result = scores.result()
    assert shuffled.result() == result and records.reads == 40 and result["images"] == 40
    direct = coco_ap(there, seen, 40, 5, official=True)
    for name, value in direct.figures.items():
        assert abs(result[name] - value) < 2e-3, name  # fractions and areas are float32
    by_image = Found(*(column[np.argsort(seen.image, kind="stable")] for column in seen))  # which decides among ties
    assert abs(result["VOC_AP50"] - np.nanmean(voc_ap(there, by_image, 5).area)) < 2e-3
    table = scores.per_class()
    assert table.keys() == set("abcde")
    assert np.mean([row["AP"] for row in table.values()]) == pytest.approx(result["AP"])
    with pytest.raises(ValueError, match="added twice"):
        scores.add(*everything)
    # An image that is masked counts for nothing, neither its objects nor what was found there.
    part = DetectionScores(records)
    part.add(*everything[:5], everything[5] & (np.arange(41) != 7))
    without = [Truth(*(c[there.image != 7] for c in there)), Found(*(c[seen.image != 7] for c in seen))]
    assert part.result()["images"] == 39
    assert abs(part.result()["AP"] - coco_ap(*without, 40, 5).figures["AP"]) < 2e-3


def test_what_cannot_be_scored_is_said():
    records = InMemory(truth([]), 3)
    scores = DetectionScores(records)
    with pytest.raises(UserError, match="no image was evaluated"):
        scores.result()
    empty = batched(found([]), 3)
    scores.add(*empty)
    with pytest.raises(UserError, match="none of the 3 images has an object"):
        scores.result()
    wrong = [array.copy() for array in batched(found([(0, 9, 0, 0, 1, 1, 0.5)]), 3)]
    with pytest.raises(ValueError, match="label 9; expected 0 to 4"):
        DetectionScores(records).add(*wrong)
    wrong[1][:] = np.nan
    with pytest.raises(UserError, match="not finite; training has diverged"):
        DetectionScores(records).add(*wrong)
    with pytest.raises(UserError, match=r"image 'x' has no boxes, .* such as CocoJson or VocTree"):
        truth_of({"id": "x", "image": b"", "labels": np.zeros(0, np.int32)}, 0)


def coco_file(folder, *more):
    """Ids with gaps, a crowd, an image without boxes, a category without objects."""
    for i in (7, 9, 4):
        (folder / f"{i}.jpg").write_bytes(jpeg(200, 100, seed=i))
    boxes = [(7, 90, [20, 10, 60, 40], 0), (7, 13, [100.5, 50.25, 30, 20], 0), (9, 90, [0, 0, 200, 100], 1),
             (9, 90, [5, 5, 40, 40], 0), *more]
    data = {"images": [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100} for i in (7, 9, 4)],
            "annotations": [{"id": k, "image_id": i, "category_id": c, "bbox": b, "iscrowd": crowd, "area": b[2] * b[3]}
                            for k, (i, c, b, crowd) in enumerate(boxes, 1)],
            "categories": [{"id": 13, "name": "sign"}, {"id": 90, "name": "brush"}, {"id": 70, "name": "gap"}]}
    (folder / "instances.json").write_text(json.dumps(data))
    return CocoJson(str(folder / "instances.json"), str(folder))


def test_results_are_written_with_the_ids_of_the_annotations(tmp_path):
    records = coco_file(tmp_path).open()
    assert category_ids(records) == (13, 70, 90)
    seen = found([(0, 2, 21, 11, 80, 50, 0.9), (0, 0, 100, 50, 130, 70, 0.8), (1, 2, 100, 40, 150, 90, 0.7),
                  (1, 2, 5, 5, 46, 44, 0.6), (2, 0, 1, 1, 9, 9, 0.95)])
    scores = DetectionScores(records)
    scores.add(*batched(seen, 3))
    path = tmp_path / "results.json"
    scores.write_coco_results(path)
    rows = json.loads(path.read_text())
    assert rows[0] == {"image_id": 7, "category_id": 90, "bbox": [21, 11, 59, 39], "score": pytest.approx(0.9)}
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(7, 90), (7, 13), (9, 90), (9, 90), (4, 13)]
    official = official_ap(tmp_path / "instances.json", path)
    for name, value in scores.result(official=True).items():
        if name in coco_module.NAMES:
            assert value == pytest.approx(official[name], abs=1e-9), name
    coco_file(tmp_path, (9, 13, [50, 50, 0, 10], 0))  # of no area: the reader drops it, COCO asks for it to be found
    assert official_ap(tmp_path / "instances.json", path)["AP"] < official["AP"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        scores.result()
    assert not printed.getvalue()
    (tmp_path / "none.json").write_text("[]")
    assert official_ap(tmp_path / "instances.json", tmp_path / "none.json")["AP"] == 0
    good = {"image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "score": 0.5}
    for wrong, says in [({"image_id": 8}, "result 1 is of image 8, which .* does not have"),
                        ({"category_id": 2}, "result 1 is of category 2, and .* has none of that id"),
                        ({"bbox": [1, 2, 3]}, "result 1 is .*; expected image_id, category_id, bbox"),
                        ({"score": None}, "result 1 is ")]:
        path.write_text(json.dumps([good, good | wrong]))
        with pytest.raises(UserError, match=says):
            official_ap(tmp_path / "instances.json", path)
    for text, says in [("{}", "is not a list"), ("[", "is not valid JSON")]:
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            official_ap(tmp_path / "instances.json", path)
    with pytest.raises(UserError, match="cannot read"):
        official_ap(tmp_path / "instances.json", tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="not of COCO's format"):
        official_ap(tmp_path / "none.json", tmp_path / "none.json")
