"""Nested subsets, label noise, class subsets and hierarchies: their properties, counted independently, and errors."""

import dataclasses
import hashlib
import itertools
import json
import os
import pickle

import numpy as np
import pytest
from made_datasets import Simulated, contents

from big_vision_lite.data.curation.curated import Curated
from big_vision_lite.data.curation.hierarchy import Hierarchy
from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.curation.permutation import Permutation
from big_vision_lite.data.curation.steps import (
    AncestorLabels,
    ClassSubset,
    Exclude,
    ImagesWith,
    LabelNoise,
    NestedSubset,
    ParentLabels,
    curated,
    curation,
)
from big_vision_lite.errors import UserError

SIZES = (50, 200, 500, 1000, 1500, 2200)


@pytest.fixture(scope="module")
def source():
    return Simulated()


@pytest.fixture
def hierarchy(tmp_path):
    """Classes 0 to 3 are below "group 0", 4 to 7 below "group 1" and so on, groups below "all", class 0 below "odd"."""
    file = tmp_path / "hierarchy.csv"
    lines = [f"class {i},group {i // 4}" for i in range(40)] + [f"group {g},all" for g in range(10)]
    file.write_text("child,parent\n# a comment\n" + "\n".join([*lines, "class 0,odd"]) + "\n")
    return str(file)


def test_permutation_is_one_and_never_changes():
    for length in (1, 2, 3, 4, 5, 100, 1000, 4097):
        assert sorted(Permutation(length, 7)(np.arange(length))) == list(range(length))
    assert Permutation(1000, 0)(np.arange(8)).tolist() == FIRST_OF_1000
    # Elements are as good as independent of their positions: the correlation is within 4 standard errors of 0.
    elements = Permutation(10**12, 3)(np.arange(20_000)) / 10**12
    correlation = np.corrcoef(np.arange(20_000), elements)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(20_000) and abs(elements.mean() - 0.5) < 0.01


FIRST_OF_1000 = [604, 352, 312, 210, 571, 891, 243, 931]  # in every version


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("noise", [LabelNoise(0.7), LabelNoise(0.7, recall=0.5), LabelNoise(0.7, kind="marginal")])
def test_smaller_sets_are_contained_in_larger_ones_after_all_steps(source, tmp_path, stratified, noise):
    exclude_file = tmp_path / "exclude.txt"
    exclude_file.write_text("# duplicates\n" + "\n".join(f"simulated/{i}" for i in range(0, 4000, 3)) + "\nother/1\n")
    sets = []
    for images in SIZES:
        steps = curation(noise=noise, subset=NestedSubset(images, stratified=stratified), classes=ClassSubset(30),
                         exclude=Exclude(str(exclude_file)))
        dataset = curated(source, steps)
        assert len(dataset) == images and dataset.classes == curated(source, [ClassSubset(30)]).classes
        sets.append(contents(dataset))
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


def test_a_subset_of_a_billion_images_opens_without_listing_them(monkeypatch):
    huge = Simulated(10**9)
    monkeypatch.setattr("big_vision_lite.data.curation.curated.label_index", None)  # calling it would fail
    dataset = curated(huge, [NestedSubset(10_000_000), LabelNoise(0.8)])
    small = curated(huge, [NestedSubset(100), LabelNoise(0.8)])
    assert len(dataset) == 10_000_000 and len(pickle.dumps(dataset)) < 5_000
    for i in range(100):
        assert dataset[i]["id"] == small[i]["id"] and dataset[i]["labels"].tolist() == small[i]["labels"].tolist()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("precision", [0.9, 0.6])
@pytest.mark.parametrize("recall", [None, 0.5, 0.95])
def test_noise_has_the_requested_precision_and_recall(multi_label, precision, recall):
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


