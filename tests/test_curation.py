"""Subsets, noise, vocabularies and hierarchies: properties, an independent count, and what is refused."""

import dataclasses
import functools
import hashlib
import itertools
import json
import pickle

import numpy as np
import pytest

from big_vision_lite.data.curated import Curated
from big_vision_lite.data.curation import (
    AncestorLabels,
    Exclude,
    LabelNoise,
    NestedSubset,
    Vocabulary,
    curated,
    curation,
)
from big_vision_lite.data.label_index import label_index
from big_vision_lite.data.manifest import manifest
from big_vision_lite.data.permutation import Permutation
from big_vision_lite.data.source import Records
from big_vision_lite.errors import UserError
from big_vision_lite.training.workdir import keep_description

SIZES = (50, 200, 500, 1000, 1500, 2200)


@dataclasses.dataclass(eq=False)
class Simulated(Records):
    """``length`` examples without images; the k-th class has 1 / (k + 1) of the first one's images."""

    length: int = 4000
    classes: tuple[str, ...] = tuple(f"class {i}" for i in range(40))
    multi_label: bool = True
    name: str = "simulated"

    @property
    def fingerprint(self):
        return f"{self.name}-{self.length}-{len(self.classes)}-{self.multi_label}"

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        labels = drawn_labels(index, len(self.classes), 1 + (index % 3 if self.multi_label else 0))
        return {"id": f"{self.name}/{index}", "image": b"", "labels": labels, "boxes": np.zeros((1, 4), np.float32)}


@functools.cache
def drawn_labels(index, classes, count):
    chance = 1 / np.arange(1, classes + 1)
    labels = np.random.default_rng(index).choice(classes, count, False, chance / chance.sum())
    return np.sort(labels).astype(np.int32)


@pytest.fixture(scope="module")
def source():
    return Simulated()


def contents(records):
    return {e["id"]: tuple(e["labels"].tolist()) for e in records.read(range(len(records)))}


@pytest.fixture
def hierarchy(tmp_path):
    """Classes 0 to 3 below a, 4 to 7 below b, and so on; each letter below "all", and 0 below "odd" too."""
    file = tmp_path / "hierarchy.csv"
    lines = [f"class {i},group {i // 4}" for i in range(40)] + [f"group {g},all" for g in range(10)]
    file.write_text("child,parent\n# a comment\n" + "\n".join([*lines, "class 0,odd"]) + "\n")
    return str(file)


def test_a_permutation_is_one_and_never_changes():
    for length in (1, 2, 3, 4, 5, 100, 1000, 4097):
        assert sorted(Permutation(length, 7)(np.arange(length))) == list(range(length))
    assert Permutation(1000, 0)(np.arange(8)).tolist() == FIRST_OF_1000
    # Any two places are as good as independent: correlation of place and element within 4 standard errors of 0.
    found = Permutation(10**12, 3)(np.arange(20_000)) / 10**12
    assert abs(np.corrcoef(np.arange(20_000), found)[0, 1]) < 4 / np.sqrt(20_000) and abs(found.mean() - 0.5) < 0.01


FIRST_OF_1000 = [604, 352, 312, 210, 571, 891, 243, 931]  # of this version and of every later one


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("noise", [LabelNoise(0.7), LabelNoise(0.7, recall=0.5), LabelNoise(0.7, kind="marginal")])
def test_smaller_sets_are_contained_in_larger_ones_through_the_whole_list(source, tmp_path, stratified, noise):
    manifest_file = tmp_path / "exclude.txt"
    manifest_file.write_text("# duplicates\n" + "\n".join(f"simulated/{i}" for i in range(0, 4000, 3)) + "\nother/1\n")
    sets = []
    for images in SIZES:
        steps = curation(noise=noise, subset=NestedSubset(images, stratified=stratified), vocabulary=Vocabulary(30),
                         exclude=Exclude(str(manifest_file)))
        records = curated(source, steps)
        assert len(records) == images and records.classes == curated(source, [Vocabulary(30)]).classes
        sets.append(contents(records))
        assert len(sets[-1]) == images and not any(int(id_.split("/")[1]) % 3 == 0 for id_ in sets[-1])
    for small, large in itertools.pairwise(sets):
        assert small.items() <= large.items()  # the same examples with the same labels
    other = curated(source, (*steps[:-2], dataclasses.replace(steps[-2], seed=1), steps[-1]))
    assert not contents(other).keys() <= sets[-1].keys()


