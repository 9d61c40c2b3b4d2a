"""Mixup and ten crops, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import UserError
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
    assert whole.min() >= 0.5 and len(np.unique(whole)) > 20
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


def test_bad_fields():
    with pytest.raises(UserError, match="mixup=-1"):
        Classification("softmax", mixup=-1)