def test_an_image_that_has_every_label_keeps_them():
    """No wrong label is left to draw for it; with a recall, its labels can only go."""
    class Both(Simulated):
        def __getitem__(self, index):
            return {"id": f"{index}", "labels": np.arange(2 - index % 2, dtype=np.int32)}

    source = Both(400, ("a", "b"), name="both")
    noisy = contents(curated(source, [LabelNoise(0.5)]))
    assert {noisy[str(i)] for i in range(0, 400, 2)} == {(0, 1)} and {noisy[str(i)] for i in range(1, 400, 2)} == {
        (0,), (1,)}
    noisy = contents(curated(source, [LabelNoise(0.5, recall=0.5)]))
    assert {noisy[str(i)] for i in range(0, 400, 2)} == {(), (0,), (1,), (0, 1)}
    both = np.mean([noisy[str(i)] == (0, 1) for i in range(0, 400, 2)])
    assert both == pytest.approx(0.25, abs=0.13)


def test_labels_wrong_at_one_precision_are_wrong_at_every_lower_one(source):
    wrong = []
    for precision in (0.95, 0.8, 0.6):
        noisy = contents(curated(source, [LabelNoise(precision)]))
        wrong.append({(i, c) for i, labels in contents(source).items() for c in set(labels) - set(noisy[i])})
    assert wrong[0] < wrong[1] < wrong[2]


