"""Classification: targets, losses with mixup, ten crops and metrics, against numpy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy_backbone import Toy

from big_vision_lite.data.curation.steps import ClassSubset, curated
from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.source import Dataset, SavedDatasetInfo
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.heads import classification
from big_vision_lite.heads.classification import Classification

RNG = np.random.default_rng(0)
PROJECTION = RNG.normal(size=(6 * 6 * 3, 5)).astype(np.float32) / 500


class Linear:
    """A model that is one matrix."""

    num_classes = 5

    def __call__(self, images, train, keys=None):
        return images.reshape(len(images), -1).astype(jnp.float32) @ PROJECTION


def batch_of(images: np.ndarray, **more) -> dict[str, np.ndarray]:
    labels = RNG.integers(0, 5, (len(images), 1)).astype(np.int32)
    return {"image": images, "labels": labels, "mask": np.ones(len(images), bool), **more}


def on_device(batch: dict[str, np.ndarray]) -> dict:
    return {key: jnp.asarray(value) for key, value in batch.items()}


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_soft_labels_are_a_loss_against_the_candidates_probabilities(kind):
    head = Classification(kind, max_labels=3, soft_labels=True)
    examples = [{"id": "a", "labels": np.array([2]), "candidates": np.array([2, 0]),
                 "probabilities": np.float32([0.6, 0.2])},
                {"id": "b", "labels": np.array([4])}, {"id": "", "labels": []}]
    targets = [head.targets(example) for example in examples]
    images = np.random.default_rng(1).integers(0, 256, (3, 6, 6, 3)).astype(np.uint8)
    batch = {"image": images, "mask": np.arange(3) < 2, **{k: np.stack([t[k] for t in targets]) for k in targets[0]}}
    loss, _ = head.loss(Linear(), on_device(batch))
    soft = np.array([[0.2, 0, 0.6, 0, 0], [0, 0, 0, 0, 1]])
    logits = images[:2].reshape(2, -1) @ np.float64(PROJECTION)
    if kind == "softmax":
        expected = -(soft / soft.sum(1, keepdims=True) * np.log(softmax(logits))).sum(1)
    else:
        p = 1 / (1 + np.exp(-logits))
        expected = -(soft * np.log(p) + (1 - soft) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(loss[:2], expected, rtol=1e-4)


def test_mixup_is_a_loss_against_two_labels_on_mixed_pixels():
    images = RNG.integers(0, 256, (4, 6, 6, 3)).astype(np.uint8)
    share = np.array([0.9, 0.5, 0.75, 1.0], np.float32)
    batch = batch_of(images, share=share)
    batch["mask"][3] = False  # the partner of the first image, which is then not mixed
    loss, _ = Classification("softmax", mixup=0.2).loss(Linear(), on_device(batch))
    share[0] = 1.0
    own = share[:, None, None, None]
    pixels = np.round(own * images + (1 - own) * images[::-1]).astype(np.float32)
    log_p = np.log(softmax(pixels.reshape(4, -1) @ PROJECTION))
    labels = batch["labels"][:, 0]
    expected = [-(s * p[a] + (1 - s) * p[b]) for s, p, a, b in zip(share, log_p, labels, labels[::-1], strict=True)]
    np.testing.assert_allclose(loss[:3], expected[:3], rtol=1e-4)


def test_shares_of_mixup_are_drawn_by_image_and_position_alone():
    source = EmojiScenes("train", 64, size=16, classes=4, objects=(1, 1))
    make = [BatchMaker(source.open(), Input(source, Resize(16), 32), Classification("softmax", mixup=0.1).targets,
                       seed=3, process=p, processes=n) for p, n in ((0, 1), (0, 2), (1, 2))]
    whole, *halves = (m(1)["share"] for m in make)
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert whole.min() >= 0.5 and whole.max() <= 1.0 and len(np.unique(whole)) > 20
    assert make[0].targets({"id": "", "labels": np.zeros(0, np.int32)})["share"] == 1.0


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_ten_crops_are_scored_by_their_mean_probability(kind):
    images = RNG.integers(0, 256, (3, 9, 10, 3)).astype(np.uint8)
    batch = batch_of(images)
    head = Classification(kind, ten_crop=6)
    logits = np.asarray(head.predict(Linear(), on_device(batch))["logits"])
    places = [(0, 0), (0, 4), (3, 0), (3, 4), (1, 2)]
    crops = [images[:, y:y + 6, x:x + 6][:, :, ::step] for y, x in places for step in (1, -1)]
    each = [crop.reshape(3, -1).astype(np.float32) @ PROJECTION for crop in crops]
    if kind == "softmax":
        np.testing.assert_allclose(softmax(logits), np.mean([softmax(e) for e in each], 0), rtol=1e-4)
    else:
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), np.mean([1 / (1 + np.exp(-e)) for e in each], 0),
                                   rtol=1e-4)
    one = {**batch, "image": images[:, :6, :6]}
    np.testing.assert_allclose(head.predict(Linear(), on_device(one))["logits"],
                               images[:, :6, :6].reshape(3, -1).astype(np.float32) @ PROJECTION, rtol=1e-5)
    with pytest.raises(UserError, match="ten_crop=6, and images have 5 x 9 pixels"):
        head.predict(Linear(), on_device({**batch, "image": images[:, :5, :9]}))


@pytest.mark.parametrize(("fields", "message"), [
    ({"mixup": -1}, "mixup=-1; expected at least 0"), ({"max_labels": 0}, "max_labels=0; expected at least 1"),
    ({"ten_crop": 0}, "ten_crop=0; expected at least 1"),
    ({"loss_kind": "softmax", "label_smoothing": 1.0}, r"label_smoothing=1\.0; expected 0 to below 1"),
    ({"loss_kind": "softmax", "label_smoothing": -0.1}, r"label_smoothing=-0\.1; expected 0 to below 1"),
    ({"label_smoothing": 0.1}, "label_smoothing is for loss_kind='softmax'"),
    ({"hierarchy": "x.csv"}, "hierarchy='x.csv' with loss_kind='sigmoid', whose probabilities do not add up; set"),
    ({"prior": 0.0}, r"prior=0\.0; expected a probability"), ({"prior": 1.0}, r"prior=1\.0; expected a probability")])
def test_fields_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        Classification(**fields)


def test_fields_at_their_limits():
    Classification("softmax", label_smoothing=0.99, mixup=0.0)
    Classification(prior=0.01)
    Classification(prior=0.99)


def test_labels_fill_their_slots_and_more_are_refused():
    head = Classification(max_labels=3)
    for labels, expected in (((), [-1, -1, -1]), ((4,), [4, -1, -1]), ((4, 0, 2), [4, 0, 2])):
        assert head.targets({"id": "a", "labels": np.array(labels, np.int32)})["labels"].tolist() == expected
    with pytest.raises(UserError, match="'a' cannot be used: it has 4 labels; the head has room for max_labels=3"):
        head.targets({"id": "a", "labels": np.arange(4)})


def test_slots_follow_the_data_and_an_image_with_more_labels_counts_as_a_bad_one(monkeypatch):
    scenes = EmojiScenes("train", 60, size=16, classes=30, objects=(1, 5)).open()
    counts = [len(scenes[i]["labels"]) for i in range(60)]
    head = Classification(max_labels=None)
    assert head.for_data(scenes).max_labels == max(counts)
    assert Classification(max_labels=2).for_data(scenes).max_labels == 2
    assert head.for_data(curated(scenes, (ClassSubset(1, "keep"),))).max_labels == 1
    assert head.sizes(scenes) == (f"{max(counts)} slots for labels; 99.9% of the images have at most {max(counts)} "
                                  f"labels, the most is {max(counts)}")
    monkeypatch.setattr(classification, "MOST_SLOTS", 2)
    more = np.array(counts) > 2
    assert head.sizes(scenes).endswith(f"; {more.sum()} images have more than there are slots") and more.any()
    inputs = Input(EmojiScenes(), Resize(16), 60, on_bad_image="mask")
    batch = BatchMaker(scenes, inputs, head.for_data(scenes).targets, None)(0)
    assert np.array_equal(batch["mask"], ~more) and not batch["image"][more].any()
    assert (batch["labels"][more] == -1).all() and batch["labels"].shape == (60, 2)
    with pytest.raises(BadImageError, match=r"cannot be used: it has \d labels; the head has room for max_labels=2"):
        BatchMaker(scenes, dataclasses.replace(inputs, on_bad_image="raise"), head.for_data(scenes).targets, None)(0)


@pytest.mark.parametrize(("head", "classes", "probability"), [
    (Classification(), 10, 0.1), (Classification(), 1, 0.5), (Classification(prior=0.02), 10, 0.02),
    (Classification("softmax"), 10, 0.5)])  # of the logistic function; the softmax's logits are all 0
def test_the_first_predictions_are_the_prior(head, classes, probability):
    model = head.build(Toy().build(nnx.Rngs(0)), SavedDatasetInfo(tuple(map(str, range(classes))), True, "", 1, ""),
                       nnx.Rngs(0))
    logits = model(jnp.zeros((1, 32, 32, 3), jnp.uint8), train=False)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), np.full((1, classes), probability), rtol=1e-5)


def test_precision_at_1_is_whether_the_best_guess_is_one_of_the_labels():
    images = RNG.integers(0, 256, (3, 6, 6, 3)).astype(np.uint8)
    best = (images.reshape(3, -1) @ PROJECTION).argmax(1)
    labels = np.stack([[best[0], (best[0] + 1) % 5], [(best[1] + 1) % 5, best[1]], [(best[2] + 1) % 5, -1]])
    batch = {"image": images, "labels": labels.astype(np.int32), "mask": np.ones(3, bool)}
    assert Classification().loss(Linear(), on_device(batch))[1]["precision@1"].tolist() == [1, 1, 0]


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_answers_are_the_five_most_probable(kind):
    logits = np.array([[0.0, 3.0, -1.0, 1.0, 2.0, -2.0]], np.float32)
    answer = Classification(kind).to_json({}, {"logits": logits}, tuple("abcdef"))[0]["labels"]
    assert [each["label"] for each in answer] == ["b", "e", "d", "a", "c"]
    expected = softmax(logits[0].astype(float)) if kind == "softmax" else 1 / (1 + np.exp(-logits[0].astype(float)))
    np.testing.assert_allclose([each["probability"] for each in answer], np.sort(expected)[:0:-1], atol=1e-6)


@pytest.mark.parametrize("multi_label", [True, False])
def test_metrics_leave_empty_slots_out(multi_label):
    metrics = Classification().metrics(Labels(multi_label))
    assert metrics.result()["loss"] == 0 and metrics.result()["images"] == 0
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [9.0, 9.0]], np.float32)
    for _ in range(2):
        metrics.add({"logits": logits, "loss": np.array([1.0, 2.0, 50.0], np.float32)},
                    {"labels": np.array([[0], [1], [-1]], np.int32), "mask": np.array([True, True, False])})
    result = metrics.result()
    assert (result["loss"], result["images"]) == (1.5, 4) and ("mAP_chance" in result) == multi_label
    assert result["mAP" if multi_label else "top1"] == 1.0


def test_superclasses_are_scored_where_every_class_has_one(tmp_path):
    file = tmp_path / "classes.csv"
    head = Classification("softmax", hierarchy=str(file))
    file.write_text("a,letter\nb,letter\n")
    head.check_eval(Labels(False))
    metrics = head.metrics(Labels(False))
    metrics.add({"logits": np.array([[2.0, 0.0], [0.0, 1.0]], np.float32), "loss": np.zeros(2, np.float32)},
                {"labels": np.array([[1], [1]], np.int32), "mask": np.ones(2, bool)})
    assert (metrics.result()["top1"], metrics.result()["superclass_top1"]) == (0.5, 1.0)
    with pytest.raises(UserError, match=r"images may have any number of labels; .*: set hierarchy to none"):
        head.check_eval(Labels(True))
    file.write_text("a,letter\n")
    with pytest.raises(UserError, match="class 'b' has no parent; expected exactly one line 'b,PARENT'"):
        head.check_eval(Labels(False))


class Labels(Dataset):
    classes, fingerprint = ("a", "b"), "made"

    def __init__(self, multi_label):
        self.multi_label = multi_label

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"id": str(index), "labels": np.array([0], np.int32)}


@pytest.mark.parametrize("loss_kind", ["sigmoid", "softmax"])
def test_the_confidence_is_the_probability_that_predictions_name(loss_kind):
    head = Classification(loss_kind)
    logits = np.random.default_rng(0).normal(0, 4, (20, 7)).astype(np.float32)
    named = [one["labels"][0]["probability"] for one in head.to_json({}, {"logits": logits}, tuple("abcdefg"))]
    np.testing.assert_allclose(head.confidence(logits), named, atol=1e-6)
    assert head.confidence(np.array([[np.inf, 0.0]], np.float32)).tolist() == [1.0]
