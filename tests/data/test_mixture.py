"""Several sources as one: each example once, and each source's share of the training stream."""

import dataclasses
import pickle

import numpy as np
import pytest
from made_datasets import InMemory, SizedDataset, label_targets, size_targets
from made_files import class_folders, csv_table, digest

from big_vision_lite import config
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.curation.steps import ClassSubset, Exclude, LabelNoise, NestedSubset
from big_vision_lite.data.curation.steps import curated as curate
from big_vision_lite.data.pipeline import BatchMaker, Input, batches
from big_vision_lite.data.sources.mixture import Mixture, MixtureDataset
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.errors import BadImageError, UserError


def mixture(folder, weights=(3.0, 1.0)) -> Mixture:
    return Mixture((class_folders(folder / "a", 4), class_folders(folder / "b", 9)), weights, ("a", "b"))


def maker(dataset, process=0, processes=1, seed=0, workers=0) -> BatchMaker:
    inputs = Input(InMemory(), Resize(16), batch_size=8, threads=2, workers=workers)
    return BatchMaker(dataset, inputs, label_targets, seed, process, processes)


def test_the_dataset_has_the_examples_of_all_sources_once(tmp_path):
    source = mixture(tmp_path)
    dataset = pickle.loads(pickle.dumps(source.open()))
    parts = [part.open() for part in source.sources]
    expected = [example | {"id": f"{name}/{example['id']}"} for name, part in zip("ab", parts, strict=True)
                for example in part.read(range(len(part)))]
    order = np.random.default_rng(0).permutation(39).tolist()
    assert [digest(e) for e in dataset.read(order)] == [digest(expected[i]) for i in order]
    assert [dataset.labels(i)[0] for i in order] == [expected[i]["id"] for i in order]
    assert dataset.image_sizes().tolist() == [*parts[0].image_sizes().tolist(), *parts[1].image_sizes().tolist()]
    assert manifest(dataset)["class_images"] == [13, 13, 13] and dataset.classes == ("ant", "bee", "cow")
    assert config.from_json(config.to_json(source)) == source
    (tmp_path / "a/bee/2.jpg").unlink()
    read = dataset.read([0, 6, 20])
    assert isinstance(read[1], BadImageError) and read[1].example_id == "a/bee/2.jpg" and read[2] != read[1]


def test_batches_have_the_shares_for_all_processes_and_after_a_restart(tmp_path):
    dataset = mixture(tmp_path).open()
    whole = [maker(dataset)(step) for step in range(30)]
    for batch in whole:
        assert (batch["index"] < 12).sum() == 6  # of 8, at 3 to 1
    seen = np.bincount(np.concatenate([batch["index"] for batch in whole]), minlength=39)
    assert set(seen[:12]) == {15} and set(seen[12:]) <= {2, 3}  # 180 / 12, 60 / 27
    parts = [list(batches(maker(dataset, process, 2, workers=process), 17, 20)) for process in (0, 1)]
    for step, rows in zip(range(17, 20), zip(*parts, strict=True), strict=True):
        for key in rows[0]:
            np.testing.assert_array_equal(np.concatenate([part[key] for part in rows]), whole[step][key])
    scored = np.concatenate([maker(dataset, seed=None)(step)["index"] for step in range(5)])
    assert scored.tolist() == [*range(39), -1]
    plain = mixture(tmp_path / "plain", None).open()
    assert maker(plain)(3)["index"].tolist() == maker(SizedDataset([(4, 4)] * 39))(3)["index"].tolist()


def test_curation_selects_among_all_examples(tmp_path):
    dataset = mixture(tmp_path).open()
    (tmp_path / "exclude.txt").write_text("".join(f"b/ant/{i}.jpg\n" for i in range(9)) + "a/cow/0.jpg\n")
    data = curate(dataset, (Exclude(str(tmp_path / "exclude.txt")), NestedSubset(20), LabelNoise(0.5)))
    order = data.order(np.arange(20))
    of_first = order < 12
    assert 0 < of_first.sum() < 12
    indices = np.concatenate([maker(data)(step)["index"] for step in range(20)])
    assert of_first[indices].sum() == 120 and set(indices.tolist()) == set(range(20))
    counts = np.bincount(indices[of_first[indices]])
    assert np.ptp(counts[counts > 0]) <= 1
    (tmp_path / "exclude.txt").write_text("".join(f"a/{c}/{i}.jpg\n" for c in ("ant", "bee", "cow") for i in range(4)))
    with pytest.raises(UserError, match="no example is left of source 0 of the mixture; loosen the curation"):
        maker(curate(dataset, (Exclude(str(tmp_path / "exclude.txt")),)))
    assert len(curate(dataset, (ClassSubset(("bee",)),))) == 13


def test_buckets_keep_the_shares_over_all_steps():
    wide, high = (10, 20), (20, 10)
    parts = [SizedDataset([wide] * 10 + [high] * 30, "x"), SizedDataset([wide] * 50 + [high] * 10, "y")]
    dataset = MixtureDataset(parts, (3.0, 1.0), ("x", "y"))
    transform = ResizeToFit(20, 24, buckets=((12, 24), (24, 12)), flip=False)
    make = BatchMaker(dataset, Input(InMemory(), transform, 4), size_targets, seed=0)
    seen = np.zeros(100)
    for step in range(2000):
        indices, _, _ = make.slots(step)
        assert len({(*([wide] * 10 + [high] * 30 + [wide] * 50 + [high] * 10)[i],) for i in indices}) == 1
        seen += np.bincount(indices, minlength=100)
    # 8,000 images: 3/4 of them over 40, 1/4 over 60; steps per bucket are whole numbers in a period of 100.
    np.testing.assert_allclose(seen[:40], 150, rtol=0.04)
    np.testing.assert_allclose(seen[40:], 8000 / 4 / 60, rtol=0.06)


def test_what_does_not_fit_together(tmp_path):
    first = class_folders(tmp_path / "a")
    for classes, message in (
        (("ant", "bat", "cow"), r"source 1 \(CsvLabels\) has the class 'bat' at number 1, but source 0 "
         r"\(ImageFolder\) the class 'bee'; expected the same 3 classes"),
        (("ant", "bee"), r"has no class at number 2, but source 0 \(ImageFolder\) the class 'cow'"),
        (("ant", "bee", "cow", "dog"), r"has the class 'dog' at number 3, but source 0 \(ImageFolder\) no class"),
    ):
        second = csv_table(tmp_path, "path,labels\nx.jpg,ant\n", classes=classes)
        with pytest.raises(UserError, match=message):
            Mixture((first, second)).open()
    for fields, message in (({"weights": (1.0,)}, "Mixture.weights has 1 entries for 2 sources"),
                            ({"weights": (1.0, 0.0)}, r"weights is \(1.0, 0.0\); expected numbers above 0"),
                            ({"names": ("x", "x")}, "expected different names without '/'"),
                            ({"sources": ()}, "Mixture.sources has none; expected 1 to 256 sources"),
                            ({"sources": (first, Mixture((first,)))}, "that are no mixtures: list those")):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(Mixture((first, first)), **fields)
    with pytest.raises(UserError, match=r"have the same id '.*jpg'; ids must differ"):
        manifest(Mixture((first, class_folders(tmp_path / "b"))).open())