def test_each_kind_of_noise_draws_from_its_distribution(hierarchy, tmp_path):
    source = Simulated(8000, multi_label=False)
    old = np.concatenate([*contents(source).values()])

    def drawn(**noise):
        new = np.concatenate([*contents(curated(source, [LabelNoise(0.5, **noise)])).values()])
        wrong = new != old
        return old[wrong], new[wrong]

    true, given = drawn()
    of_first = np.bincount(given[true == 0], minlength=40)
    assert of_first[0] == 0 and of_first[1:].min() > 0 and (given[true == 1] == 0).any()
    assert (of_first[1:] / of_first.sum()).max() == pytest.approx(1 / 39, abs=0.02)
    true, given = drawn(kind="parent", hierarchy=hierarchy)
    assert (true // 4 == given // 4).all() and len(set(given[true == 0])) == 3
    true, given = drawn(kind="marginal")
    share = np.bincount(given, minlength=40)[1:8] / len(given)
    assert (np.diff(share) < 0.01).all() and share[0] > 3 * share[6]
    file = tmp_path / "confusion.csv"
    weights = {0: 90, 1: 3, 2: 1, 3: 0}  # by the distance of the given class from the true one
    rows = [f"class {i},class {(i + step) % 40},{weight}" for i in range(40) for step, weight in weights.items()]
    file.write_text("true,given,weight\n" + "\n".join(rows) + "\n")
    true, given = drawn(kind="confusion", confusion=str(file))
    step = (given - true) % 40
    assert set(step) == {1, 2} and np.mean(step == 1) == pytest.approx(0.75, abs=0.03)


def test_a_class_without_siblings_is_mistaken_for_a_cousin_or_else_for_any(tmp_path):
    source = Simulated(2000, tuple(f"class {i}" for i in range(6)), multi_label=False)
    file = tmp_path / "h.tsv"
    file.write_text("class 0\ta\nclass 1\tb\na\ttop\nb\ttop\nclass 2\tc\nclass 3\tc\nclass 4\td\n")
    noisy = contents(curated(source, [LabelNoise(0.5, kind="parent", hierarchy=str(file))]))
    given = {c: {noisy[i][0] for i, labels in contents(source).items() if labels == (c,)} - {c} for c in range(6)}
    assert given == {0: {1}, 1: {0}, 2: {3}, 3: {2}, 4: {0, 1, 2, 3, 5}, 5: {0, 1, 2, 3, 4}}


def test_a_class_subset_renumbers_labels_and_drops_or_keeps_images(source):
    old = contents(source)
    names = ("class 7", "class 3", "class 30")
    dropping, keeping = (curated(source, [ClassSubset(names, empty)]) for empty in ("drop", "keep"))
    assert dropping.classes == keeping.classes == ("class 3", "class 7", "class 30")
    expected = {i: tuple((3, 7, 30).index(c) for c in labels if c in (3, 7, 30)) for i, labels in old.items()}
    assert contents(keeping) == expected
    assert contents(dropping) == {i: labels for i, labels in expected.items() if labels}
    counts = np.bincount(np.concatenate([*old.values()]), minlength=40)
    most = curated(source, [ClassSubset(5)])
    assert set(most.classes) == {f"class {i}" for i in np.argsort(-counts, kind="stable")[:5]}
    assert "boxes" in source[0] and "boxes" not in most[0]


def test_objects_of_a_class_that_is_gone_do_not_come_back():
    """A second subset, which keeps the last class: -1, for the objects of dropped classes, must not stand for it."""
    class Boxes(Simulated):
        def __getitem__(self, index):
            boxes = np.eye(3, 4, dtype=np.float32)
            return {**super().__getitem__(index), "labels": np.arange(3, dtype=np.int32), "boxes": boxes,
                    "box_labels": np.arange(3, dtype=np.int32)}

    twice = curated(Boxes(5, ("a", "b", "c")), [ClassSubset(("a", "c")), ClassSubset(("c",))])
    assert twice[0]["box_labels"].tolist() == twice[0]["labels"].tolist() == [0]
    np.testing.assert_array_equal(twice[0]["boxes"], np.eye(3, 4)[2:])


def test_a_subset_of_everything_is_everything(source):
    for step in (NestedSubset(4000), NestedSubset(fraction=1.0), NestedSubset(4000, stratified=True)):
        subset = curated(source, [step])
        assert contents(subset) == contents(source) and subset[0]["id"] != source[0]["id"]
    two = [curated(source, [NestedSubset(fraction=fraction)]) for fraction in (0.00001, 0.1234)]
    assert list(map(len, two)) == [1, 494]


def test_images_with_some_labels_keep_all_of_them(source):
    names = ("class 3", "class 7")
    before, images = contents(source), curated(source, [ImagesWith(names)])
    kept = contents(images)
    assert kept == {id_: labels for id_, labels in before.items() if {3, 7} & set(labels)}
    assert 0 < len(kept) < len(before)
    for steps in ([], [NestedSubset(50)], [NestedSubset(fraction=0.3)]):
        both = [list(contents(curated(source, [first, *steps]))) for first in (ImagesWith(names), ClassSubset(names))]
        assert both[0] == both[1]
    with pytest.raises(UserError, match=r"ImagesWith\.labels: there is no class 'class x'"):
        curated(source, [ImagesWith(("class x",))])


def test_open_images_hierarchy_is_read_from_its_json(tmp_path):
    file = tmp_path / "bbox_labels_600_hierarchy.json"
    cat = {"LabelName": "cat"}
    file.write_text(json.dumps({"LabelName": "all", "Subcategory": [
        {"LabelName": "animal", "Subcategory": [cat, {"LabelName": "dog"}], "Part": [{"LabelName": "tail"}]},
        {"LabelName": "pet", "Subcategory": [cat]}]}))
    assert Hierarchy(str(file)).ancestors_of(("cat", "dog", "pet", "tail")) == [
        ["animal", "pet", "all"], ["animal", "all"], ["all"], []]
    file.write_text('{"Subcategory": []}')
    with pytest.raises(UserError, match=r"LabelName.*it is read as Open Images' hierarchy"):
        Hierarchy(str(file))


def test_ancestors_become_labels(source, hierarchy):
    grown = curated(source, [AncestorLabels(hierarchy, "add")])
    names = (*source.classes, "all", *(f"group {g}" for g in range(10)), "odd")
    assert grown.classes == names and grown.multi_label
    with_ancestors = contents(grown)
    for id_, labels in contents(source).items():
        expected = {f"class {c}" for c in labels} | {f"group {c // 4}" for c in labels} | {"all"}
        expected |= {"odd"} if 0 in labels else set()
        assert {names[c] for c in with_ancestors[id_]} == expected
    assert contents(curated(source, [AncestorLabels(hierarchy, "skip")])) == contents(source)
    with pytest.raises(UserError, match="'all', an ancestor of 'class 0', is not a class"):
        curated(source, [AncestorLabels(hierarchy)])


@pytest.fixture
def parents(tmp_path):
    """Classes k, k + 7, k + 14 and so on are below "parent k"."""
    file = tmp_path / "parents.csv"
    file.write_text("".join(f"class {i},parent {i % 7}\n" for i in range(40)))
    return str(file)


@pytest.mark.parametrize("multi_label", [True, False])
def test_parents_replace_labels_of_the_same_images(parents, multi_label):
    source = Simulated(multi_label=multi_label)
    mapped = curated(source, [ParentLabels(parents)])
    assert mapped.classes == tuple(f"parent {k}" for k in range(7)) and mapped.multi_label == multi_label
    expected = {id_: tuple(sorted({c % 7 for c in labels})) for id_, labels in contents(source).items()}
    assert contents(mapped) == expected
    # After a subset by the classes, both vocabularies are learned from the same images.
    subset = NestedSubset(500, stratified=True)
    assert curation(parents=ParentLabels(parents), subset=subset, noise=LabelNoise(0.7)) == (
        subset, ParentLabels(parents), LabelNoise(0.7))
    fine, coarse = (contents(curated(source, steps)) for steps in ([subset], [subset, ParentLabels(parents)]))
    assert list(fine) == list(coarse) and coarse == {id_: expected[id_] for id_ in fine}


def test_parents_of_noisy_labels_and_noise_among_parents_are_nested(parents):
    source = Simulated(multi_label=False)
    for steps in ((LabelNoise(0.7), ParentLabels(parents)), (ParentLabels(parents), LabelNoise(0.7))):
        small, large = (curated(source, (NestedSubset(n, stratified=True), *steps)) for n in (300, 900))
        assert contents(small).items() <= contents(large).items()
    assert manifest(large)["noise"][0]["precision"] == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / 900))
    siblings = LabelNoise(0.5, kind="parent", hierarchy=parents)  # wrong, but for the parent
    assert contents(curated(source, (siblings, ParentLabels(parents)))) == contents(
        curated(source, [ParentLabels(parents)])) != contents(curated(source, [siblings]))


