"""OKS AP is pycocotools', and suppression that of the sequential algorithm."""

import json

import numpy as np
import pytest
from made_files import people
from official_coco import official_oks

from big_vision_lite.data.curation.steps import Exclude, curated
from big_vision_lite.data.keypoints import COCO_PERSON, EMOJI
from big_vision_lite.data.sources.coco_keypoints import PIXEL_CENTRE
from big_vision_lite.data.sources.per_object import PerObject
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.keypoints import KeypointMetrics, check_keypoints
from big_vision_lite.evaluation.oks_ap import NAMES, Poses, TrueObjects, oks_ap, oks_nms, results_json, truth_json


@pytest.mark.parametrize("keypoints", [COCO_PERSON, EMOJI], ids=["person", "emoji"])
def test_it_is_pycocotools(keypoints):
    rng, images, count, k = np.random.default_rng(0), 40, 150, len(keypoints)
    corner = rng.uniform(0, 300, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 200, (count, 2))], 1)
    side = boxes[:, None, 2:] - boxes[:, None, :2]
    points = boxes[:, None, :2] + side * rng.uniform(0, 1, (count, k, 2))
    visibility = rng.integers(0, 3, (count, k, 1)) * (rng.random((count, 1, 1)) < 0.9)
    truth = TrueObjects(rng.integers(0, images, count), rng.integers(0, 2, count), boxes, 0.5 * side.prod(-1)[:, 0],
                        np.concatenate([points, visibility], 2), rng.random(count) < 0.05, rng.random(count) < 0.1)
    which = np.concatenate([np.arange(count), rng.integers(0, count, 60)])
    noise = rng.normal(0, 1, (len(which), k, 2)) * side[which] * rng.choice([0.005, 0.03, 0.2], (len(which), 1, 1))
    found = np.concatenate([points[which] + noise, rng.random((len(which), k, 1))], 2)
    poses = Poses(truth.image[which], truth.label[which], found, truth.area[which], rng.random(len(which)))
    ours = oks_ap(truth, poses, images, 2, keypoints.sigmas)
    theirs = official_oks(truth_json(truth, images, 2), results_json(poses), keypoints.sigmas, 2)
    assert ours.keys() == theirs.keys() == set(NAMES) and 0.2 < ours["AP"] < 0.9
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-12), name
    others = oks_ap(truth, poses, images, 2, [2 * sigma for sigma in keypoints.sigmas])
    assert others["AP"] > ours["AP"] + 0.05


def test_suppression_goes_down_the_list():
    rng, sigmas = np.random.default_rng(0), np.array(EMOJI.sigmas)
    for _ in range(50):
        count = int(rng.integers(0, 12))
        keypoints = rng.integers(0, 3, (count, 1, 1)) * 40.0 + rng.uniform(0, 12, (count, 4, 2))
        area, score = rng.uniform(500, 2000, count), rng.random(count)
        expected = []
        for a in np.argsort(-score):
            similar = [np.mean([np.exp(-((keypoints[a, j] - keypoints[b, j]) ** 2).sum() / 2 / (2 * sigmas[j]) ** 2
                                       / ((area[a] + area[b]) / 2)) for j in range(4)]) for b in expected]
            if all(value <= 0.3 for value in similar):
                expected.append(a)
        assert oks_nms(keypoints, area, score, sigmas, 0.3).tolist() == expected
    assert oks_nms(np.zeros((2, 4, 2)), np.ones(2), np.ones(2), sigmas, 1.0).tolist() == [0, 1]