def test_a_stratified_subset_keeps_the_shares_of_classes():
    single = Simulated(multi_label=False)
    share = np.bincount(label_index(single).labels.values, minlength=40) / 4000
    counts = np.bincount(np.concatenate([*contents(curated(single, [NestedSubset(400, stratified=True)])).values()]),
                         minlength=40)
    assert np.abs(counts - 400 * share).max() <= 1


def test_a_subset_of_a_thousand_million_is_opened_without_a_look_at_them(monkeypatch):
    huge = Simulated(10**9)
    monkeypatch.setattr("big_vision_lite.data.curated.label_index", None)  # calling it would fail
    records = curated(huge, [NestedSubset(10_000_000), LabelNoise(0.8)])
    small = curated(huge, [NestedSubset(100), LabelNoise(0.8)])
    assert len(records) == 10_000_000 and len(pickle.dumps(records)) < 5_000
    for i in range(100):
        assert records[i]["id"] == small[i]["id"] and records[i]["labels"].tolist() == small[i]["labels"].tolist()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("precision", [0.9, 0.6])
@pytest.mark.parametrize("recall", [None, 0.5, 0.95])
def test_noise_is_as_much_as_was_asked_for(multi_label, precision, recall):
    source = Simulated(multi_label=multi_label)
    noisy = curated(source, [LabelNoise(precision, recall)])
    old, new = contents(source), contents(noisy)
    right = sum(len(set(old[i]) & set(new[i])) for i in old)
    given, true = (sum(map(len, labels.values())) for labels in (new, old))
    recall = recall or precision
    assert right / given == pytest.approx(precision, abs=4 * np.sqrt(0.25 / given))
    assert right / true == pytest.approx(recall, abs=4 * np.sqrt(0.25 / true))
    achieved = manifest(noisy)["noise"][0]
    assert achieved == {"precision": right / given, "recall": right / true, "labels": given, "wrong": given - right,
                        "missing": true - right}
    assert all(list(labels) == sorted(set(labels)) for labels in new.values())
    assert noisy.multi_label == (multi_label or noisy.rules[0].recall is not None)
    if not noisy.multi_label:
        assert all(len(labels) == 1 for labels in new.values())


def test_noise_at_one_rate_contains_that_of_every_lower_rate(source):
    wrong = []
    for precision in (0.95, 0.8, 0.6):
        noisy = contents(curated(source, [LabelNoise(precision)]))
        wrong.append({(i, c) for i, labels in contents(source).items() for c in set(labels) - set(noisy[i])})
    assert wrong[0] < wrong[1] < wrong[2]