def test_reports_say_what_each_step_did(source, hierarchy, tmp_path):
    exclude = Exclude(written(tmp_path, "simulated/1\nsimulated/2\nother/1\nother/2\nother/3\n"))
    dropped = sum(max(labels) < 30 for id_, labels in contents(source).items() if id_[10:] not in ("1", "2"))
    steps = (exclude, ClassSubset(tuple(f"class {i}" for i in range(30, 40))), AncestorLabels(hierarchy, "add"),
             NestedSubset(100), NestedSubset(fraction=0.5), LabelNoise(0.5))
    assert curated(source, steps).reports == (
        {"stage": "Exclude", "images": 3998, "excluded": 2, "ids_not_found": 3},
        {"stage": "ClassSubset", "images": 3998 - dropped, "classes": 10, "dropped": dropped},
        {"stage": "AncestorLabels", "classes": 14, "classes_added": 4}, {"stage": "NestedSubset", "images": 100},
        {"stage": "NestedSubset", "images": 50}, {"stage": "LabelNoise"})
    kept = curated(source, [ClassSubset(("class 39",), "keep")])
    assert kept.reports == ({"stage": "ClassSubset", "images": 4000, "classes": 1, "dropped": 0},)


def test_passes_over_the_data_do_not_depend_on_the_size_of_their_pieces(source, hierarchy, tmp_path, monkeypatch):
    exclude = Exclude(written(tmp_path, "simulated/7\nsimulated/3999\n"))
    steps = [(NestedSubset(1100, stratified=True), LabelNoise(0.6, kind="marginal")), (ClassSubset(7),),
             (exclude, NestedSubset(2500)), (AncestorLabels(hierarchy, "add"), LabelNoise(0.9, recall=0.7))]
    seen = []
    for chunk in (1 << 20, 900):
        monkeypatch.setattr("big_vision_lite.data.curation.stored.CHUNK", chunk)
        monkeypatch.setenv("BVL_CACHE", str(tmp_path / str(chunk)))
        seen.append([(contents(data), manifest(data)) for data in (curated(Simulated(), s) for s in steps)])
    assert seen[0] == seen[1]


