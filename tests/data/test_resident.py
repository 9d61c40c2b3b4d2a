"""Kept images: the same batches to the bit as those that are read and decoded each time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simplejpeg
from made_datasets import BAD_IMAGE, InMemory, NoiseDataset

from big_vision_lite.data import resident
from big_vision_lite.data.curation.steps import NestedSubset, curated
from big_vision_lite.data.pipeline import BatchMaker, Input, batches
from big_vision_lite.data.random_streams import Streams
from big_vision_lite.data.resident import ResidentBatchMaker, ViewMaker, keep, viewed
from big_vision_lite.data.transforms.cutout import Cutout
from big_vision_lite.data.transforms.image import CentreCrop, RandomCropPadded, RandomResizedCrop, Resize, ResizeCrop
from big_vision_lite.data.transforms.photometric import Photometric
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.heads.classification import Classification

HEAD = Classification()
CUTOUT = (Cutout(5, fill=(1, 2, 3)), Cutout(4))
TRANSFORMS = (RandomCropPadded(12, pad=3), RandomCropPadded((10, 14), pad=4, flip=False, augment=CUTOUT),
              RandomCropPadded(16, pad=0, augment=CUTOUT[:1]), Resize(9, augment=CUTOUT), CentreCrop(8, resize=12),
              ResizeCrop(14, 12, random=False, augment=CUTOUT))


@dataclasses.dataclass(eq=False)
class Photos(NoiseDataset):
    """Noise of several sizes as JPEG files: larger ones are decoded at a reduced scale."""

    def __getitem__(self, index):
        sizes = ((40, 30), (12, 12), (17, 90))[index % 3]
        pixels = np.random.default_rng(index).integers(0, 256, (*sizes, 3), np.uint8)
        file = BAD_IMAGE if index in self.bad else simplejpeg.encode_jpeg(pixels)
        return super().__getitem__(index) | {"image": file}


def makers(dataset, transform, seed=0, head=HEAD, process=0, processes=1, made=ResidentBatchMaker, **options):
    """The ordinary maker, and one of kept images."""
    inputs = Input(InMemory(), transform, **{"batch_size": 4, "threads": 2, "resident": "host", **options})
    kept = keep(dataset, inputs)
    return (BatchMaker(dataset, inputs, head.targets, seed, process, processes),
            made(kept, dataset, inputs, head.targets, seed, process, processes, head.fixed_targets))


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("seed", [3, None], ids=["train", "evaluate"])
def test_kept_images_make_the_same_batches(transform, seed):
    plain, kept = makers(Photos(11), transform, seed)
    for step in range(6 if seed == 3 else len(plain)):
        assert_equal(plain(step), kept(step))
    assert len(kept) == len(plain) == 3
    assert_equal(plain.gather([7, -1, 2], [0, 1, 2]), kept.gather([7, -1, 2], [0, 1, 2]))


def test_masked_images_processes_curation_and_mixup():
    """Mixup: targets that are drawn anew each time."""
    data = curated(Photos(30, bad=(3, 8, 20)), (NestedSubset(20, seed=1),))
    for head in (Classification(), Classification("softmax", mixup=0.3)):
        for process in range(2):
            plain, kept = makers(data, TRANSFORMS[2], head=head, process=process, processes=2, on_bad_image="mask")
            stream = list(batches(kept, 0, 12))
            assert sum((~batch["mask"]).sum() for batch in stream) > 0
            for step, batch in enumerate(stream):
                assert_equal(plain(step), batch)
    with pytest.raises(BadImageError, match="image 'number"):
        makers(data, TRANSFORMS[0])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_devices_make_the_same_images_of_choices(transform, strict):
    plain, kept = makers(Photos(11, bad=(4,)), transform, made=ViewMaker, on_bad_image="mask")
    images, kept.starts = jnp.asarray(kept.kept.images), (2, 4, 6)
    make = jax.jit(functools.partial(viewed, transform, xp=jnp))
    for number in range(2):
        batch = kept(number)
        made = make(images, batch.pop("view"), batch["mask"])
        steps = [plain(step) for step in range(*kept.starts[number : number + 2])]
        assert_equal({key: np.concatenate([of_step[key] for of_step in steps]) for key in steps[0]},
                     {**batch, "image": np.asarray(made)})


def test_streams_are_numpys_own():
    positions = np.array([0, 1, 5, 2**31, 2**40, 2**62 + 11])
    for seed in (0, 7, 2**32 - 1):
        streams = Streams(seed, positions)
        drawn = [streams.random() for _ in range(6)], streams.key(), streams.random()
        for i, position in enumerate(positions):
            rng = np.random.Generator(np.random.Philox(key=(seed, int(position))))
            assert [numbers[i] for numbers in drawn[0]] == [rng.random() for _ in range(6)]
            np.testing.assert_array_equal(drawn[1][i], rng.integers(0, 2**32, 2, np.uint32))
            assert drawn[2][i] == rng.random()


def test_cutout_covers_a_square_around_any_pixel():
    rng, counts = np.random.default_rng(0), np.zeros((6, 8))
    for _ in range(4000):
        image = np.full((6, 8, 3), 9, np.uint8)
        Cutout(3, fill=(0, 1, 2))(image, rng)
        covered = image[..., 0] != 9
        assert (image[covered] == (0, 1, 2)).all() and (image[~covered] == 9).all()
        assert covered.any(1).sum() in (2, 3) and covered.any(0).sum() in (2, 3)
        assert covered.sum() == covered.any(1).sum() * covered.any(0).sum()
        counts += covered
    expected = np.outer([2, 3, 3, 3, 3, 2], [2, 3, 3, 3, 3, 3, 3, 2]) / 48 * 4000  # of the centres that cover a pixel
    assert abs(counts / expected - 1).max() < 0.15
    with pytest.raises(UserError, match="expected a size of at least 1 pixel"):
        Cutout(0)


@pytest.mark.parametrize(("transform", "options", "message"), [
    (RandomResizedCrop(12), {}, "RandomResizedCrop, whose pixels cannot be kept"),
    (ResizeCrop(14, 12), {}, "ResizeCrop, whose pixels cannot be kept"),
    (Resize(12, augment=(Photometric(),)), {}, "augment=Photometric, which changes one image at a time"),
    (Resize(12), {"workers": 2}, "workers=2; images are kept in one process"),
], ids=str)
def test_what_cannot_be_kept_is_refused(transform, options, message):
    with pytest.raises(UserError, match=f"Input: resident='host' with {message}"):
        Input(InMemory(), transform, resident="host", **options)


def test_images_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda: 5000)
    with pytest.raises(UserError, match="the 11 decoded images take 5,184 bytes, and 5,000 are free in memory"):
        keep(NoiseDataset(11), Input(InMemory(), Resize(12), resident="host"))
    keep(NoiseDataset(9), Input(InMemory(), Resize(12), resident="host"))