def test_kinds_of_noise_draw_from_what_they_say(hierarchy, tmp_path):
    source = Simulated(8000, multi_label=False)
    old = np.concatenate([*contents(source).values()])

    def drawn(**noise):
        new = np.concatenate([*contents(curated(source, [LabelNoise(0.5, **noise)])).values()])
        wrong = new != old
        return old[wrong], new[wrong]

    true, given = drawn()
    of_first = np.bincount(given[true == 0], minlength=40)
    assert of_first[0] == 0 and of_first[1:].min() > 0
    assert (of_first[1:] / of_first.sum()).max() == pytest.approx(1 / 39, abs=0.02)
    true, given = drawn(kind="parent", hierarchy=hierarchy)
    assert (true // 4 == given // 4).all() and len(set(given[true == 0])) == 3
    true, given = drawn(kind="marginal")
    share = np.bincount(given, minlength=40)[1:8] / len(given)
    assert (np.diff(share) < 0.01).all() and share[0] > 3 * share[6]
    file = tmp_path / "confusion.csv"
    weights = {0: 90, 1: 3, 2: 1}  # by the distance of the given class from the true one
    rows = [f"class {i},class {(i + step) % 40},{weight}" for i in range(40) for step, weight in weights.items()]
    file.write_text("true,given,weight\n" + "\n".join(rows) + "\n")
    true, given = drawn(kind="confusion", confusion=str(file))
    step = (given - true) % 40
    assert set(step) == {1, 2} and np.mean(step == 1) == pytest.approx(0.75, abs=0.03)


def test_a_class_without_siblings_is_mistaken_for_a_cousin_and_then_for_any(tmp_path):
    source = Simulated(2000, tuple(f"class {i}" for i in range(6)), multi_label=False)
    file = tmp_path / "h.tsv"
    file.write_text("class 0\ta\nclass 1\tb\na\ttop\nb\ttop\nclass 2\tc\nclass 3\tc\nclass 4\td\n")
    noisy = contents(curated(source, [LabelNoise(0.5, kind="parent", hierarchy=str(file))]))
    found = {c: {noisy[i][0] for i, labels in contents(source).items() if labels == (c,)} - {c} for c in range(6)}
    assert found == {0: {1}, 1: {0}, 2: {3}, 3: {2}, 4: {0, 1, 2, 3, 5}, 5: {0, 1, 2, 3, 4}}


def test_a_vocabulary_renumbers_labels_and_drops_or_keeps_images(source):
    old = contents(source)
    names = ("class 7", "class 3", "class 30")
    dropping, keeping = (curated(source, [Vocabulary(names, empty)]) for empty in ("drop", "keep"))
    assert dropping.classes == keeping.classes == ("class 3", "class 7", "class 30")
    expected = {i: tuple((3, 7, 30).index(c) for c in labels if c in (3, 7, 30)) for i, labels in old.items()}
    assert contents(keeping) == expected
    assert contents(dropping) == {i: labels for i, labels in expected.items() if labels}
    counts = np.bincount(np.concatenate([*old.values()]), minlength=40)
    most = curated(source, [Vocabulary(5)])
    assert set(most.classes) == {f"class {i}" for i in np.argsort(-counts, kind="stable")[:5]}
    assert "boxes" in source[0] and "boxes" not in most[0]


def test_ancestors_count_too(source, hierarchy):
    grown = curated(source, [AncestorLabels(hierarchy, "add")])
    names = (*source.classes, "all", *(f"group {g}" for g in range(10)), "odd")
    assert grown.classes == names and grown.multi_label
    found = contents(grown)
    for id_, labels in contents(source).items():
        expected = {f"class {c}" for c in labels} | {f"group {c // 4}" for c in labels} | {"all"}
        expected |= {"odd"} if 0 in labels else set()
        assert {names[c] for c in found[id_]} == expected
    assert contents(curated(source, [AncestorLabels(hierarchy, "skip")])) == contents(source)
    with pytest.raises(UserError, match="'all', an ancestor of 'class 0', is not a class"):
        curated(source, [AncestorLabels(hierarchy)])


def test_a_manifest_counts_what_is_there(source):
    steps = [Vocabulary(30), NestedSubset(500), LabelNoise(0.8)]
    records = curated(source, steps)
    found, there = manifest(records), contents(records)
    counts = np.bincount(np.concatenate([*there.values()]), minlength=30)
    assert found["images"] == 500 and found["class_images"] == counts.tolist()
    assert found["classes_under_20"] == sum(counts < 20) and found["classes_under_100"] == sum(counts < 100)
    assert found["labels_per_image"]["mean"] == sum(counts) / 500
    ids = [records.labels(i)[0] for i in range(500)]
    assert found["sha256"] == hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()
    assert [step["stage"] for step in found["curation"]] == ["Vocabulary", "NestedSubset", "LabelNoise"]
    json.dumps(found)
    again = manifest(curated(Simulated(), steps))
    assert again == found
    assert manifest(curated(source, [*steps[:1], NestedSubset(500, seed=1)]))["sha256"] != found["sha256"]


def test_labels_are_those_of_the_examples_in_any_company(source):
    records = curated(source, [LabelNoise(0.6, recall=0.8)])
    together = records.labels_at(np.arange(300))
    for i in range(300):
        assert together.row(i).tolist() == records[i]["labels"].tolist() == list(records.labels(i)[1])
    copy = pickle.loads(pickle.dumps(records))
    assert copy[7]["labels"].tolist() == records[7]["labels"].tolist()
    assert isinstance(copy, Curated) and "index" not in copy.__dict__


def test_fingerprints_follow_the_content_of_files(source, tmp_path):
    file = tmp_path / "exclude.txt"
    found = []
    for text in ("simulated/1\n", "simulated/1\n\n# said twice\nsimulated/1\n", "simulated/2\n"):
        file.write_text(text)
        found.append(curated(source, [Exclude(str(file))]).fingerprint)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("make", "message"), [
    (lambda t: NestedSubset(5000), "NestedSubset of 5,000 images, and there are 4,000"),
    (lambda t: NestedSubset(0), "expected 1 image or more"),
    (lambda t: NestedSubset(), "expected one of them"),
    (lambda t: NestedSubset(fraction=1.5), "fraction above 0 and up to 1"),
    (lambda t: LabelNoise(1.2), "LabelNoise: precision=1.2"),
    (lambda t: LabelNoise(0.5, recall=0.0), "recall=0.0; expected above 0 to 1"),
    (lambda t: LabelNoise(0.5, kind="parent"), "a file for hierarchy go together"),
    (lambda t: Vocabulary(41), "Vocabulary.keep=41, and there are 40 classes"),
    (lambda t: Vocabulary(("class 1", "clas 2")), "no class 'clas 2'; did you mean 'class 2'"),
    (lambda t: Vocabulary(str(t / "none.txt")), "cannot read Vocabulary.keep"),
    (lambda t: Exclude(str(t / "none.txt")), "cannot read Exclude.manifest"),
    (lambda t: Exclude(written(t, "elsewhere/1\n")), "none of the 1 ids in .* 'elsewhere/1', is in the source"),
    (lambda t: Exclude(written(t, "".join(f"simulated/{i}\n" for i in range(4000)))), "leaves no example of 4,000"),
    (lambda t: AncestorLabels(written(t, "a,b\nb,c\nc,a\n")), "cycle: a -> b -> c -> a; remove one"),
    (lambda t: AncestorLabels(written(t, "class 1,class 2,class 3\n")), "line 1: .* is not 'child,parent'"),
    (lambda t: AncestorLabels(written(t, "cat,pet\n")), "no class has a parent there"),
    (lambda t: AncestorLabels(written(t, "\n")), "is empty"),
    (lambda t: LabelNoise(0.5, kind="confusion", confusion=written(t, "a,b\n1,2\n")), "expected true, given, weight"),
    (lambda t: LabelNoise(0.5, kind="confusion", confusion=written(t, "true,given,weight\nclass 1,class 2,1\n")),
     "class 'class 0' is never given as another"),
    (lambda t: LabelNoise(0.5, kind="confusion", confusion=written(t, "true,given,weight\nclass 1,class 2,-1\n")),
     "line 2: weight is '-1'"),
])
def test_what_is_refused(source, tmp_path, make, message):
    with pytest.raises(UserError, match=message) as raised:
        curated(source, [make(tmp_path)])
    assert "\n" not in str(raised.value)