CONTENTS = {
    NestedSubset(300, stratified=True): "09fa39f0abe994a2",  # of the ids and labels
    NestedSubset(300, seed=5): "8b01fa59d57ec898",
    LabelNoise(0.7): "73ff0adb80218a47",
    LabelNoise(0.4, recall=0.8, seed=3): "ededbc5c2486a406",
    LabelNoise(0.3, kind="marginal"): "09783d9399a6aeb2",
}  # in every version: a run that resumes with a newer one learns from the same data


@pytest.mark.parametrize("step", CONTENTS, ids=str)
def test_curated_sets_are_the_same_in_every_version(step):
    class Regular(Simulated):
        def __getitem__(self, index):
            return {"id": f"{index}", "labels": np.unique([index % 40, index * index % 9]).astype(np.int32)}

    text = repr(contents(curated(Regular(500, name="regular"), [step])))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == CONTENTS[step]


def test_labels_do_not_depend_on_which_examples_are_read_together(source):
    dataset = curated(source, [LabelNoise(0.6, recall=0.8)])
    together = dataset.labels_at(np.arange(300))
    for i in range(300):
        assert together.row(i).tolist() == dataset[i]["labels"].tolist() == list(dataset.labels(i)[1])
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[7]["labels"].tolist() == dataset[7]["labels"].tolist()
    assert isinstance(copy, Curated) and "index" not in copy.__dict__


