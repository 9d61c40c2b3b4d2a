"""Joint transforms move pixels, boxes and masks together."""

import io

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.masks import VOID
from big_vision_lite.data.transforms.joint import GREY, ResizeToFit, ScaleJitter
from big_vision_lite.data.transforms.photometric import Photometric
from big_vision_lite.errors import BadImageError, UserError


def drawn(height=60, width=90, boxes=((20, 10, 50, 30), (5, 40, 25, 58))):
    """An image of a red and a blue rectangle, with their boxes and masks."""
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    image[..., 1] = 255
    for k, (left, top, right, bottom) in enumerate(boxes, 1):
        image[top:bottom, left:right, 2 * (k - 1)] = 255
        mask[top:bottom, left:right] = k
    return {"id": "drawn", "image": image, "labels": np.array([0, 1], np.int32),
            "boxes": (np.array(boxes).reshape(-1, 4) / np.array([width, height, width, height])).astype(np.float32),
            "box_labels": np.arange(len(boxes), dtype=np.int32), "crowd": np.arange(len(boxes)) == 1,
            "area": np.full(len(boxes), 7, np.float32), "class_mask": mask, "instance_mask": mask}


def apply(transform, example, seed, shape=None):
    out = np.full(shape or transform.shape, 77, np.uint8)
    return transform(example, np.random.default_rng(seed), out), out


@pytest.mark.parametrize("transform", [
    ResizeToFit((40, 60, 80), 120, buckets=((128, 128),)), ResizeToFit(30, 50, buckets=((64, 40),)),
    ScaleJitter((96, 64), masks=True), ScaleJitter(64, (0.4, 2.0), of="fit", min_visibility=0),
], ids=["fit", "fit-small", "jitter", "jitter-fit"])
def test_boxes_and_masks_are_where_the_pixels_are(transform):
    flipped = 0
    for seed in range(25):
        found, out = apply(transform, drawn(), seed)
        (rows, columns), mask = found["size"], found["class_mask"]
        assert (mask[rows:] == VOID).all() and (mask[:, columns:] == VOID).all()
        assert (out[rows:] == GREY).all() and (out[:, columns:] == GREY).all()
        assert (out[:rows, :columns, 1] == 255).all()
        assert not (mask[:rows, :columns] == VOID).any()
        assert "instance_mask" not in found and found["key"].dtype == np.uint32 and found["key"].shape == (2,)
        assert isinstance(transform, ScaleJitter) or (found["scale"] == (found["size"] / [60, 90]).astype(
            np.float32)).all()
        assert found["original_size"].tolist() == [60, 90] and (found["area"] == 7).all()
        np.testing.assert_array_equal(found["crowd"], found["box_labels"] == 1)
        if len(found["boxes"]) == 2:
            flipped += found["boxes"][1][0] > found["boxes"][0][0]
        for label, box in zip(found["box_labels"], found["boxes"], strict=True):
            for seen in (out[..., 2 * label] > 127) & (mask != VOID), mask == label + 1:
                ys, xs = np.nonzero(seen)
                edges = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                assert np.abs(edges - box).max() <= 0.75, (seed, label, edges, box)
    assert 5 < flipped < 20 or isinstance(transform, ScaleJitter)


def test_keypoints_move_with_their_boxes_and_swap_sides_in_a_mirrored_image():
    example, flipped = drawn(), 0
    (x1, y1, x2, _) = example["boxes"].T
    seen, hidden = np.full(2, 2, np.float32), np.full(2, 1, np.float32)
    unlabelled = np.zeros(2, np.float32)
    example["keypoints"] = np.stack([np.stack([x1, y1, seen], 1), np.stack([x2, y1, hidden], 1),
                                     np.stack([unlabelled] * 3, 1)], 1)
    example["keypoint_mirror"] = np.array([1, 0, 2], np.int32)
    for seed in range(12):
        moved, _ = apply(ResizeToFit((40, 60, 80), 120, buckets=((128, 128),)), example, seed)
        (x1, y1, x2, _), points = moved["boxes"].T, moved["keypoints"]
        np.testing.assert_allclose(points[:, 0, :2], np.stack([x1, y1], 1), atol=1e-4)  # the left one is left again
        np.testing.assert_allclose(points[:, 1, :2], np.stack([x2, y1], 1), atol=1e-4)
        assert not points[:, 2].any()
        assert points[0, :2, 2].tolist() in ([2, 1], [1, 2])
        flipped += points[0, 0, 2] == 1  # what was on the right
    assert 0 < flipped < 12