def batch_of(dataset, indices, shift=0.0, score=1.0):
    """The true poses of crops, as predicted, in pixels of images of 200 x 100."""
    rows = [dataset[i] for i in indices]
    truth = dataset.images if hasattr(dataset, "images") else dataset.source.images
    keypoints = np.stack([truth[int(r["image_index"])]["keypoints"][max(int(r["object_index"]), 0)] for r in rows])
    points = keypoints[..., :2] * [200, 100] + shift
    batch = {"box": np.stack([r["boxes"][0] * [200, 100, 200, 100] for r in rows]), "mask": np.ones(len(rows), bool),
             "label": np.array([r["labels"][0] for r in rows])}
    batch |= {name: np.array([r[name] for r in rows]) for name in ("image_index", "object_index")}
    return points, np.full(points.shape[:2], 0.9), np.full(len(rows), score), batch


def test_poses_of_annotated_boxes_and_the_results_file(tmp_path):
    dataset = PerObject(people(tmp_path)).open()
    metrics = KeypointMetrics(dataset, COCO_PERSON, 0.9)
    metrics.add(*batch_of(dataset, [0, 1]))
    assert metrics.result()["AP"] == pytest.approx(1.0) and metrics.result()["AR50"] == 1.0
    metrics.write_coco_results(tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    annotations = json.loads((tmp_path / "people.json").read_text())
    true = {a["image_id"]: np.reshape(a["keypoints"], (17, 3)) for a in annotations["annotations"]
            if a["num_keypoints"]}
    assert {r["image_id"] for r in results} == {4, 7} and {r["category_id"] for r in results} == {1}
    for row in results:
        labelled = true[row["image_id"]][:, 2] > 0
        np.testing.assert_allclose(np.reshape(row["keypoints"], (17, 3))[labelled, :2],
                                   true[row["image_id"]][labelled, :2], atol=1e-4)
    assert official_oks(annotations, results, COCO_PERSON.sigmas, 1)["AP"] == pytest.approx(1.0)
    far = KeypointMetrics(dataset, COCO_PERSON, 0.9)
    far.add(*batch_of(dataset, [0, 1], shift=50.0))
    assert far.result()["AP"] == 0 and PIXEL_CENTRE == 0.5


def test_what_curation_leaves_out_is_ignored_and_what_a_detector_misses_is_not(tmp_path):
    (tmp_path / "exclude.txt").write_text("7.png#0\n")
    dataset = PerObject(people(tmp_path)).open()
    few = curated(dataset, (Exclude(str(tmp_path / "exclude.txt")),))
    metrics = KeypointMetrics(few, COCO_PERSON, 0.9)
    metrics.add(*batch_of(few, [0]))
    assert metrics.result()["AR"] == pytest.approx(1.0)
    box = [{"image_id": 4, "category_id": 1, "bbox": [90, 30, 50, 60], "score": 0.5}] * 3
    (tmp_path / "boxes.json").write_text(json.dumps(box))
    detected = PerObject(people(tmp_path), str(tmp_path / "boxes.json")).open()
    check_keypoints(detected)
    metrics = KeypointMetrics(detected, COCO_PERSON, 0.9)
    metrics.add(*batch_of(detected, [0, 1, 2]))  # three times the same pose: suppressed
    assert metrics.result()["AR"] == pytest.approx(0.5) and len(metrics._remaining(1).score) == 1
    metrics.write_coco_results(tmp_path / "results.json")
    assert len(json.loads((tmp_path / "results.json").read_text())) == 1
    assert KeypointMetrics(detected, COCO_PERSON, 0.9).result()["AP"] == 0


def test_what_cannot_be_scored(tmp_path):
    dataset = PerObject(people(tmp_path)).open()
    metrics = KeypointMetrics(dataset, COCO_PERSON, 0.9)
    points, *rest = batch_of(dataset, [0])
    points[0, 3, 1] = np.nan
    with pytest.raises(UserError, match="a keypoint is not finite; training has diverged"):
        metrics.add(points, *rest)
    wrong = KeypointMetrics(dataset, EMOJI, 0.9)
    points, scores, *rest = batch_of(dataset, [0])
    wrong.add(points[:, :4], scores[:, :4], *rest)
    with pytest.raises(UserError, match=r"'7.png' has 17 keypoints per object; expected the head's 4"):
        wrong.result()