def test_fingerprints_follow_the_content_of_files(source, tmp_path):
    file = tmp_path / "exclude.txt"
    fingerprints = []
    for text in ("simulated/1\n", "simulated/1\n\n# twice\nsimulated/1\n", "simulated/2\n"):
        file.write_text(text)
        fingerprints.append(curated(source, [Exclude(str(file))]).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize(("make", "message"), [
    (lambda t: NestedSubset(5000), "NestedSubset of 5,000 images, but there are 4,000"),
    (lambda t: NestedSubset(0), "expected 1 image or more"),
    (lambda t: NestedSubset(), "expected one of them"),
    (lambda t: NestedSubset(fraction=1.5), "fraction above 0 and up to 1"),
    (lambda t: NestedSubset(fraction=-0.5), "fraction above 0 and up to 1"),
    (lambda t: LabelNoise(1.2), "LabelNoise: precision=1.2"),
    (lambda t: LabelNoise(0.5, recall=0.0), "recall=0.0; expected above 0 to 1"),
    (lambda t: LabelNoise(0.5, kind="parent"), "needs a file for hierarchy"),
    (lambda t: ClassSubset(41), "ClassSubset.keep=41, but there are 40 classes"),
    (lambda t: ClassSubset(("class 1", "clas 2")), "no class 'clas 2'; did you mean 'class 2'"),
    (lambda t: ClassSubset(str(t / "none.txt")), "cannot read ClassSubset.keep"),
    (lambda t: Exclude(str(t / "none.txt")), "cannot read .*none.txt: No such file.*; Exclude.file is a file with one"),
    (lambda t: Exclude(fifo(t)), "cannot read .*pipe: it is not a regular file"),
    (lambda t: Exclude("\0"), "Exclude.file='.x00': Expected text without NUL"),
    (lambda t: NestedSubset(5, seed=-1), "NestedSubset: seed=-1; expected at least 0"),
    (lambda t: LabelNoise(0.5, seed=-1), "LabelNoise: seed=-1; expected at least 0"),
    (lambda t: NestedSubset(5, seed=2**70), "NestedSubset.seed=.*: Expected a number of 64 bits"),
    (lambda t: unchecked(LabelNoise(0.5), kind="unifrom"), "LabelNoise.kind='unifrom'.*; did you mean 'uniform'"),
    (lambda t: unchecked(ClassSubset(5), empty="dorp"), "ClassSubset.empty='dorp'.*; did you mean 'drop'"),
    (lambda t: unchecked(AncestorLabels(written(t, "a,b\n")), unknown="ad"),
     "AncestorLabels.unknown='ad'.*; did you mean 'add'"),
    (lambda t: AncestorLabels(fifo(t)), "cannot read .*pipe: it is not a regular file"),
    (lambda t: AncestorLabels(written(t, b"\xff\xfea")), "cannot read .*: 'utf-8' codec can't decode"),
    (lambda t: AncestorLabels(written(t, "a,b\n" + "c" * 200_000 + ",d\n")), "line 2: field larger than field limit"),
    (lambda t: AncestorLabels(written(t, "a b " + "c" * 200_000)), "line 1: 'a b c.*c' is not 'child,parent'"),
    (lambda t: AncestorLabels(written(t, "c" * 200_000 + " d")), "no class has a parent there"),
    (lambda t: Exclude(written(t, "elsewhere/1\n")), "none of the 1 ids in .* 'elsewhere/1', is in the source"),
    (lambda t: Exclude(written(t, "".join(f"simulated/{i}\n" for i in range(4000)))), "leaves none of the 4,000"),
    (lambda t: AncestorLabels(written(t, "a,b\nb,c\nc,a\n")), "cycle: a -> b -> c -> a; remove one"),
    (lambda t: AncestorLabels(written(t, "class 1,class 2,class 3\n")), "line 1: .* is not 'child,parent'"),
    (lambda t: AncestorLabels(written(t, "cat,pet\n")), "no class has a parent there"),
    (lambda t: AncestorLabels(written(t, "\n")), "is empty"),
    (lambda t: ParentLabels(written(t, "class 0,x\nclass 01,x\n")),
     "class 'class 1' has no parent; expected exactly one line 'class 1,PARENT'; did you mean 'class 0"),
    (lambda t: ParentLabels(written(t, "class 0,x\nclass 0,y\n")), "class 'class 0' has the parents x, y; expected ex"),
    (lambda t: LabelNoise(0.5, kind="confusion", confusion=written(t, "a,b\n1,2\n")), "expected true, given, weight"),
    (lambda t: LabelNoise(0.5, kind="confusion", confusion=written(t, "true,given,weight\nclass 1,class 2,1\n")),
     "class 'class 0' is never given as another"),
    (lambda t: LabelNoise(0.5, kind="confusion", confusion=written(t, "true,given,weight\nclass 1,class 2,-1\n")),
     "line 2: weight is '-1'"),
    (lambda t: LabelNoise(0.5, kind="confusion",
                          confusion=written(t, "true,given,weight\n" + "c" * 200_000 + ",d,1\n")),
     "cannot read .*: field larger than field limit"),
    (lambda t: LabelNoise(0.5, kind="confusion", confusion=written(t, b"true,given,weight\n\xff,d,1\n")),
     "cannot read .*: 'utf-8' codec can't decode"),
    (lambda t: LabelNoise(0.5, kind="confusion", confusion=fifo(t)), "cannot read .*pipe: it is not a regular file"),
])
def test_errors_are_one_line(source, tmp_path, make, message):
    with pytest.raises(UserError, match=message) as raised:
        curated(source, [make(tmp_path)])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def written(folder, content):
    file = folder / "file.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(file)


def unchecked(step, **fields):
    """The step with other fields, as built outside tests, where types are not checked at each call."""
    for name, value in fields.items():
        object.__setattr__(step, name, value)
    return step


def fifo(folder):
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def test_evaluations_use_the_classes_of_training(tmp_path):
    from big_vision_lite.backbones.resnet import ResNet
    from big_vision_lite.data.pipeline import Input
    from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
    from big_vision_lite.data.transforms.image import Resize
    from big_vision_lite.experiment import Experiment
    from big_vision_lite.heads.classification import Classification
    from big_vision_lite.training.optimizers import SGD
    from big_vision_lite.training.trainer import Trainer

    def inputs(split, images, *steps):
        return Input(EmojiScenes(split, images, size=32, classes=8), Resize(32), 8, curate=steps)

    train = inputs("train", 40, ClassSubset(5), LabelNoise(0.5))
    experiment = Experiment(train, {"validation": inputs("validation", 24)},
                            ResNet(10, width=1 / 16), Classification(), SGD(0.1), steps=1)
    trainer = Trainer(experiment)
    evaluated = trainer.open_eval("validation")[1]
    assert evaluated.classes == trainer.data.classes and len(evaluated.classes) == 5
    assert manifest(evaluated)["noise"] == []
    clean = curated(experiment.evals["validation"].source.open(), [ClassSubset(trainer.data.classes)])
    assert contents(evaluated) == contents(clean)
