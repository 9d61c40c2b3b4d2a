"""The keypoint head: encoding and decoding, learning, the flip test, results and pictures."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from made_files import people
from official_coco import official_oks
from toy_backbone import Toy

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.keypoints import COCO_PERSON, EMOJI
from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.source import SavedDatasetInfo
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.per_object import PerObject
from big_vision_lite.data.transforms.object_crop import ObjectCrop
from big_vision_lite.errors import UserError
from big_vision_lite.heads.head import Prediction
from big_vision_lite.heads.keypoints import DiskOffsets, GaussianHeatmaps, TopDown
from big_vision_lite.heads.keypoints.codec import Grid
from big_vision_lite.training.step import TrainStep, merge, split

pytestmark = pytest.mark.usefixtures("compile_once")

DATA = SavedDatasetInfo(("a",), False, "", 1, "")
GRMI = Grid.of((45, 33), (353, 257), 8)
SIMPLE = Grid.of((64, 48), (256, 192), 4)


def random_points(grid, count=17, batch=6, seed=0):
    height, width = grid.rows[0] + grid.rows[-1], grid.columns[0] + grid.columns[-1]
    points = np.random.default_rng(seed).uniform(0, (width, height), (batch, count, 2))
    return jnp.asarray(np.concatenate([points, np.full((batch, count, 1), 2)], 2), jnp.float32)


def ideal(codec, keypoints, grid):
    """The maps of a network that makes no mistake."""
    if isinstance(codec, GaussianHeatmaps):
        return (codec.encode(keypoints, grid)[..., None],)
    in_disk, offsets = codec.encode(keypoints, grid)
    return in_disk[..., None].astype(jnp.float32), jnp.where(in_disk[..., None], offsets, 0.0)


def test_the_grid_is_symmetric_and_of_the_papers_shapes():
    assert GRMI.rows[:2].tolist() == [0.5, 8.5] and GRMI.rows[-1] == 352.5 and GRMI.columns[-1] == 256.5
    assert SIMPLE.rows[:2].tolist() == [2, 6] and SIMPLE.rows[-1] == 254 and SIMPLE.columns[-1] == 190
    np.testing.assert_allclose(GRMI.columns + GRMI.columns[::-1], 257)
    assert GRMI.centres.shape == (45, 33, 2) and GRMI.centres[2, 1].tolist() == [8.5, 16.5]
    for backbone, codec, pixels, expected in [(ResNet(10, output_stride=8), DiskOffsets(), (353, 257), (45, 33)),
                                              (ResNet(10), GaussianHeatmaps(), (256, 192), (64, 48))]:
        model = nnx.eval_shape(lambda b=backbone, c=codec: TopDown(c).build(b.build(nnx.Rngs(0)), DATA, nnx.Rngs(0)))
        images = jax.ShapeDtypeStruct((1, *pixels, 3), jnp.uint8)
        outputs = nnx.eval_shape(lambda model, images: model(images, train=False)[0], model, images)
        assert outputs.shape[1:3] == expected and model.decoder.stride == (8 if pixels[0] == 353 else 4)


@pytest.mark.parametrize(("codec", "grid", "limit"), [
    (DiskOffsets(), GRMI, 0.5), (GaussianHeatmaps(), SIMPLE, 1.5),
    (DiskOffsets(6.0), Grid.of((16, 12), (64, 48), 4), 0.5)])
def test_encoding_and_decoding_give_the_points_back(codec, grid, limit):
    keypoints = random_points(grid)
    if isinstance(codec, GaussianHeatmaps):  # there is no quarter shift in cells at the border
        keypoints = jnp.clip(keypoints, grid.stride + 0.1, jnp.array([grid.columns[-2] + 1.9, grid.rows[-2] + 1.9, 2]))
        keypoints = keypoints.at[..., 2].set(2)
    points, scores = codec.decode(ideal(codec, keypoints, grid), grid)
    distance = np.hypot(*np.moveaxis(np.asarray(points - keypoints[..., :2]), -1, 0))
    assert distance.max() < limit, distance.max()
    assert scores.min() > 0.2 and scores.max() <= 1 and np.median(scores) > 0.8  # a disk may be cut by the border
    print(f"largest distance {distance.max():.3f} pixels")


def test_disks_are_those_of_the_paper():
    codec, keypoint = DiskOffsets(), jnp.array([[[100.0, 200.0, 2.0]]])
    in_disk, offsets = codec.encode(keypoint, GRMI)
    for row in range(45):
        for column in range(33):
            x, y = 8 * column + 0.5, 8 * row + 0.5
            assert in_disk[0, row, column, 0] == ((x - 100) ** 2 + (y - 200) ** 2 <= 625)
            np.testing.assert_allclose(offsets[0, row, column, 0], (100 - x, 200 - y), atol=1e-4)


def test_losses_are_their_formulas():
    grid, keypoints = Grid.of((4, 3), (32, 24), 8), random_points(Grid.of((4, 3), (32, 24), 8), 2, 2)
    keypoints = keypoints.at[0, 1, 2].set(0).at[1, 0, :2].set(jnp.array([30.0, 3.0]))  # not labelled; beyond the crop
    rng = np.random.default_rng(0)
    codec = DiskOffsets(radius=10.0, huber=2.0, heatmap_weight=3.0, offset_weight=0.5)
    outputs = rng.standard_normal((2, 4, 3, 6)).astype(np.float32)
    expected = np.zeros(2)
    for b, k in ((0, 0), (1, 1)):
        for row in range(4):
            for column in range(3):
                x, y = 4 + 8 * column, 4 + 8 * row
                logit, *offset = outputs[b, row, column, 3 * k:3 * k + 3]
                dx, dy = np.asarray(keypoints[b, k, :2]) - (x, y)
                inside = np.hypot(dx, dy) <= 10
                probability = 1 / (1 + np.exp(-logit))
                expected[b] -= 3 / 12 * np.log(probability if inside else 1 - probability)
                miss = np.hypot(10 * offset[0] - dx, 10 * offset[1] - dy)
                expected[b] += 0.5 / 12 * inside * (0.5 * miss**2 if miss <= 2 else 2 * (miss - 1))
    loss, parts = codec.loss(jnp.asarray(outputs), keypoints, grid)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(3 * parts["heatmap_loss"] + 0.5 * parts["offset_loss"], loss, rtol=1e-5)

    heat = rng.standard_normal((2, 4, 3, 2)).astype(np.float32)
    expected = np.zeros(2)
    for b, k in ((0, 0), (1, 1)):
        x, y = np.asarray(keypoints[b, k, :2])
        target = [[np.exp(-((4 + 8 * c - x) ** 2 + (4 + 8 * r - y) ** 2) / (2 * 12**2)) for c in range(3)]
                  for r in range(4)]
        expected[b] = 0.5 * ((heat[b, ..., k] - target) ** 2).mean() / 2
    np.testing.assert_allclose(GaussianHeatmaps(sigma=1.5).loss(jnp.asarray(heat), keypoints, grid)[0], expected,
                               rtol=1e-4)
    gradient = jax.grad(lambda o: codec.loss(o, keypoints, grid)[0].sum())(jnp.asarray(outputs))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("codec", "grid"), [(DiskOffsets(), GRMI), (GaussianHeatmaps(), SIMPLE)])
def test_maps_of_a_mirrored_crop_are_turned_back(codec, grid):
    keypoints = random_points(grid)
    width = grid.columns[0] + grid.columns[-1]
    mirrored = (keypoints * jnp.array([-1, 1, 1]) + jnp.array([width, 0, 0]))[:, jnp.array(COCO_PERSON.mirror)]
    turned = codec.unmirror(ideal(codec, mirrored, grid), COCO_PERSON.mirror)
    for ours, expected in zip(turned, ideal(codec, keypoints, grid), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-3)


SMALL = [TopDown(DiskOffsets(8.0), EMOJI), TopDown(GaussianHeatmaps(1, 8, sigma=1.0), EMOJI)]


def small_batch(head, count=8):
    dataset = PerObject(EmojiScenes("train", 4, size=64, keypoints=True)).open()
    inputs = Input(PerObject(EmojiScenes("train", 4)), ObjectCrop(48), count)
    return BatchMaker(dataset, inputs, head.targets, 0)(0)


@pytest.mark.parametrize("head", SMALL, ids=["disks", "gaussians"])
def test_it_learns_and_an_image_does_not_depend_on_the_others(head):
    backbone = Toy((2, 4, 4, 8)) if isinstance(head.codec, DiskOffsets) else Toy((2, 4, 8, 8))
    graphdef, *arrays = split(head.build(backbone.build(nnx.Rngs(0)), DATA, nnx.Rngs(1)))
    steps = TrainStep(graphdef, head, optax.adam(3e-3))
    state, batch = steps.init(*arrays), small_batch(head)
    batch["mask"][-1] = False
    predict = jax.jit(lambda state, batch: head.predict(merge(graphdef, state.params, state.batch_stats), batch))
    out = predict(state, batch)
    order = np.random.default_rng(0).permutation(8)
    again = predict(state, {k: v[order] for k, v in batch.items()})
    for name in out:
        np.testing.assert_allclose(again[name], out[name][order], rtol=1e-3, atol=1e-3)
    train_step, losses = jax.jit(steps.train_step), []
    for _ in range(40):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0] and np.isfinite(losses).all()
    assert (predict(state, batch)["points"] != out["points"]).any()


def test_a_mirrored_crop_gives_mirrored_keypoints():
    head = SMALL[0]
    backbone = Toy((2, 4, 4, 8))
    model, batch = head.build(backbone.build(nnx.Rngs(0)), DATA, nnx.Rngs(1)), small_batch(head)
    model.decoder.conv.kernel[...] = 3 * jax.random.normal(jax.random.key(0), model.decoder.conv.kernel.shape)
    mirrored = batch | {"image": batch["image"][:, :, ::-1]}
    rest = {name: jnp.asarray(value) for name, value in batch.items()}
    one, other = (jax.jit(lambda image: head.predict(model, rest | {"image": image}))(b["image"])
                  for b in (batch, mirrored))
    turned = (other["points"] * jnp.array([-1, 1]) + jnp.array([48, 0]))[:, jnp.array(EMOJI.mirror)]
    assert np.median(np.abs(np.asarray(one["points"] - turned))) < 1e-2  # a tie between cells may break either way
    np.testing.assert_allclose(one["scores"], other["scores"][:, jnp.array(EMOJI.mirror)], atol=1e-4)
    plain = dataclasses.replace(head, flip_test=False).predict(model, rest)
    assert np.abs(np.asarray(plain["points"] - one["points"])).max() > 1


@pytest.mark.parametrize("head", [TopDown(DiskOffsets()), TopDown(GaussianHeatmaps())], ids=["disks", "gaussians"])
@pytest.mark.parametrize("boxes", [None, "boxes.json"])
def test_the_truth_through_crop_codec_and_results_file_scores_1(tmp_path, head, boxes):
    """Everything but the network, with boxes of annotations or of a detector."""
    source = people(tmp_path)
    if boxes:
        rows = [{"image_id": i, "category_id": 1, "bbox": box, "score": 0.9}
                for i, box in ((7, [22, 8, 55, 85]), (4, [88, 33, 50, 55]))]
        (tmp_path / boxes).write_text(json.dumps(rows))
    crop = ObjectCrop((353, 257) if isinstance(head.codec, DiskOffsets) else (256, 192), random=False)
    objects = PerObject(source, boxes and str(tmp_path / boxes))
    dataset = objects.open()
    batch = BatchMaker(dataset, Input(objects, crop, 4), head.targets, None)(0)
    truth = [*PerObject(source).open().read(range(2))]
    keypoints = np.stack([example["keypoints"][0] for example in truth] * 2) * [200, 100, 1]
    linear, shift = batch["matrix"][:, :, :2], batch["matrix"][:, :, 2]
    in_crop = np.einsum("bij,bkj->bki", np.linalg.inv(linear), keypoints[..., :2] - shift[:, None])
    in_crop = np.concatenate([in_crop, keypoints[..., 2:]], 2)
    if not boxes:
        np.testing.assert_allclose(in_crop[:2, :11, :2], batch["keypoints"][:2, :11, :2], atol=1e-2)
    grid = GRMI if isinstance(head.codec, DiskOffsets) else SIMPLE
    points, scores = head.codec.decode(ideal(head.codec, jnp.asarray(in_crop, jnp.float32), grid), grid)
    outputs = {"points": np.asarray(points), "scores": np.asarray(scores), "loss": np.zeros(4)}
    metrics = head.metrics(dataset)
    metrics.add(outputs, batch)
    assert metrics.result()["AP"] == pytest.approx(1.0) and metrics.result()["images"] == 2
    metrics.check_results()
    metrics.write_results(tmp_path / "results.json")
    assert official_oks(*(json.loads((tmp_path / name).read_text()) for name in ("people.json", "results.json")),
                        COCO_PERSON.sigmas, 1)["AP"] == pytest.approx(1.0)
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(0 < row["score"] <= (0.9 if boxes else 1.0) for row in results)


def test_answers_and_pictures(tmp_path):
    head, dataset = TopDown(), PerObject(people(tmp_path)).open()
    inputs = Input(PerObject(people(tmp_path)), ObjectCrop((353, 257), random=False), 2)
    batch = BatchMaker(dataset, inputs, head.targets, None)(0)
    outputs = {"points": batch["keypoints"][..., :2], "scores": np.full((2, 17), 0.5, np.float32)}
    outputs["scores"][1] = [0.1] * 9 + [0.4] * 8
    answers = head.to_json(batch, outputs, ("person",))
    (first,), (second,) = (answer["poses"] for answer in answers)
    assert first["box"] == [20, 10, 80, 90] and list(first["keypoints"]) == list(COCO_PERSON.names)
    expected = dataset[0]["keypoints"][0] * [200, 100, 1]
    for (x, y, score), point in zip(first["keypoints"].values(), expected, strict=True):
        assert score == 0.5 and abs(x - point[0]) < 0.02 and abs(y - point[1]) < 0.02
    assert [first["score"], second["score"]] == pytest.approx([0.5, 0.4])  # keypoints below 0.2 do not count
    head.draw(tmp_path / "poses.png", batch, outputs, ("person",))
    assert (tmp_path / "poses.png").stat().st_size > 5000
    photo = np.zeros((100, 200, 3), np.uint8)
    picture = head.annotate(photo, Prediction(answers[0]), ("person",))
    factor = picture.shape[1] // 200
    for x, y, _ in first["keypoints"].values():
        assert picture[int(y * factor), int(x * factor)].any()
    assert not picture[:8 * factor].any() and not picture[:, 90 * factor:, :][:100 * factor].any()
    none = head.annotate(photo, Prediction(answers[0]), ("person",), score=0.9)
    assert not none[:100 * factor].any()


def test_targets():
    head, image = TopDown(keypoints=EMOJI), {"id": "x", "labels": np.array([2])}
    empty = head.targets({"id": "", "labels": np.zeros(0, np.int32)})
    crop = image | {"matrix": np.eye(2, 3), "box": np.ones(4), "box_score": 0.5, "key": np.ones(2, np.uint32)}
    full = head.targets(crop | {"keypoints": np.ones((4, 3), np.float32), "image_index": 3, "object_index": 1})
    assert {k: (v.shape, v.dtype) for k, v in empty.items()} == {k: (v.shape, v.dtype) for k, v in full.items()}
    assert (full["label"], full["image_index"], full["object_index"], full["box_score"]) == (2, 3, 1, 0.5)
    assert not head.targets(crop | {"unlabelled": True})["keypoints"].any()
    for example, message in [(image, r"'x' is not a crop around an object; keypoints need the transform ObjectCrop"),
                             (crop, r"'x' has no keypoints; expected a source with them"),
                             (crop | {"keypoints": np.ones((17, 3))}, r"'x' has 17 keypoints; expected the 4 of")]:
        with pytest.raises(UserError, match=message) as caught:
            head.targets(example)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: TopDown(min_score=2.0), "min_score=2.0"), (lambda: TopDown(nms_oks=-1.0), "nms_oks=-1.0"),
    (lambda: DiskOffsets(radius=0.0), "radius=0.0"), (lambda: DiskOffsets(huber=-1.0), "huber=-1.0"),
    (lambda: GaussianHeatmaps(sigma=0.0), "sigma=0.0"), (lambda: GaussianHeatmaps(channels=0), "channels=0"),
    (lambda: TopDown(DiskOffsets(8.0)).build(Toy().build(nnx.Rngs(0)), DATA, nnx.Rngs(0)), "radius=8 with features of"),
    (lambda: TopDown(GaussianHeatmaps(5)).build(Toy().build(nnx.Rngs(0)), DATA, nnx.Rngs(0)), "5 deconvolutions on"),
])
def test_fields_out_of_range(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_an_evaluation_needs_one_example_per_object():
    with pytest.raises(UserError, match="ComposedScenes has one example per image"):
        TopDown(keypoints=EMOJI).check_eval(EmojiScenes(images=2, keypoints=True).open())