def written(folder, text):
    file = folder / "file.txt"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda e, i: {**e, "labels": np.array([40], np.int32)} if i == 9 else e, "'bad/9' has label 40; expected 0 to 39"),
    (lambda e, i: {**e, "id": "bad/7"} if i == 9 else e, "examples 7 and 9 have the same id 'bad/7'"),
])
def test_a_source_that_contradicts_itself(spoil, message, tmp_path):
    class Bad(Simulated):
        def __getitem__(self, index):
            return spoil(super().__getitem__(index), index)

    with pytest.raises(UserError, match=message):
        label_index(Bad(50, name="bad"))


def test_evaluations_follow_the_vocabulary_of_training(tmp_path):
    from big_vision_lite.backbones.resnet import ResNet
    from big_vision_lite.data.emoji_scenes import EmojiScenes
    from big_vision_lite.data.pipeline import Input
    from big_vision_lite.data.transforms import Squash
    from big_vision_lite.experiment import Experiment
    from big_vision_lite.heads.classification import Classification
    from big_vision_lite.training.job import Job
    from big_vision_lite.training.optimizers import SGD

    def inputs(split, images, *steps):
        return Input(EmojiScenes(split, images, size=32, classes=8), Squash(32), 8, curate=steps)

    train = inputs("train", 40, Vocabulary(5), LabelNoise(0.5))
    experiment = Experiment(train, {"validation": inputs("validation", 24)},
                            ResNet(10, width=1 / 16), Classification(), SGD(0.1), steps=1)
    job = Job(experiment)
    evaluated = job.open_eval("validation")[1]
    assert evaluated.classes == job.data.classes and len(evaluated.classes) == 5
    assert manifest(evaluated)["noise"] == []
    clean = curated(experiment.evals["validation"].source.open(), [Vocabulary(job.data.classes)])
    assert contents(evaluated) == contents(clean)


def test_a_run_keeps_its_manifest_and_refuses_other_data(source, tmp_path):
    steps = [NestedSubset(500), LabelNoise(0.8)]
    records = curated(source, steps)
    keep_description(tmp_path, records)
    kept = json.loads((tmp_path / "data.json").read_text())
    assert kept["noise"][0]["precision"] == pytest.approx(0.8, abs=0.05) and kept["images"] == 500
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)  # now there is something to lose
    keep_description(tmp_path, curated(source, steps))
    with pytest.raises(UserError, match=r"was trained on other data: 500 images .*, now 500 .*bring the data back"):
        keep_description(tmp_path, curated(source, [NestedSubset(500, seed=1), *steps[1:]]))
    kept["sha256"] = "0" * 64  # as if other ids had been under the same fingerprint
    (tmp_path / "data.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=r"00000000.*bring the data back"):
        keep_description(tmp_path, records)
