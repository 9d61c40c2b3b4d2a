"""Batches of several shapes: which one a step has depends on nothing but the seed and the step."""

import dataclasses

import numpy as np
import pytest
from made_files import jpeg

from big_vision_lite.data.boxes import BoxRecords
from big_vision_lite.data.buckets import Buckets
from big_vision_lite.data.coco_json import CocoJson
from big_vision_lite.data.curation import NestedSubset
from big_vision_lite.data.curation import curated as curate
from big_vision_lite.data.joint_transforms import Fit
from big_vision_lite.data.pipeline import BatchMaker, Input, batches
from big_vision_lite.data.source import Example, Records, Source
from big_vision_lite.data.transforms import Squash
from big_vision_lite.errors import BadImageError, UserError

SHAPES = ((12, 24), (24, 12), (20, 20))
SIZES = [(10, 20)] * 12 + [(20, 10)] * 9 + [(15, 15)] * 3 + [(200, 400)]


@dataclasses.dataclass(eq=False)
class Sized(Records):
    sizes: list
    fingerprint: str = "sized"
    bad: tuple[int, ...] = ()
    classes: tuple[str, ...] = ("a", "b")
    multi_label: bool = True
    reads: int = 0
    mask: int = 1

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        self.reads += 1
        pixels = np.full((*self.sizes[index], 3), index, np.uint8)
        return {"id": str(index), "image": b"\xff\xd8 no more" if index in self.bad else pixels,
                "labels": np.zeros(1, np.int32), "class_mask": np.full(self.sizes[index], self.mask, np.uint8)}


@dataclasses.dataclass(frozen=True)
class Named(Source):
    def open(self) -> Sized:
        return Sized(SIZES)


def targets(example: Example) -> dict[str, np.ndarray]:
    return {"size": example.get("size", np.zeros(2, np.int32))}


def maker(records, seed=0, process=0, processes=1, batch_size=4, transform=None, **options) -> BatchMaker:
    transform = transform or Fit(20, 24, buckets=SHAPES, flip=False)
    return BatchMaker(records, Input(Named(), transform, batch_size, threads=2, **options), targets, seed, process,
                      processes)


def test_the_bucket_of_a_step_is_the_same_for_all_processes_and_restarts():
    whole = [maker(Sized(SIZES), batch_size=2)(step) for step in range(30)]
    shapes = [batch["image"].shape[1:3] for batch in whole]
    assert set(shapes) == set(SHAPES)
    parts = [list(batches(maker(Sized(SIZES), batch_size=2, process=p, processes=2), 0, 30)) for p in range(2)]
    for batch, rows in zip(whole, zip(*parts, strict=True), strict=True):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([part[key] for part in rows]), batch[key])
    workers = list(batches(maker(Sized(SIZES), batch_size=2, workers=1), 17, 20))
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(workers, whole[17:], strict=False))
    other = [maker(Sized(SIZES), seed=1, batch_size=2)(step)["image"].shape[1:3] for step in range(30)]
    assert other != shapes


