"""The arithmetic of detection against torchvision's (kept in goldens/detection) and against plain loops."""

import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_lite.heads.detection import box_head, matching, rpn
from big_vision_lite.heads.detection import boxes as arithmetic
from big_vision_lite.heads.detection.anchors import grid_anchors
from big_vision_lite.heads.detection.box_head import WEIGHTS
from big_vision_lite.heads.detection.matching import IGNORED, OBJECT, PADDING
from big_vision_lite.heads.detection.nms import nms
from big_vision_lite.heads.detection.roi_align import roi_align

MAKE = runpy.run_path(str(Path(__file__).parents[1] / "goldens" / "detection" / "make.py"))


iou = jax.jit(arithmetic.iou)
encode, decode = (jax.jit(f, static_argnums=2) for f in (arithmetic.encode, arithmetic.decode))
jitted_nms = jax.jit(nms, static_argnames=("threshold", "tile"))
match = jax.jit(matching.match, static_argnames=("low", "high", "low_quality"))
sample = jax.jit(matching.sample, static_argnames=("count", "fraction"))
propose = jax.jit(rpn.propose, static_argnames=("counts", "pre_nms_topk", "post_nms_topk", "threshold"))
choose_rois = jax.jit(box_head.choose_rois, static_argnames=("rois_per_image", "fraction", "threshold"))
rpn_loss, box_loss = (jax.jit(f, static_argnames="beta") for f in (rpn.rpn_loss, box_head.box_loss))
detect = jax.jit(box_head.detect, static_argnames=("threshold", "nms_iou", "pre_nms_topk", "max_detections"))


@partial(jax.jit, static_argnums=(2, 3))
def align(features, rois, strides, aligned=False):
    """``roi_align`` of one image."""
    return roi_align([f[None] for f in features], rois[None], strides, MAKE["POOL"], aligned)[0]


def ours(count):
    """The values of `reference` in goldens/detection/make.py, computed by this package."""
    boxes, values = MAKE["boxes"], {}
    values["iou"] = iou(boxes(1, count), boxes(2, count))
    values["encode"] = encode(boxes(1, count), boxes(2, count), WEIGHTS)
    values["decode"] = decode(MAKE["offsets"](3, count), boxes(2, count), WEIGHTS)
    values["anchors"] = np.concatenate([grid_anchors(4, 6, 16, (32, 64), (0.5, 1.0, 2.0)),
                                        grid_anchors(2, 3, 32, (40, 48), (0.5, 1.0, 2.0))])
    around, _ = MAKE["clusters"](4, 8 * count)
    for threshold in MAKE["THRESHOLDS"]:
        values[f"nms{threshold}"] = jitted_nms(around, np.ones(8 * count, bool), threshold=threshold, tile=32)
    rois = boxes(6, count, max_side=160.0)
    values["pyramid"] = align(MAKE["maps"](), rois, MAKE["STRIDES"])
    for aligned in (False, True):
        values[f"roi_align{aligned}"] = align([MAKE["maps"]()[1]], rois, (8,), aligned)
    given, rois, objects = MAKE["loss_inputs"](7, count, 3), boxes(8, count), boxes(9, count)
    sampled = given["sampled"]
    values["box_loss"] = jnp.stack(box_loss(given["logits"], given["deltas"], rois, sampled, given["labels"], objects,
                                            beta=1 / 9))
    values["rpn_loss"] = jnp.stack(rpn_loss(given["logits"][:, 0], given["deltas"][:, 0], rois, objects, sampled,
                                            given["labels"] > 1, beta=1 / 9))
    return {name: np.asarray(value) for name, value in values.items()}


