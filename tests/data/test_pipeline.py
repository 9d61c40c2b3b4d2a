"""Batches are a function of the step: the same for any processes, threads and workers, and after a restart."""

import gc
import multiprocessing
import time

import grain
import numpy as np
import pytest
from made_datasets import InMemory, NoiseDataset, label_targets

from big_vision_lite.data.pipeline import BatchMaker, Input, batches
from big_vision_lite.data.shuffle import ShuffledStream
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.system.cores import usable_cores

CROP, WHOLE = RandomCropPadded(12, pad=3), Resize(12)


def maker(images=10, seed=0, transform=CROP, bad=(), process=0, processes=1, **options) -> BatchMaker:
    inputs = Input(InMemory(), transform, **{"batch_size": 4, "threads": 2, **options})
    return BatchMaker(NoiseDataset(images, bad), inputs, label_targets, seed, process, processes)


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("seed", [0, None], ids=["train", "evaluate"])
def test_processes_split_a_global_batch(seed):
    single = maker(seed=seed)
    for processes in (2, 4):
        parts = [maker(seed=seed, process=p, processes=processes) for p in range(processes)]
        for step in range(5 if seed == 0 else 3):
            whole, rows = single(step), [part(step) for part in parts]
            assert_equal({key: np.concatenate([r[key] for r in rows]) for key in whole}, whole)
    with pytest.raises(UserError, match="batch_size=4 does not divide over 3 processes"):
        maker(processes=3)


def test_every_epoch_is_a_new_permutation():
    make, epochs = maker(), 6
    stream = np.concatenate([make(step)["index"] for step in range(10 * epochs // 4)]).reshape(epochs, 10)
    assert (np.sort(stream) == np.arange(10)).all()
    assert len(np.unique(stream, axis=0)) == epochs
    other_seed = np.concatenate([maker(seed=1)(step)["index"] for step in range(10)])
    assert (other_seed != stream.ravel()[:40]).any()
    # In a later epoch an image has another crop, because it has another position in the stream.
    crops_of = {}
    for step in range(15):
        batch = make(step)
        for index, image in zip(batch["index"], batch["image"], strict=True):
            crops_of.setdefault(int(index), set()).add(image.tobytes())
    assert all(len(crops) > 1 for crops in crops_of.values())


@pytest.mark.parametrize("direct", [True, False])
def test_the_stream_is_that_of_grains_datasets(direct):
    """Asked for many positions at once, also where Grain's function of an index has another name or seed."""
    for length, seed in ((1, 0), (2, 5), (9, 1), (70_000, 2**32 - 1)):
        stream, expected = ShuffledStream(length, seed), grain.MapDataset.range(length).seed(seed).shuffle().repeat()
        assert stream._direct
        stream._direct = direct
        positions = range(max(length - 20, 0), length + 20)
        assert stream(positions).tolist() == [expected[position] for position in positions]


def test_order_and_augmentation_follow_the_seed():
    """Of one image all orders are the same, so that only its crops can differ."""
    orders = [np.concatenate([maker(seed=seed, images=40)(step)["index"] for step in range(10)]) for seed in range(5)]
    assert len(np.unique(orders, axis=0)) == 5
    crops = [maker(images=1, seed=seed)(0)["image"].tobytes() for seed in range(5)]
    assert len(set(crops)) == 5
    assert maker(images=1, seed=3)(0)["image"].tobytes() == crops[3]


def test_a_batch_of_given_examples_has_the_largest_shape():
    make = maker(seed=None, transform=WHOLE)
    batch = make.gather([7, -1, 2], [0, 1, 2])
    assert batch["image"].shape == (3, 12, 12, 3) and batch["index"].tolist() == [7, -1, 2]
    assert batch["mask"].tolist() == [True, False, True] and batch["label"][:, 0].tolist() == [1, -1, 0]
    np.testing.assert_array_equal(batch["image"][2], make.dataset[2]["image"])


def test_fields_out_of_range_are_named():
    fields = {"batch_size": 1, "threads": 1, "workers": 0, "prefetch": 1}
    assert Input(InMemory(), WHOLE, **fields).thread_count == 1
    for name, value in (("batch_size", 0), ("workers", -1), ("prefetch", 0), ("threads", -1)):
        with pytest.raises(UserError, match=rf"Input: .*{name}={value}"):
            Input(InMemory(), WHOLE, **fields | {name: value})
    assert Input(InMemory(), WHOLE).thread_count == min(16, usable_cores())


@pytest.mark.parametrize("options", [{"threads": 1, "prefetch": 1}, {"threads": 8}, {"workers": 2}], ids=str)
def test_threads_workers_and_the_first_step_do_not_change_batches(options):
    make, start, stop = maker(**options), 3, 10
    stream = list(batches(make, start, stop))
    assert len(stream) == stop - start
    for step, batch in enumerate(stream, start):
        assert_equal(batch, maker()(step))


@pytest.mark.parametrize("images", [1, 7, 8, 9])
def test_evaluation_takes_every_example_once(images):
    make = maker(images, seed=None, transform=WHOLE)
    evaluation = list(batches(make, 0, len(make)))
    assert len(evaluation) == -(-images // 4) and all(len(b["mask"]) == 4 for b in evaluation)
    joined = {key: np.concatenate([b[key] for b in evaluation]) for key in evaluation[0]}
    real = joined["mask"]
    assert joined["index"][real].tolist() == list(range(images))  # in order, none masked
    assert (joined["label"][real, 0] == np.arange(images) % 2).all()
    np.testing.assert_array_equal(joined["image"][real], [make.dataset[i]["image"] for i in range(images)])
    assert (joined["index"][~real] == -1).all() and (joined["label"][~real] == -1).all()
    assert not joined["image"][~real].any()


@pytest.mark.parametrize("options", [{"threads": 2}, {"workers": 2}], ids=str)
def test_a_bad_image_is_named_through_threads_and_processes(options):
    stream = batches(maker(bad=(3,), **options), 0, 10)
    with pytest.raises(BadImageError, match=r"image 'number 3' cannot be read: ") as raised:
        list(stream)
    assert raised.value.example_id == "number 3"


def test_a_masked_image_keeps_its_slot_and_changes_no_other():
    good, masked = maker(), maker(bad=(3, 8), on_bad_image="mask")
    count = 0
    for step in range(10):
        a, b = good(step), masked(step)
        bad = np.isin(a["index"], (3, 8))
        count += int((~b["mask"]).sum())
        np.testing.assert_array_equal(b["mask"], ~bad)
        np.testing.assert_array_equal(b["index"], a["index"])  # the order does not depend on which files are bad
        for key in ("image", "label"):
            np.testing.assert_array_equal(b[key][~bad], a[key][~bad])
        assert not b["image"][bad].any() and (b["label"][bad] == -1).all()
    assert count == 4 * 2  # two bad images in each of four epochs


@pytest.mark.parametrize("options", [{"threads": 2}, {"workers": 2}], ids=str)
def test_an_abandoned_stream_ends(options):
    before = set(multiprocessing.active_children())
    stream = batches(maker(**options), 0, 10**9)
    next(stream)
    assert options.get("workers", 0) == len(set(multiprocessing.active_children()) - before)
    began = time.perf_counter()
    del stream
    gc.collect()
    assert time.perf_counter() - began < 10.0
    assert not set(multiprocessing.active_children()) - before
