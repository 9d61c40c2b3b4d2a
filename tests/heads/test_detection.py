"""The detection head: targets, training of both variants, statistics, results and pictures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from big_vision_lite.backbones.norm import GroupNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.data.source import Dataset, SavedDatasetInfo
from big_vision_lite.errors import UserError
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4, FPN
from big_vision_lite.training.mesh import Mesh, batch_sharding
from big_vision_lite.training.step import TrainStep, merge, split
from big_vision_lite.training.transfer import Transfer
from big_vision_lite.training.trees import flatten

pytestmark = pytest.mark.usefixtures("compile_once")

CLASSES = ("red", "blue")
DATA = SavedDatasetInfo(CLASSES, True, "", 1, "")
BACKBONE = ResNet(10, 0.125, stem="half", zero_last_norm=False)
VARIANTS = {
    "C4": FasterRCNN(C4(16, pre_nms_topk=(200, 200), post_nms_topk=(40, 40), rois_per_image=16, pooler_resolution=6),
                     max_boxes=4, max_detections=10),
    "FPN": FasterRCNN(FPN(16, 32, pre_nms_topk=(100, 100), post_nms_topk=(40, 40), rois_per_image=16),
                      max_boxes=4, max_detections=10),
}


def example(seed, side=64, **more):
    """An image with a red and a blue square, as a joint transform returns it; the right quarter is padding."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (side, side, 3), dtype=np.uint8)
    image[:, 48:] = 0
    boxes = []
    for x, colour in ((0, 0), (24, 2)):
        size = int(rng.integers(14, 22))
        top, left = int(rng.integers(0, side - size)), x + int(rng.integers(0, 24 - size + 1))
        image[top:top + size, left:left + size] = np.eye(3)[colour] * 255
        boxes.append((left, top, left + size, top + size))
    return image, {"id": f"{seed}", "labels": [0, 1], "boxes": np.array(boxes, np.float32),
                   "box_labels": np.array([0, 1], np.int32), "size": np.array([side, 48], np.int32),
                   "original_size": np.array([2 * side, 48], np.int32), "scale": np.array([0.5, 1.0], np.float32),
                   "key": np.array([seed, 1], np.uint32), **more}


class OneImage(Dataset):
    """`example` 0 as a source returns it."""

    classes, multi_label, fingerprint = CLASSES, True, "one"

    def __len__(self):
        return 1

    def __getitem__(self, index):
        _, one = example(0)
        return {"id": "0", "image": np.zeros((128, 48, 3), np.uint8), "labels": np.arange(2, dtype=np.int32),
                "boxes": one["boxes"] / np.float32([48, 64, 48, 64]), "box_labels": one["box_labels"]}


def batch_of(head, *examples):
    images, rows = zip(*examples, strict=True)
    rows = [head.targets(row) for row in rows]
    return {"image": np.stack(images), "mask": np.array([i.any() for i in images]),
            "index": np.arange(len(images)), **{key: np.stack([row[key] for row in rows]) for key in rows[0]}}


EMPTY = (np.zeros((64, 64, 3), np.uint8), {"id": "", "labels": []})


def steps_of(head, fixed=True):
    """The steps of a small detector, and its first state."""
    transfer = Transfer(freeze_batchnorm=fixed)

    def build():
        model = head.build(BACKBONE.build(nnx.Rngs(0)), DATA, nnx.Rngs(1))
        transfer.fix_running_stats(model)
        return model

    steps = TrainStep(split(nnx.eval_shape(build))[0], head, optax.adam(2e-3))
    return steps, steps.init(*arrays_of(head))


@functools.cache
def arrays_of(head):
    """Parameters and statistics; the same whether or not statistics are fixed."""
    return jax.jit(lambda: split(head.build(BACKBONE.build(nnx.Rngs(0)), DATA, nnx.Rngs(1)))[1:])()


def test_targets_of_an_image():
    head = VARIANTS["C4"]
    _, one = example(3, crowd=np.array([False, True]), difficult=np.array([True, False]))
    targets = head.targets(one)
    np.testing.assert_array_equal(targets["boxes"][:2], one["boxes"])
    np.testing.assert_array_equal(targets["kind"], [1, 2, 0, 0])
    np.testing.assert_array_equal(dataclasses.replace(head, difficult="ignore").targets(one)["kind"], [2, 2, 0, 0])
    empty = head.targets(EMPTY[1])
    assert {k: (v.shape, v.dtype) for k, v in empty.items()} == {k: (v.shape, v.dtype) for k, v in targets.items()}
    assert not empty["kind"].any() and not empty["size"].any()
    none = head.targets({**one, "boxes": np.zeros((0, 4), np.float32), "box_labels": np.zeros(0, np.int32),
                         "crowd": np.zeros(0, bool), "difficult": np.zeros(0, bool)})
    assert not none["kind"].any() and none["size"].any()
    full = {**one, "boxes": np.ones((4, 4), np.float32), "box_labels": np.arange(4), "crowd": np.zeros(4)}
    full = head.targets({**full, "difficult": np.zeros(4)})
    assert (full["kind"] == 1).all() and full["box_labels"].tolist() == [0, 1, 2, 3]
    many = {**one, "boxes": np.ones((5, 4), np.float32), "box_labels": np.zeros(5, np.int32), "crowd": np.zeros(5)}
    with pytest.raises(UserError, match=r"'3' has 5 boxes.*max_boxes=4"):
        head.targets(many)
    with pytest.raises(UserError, match="has no boxes"):
        head.targets({"id": "x", "labels": [1]})
    unlabelled = {k: v for k, v in one.items() if k not in ("boxes", "box_labels", "crowd", "difficult")}
    with pytest.raises(UserError, match="has no boxes"):
        head.targets(unlabelled)
    assert not head.targets({**unlabelled, "unlabelled": True})["kind"].any()