def test_the_arithmetic_is_torchvisions():
    with np.load(MAKE["EXPECTED"]) as expected:
        values = ours(16)
        assert set(values) <= set(expected)
        for name in values:
            np.testing.assert_allclose(values[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def sequential_nms(boxes, valid, threshold, groups):
    keep = np.zeros(len(boxes), bool)
    overlap = np.asarray(iou(boxes, boxes))
    for i in range(len(boxes)):
        keep[i] = valid[i] and not (keep[:i] & (overlap[:i, i] > threshold) & (groups[:i] == groups[i])).any()
    return keep


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_nms_equals_its_sequential_definition(threshold):
    # Chains of overlaps across many tiles, with invalid rows and several groups.
    boxes, _ = MAKE["clusters"](0, 300)
    rng = np.random.default_rng(1)
    valid, groups = rng.random(300) < 0.8, rng.integers(0, 3, 300).astype(np.int32)
    keep = jitted_nms(boxes, valid, threshold=threshold, groups=groups, tile=64)
    np.testing.assert_array_equal(keep, sequential_nms(boxes, valid, threshold, groups))
    assert 12 < keep.sum() < 240


def test_nms_keeps_an_overlap_at_the_threshold():
    boxes = np.array([[0, 0, 30, 10], [10, 0, 40, 10], [100, 0, 130, 10]], np.float32)  # IoU 200 / 400
    for threshold, keep in ((0.5, [True, True, True]), (0.4999, [True, False, True])):
        assert jitted_nms(boxes, np.ones(3, bool), threshold=threshold).tolist() == keep


@pytest.mark.parametrize("aligned", [False, True])
def test_both_forms_of_roi_align_are_equal_and_so_are_their_gradients(aligned, monkeypatch):
    # Maps whose sides are no multiples, one of a single cell; boxes across borders, outside, and empty.
    rng = np.random.default_rng(0)
    features = tuple(rng.standard_normal((2, *s, 3)).astype(np.float32) for s in ((33, 21), (17, 11), (9, 6), (1, 1)))
    rois = np.stack([MAKE["boxes"](s, 30, max_side=450.0) for s in (0, 1)])
    rois[0, :4] = [[-90, -90, -60, -60], [5, 5, 5, 5], [128, 128, 400, 400], [-10, -10, 600, 700]]
    rois = jnp.asarray(rois)
    weights = rng.standard_normal((2, 30, 5, 5, 3)).astype(np.float32)

    def run():
        def with_gradient(features):
            out, transpose = jax.vjp(lambda f: roi_align(f, rois, (4, 8, 16, 32), 5, aligned), features)
            return out, transpose(jnp.asarray(weights))[0]

        return jax.jit(with_gradient)(features)

    gather = run()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args))
    matmul = run()
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (gather, matmul)), strict=True))
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), gather, matmul)
    out, gradient = gather
    # The operation is linear in its maps, so its gradient times the maps is the weighted sum of its output.
    np.testing.assert_allclose((out * weights).sum(), sum((f * g).sum() for f, g in
                               zip(features, gradient, strict=True)), rtol=1e-4)
    assert all(np.abs(g).max() > 0 for g in gradient)


TRUTH = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10], [60, 60, 90, 90], [0, 0, 0, 0]], np.float32)
KIND = np.array([OBJECT, OBJECT, OBJECT, IGNORED, PADDING], np.int32)


