"""The segmentation head: loss, decoders that learn, views, outlines, pictures, and what is refused."""

import dataclasses
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from toy_backbone import Toy

from big_vision_lite import config
from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.data.masks import VOID
from big_vision_lite.data.source import Dataset, SavedDatasetInfo
from big_vision_lite.data.sources.emoji_scenes import compose
from big_vision_lite.errors import UserError
from big_vision_lite.heads.segmentation import ASPPL, DeepLabV3, DeepLabV3Plus, Segmentation, dilated
from big_vision_lite.heads.segmentation.decoders import drop_channels
from big_vision_lite.heads.segmentation.drawing import palette
from big_vision_lite.heads.segmentation.losses import pixel_loss
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Poly
from big_vision_lite.training.step import TrainStep, split

pytestmark = pytest.mark.usefixtures("compile_once")
CLASSES = ("disc", "square")
DATA = SavedDatasetInfo(CLASSES, True, "made", 4, "")
STRIDES = (2, 4, 8, 8)
SMALL = DeepLabV3(rates=(1, 2), channels=16)


def example(seed, shape=(24, 28), canvas=(32, 32), original=(48, 56)):
    """An image and its mask as a joint transform returns them, and as they are stored."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: original[0], : original[1]]
    stored = np.zeros(original, np.uint8)
    y, x = rng.integers(12, 36), rng.integers(12, 44)
    stored[(rows - y) ** 2 + (columns - x) ** 2 < 90] = 1
    stored[2:16, 4:20] = 2
    sampled = (np.arange(shape[0]) * 2 + 1)[:, None], (np.arange(shape[1]) * 2 + 1)[None]
    image = np.full((*canvas, 3), 127, np.uint8)
    image[: shape[0], : shape[1]] = np.array([[60, 60, 60], [220, 40, 40], [40, 40, 220]])[stored[sampled]]
    mask = np.full(canvas, VOID, np.uint8)
    mask[: shape[0], : shape[1]] = stored[sampled]
    transformed = {"id": f"{seed}", "labels": np.array([0, 1], np.int32), "class_mask": mask,
                   "size": np.array(shape, np.int32), "original_size": np.array(original, np.int32),
                   "scale": np.array([0.5, 0.5], np.float32),
                   "key": np.array([0, seed], np.uint32)}
    return image, transformed, {"id": f"{seed}", "class_mask": stored}


def batch_of(head, count=4, padded=0):
    examples = [example(seed) for seed in range(count)]
    targets = [head.targets(e) for _, e, _ in examples] + [head.targets({"id": "", "labels": []})] * padded
    return {"image": np.stack([image for image, _, _ in examples] + [np.zeros((32, 32, 3), np.uint8)] * padded),
            "mask": np.arange(count + padded) < count,
            "index": np.where(np.arange(count + padded) < count, np.arange(count + padded), -1),
            **{key: np.stack([t[key] for t in targets]) for key in targets[0]}}


class Stored(Dataset):
    classes, multi_label, fingerprint = CLASSES, True, "made"

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return example(index)[2]


def backbone():
    return Toy(STRIDES).build(nnx.Rngs(0))


def on_device(batch):
    return {key: jnp.asarray(value) for key, value in batch.items() if key != "index"}


def test_loss_leaves_void_out(strict):
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5, 3)), jnp.float32)
    mask = np.random.default_rng(1).integers(0, 3, (3, 4, 5)).astype(np.uint8)
    mask[0, :2], mask[2] = VOID, VOID
    each = -np.take_along_axis(np.asarray(jax.nn.log_softmax(scores)), np.minimum(mask, 2)[..., None].astype(int), -1)
    expected = [each[0, 2:].mean(), each[1].mean(), 0.0]
    loss, gradient = jax.value_and_grad(lambda s: pixel_loss(s, jnp.asarray(mask)).sum())(scores)
    np.testing.assert_allclose(pixel_loss(scores, jnp.asarray(mask)), expected, rtol=1e-6, atol=1e-7)
    assert np.isfinite(loss) and not np.asarray(gradient)[mask == VOID].any()


def test_loss_of_the_pixels_with_the_highest_loss(strict):
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 6, 3)), jnp.float32)
    mask = np.random.default_rng(1).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    mask[0, :2], mask[2] = VOID, VOID
    scores, mask[3] = scores.at[3].set(scores[3, 0, 0]), 1  # all equal
    each = -np.asarray(jax.nn.log_softmax(scores))
    each = [np.sort(each[i][mask[i] != VOID, mask[i][mask[i] != VOID]])[::-1] for i in range(4)]
    expected = [each[0][:6].mean(), each[1][:9].mean(), 0.0, each[3].mean()]
    np.testing.assert_allclose(pixel_loss(scores, jnp.asarray(mask), 0.3), expected, rtol=1e-5, atol=1e-7)
    gradient = np.abs(jax.grad(lambda s: pixel_loss(s, jnp.asarray(mask), 0.3).sum())(scores)).sum(-1)
    assert [np.count_nonzero(row) for row in gradient] == [6, 9, 0, 30] and not gradient[mask == VOID].any()
    np.testing.assert_allclose(pixel_loss(scores, jnp.asarray(mask), 1e-9)[:2], [each[0][0], each[1][0]], rtol=1e-5)


@pytest.mark.parametrize("decoder", [ASPPL((1, 2)), SMALL, DeepLabV3Plus((1, 2), 16, low_level_channels=4)],
                         ids=lambda decoder: type(decoder).__name__)
def test_every_decoder_learns_and_is_scored(decoder, tmp_path):
    head = Segmentation(decoder, size=(40, 32), auxiliary=0.4)
    rngs = nnx.Rngs(0)
    graphdef, *arrays = split(head.build(backbone(), DATA, rngs))
    steps = TrainStep(graphdef, head, SGD(0.3, schedule=Poly(), weight_decay=0.0).build(40))
    batch, train_step = batch_of(head, padded=1), jax.jit(steps.train_step)
    state, losses = steps.init(*arrays), []
    for _ in range(40):
        state, metrics = train_step(state, on_device(batch))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(1.4 * np.log(3), rel=0.1) and losses[-1] < 0.5 * losses[0]
    assert metrics["pixel_accuracy"] > 0.8

    outputs = jax.tree.map(np.asarray, jax.jit(steps.eval_step)(state.params, state.batch_stats, on_device(batch)))
    stride = STRIDES[0 if isinstance(decoder, DeepLabV3Plus) else -1]
    assert outputs["scores"].shape == (5, 32 // stride, 32 // stride, 3)
    metrics = head.metrics(Stored())
    metrics.add(outputs, batch)
    result = metrics.result()
    np.testing.assert_allclose(result["loss"], outputs["loss"][:4].mean(), rtol=1e-6)
    assert result["images"] == 4 and 0.4 < result["mIoU"] <= 1 and result["pixel_accuracy"] > 0.75
    assert metrics.matrix.counts.sum() == 4 * 48 * 56  # the padded slot counts for nothing

    answers = head.to_json({k: v[:4] for k, v in batch.items()}, {k: v[:4] for k, v in outputs.items()}, CLASSES)
    assert answers[0]["size"] == [48, 56] and sum(answers[0]["classes"].values()) == pytest.approx(1, abs=1e-5)
    assert next(iter(answers[0]["classes"])) == "background"
    head.draw(tmp_path / "masks.png", {k: v[:4] for k, v in batch.items()}, {k: v[:4] for k, v in outputs.items()},
              CLASSES)
    with Image.open(tmp_path / "masks.png") as picture:
        assert picture.size[0] > 400


def test_outlines_are_scored_on_request():
    head = Segmentation(SMALL, size=32, boundary=0.0075)
    batch = batch_of(head)
    scores = np.full((4, 32, 32, 3), -9, np.float32)
    masks = batch["class_mask"]
    np.put_along_axis(scores, np.where(masks == VOID, 0, masks)[..., None].astype(int), 9, -1)
    outputs = {"scores": scores, "loss": np.zeros(4, np.float32)}
    wide = head.metrics(Stored())
    wide.add(outputs, batch)
    result = wide.result()
    assert {f"boundary_F/{name}" for name in ("background", *CLASSES)} < result.keys()
    assert 0.3 < result["boundary_F"] < 1 and result["mIoU"] > 0.9  # at twice the size of the scores
    loose, off = (dataclasses.replace(head, boundary=boundary).metrics(Stored()) for boundary in (0.05, None))
    for other in (loose, off):
        other.add(outputs, batch)
    assert loose.result()["boundary_F"] == 1.0
    assert not any("boundary" in key for key in off.result())
    for fields in ({"boundary": -0.1}, {"boundary": 1.0}, {"score_at": "input"}):
        with pytest.raises(UserError, match="boundary="):
            dataclasses.replace(head, **fields)


def test_flipped_and_scaled_views_are_averaged():
    head = Segmentation(SMALL, size=32, scales=(1.0, 1.5), flip=True, score_at="input")
    rngs = nnx.Rngs(0)
    model = head.build(backbone(), DATA, rngs)
    batch = on_device(batch_of(head))
    outputs = jax.jit(lambda batch: head.predict(model, batch))(batch)
    mirrored = {**batch, "image": batch["image"][:, :, ::-1], "class_mask": batch["class_mask"][:, :, ::-1]}
    other = jax.jit(lambda batch: head.predict(model, batch))(mirrored)
    assert outputs["scores"].shape == (4, 6, 6, 3)  # of the largest view
    np.testing.assert_allclose(np.exp(outputs["scores"]).sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(outputs["scores"], other["scores"][:, :, ::-1], atol=1e-4)
    metrics = head.metrics(Stored())
    metrics.add(jax.tree.map(np.asarray, outputs), batch_of(head))
    assert metrics.matrix.counts.sum() == 4 * 24 * 28  # pixels of the input


def test_dropout_depends_on_the_images_own_key():
    x = jnp.ones((4, 2, 2, 64))
    keys = jnp.asarray([[0, 1], [0, 2], [0, 1], [5, 1]], jnp.uint32)
    dropped = np.asarray(drop_channels(x, 0.25, keys))
    np.testing.assert_array_equal(dropped[0], dropped[2])
    np.testing.assert_array_equal(drop_channels(x[1:2], 0.25, keys[1:2])[0], dropped[1])
    assert (dropped[0] != dropped[1]).any() and (dropped[0] != dropped[3]).any()
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(4 / 3)}
    assert (dropped == dropped[:, :1, :1]).all()


def test_voc_palette():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128),
             20: (0, 64, 128), 255: (224, 224, 192)}  # of VOC's own masks
    assert {value: tuple(palette()[value].tolist()) for value in known} == known


def test_bad_input_is_named():
    head = Segmentation(SMALL, size=32)
    _, good, _ = example(0)
    assert (head.targets({"id": "", "labels": []})["class_mask"] == VOID).all()
    without = {key: value for key, value in good.items() if key != "class_mask"}
    with pytest.raises(UserError, match="'0' has no class mask"):
        head.targets(without)
    assert (head.targets({**without, "unlabelled": True})["class_mask"] == VOID).all()
    with pytest.raises(UserError, match="joint transform"):
        head.targets({"id": "a", "labels": []})
    with pytest.raises(UserError, match="32 x 32 pixels; the head has room for size=24"):
        dataclasses.replace(head, size=24).targets(good)
    for shape in ((40, 24), (24, 40)):
        with pytest.raises(UserError, match="32 x 32 pixels; the head has room for size="):
            dataclasses.replace(head, size=shape).targets(good)
    for count in (255, 300):
        data = SavedDatasetInfo(tuple(map(str, range(count))), True, "", 1, "")
        with pytest.raises(UserError, match=f"{count} classes; 8-bit masks hold 254"):
            head.build(backbone(), data, nnx.Rngs(0))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Segmentation(scales=()), "scales"), (lambda: Segmentation(scales=(1.0, 0.0)), "scales"),
    (lambda: Segmentation(auxiliary=-1.0), "auxiliary"), (lambda: Segmentation(size=0), "size"),
    (lambda: Segmentation(size=(8, 0)), "size"), (lambda: Segmentation(ohem_fraction=0.0), "ohem_fraction"),
    (lambda: Segmentation(ohem_fraction=1.1), "ohem_fraction"), (lambda: ASPPL(()), "rates"),
    (lambda: ASPPL((1, 0)), "rates"), (lambda: DeepLabV3(dropout=1.0), "dropout"),
    (lambda: DeepLabV3(dropout=-0.1), "dropout"), (lambda: DeepLabV3(channels=0), "channels"),
    (lambda: DeepLabV3Plus(low_level_channels=0), "low_level_channels")])
def test_fields_out_of_range(make, message):
    with pytest.raises(UserError, match=f"{message}=.*expected"):
        make()


def test_fields_at_their_limits():
    ASPPL((1,)), DeepLabV3(dropout=0.0)
    head = Segmentation(SMALL, size=1, ohem_fraction=1.0, scales=(0.1,), boundary=0.0)
    data = SavedDatasetInfo(tuple(map(str, range(254))), True, "", 1, "")
    model = head.build(backbone(), data, nnx.Rngs(0))
    assert not hasattr(model, "auxiliary") and model.decoder.scores.conv.out_features == 255


def test_a_diverged_network_is_no_score():
    head = Segmentation(SMALL, size=32)
    batch = batch_of(head)
    with pytest.raises(UserError, match="diverged"):
        head.metrics(Stored()).add({"scores": np.full((4, 2, 2, 3), np.nan, np.float32), "loss": np.zeros(4)}, batch)


def test_deeplab_v3_is_torchvisions():
    make = runpy.run_path(str(Path(__file__).parents[1] / "goldens" / "segmentation" / "make.py"))
    ours, expected = make["ours"](50, make["RATES"])(make["images"]()), np.load(make["EXPECTED"])
    for name in ("out", "aux"):
        np.testing.assert_allclose(ours[name][:, ::12, ::8], expected[name], atol=2e-4, err_msg=name)
        assert np.ptp(expected[name]) > 0.5  # or the comparison would say little


@pytest.mark.parametrize("arguments", ["voc12:root=/voc", "voc12:root=/voc,recipe=mmseg,multi_scale_flip=true",
                                       "folder:root=/photos,size=96", "emoji:images=20"])
def test_a_recipes_parts_fit_together(arguments):
    name, _, rest = arguments.partition(":")
    folder = Path(__file__).parents[2] / "configs" / "transfer"
    experiment = config.load(f"{folder / name}_segmentation.py:{rest}")
    assert config.from_json(config.to_json(experiment)) == experiment
    scene, shapes = {**compose(0, 0, size=96, classes=6), "id": "scene"}, set()
    for inputs in (experiment.train, *experiment.evals.values()):
        for shape in inputs.transform.shapes:
            out = np.zeros(shape, np.uint8)
            targets = experiment.head.targets(inputs.transform(scene, np.random.default_rng(0), out))
            assert (targets["class_mask"] != VOID).any()
            shapes |= {(key, value.shape) for key, value in targets.items()}
            batch = {"image": jnp.asarray(out[None]), "class_mask": jnp.asarray(targets["class_mask"][None])}
            assert experiment.head._mask(batch).shape[1:] == shape[:2]
    assert len(shapes) == len(targets)  # the same in training and evaluation
    model = nnx.eval_shape(lambda: experiment.head.build(experiment.backbone.build(nnx.Rngs(0)), DATA, nnx.Rngs(0)))
    assert model.backbone.strides[-1] == experiment.backbone.output_stride < 32
    experiment.transfer.check(split(model)[1])
    experiment.optimizer.build(experiment.steps)


def test_a_backbone_that_cannot_dilate_is_refused():
    with pytest.raises(UserError, match="ResNetV2 has no output_stride"):
        dilated(ResNetV2(50), 8)