def losses_of(steps):
    """A jitted function from state and batch to losses, metrics and new statistics."""
    @jax.jit
    def losses(state, batch):
        model = merge(steps.graphdef, state.params, state.batch_stats)
        return *steps.head.loss(model, batch), split(model)[2]

    return losses


@pytest.mark.parametrize("name", ["C4", pytest.param("FPN", marks=pytest.mark.slow)])
def test_it_learns_and_an_image_does_not_depend_on_the_others(name):
    head = dataclasses.replace(VARIANTS[name], box_weight=2.0)
    steps, state = steps_of(head)
    batch = batch_of(head, example(0), example(1), example(2, boxes=np.zeros((0, 4)), box_labels=()), EMPTY)
    losses = losses_of(steps)
    loss, parts, _ = losses(state, batch)
    assert set(parts) == {"objectness_loss", "rpn_box_loss", "class_loss", "box_loss"}
    expected = parts["objectness_loss"] + parts["class_loss"] + 2 * (parts["rpn_box_loss"] + parts["box_loss"])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert (loss[:3] > 0.5).all() and loss[3] == 0
    assert parts["box_loss"][2] == parts["rpn_box_loss"][2] == 0 and (parts["box_loss"][:2] > 0).all()
    order = np.array([3, 1, 0, 2])
    np.testing.assert_allclose(losses(state, {k: v[order] for k, v in batch.items()})[0], loss[order], rtol=1e-4)
    other = losses(state, {**batch, "key": batch["key"] + np.uint32(1)})[0]
    assert (other[:2] != loss[:2]).all()  # another sample

    train_step = jax.jit(steps.train_step)
    before, batch_stats = flatten(state.params), flatten(state.batch_stats)
    state, first = train_step(state, batch)
    still = [k for k, v in flatten(state.params).items() if (np.asarray(v) == before[k]).all()]
    assert not still and np.isfinite(first["grad_norm"])
    for _ in range(12):
        state, last = train_step(state, batch)
    assert last["loss"] < 0.75 * first["loss"]
    assert all((np.asarray(v) == batch_stats[k]).all() for k, v in flatten(state.batch_stats).items())


def test_free_statistics_of_res5_are_those_of_boxes_and_many_devices_give_the_same():
    head = VARIANTS["C4"]
    steps, state = steps_of(head, fixed=False)
    batch = batch_of(head, *(example(i) for i in range(7)), EMPTY)
    losses = losses_of(steps)
    one, _, batch_stats = losses(state, batch)
    before = flatten(state.batch_stats)
    assert all((np.asarray(v) != before[k]).any() for k, v in flatten(batch_stats).items())
    mesh = Mesh().build()
    many = losses(jax.device_put(state, jax.NamedSharding(mesh, jax.P())), jax.device_put(batch, batch_sharding(mesh)))
    np.testing.assert_allclose(many[0], one, rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), many[2], batch_stats)


def test_outputs_are_in_the_true_image_and_scores_in_the_original(tmp_path):
    head = dataclasses.replace(VARIANTS["C4"], score_threshold=0.0)
    steps, state = steps_of(head)
    batch = batch_of(head, example(0), EMPTY)
    out = jax.tree.map(np.array, jax.jit(steps.eval_step)(state.params, state.batch_stats, batch))
    assert out["boxes"].shape == (2, 10, 4) and out["valid"][0].all() and not out["valid"][1].any()
    assert (out["boxes"][0] >= 0).all() and (out["boxes"][0][:, 2:] <= [48, 64]).all()
    assert (np.diff(out["scores"][0]) <= 0).all() and np.isfinite(out["loss"]).all()

    # The objects themselves, as detections: the original is twice as tall.
    _, one = example(0)
    out["boxes"][0, :2], out["labels"][0, :2] = one["boxes"], one["box_labels"]
    out["valid"][0] = np.arange(10) < 2
    metrics = head.metrics(OneImage())
    metrics.add(out, batch)
    result = metrics.result()
    for name in ("AP", "VOC_AP50", "VOC07_AP50", head.main_metric(DATA).name):
        assert result[name] == pytest.approx(1.0)
    assert result["images"] == 1 and result["loss"] == pytest.approx(float(out["loss"][0]))
    answers = head.to_json(batch, out, CLASSES)
    box = one["boxes"][0]
    assert [d["label"] for d in answers[0]["detections"]] == ["red", "blue"] and answers[1] == {"detections": []}
    assert answers[0]["detections"][0]["box"] == [box[0], 2 * box[1], box[2], 2 * box[3]]
    head.draw(tmp_path / "picture.png", {k: v[:1] for k, v in batch.items()}, {k: v[:1] for k, v in out.items()},
              CLASSES)
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.parametrize("backbone", [
    ResNet(10, 0.125, output_stride=8), ResNet(50, 0.125, stem="small", norm=GroupNorm(4)), ResNetV2(50, 0.5)])