def test_matching_follows_the_rules():
    boxes = np.array([
        [0, 0, 10, 10],     # the first object itself
        [0, 0, 10, 20],     # IoU 0.5 with it: between the thresholds
        [20, 20, 40, 28],   # 0.4 with the second, which nothing overlaps better: low quality, and positive
        [20, 32, 40, 40],   # the same again: a tie is positive too
        [52, 0, 62, 10],    # 2/3 with the third, its best, but not a candidate
        [55, 0, 65, 10],    # 1/3: between the thresholds, and the third object's best candidate
        [62, 62, 80, 80],   # in the ignore region: neither
        [80, 80, 120, 120],  # a little in it: negative
        [0, 0, 0, 0],       # equal to the padding row: negative
    ], np.float32)
    candidates = np.arange(9) != 4
    find = partial(match, boxes, candidates, TRUTH, KIND, low=0.3, high=0.7)
    matched, positive, negative = find(low_quality=True)
    np.testing.assert_array_equal(positive, [1, 0, 1, 1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(negative, [0, 0, 0, 0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(matched[:6], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(find(low_quality=False)[1], np.arange(9) == 0)
    none = match(boxes, candidates, TRUTH, np.zeros(5, np.int32), low=0.3, high=0.7, low_quality=True)
    assert not none[1].any() and (none[2] == candidates).all()


def test_sampling_takes_few_positives_and_fills_up_with_negatives():
    positive, negative = np.arange(100) < 30, (np.arange(100) >= 30) & (np.arange(100) < 90)
    take = partial(sample, count=40, fraction=0.25)
    indices, chosen, is_positive = take(jax.random.key(0), positive, negative)
    assert indices.shape == (40,) and chosen.all() and len(set(indices.tolist())) == 40
    assert is_positive.sum() == 10 and (indices < 90).all()
    np.testing.assert_array_equal(is_positive, np.asarray(indices) < 30)
    indices, chosen, is_positive = take(jax.random.key(0), np.arange(100) == 7, np.arange(100) > 98)
    assert chosen.sum() == 2 and set(indices[chosen].tolist()) == {7, 99} and is_positive[chosen].sum() == 1
    assert not take(jax.random.key(0), np.zeros(100, bool), np.zeros(100, bool))[1].any()
    drawn = np.zeros(100)
    for key in jax.random.split(jax.random.key(1), 200):
        drawn[np.asarray(take(key, positive, negative)[0])] += 1
    np.testing.assert_allclose(drawn[:30], 200 / 3, atol=30)  # each about as often
    np.testing.assert_allclose(drawn[30:90], 100, atol=35)


def test_padding_of_an_image_proposes_nothing_and_learns_nothing():
    anchors = jnp.asarray(grid_anchors(8, 8, 8, (16,), (1.0,)))
    size = jnp.array([40, 24], jnp.int32)
    inside = rpn.within(anchors, size)
    assert inside.sum() == 5 * 3
    logits = jnp.where(inside, 0.0, 9.0)  # the padding looks best
    boxes, valid = propose(logits, jnp.zeros((64, 4)), anchors, size, counts=(64,), pre_nms_topk=40, post_nms_topk=30,
                           threshold=0.7)
    assert valid.sum() == 15 and (boxes[valid][:, 2:] <= np.array([24, 40])).all()
    nothing = jnp.zeros(2, jnp.int32)
    assert not propose(logits, jnp.zeros((64, 4)), anchors, nothing, counts=(64,), pre_nms_topk=40,
                       post_nms_topk=30, threshold=0.7)[1].any()


def test_boxes_without_area_are_neither_proposed_nor_detected():
    boxes = jnp.asarray([[0, 0, 8, 8], [20, 20, 30, 30], [4, 4, 4, 12], [70, 5, 80, 12], [5, 4, 5.5, 5]], jnp.float32)
    size, nothing = jnp.array([64, 64], jnp.int32), jnp.zeros((5, 4))  # the fourth is outside, and clipped to a line
    proposed = propose(jnp.arange(5.0), nothing, boxes, size, counts=(5,), pre_nms_topk=5, post_nms_topk=5,
                       threshold=0.7)
    assert proposed[0][proposed[1]].tolist() == boxes[jnp.array([4, 1, 0])].tolist()
    logits = jnp.zeros((5, 2)).at[:, 1].set(jnp.arange(5.0))
    found = detect(logits, nothing[:, None], boxes, np.ones(5, bool), size, threshold=0.0, nms_iou=0.5, pre_nms_topk=5,
                   max_detections=5)
    assert found["boxes"][found["valid"]].tolist() == boxes[jnp.array([4, 1, 0])].tolist()


def test_losses_without_boxes_are_zero_and_so_are_their_gradients():
    # Images without objects, without valid proposals, or without pixels at all.
    rois, chosen, labels, objects = choose_rois(
        jnp.zeros((6, 4)), jnp.zeros(6, bool), jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32),
        jnp.full(2, PADDING, jnp.int32), jax.random.key(0), rois_per_image=4, fraction=0.25, threshold=0.5)
    assert rois.shape == (4, 4) and not chosen.any() and not labels.any()

    def loss(logits, deltas):
        return sum(box_loss(logits, deltas, rois, chosen, labels, objects, beta=0.0)) + sum(
            rpn_loss(logits[:, 0], deltas[:, 0], rois, objects, chosen, chosen, beta=0.0))

    value, gradient = jax.value_and_grad(loss, (0, 1))(jnp.ones((4, 3)), jnp.ones((4, 2, 4)))
    assert value == 0 and not any(g.any() for g in gradient)


def test_objects_are_among_the_sampled_rois():
    sample = choose_rois(MAKE["boxes"](3, 20), np.ones(20, bool), TRUTH, np.arange(5, dtype=np.int32), KIND,
                         jax.random.key(0), rois_per_image=16, fraction=0.5, threshold=0.5)
    rois, chosen, labels, objects = map(np.asarray, sample)
    for row, (truth, kind) in enumerate(zip(TRUTH, KIND, strict=True)):
        sampled = chosen & (labels == row + 1) & (rois == truth).all(1)
        assert sampled.sum() == (1 if kind == OBJECT else 0)
        assert (objects[sampled] == truth).all()


def test_detections_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    boxes, _ = MAKE["clusters"](2, 60)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    logits, deltas = 2 * rng.standard_normal((60, 4)), rng.normal(0, 0.5, (60, 3, 4))
    logits, deltas, valid = logits.astype(np.float32), deltas.astype(np.float32), rng.random(60) < 0.9
    detections = detect(logits, deltas, boxes, valid, np.array([100, 90], np.int32), threshold=0.1, nms_iou=0.5,
                        pre_nms_topk=180, max_detections=40)
    scores = np.asarray(jax.nn.softmax(logits))[:, 1:]
    expected = []
    for c in range(3):
        order = [i for i in np.argsort(-scores[:, c]) if valid[i] and scores[i, c] > 0.1]
        moved = np.clip(np.asarray(decode(deltas[order, c], boxes[order], WEIGHTS)), 0, [90, 100, 90, 100])
        large = ((moved[:, 2:] - moved[:, :2]) >= 0.01).all(1)
        keep = sequential_nms(moved.astype(np.float32), large, 0.5, np.zeros(len(order)))
        expected += [(scores[i, c], c, *box) for i, box, k in zip(order, moved, keep, strict=True) if k]
    expected = sorted(expected, reverse=True)[:40]
    assert len(expected) == detections["valid"].sum() == 40
    np.testing.assert_allclose(detections["scores"], [row[0] for row in expected], rtol=1e-5)
    np.testing.assert_array_equal(detections["labels"], [row[1] for row in expected])
    np.testing.assert_allclose(detections["boxes"], np.array([row[2:] for row in expected]), atol=1e-3)