def test_boxes_stay_with_the_pixels_of_a_file_that_is_decoded_at_part_of_its_resolution():
    example = drawn(480, 720, ((160, 80, 400, 240), (40, 320, 200, 464)))
    buffer = io.BytesIO()
    Image.fromarray(example["image"]).save(buffer, "JPEG", quality=95)
    example["image"] = buffer.getvalue()
    for seed in range(20):
        for transform in (ScaleJitter(64, (0.1, 0.4), min_visibility=0.3), ResizeToFit((30, 77, 200), 300)):
            found, out = apply(transform, example, seed)
            rows, columns = found["size"]
            for label, box in zip(found["box_labels"], found["boxes"], strict=True):
                ys, xs = np.nonzero(out[:rows, :columns, 2 * label] > 127)
                assert np.abs([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] - box).max() <= 1.05, (seed, transform)


def test_masks_are_resized_by_nearest_neighbour():
    example = drawn(4, 4, ())
    example["class_mask"] = np.arange(16, dtype=np.uint8).reshape(4, 4)
    half, _ = apply(ResizeToFit(2, 2, random=False, buckets=((2, 2),)), example, 0)
    np.testing.assert_array_equal(half["class_mask"], [[5, 7], [13, 15]])
    double, _ = apply(ResizeToFit(8, 8, random=False, buckets=((8, 8),)), example, 0)
    np.testing.assert_array_equal(double["class_mask"], np.repeat(np.repeat(example["class_mask"], 2, 0), 2, 1))


def test_resize_to_fit_keeps_to_min_size_max_size_and_buckets():
    for (height, width), out, expected in [((60, 90), (800, 1344), (800, 1200)), ((50, 100), (800, 1344), (666, 1333)),
                                           ((90, 60), (800, 1344), (800, 533)), ((3000, 30), (1344, 800), (1333, 13)),
                                           ((1, 5000), (800, 1344), (1, 1333))]:
        view = ResizeToFit(random=False).view(height, width, out, np.random.default_rng(0))
        assert (view.rows, view.columns) == expected and not view.flip
    sides = {ResizeToFit((480, 640)).view(100, 100, (640, 640), np.random.default_rng(s)).rows for s in range(20)}
    assert sides == {480, 640}
    assert ResizeToFit((480, 640), random=False).view(100, 100, (640, 640), np.random.default_rng(0)).rows == 640
    fit = ResizeToFit()
    assert fit.shapes == ((800, 1344, 3), (1344, 800, 3)) and fit.shape == (800, 1344, 3)
    assert fit.bucket(np.array([[60, 90], [90, 60], [50, 50], [0, 0]])).tolist() == [0, 1, 0, 0]
    three = ResizeToFit(buckets=((1344, 1344), (800, 1344), (1344, 800)))
    assert three.bucket(np.array([[9, 9], [9, 20], [20, 9]])).tolist() == [1, 1, 2]
    assert ResizeToFit(800, 800).shapes == ((800, 800, 3),)


def test_scale_jitter_drops_boxes_that_are_hardly_visible():
    example = drawn(100, 100, ((0, 0, 100, 100), (0, 0, 4, 4)))
    counts = set()
    for seed in range(30):
        found, _ = apply(ScaleJitter(50, (2.0, 2.0), min_visibility=0.2), example, seed)
        counts.add(tuple(found["box_labels"]))  # 1/16 of the image is visible: never enough of the first box
        strict, _ = apply(ScaleJitter(50, (2.0, 2.0), min_visibility=0.0), example, seed)
        assert 0 in strict["box_labels"] and (strict["boxes"][0] == [0, 0, 50, 50]).all()
    assert counts <= {(), (1,)} and () in counts
    assert {ScaleJitter(50, (2.0, 2.0)).view(100, 100, (50, 50), np.random.default_rng(s)).top for s in range(800)} == {
        *range(76)}  # a window of 25 pixels, up to the last
    whole, _ = apply(ScaleJitter(200, random=False, scale=(0.5, 1.5)), example, 0)
    assert whole["size"].tolist() == [100, 100] and whole["scale"].tolist() == [1, 1]


