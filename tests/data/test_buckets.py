"""Batches of several shapes: the shape of a step depends only on the seed and the step."""

import numpy as np
import pytest
from made_datasets import InMemory, SizedDataset, size_targets
from made_files import jpeg

from big_vision_lite.data.buckets import Buckets
from big_vision_lite.data.curation.steps import NestedSubset
from big_vision_lite.data.curation.steps import curated as curate
from big_vision_lite.data.pipeline import BatchMaker, Input, batches
from big_vision_lite.data.sources.box_records import BoxDataset
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.errors import BadImageError, UserError

SHAPES = ((12, 24), (24, 12), (20, 20))
SIZES = [(10, 20)] * 12 + [(20, 10)] * 9 + [(15, 15)] * 3 + [(200, 400)]


def maker(dataset, seed=0, process=0, processes=1, batch_size=4, transform=None, **options) -> BatchMaker:
    transform = transform or ResizeToFit(20, 24, buckets=SHAPES, flip=False)
    inputs = Input(InMemory(), transform, batch_size, threads=2, **options)
    return BatchMaker(dataset, inputs, size_targets, seed, process, processes)


def test_the_bucket_of_a_step_is_the_same_for_all_processes_and_restarts():
    whole = [maker(SizedDataset(SIZES), batch_size=2)(step) for step in range(30)]
    shapes = [batch["image"].shape[1:3] for batch in whole]
    assert set(shapes) == set(SHAPES)
    parts = [list(batches(maker(SizedDataset(SIZES), batch_size=2, process=p, processes=2), 0, 30)) for p in range(2)]
    for batch, rows in zip(whole, zip(*parts, strict=True), strict=True):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([part[key] for part in rows]), batch[key])
    workers = list(batches(maker(SizedDataset(SIZES), batch_size=2, workers=1), 17, 20))
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(workers, whole[17:], strict=False))
    other = [maker(SizedDataset(SIZES), seed=1, batch_size=2)(step)["image"].shape[1:3] for step in range(30)]
    assert other != shapes


def test_the_order_of_buckets_and_within_each_follows_the_seed():
    makers = [maker(SizedDataset(SIZES), seed=seed, batch_size=2) for seed in range(4)]
    assert len({tuple(make._buckets.bucket) for make in makers}) == 4
    for bucket, images in ((0, 13), (1, 9)):
        orders = {tuple(make._indices(bucket, range(images))) for make in makers}
        assert len(orders) == 4
    # Buckets of equal size have different orders, too.
    twins = maker(SizedDataset([(10, 20)] * 12 + [(20, 10)] * 12), batch_size=2)
    first, second = ([i % 12 for i in twins._indices(bucket, range(12))] for bucket in (0, 1))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second