def test_training_sees_every_image_equally_often_and_steps_are_spread():
    sizes = [(10, 20)] * 60 + [(20, 10)] * 30 + [(15, 15)] * 10
    make, batch_size = maker(Sized(sizes)), 4
    assert len(make) == 25
    seen, shapes = [], []
    for step in range(100):  # one period: each image four times
        bucket, batch = make._buckets.at(step)
        seen += make._of_bucket(bucket, range(batch * batch_size, (batch + 1) * batch_size))
        shapes.append(bucket)
    assert np.bincount(seen).tolist() == [4] * 100
    for bucket, images in enumerate((60, 30, 10)):
        steps = np.array(shapes) == bucket
        ahead = steps.cumsum() - images / 100 * np.arange(1, 101)
        assert steps.sum() == images and np.abs(ahead).max() <= 1
    assert make._buckets.at(100) == (shapes[0], [60, 30, 10][shapes[0]])
    epochs = [make._of_bucket(2, range(10 * e, 10 * e + 10)) for e in range(3)]
    assert all(sorted(epoch) == list(range(90, 100)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("batch_size", [2, 4, 7])
def test_evaluation_takes_every_example_once(batch_size):
    make = maker(Sized(SIZES), seed=None, batch_size=batch_size)
    made = list(batches(make, 0, len(make)))
    assert len(made) == sum(-(-n // batch_size) for n in (13, 9, 3))
    index = np.concatenate([batch["index"] for batch in made])
    assert np.sort(index[index >= 0]).tolist() == list(range(len(SIZES)))
    for batch in made:
        np.testing.assert_array_equal(batch["mask"], batch["index"] >= 0)
        for image, i, size in zip(batch["image"], batch["index"], batch["size"], strict=True):
            assert i < 0 or (image[: size[0], : size[1]] == i).all()  # also of the image larger than every bucket


def test_a_bucket_smaller_than_a_batch_joins_the_largest():
    which = np.array([0] * 10 + [1] * 7 + [2] * 3)
    found = Buckets.of(which, 3, 4, seed=0)
    assert [len(m) for m in found.members] == [13, 7, 0] and set(found.bucket) == {0, 1}
    assert [len(m) for m in Buckets.of(which, 3, 4, seed=None).members] == [10, 7, 3]
    few = Buckets.of(which[-3:], 3, 4, seed=0)
    assert [len(m) for m in few.members] == [0, 0, 3] and few.at(7) == (2, 7)


def test_one_shape_keeps_its_order_and_asks_for_no_sizes():
    records = Sized(SIZES, fingerprint="never")
    make = maker(records, transform=Squash(8))
    assert records.reads == 0 and make._buckets is None
    import grain

    order = grain.MapDataset.range(len(SIZES)).seed(0).shuffle().repeat()
    assert make(3)["index"].tolist() == [order[p] for p in range(12, 16)]
    assert make(3)["image"].shape == (4, 8, 8, 3)


def test_sizes_are_read_once_or_known(tmp_path):
    records = Sized(SIZES, fingerprint="twice", bad=(3,))
    sizes = records.image_sizes()
    assert sizes.dtype == np.int32 and sizes[3].tolist() == [0, 0] and np.delete(sizes, 3, 0).tolist() == [
        list(s) for i, s in enumerate(SIZES) if i != 3]
    before = records.reads
    np.testing.assert_array_equal(Sized(SIZES, fingerprint="twice").image_sizes(), sizes)
    assert records.reads == before
    half = curate(records, (NestedSubset(6),))
    np.testing.assert_array_equal(half.image_sizes(), sizes[half.order(np.arange(6))])
    (tmp_path / "1.jpg").write_bytes(jpeg())
    (tmp_path / "a.json").write_text('{"images": [{"id": 1, "file_name": "1.jpg", "height": 10, "width": 20}], '
                                     '"annotations": [], "categories": [{"id": 5, "name": "x"}]}')
    coco = CocoJson(str(tmp_path / "a.json"), str(tmp_path)).open()
    assert isinstance(coco, BoxRecords) and coco.image_sizes().tolist() == [[10, 20]]


def test_a_bad_image_keeps_its_slot():
    records = Sized(SIZES, fingerprint="bad", bad=(3,))
    good = [maker(records, seed=None, on_bad_image="mask")(step) for step in range(8)]
    masked = np.concatenate([b["index"][~b["mask"]] for b in good])
    assert masked[masked >= 0].tolist() == [3]
    with pytest.raises(BadImageError, match="image '3'"):
        [maker(records, seed=None)(step) for step in range(8)]


def test_mask_values_beyond_the_classes_are_named():
    with pytest.raises(BadImageError, match=r"values 7; expected 0 \(background\), 1 to 2 .* and 255"):
        maker(Sized(SIZES, mask=7))(0)
    assert maker(Sized(SIZES, mask=255))(0)["mask"].all()
    many = tuple(map(str, range(300)))
    with pytest.raises(UserError, match="300 classes, and class masks tell at most 254"):
        maker(Sized(SIZES, classes=many))(0)
    assert maker(Sized(SIZES, classes=many), transform=Fit(20, 24, buckets=SHAPES, masks=False))(0)["mask"].all()
