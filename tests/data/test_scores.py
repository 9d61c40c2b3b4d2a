"""Curation by scores: what is kept, nested, with the shares of the classes, and only of the data that was scored."""

import numpy as np
import pytest
from made_datasets import Simulated, contents

from big_vision_lite.data.curation.curated import Curated
from big_vision_lite.data.curation.scores import KeepByScore, ScoreTable
from big_vision_lite.data.curation.steps import LabelNoise, NestedSubset, curated
from big_vision_lite.errors import UserError

DATA = Simulated(600, classes=tuple("abcd"), multi_label=False)
LOSS = np.random.default_rng(0).permutation(600).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    index = Curated.of(DATA).index
    scores = {"loss": LOSS.copy(), "margin": np.zeros(600, np.float32)}
    scores["loss"][7] = np.nan
    shuffled = np.random.default_rng(1).permutation(600)  # rows are found by their key, not by their place
    keys = index.keys_at(np.arange(600))
    ScoreTable(keys[shuffled], {name: values[shuffled] for name, values in scores.items()}, DATA.fingerprint, "runs/r",
               3).write(tmp_path / "scores.arrow")
    return str(tmp_path / "scores.arrow")


def kept(*steps):
    return {int(id_.split("/")[1]) for id_ in contents(curated(DATA, steps))}


def test_the_highest_or_lowest_scores_are_kept_and_smaller_shares_are_contained(file):
    valid = np.delete(np.arange(600), 7)
    by_loss = valid[np.argsort(LOSS[valid])]
    assert kept(KeepByScore(file, 0.5)) == {*by_loss[-300:].tolist()}
    assert kept(KeepByScore(file, 0.25, "low")) == {*by_loss[:150].tolist()}
    assert 7 not in kept(KeepByScore(file, 599 / 600)) | kept(KeepByScore(file, 599 / 600, "low"))
    for score in ("loss", "margin"):
        sets = [kept(KeepByScore(file, share, score=score, stratified=stratified)) for stratified in (False, True)
                for share in (0.1, 0.3, 0.9)]
        assert sets[0] < sets[1] < sets[2] and sets[3] < sets[4] < sets[5]
        assert [len(one) for one in sets] == [60, 180, 540] * 2
    subset = kept(NestedSubset(100))
    best = sorted(subset - {7}, key=lambda i: -LOSS[i])[:50]
    assert kept(NestedSubset(100), KeepByScore(file, 0.5)) == {*best}


def test_classes_keep_their_shares(file):
    labels = np.array([DATA.labels(i)[1][0] for i in range(600)])
    everything = np.bincount(labels)
    data = curated(DATA, (KeepByScore(file, 0.5, stratified=True),))
    ids = [int(id_.split("/")[1]) for id_ in contents(data)]
    np.testing.assert_allclose(np.bincount(labels[ids]), everything / 2, atol=1)
    for label in range(4):
        of_class = [i for i in np.flatnonzero(labels == label) if i != 7]
        chosen = [i for i in ids if labels[i] == label]
        assert {*chosen} == {*sorted(of_class, key=lambda i: -LOSS[i])[:len(chosen)]}


def test_other_data_and_wrong_fields_are_refused(file, tmp_path):
    with pytest.raises(UserError, match=r"has the scores of other data: simulated-600.*bvl data score runs/r"):
        curated(Simulated(500, classes=tuple("abcd"), multi_label=False), (KeepByScore(file),))
    with pytest.raises(UserError, match="has no score 'distance'; valid: loss, margin"):
        curated(DATA, (KeepByScore(file, score="distance"),))
    with pytest.raises(UserError, match="make it by: bvl data score"):
        curated(DATA, (KeepByScore(str(tmp_path / "none")),))
    (tmp_path / "text").write_text("no scores")
    with pytest.raises(UserError, match="make it by: bvl data score"):
        curated(DATA, (KeepByScore(str(tmp_path / "text")),))
    table = ScoreTable.read(file)
    some = ScoreTable(table.keys[:10], {"loss": table.scores["loss"][:10]}, table.fingerprint, "", 0)
    some.write(tmp_path / "some")
    with pytest.raises(UserError, match="590 of the 600 images have no score"):
        curated(DATA, (LabelNoise(0.9), KeepByScore(str(tmp_path / "some"))))
    for fraction in (0.0, 1.1):
        with pytest.raises(UserError, match="expected above 0 to 1"):
            KeepByScore(file, fraction)