def test_a_box_of_which_just_enough_is_visible_stays():
    example = drawn(128, 128, ((0, 40, 64, 60), (96, 32, 127, 96)))  # half of the first is in the central 64 pixels
    for least, labels in ((0.0, [0]), (0.5, [0]), (0.51, [])):
        transform = ScaleJitter(128, (2.0, 2.0), random=False, min_visibility=least)
        found, _ = apply(transform, example, 0)
        assert found["box_labels"].tolist() == labels  # the second only touches the window
    found, _ = apply(ScaleJitter(128, (2, 2), random=False), example, 0)
    np.testing.assert_array_equal(found["boxes"], [[0, 16, 64, 56]])


def test_scales_of_jitter_are_uniform_and_of_the_image_or_what_fits():
    rng, transform = np.random.default_rng(0), ScaleJitter(1000, (0.5, 2.0))
    rows = [transform.view(200, 300, (1000, 1000), rng).rows for _ in range(2000)]
    np.testing.assert_allclose(np.quantile(rows, (0, 0.5, 1)), (100, 250, 400), atol=12)
    fit = ScaleJitter((60, 90), (0.5, 0.5), of="fit", random=False).view(200, 400, (60, 90), rng)
    assert (fit.rows, fit.columns, fit.flip) == (22, 45, False)  # of 45 x 90, which just fits
    flips = [transform.view(200, 300, (1000, 1000), rng).flip for _ in range(1000)]
    flips_off = [ScaleJitter(1000, flip=False).view(200, 300, (1000, 1000), rng).flip for _ in range(50)]
    assert abs(np.mean(flips) - 0.5) < 0.06 and not any(flips_off)


def test_defaults_are_those_of_the_papers():
    """Lin et al. (2017), Chen et al. (2017)."""
    assert ResizeToFit() == ResizeToFit(800, 1333, (), random=True, flip=True, masks=True, pad=(124, 116, 104))
    assert ScaleJitter() == ScaleJitter(513, (0.5, 2.0), "image", 0.1, random=True, flip=True, masks=True)


def test_the_same_generator_gives_the_same_result_and_keys_differ():
    keys = set()
    for seed in range(5):
        (a, x), (b, y) = (apply(ScaleJitter(64, augment=(Photometric(),)), drawn(), seed) for _ in range(2))
        np.testing.assert_array_equal(x, y)
        assert all(np.array_equal(a[k], b[k]) for k in a)
        keys.add(tuple(a["key"]))
    assert len(keys) == 5


def test_images_without_boxes_or_with_void_only():
    example = drawn(boxes=())
    example["class_mask"][...] = VOID
    for transform in (ResizeToFit(64, 64), ScaleJitter(64)):
        found, _ = apply(transform, example, 0)
        assert found["boxes"].shape == (0, 4) and (found["class_mask"] == VOID).all()
        bare, _ = apply(transform, {k: example[k] for k in ("id", "image", "labels")}, 0)
        assert "boxes" not in bare and "class_mask" not in bare and bare["size"].shape == (2,)
    off, _ = apply(ResizeToFit(64, 64, masks=False), example, 0)
    assert "class_mask" not in off


def test_errors_name_the_image_or_the_field():
    with pytest.raises(BadImageError, match="image 'drawn' cannot be read"):
        apply(ResizeToFit(64, 64), drawn() | {"image": b"\xff\xd8 no more"}, 0)
    for make, says in [(lambda: ResizeToFit(900, 800), "min_size at most max_size"),
                       (lambda: ResizeToFit(buckets=((0, 4),)), "ResizeToFit.buckets"),
                       (lambda: ResizeToFit(()), "min_size"), (lambda: ResizeToFit(pad=(1, 2, 300)), "ResizeToFit.pad"),
                       (lambda: ScaleJitter(0), "ScaleJitter.size"), (lambda: ScaleJitter(scale=(2, 1)), "scale is"),
                       (lambda: ScaleJitter(min_visibility=2.0), "min_visibility")]:
        with pytest.raises(UserError, match=says):
            make()