def test_anchors_follow_the_backbone(backbone):
    # Shapes only: any backbone gives detections, and the smallest anchor is 8 times its first stride.
    for head in (FasterRCNN(C4(pooler_resolution=7)), FasterRCNN(FPN(16, 16))):
        if isinstance(head.variant, FPN) and getattr(backbone, "output_stride", 32) < 32:
            continue
        model = nnx.eval_shape(lambda head=head: head.build(backbone.build(nnx.Rngs(0)), DATA, nnx.Rngs(0)))
        assert model.sizes[0][0] == 8 * model.backbone.strides[0]
        batch = {k: jax.ShapeDtypeStruct((2, *v.shape), v.dtype) for k, v in head.targets(EMPTY[1]).items()}
        batch |= {"image": jax.ShapeDtypeStruct((2, 96, 70, 3), jnp.uint8)}
        out = nnx.eval_shape(head.predict, model, batch)
        assert out["boxes"].shape == (2, 100, 4) and out["loss"].shape == (2,)


@pytest.mark.parametrize(("head", "backbone", "message"), [
    (FasterRCNN(FPN()), ResNet(10, 0.125, output_stride=8), "output_stride to 32"),
    (FasterRCNN(FPN(anchor_sizes=(8.0, 16.0))), ResNet(10, 0.125), "2 anchor_sizes"),
])
def test_parts_that_do_not_fit(head, backbone, message):
    with pytest.raises(UserError, match=message):
        nnx.eval_shape(lambda: head.build(backbone.build(nnx.Rngs(0)), DATA, nnx.Rngs(0)))


@pytest.mark.parametrize(("fields", "message"), [
    ({"nms_iou": 1.5}, r"nms_iou=1\.5; expected shares"), ({"rpn_nms": -0.1}, r"rpn_nms=-0\.1; expected shares"),
    ({"rpn_iou": (0.7, 0.3)}, r"rpn_iou=\(0\.7, 0\.3\); expected shares"),
    ({"rpn_iou": (0.3, 1.1)}, r"rpn_iou\[1\]=1\.1; expected shares"),
    ({"max_boxes": 0}, "max_boxes=0; expected at least 1"), ({"rpn_samples": 0}, "rpn_samples=0; expected at least 1"),
    ({"beta": -0.1}, r"beta=-0\.1; expected at least 0"),
    ({"aspect_ratios": ()}, r"aspect_ratios=\(\); expected at least one"),
    ({"aspect_ratios": (1.0, 0.0)}, r"aspect_ratios=\(1\.0, 0\.0\); expected at least one, each above 0")])
def test_fields_out_of_range(fields, message):
    with pytest.raises(UserError, match=f"FasterRCNN: {message}"):
        FasterRCNN(**fields)


@pytest.mark.parametrize("kind", [C4, FPN])
@pytest.mark.parametrize("fields", [{"pre_nms_topk": (5, 0)}, {"post_nms_topk": (0, 5)}, {"rois_per_image": 0},
                                    {"pooler_resolution": 0}, {"anchor_sizes": (8.0, 0.5)}], ids=str)
def test_sizes_and_counts_of_a_variant_are_at_least_1(kind, fields):
    kind(**{name: (1,) * len(value) if isinstance(value, tuple) else 1 for name, value in fields.items()})
    with pytest.raises(UserError, match=f"{kind.__name__}: {next(iter(fields))}=.*; expected at least 1"):
        kind(**fields)


def test_fields_at_their_limits():
    FasterRCNN(nms_iou=1.0, rpn_nms=0.0, rpn_iou=(0.5, 0.5), max_boxes=1, rpn_samples=1, max_detections=1)
    head = FasterRCNN(FPN(anchor_sizes=(8.0, 16.0, 24.0, 32.0, 40.0)))
    model = nnx.eval_shape(lambda: head.build(BACKBONE.build(nnx.Rngs(0)), DATA, nnx.Rngs(0)))
    assert model.sizes == ((8.0,), (16.0,), (24.0,), (32.0,), (40.0,))