def test_training_sees_every_image_equally_often_and_spreads_the_steps_of_a_bucket():
    sizes = [(10, 20)] * 60 + [(20, 10)] * 30 + [(15, 15)] * 10
    make, batch_size = maker(SizedDataset(sizes)), 4
    assert len(make) == 25
    seen, buckets = [], []
    for step in range(100):  # one period: each image four times
        bucket, batch = make._buckets.at(step)
        seen += make._indices(bucket, range(batch * batch_size, (batch + 1) * batch_size)).tolist()
        buckets.append(bucket)
    assert np.bincount(seen).tolist() == [4] * 100
    for bucket, images in enumerate((60, 30, 10)):
        steps = np.array(buckets) == bucket
        ahead = steps.cumsum() - images / 100 * np.arange(1, 101)
        assert steps.sum() == images and np.abs(ahead).max() <= 1
    assert make._buckets.at(100) == (buckets[0], [60, 30, 10][buckets[0]])
    epochs = [make._indices(2, range(10 * e, 10 * e + 10)).tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(90, 100)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("batch_size", [2, 4, 7])
def test_evaluation_takes_every_example_once(batch_size):
    make = maker(SizedDataset(SIZES), seed=None, batch_size=batch_size)
    evaluation = list(batches(make, 0, len(make)))
    assert len(evaluation) == sum(-(-n // batch_size) for n in (13, 9, 3))
    index = np.concatenate([batch["index"] for batch in evaluation])
    assert np.sort(index[index >= 0]).tolist() == list(range(len(SIZES)))
    for batch in evaluation:
        np.testing.assert_array_equal(batch["mask"], batch["index"] >= 0)
        for image, i, size in zip(batch["image"], batch["index"], batch["size"], strict=True):
            assert i < 0 or (image[: size[0], : size[1]] == i).all()  # also for the image larger than every bucket


def test_a_bucket_smaller_than_a_batch_joins_the_largest():
    which = np.array([0] * 10 + [1] * 7 + [2] * 3)
    buckets = Buckets.of(which, 3, 4, seed=0)
    assert [len(m) for m in buckets.members] == [13, 7, 0] and set(buckets.bucket) == {0, 1}
    assert [len(m) for m in Buckets.of(which, 3, 4, seed=None).members] == [10, 7, 3]
    few = Buckets.of(which[-3:], 3, 4, seed=0)
    assert [len(m) for m in few.members] == [0, 0, 3] and few.at(7) == (2, 7)


def test_two_shapes_are_buckets_too():
    make = maker(SizedDataset(SIZES), transform=ResizeToFit(20, 40, flip=False))
    assert {make(step)["image"].shape[1:3] for step in range(12)} == {(32, 64), (64, 32)}


def test_a_single_shape_needs_no_sizes_and_keeps_its_order():
    dataset = SizedDataset(SIZES, fingerprint="never")
    make = maker(dataset, transform=Resize(8))
    assert dataset.reads == 0 and make._buckets is None
    import grain

    order = grain.MapDataset.range(len(SIZES)).seed(0).shuffle().repeat()
    assert make(3)["index"].tolist() == [order[p] for p in range(12, 16)]
    assert make(3)["image"].shape == (4, 8, 8, 3)


def test_sizes_are_read_once_or_taken_from_annotations(tmp_path):
    dataset = SizedDataset(SIZES, fingerprint="twice", bad=(3,))
    sizes = dataset.image_sizes()
    assert sizes.dtype == np.int32 and sizes[3].tolist() == [0, 0] and np.delete(sizes, 3, 0).tolist() == [
        list(s) for i, s in enumerate(SIZES) if i != 3]
    before = dataset.reads
    np.testing.assert_array_equal(SizedDataset(SIZES, fingerprint="twice").image_sizes(), sizes)
    assert dataset.reads == before
    half = curate(dataset, (NestedSubset(6),))
    np.testing.assert_array_equal(half.image_sizes(), sizes[half.order(np.arange(6))])
    (tmp_path / "1.jpg").write_bytes(jpeg())
    (tmp_path / "a.json").write_text('{"images": [{"id": 1, "file_name": "1.jpg", "height": 10, "width": 20}], '
                                     '"annotations": [], "categories": [{"id": 5, "name": "x"}]}')
    coco = CocoJson(str(tmp_path / "a.json"), str(tmp_path)).open()
    assert isinstance(coco, BoxDataset) and coco.image_sizes().tolist() == [[10, 20]]


def test_a_bad_image_keeps_its_slot():
    dataset = SizedDataset(SIZES, fingerprint="bad", bad=(3,))
    good = [maker(dataset, seed=None, on_bad_image="mask")(step) for step in range(8)]
    masked = np.concatenate([b["index"][~b["mask"]] for b in good])
    assert masked[masked >= 0].tolist() == [3]
    with pytest.raises(BadImageError, match="image '3'"):
        [maker(dataset, seed=None)(step) for step in range(8)]


def test_mask_values_beyond_the_classes_are_named():
    with pytest.raises(BadImageError, match=r"values 7; expected 0 \(background\), 1 to 2 .* and 255"):
        maker(SizedDataset(SIZES, mask=7))(0)
    assert maker(SizedDataset(SIZES, mask=255))(0)["mask"].all()
    many = tuple(map(str, range(300)))
    with pytest.raises(UserError, match="300 classes, but a class mask can hold at most 254"):
        maker(SizedDataset(SIZES, classes=many))(0)
    without_masks = ResizeToFit(20, 24, buckets=SHAPES, masks=False)
    assert maker(SizedDataset(SIZES, classes=many), transform=without_masks)(0)["mask"].all()
