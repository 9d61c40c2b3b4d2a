"""Classification metrics against scikit-learn, slow implementations and cases worked out by hand."""

import io
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from big_vision_lite.errors import UserError
from big_vision_lite.evaluation import classification
from big_vision_lite.evaluation.classification import MultiLabelMetrics, SingleLabelMetrics, SuperclassMetrics


def pad(sets, width=None):
    """Lists of labels as int32 [n, width], padded with -1."""
    width = width or max(1, *(len(s) for s in sets))
    return np.array([[*s, *[-1] * (width - len(s))] for s in sets], np.int32)


def labels_of(positive):
    return pad([np.flatnonzero(row) for row in positive])


def fill(accumulator, scores, labels, mask=None, batch=7):
    mask = np.ones(len(scores), bool) if mask is None else mask
    for i in range(0, len(scores), batch):
        accumulator.add(scores[i : i + batch], labels[i : i + batch], mask[i : i + batch])
    return accumulator


def average_precision(scores, positive):
    """Of one class."""
    return classification._average_precisions(scores, scores[positive][None])[0]


def make(n, classes, rate=0.2, levels=8, seed=0):
    """Random scores on a few levels (so that most tie), and random labels that they partly follow."""
    rng = np.random.default_rng(seed)
    positive = rng.random((n, classes)) < rate
    scores = rng.integers(0, levels, (n, classes)).astype(np.float32) + positive * np.float32(1.0)
    return scores, positive


@pytest.mark.parametrize("levels", [1, 2, 8, 10**6])
@pytest.mark.parametrize("n", [5, 300])
def test_map_agrees_with_sklearn(levels, n):
    scores, positive = make(n, 12, levels=levels, seed=n)
    positive[:, 3] = False
    positive[:, 4] = True
    positive[:, 5] = np.arange(n) == 2
    result = fill(MultiLabelMetrics(12, n), scores, labels_of(positive)).result()
    present = positive.any(axis=0)
    expected = [average_precision_score(positive[:, c], scores[:, c]) for c in np.flatnonzero(present)]
    assert result["mAP"] == pytest.approx(np.mean(expected), abs=1e-12)
    weighted = average_precision_score(positive[:, present], scores[:, present], average="weighted")
    assert result["mAP_instance"] == pytest.approx(weighted, abs=1e-12)
    assert result["classes_with_positives"] == present.sum()
    assert result["images_with_positives"] == positive.any(axis=1).sum()
    for c, value in zip(np.flatnonzero(present), expected, strict=True):
        assert average_precision(scores[:, c], positive[:, c]) == pytest.approx(value, abs=1e-12)


def test_average_precision_by_hand():
    # Descending: + - {+ -} +; at the positives (1/1 + 2/4 + 3/5) / 3 = 0.7.
    scores = np.array([5, 4, 3, 3, 1], np.float32)
    assert average_precision(scores, np.array([1, 0, 1, 0, 1], bool)) == pytest.approx(0.7)
    # Infinite scores are ordered like any other.
    scores = np.array([-np.inf, 0, np.inf], np.float32)
    assert average_precision(scores, np.array([False, False, True])) == 1
    assert average_precision(scores, np.array([True, False, False])) == pytest.approx(1 / 3)


def test_masked_rows_change_nothing():
    scores, positive = make(60, 9)
    labels = labels_of(positive)
    mask = np.random.default_rng(1).random(60) < 0.6
    clean = fill(MultiLabelMetrics(9, 60), scores[mask], labels[mask]).result()
    scores[~mask] = np.nan
    labels[~mask] = 99
    assert fill(MultiLabelMetrics(9, int(mask.sum())), scores, labels, mask).result() == clean
    assert fill(MultiLabelMetrics(9, 60), scores, labels, mask, batch=60).result() == clean

    unchanged = fill(MultiLabelMetrics(9, 60), scores[mask], labels[mask])
    unchanged.add(scores[~mask], labels[~mask], mask[~mask])  # a batch of nothing but padding
    assert unchanged.result() == clean

    single = fill(
        SingleLabelMetrics(9, int(mask.sum())), scores, np.where(mask[:, None], 2, labels[:, :1]), mask
    )
    assert single.result()["top1"] == np.mean([np.sum(s >= s[2]) == 1 for s in scores[mask]])


def test_a_repeated_label_counts_once():
    scores = np.array([[3, 2, 1], [1, 2, 3]], np.float32)
    once = fill(MultiLabelMetrics(3, 2), scores, pad([[1], [0, 2]])).result()
    assert fill(MultiLabelMetrics(3, 2), scores, pad([[1, 1, 1], [2, 0, 2]])).result() == once


def test_precision_at_k_by_hand():
    scores = np.array([[6, 5, 4, 3, 2, 1]] * 3 + [[1] * 6], np.float32)
    labels = pad([[0, 5], [1, 2, 4], [], [0, 1]])
    result = fill(MultiLabelMetrics(6, 4), scores, labels).result()
    # Hits in the top 1 and 5: image 0: 1 1; image 1: 0 3; image 2 has no label and is left out;
    # image 3: all tie, so its two labels rank fifth and sixth: 0 1.
    assert result["precision@1"] == pytest.approx(1 / 3)
    assert result["precision@5"] == pytest.approx((1 / 5 + 3 / 5 + 1 / 5) / 3)
    assert "precision@5" not in fill(MultiLabelMetrics(4, 1), scores[:1, :4], pad([[0]])).result()
    assert fill(MultiLabelMetrics(5, 1), scores[:1, :5], pad([[0]])).result()["precision@5"] == 1 / 5


def test_map_at_100_by_hand():
    # 200 classes, class c has score -c, so class c is at rank c + 1.
    # Image 0, labels 0, 3, 150 (ranks 1, 4, 151): (1/1 + 2/4 + nothing beyond rank 100) / min(3, 100) = 1/2.
    # Image 1, label 9 (rank 10): (1/10) / 1 = 1/10.
    # Image 2, no label: left out.
    # Image 3, labels 0..149: 100 right in the top 100, / min(150, 100) = 1.
    # Together: (1/2 + 1/10 + 1) / 3 = 8/15.
    scores = np.tile(-np.arange(200, dtype=np.float32), (4, 1))
    labels = pad([[0, 3, 150], [9], [], list(range(150))])
    result = fill(MultiLabelMetrics(200, 4), scores, labels).result()
    assert result["mAP@100"] == pytest.approx(8 / 15, abs=1e-12)


@pytest.mark.parametrize("levels", [9, 10**6])
@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_map_at_100_agrees_with_a_plain_loop(rate, levels):
    scores, positive = make(40, 250, rate=rate, levels=levels)
    precisions = []
    for s, right in zip(scores, positive, strict=True):
        if not right.any():
            continue
        order = sorted(range(250), key=lambda c, s=s, right=right: (-s[c], right[c]))
        hits, of_image = 0, 0.0
        for rank, c in enumerate(order[:100], start=1):
            if right[c]:
                hits += 1
                of_image += hits / rank
        precisions.append(of_image / min(right.sum(), 100))
    result = fill(MultiLabelMetrics(250, 40), scores, labels_of(positive)).result()
    assert result["mAP@100"] == pytest.approx(np.mean(precisions))


@pytest.fixture
def spilling(tmp_path, monkeypatch):
    """Scores go to a file in ``tmp_path``."""
    monkeypatch.setattr(classification, "MEMORY_BUDGET", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize("tile_bytes", [1, 4 * 13 * 11, 1 << 20])
def test_spilled_equals_held_in_memory(tile_bytes, tmp_path, monkeypatch):
    scores, positive = make(100, 13, levels=50)
    labels = labels_of(positive)
    held = fill(MultiLabelMetrics(13, 100), scores, labels)
    monkeypatch.setattr(classification, "_TILE_BYTES", tile_bytes)
    tiled = fill(MultiLabelMetrics(13, 100), scores, labels)
    monkeypatch.setattr(classification, "MEMORY_BUDGET", 10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spilled = fill(MultiLabelMetrics(13, 100), scores, labels, batch=33)
    assert held.result() == tiled.result() == spilled.result()
    assert held.chance() == tiled.chance() == spilled.chance()
    assert list(tmp_path.iterdir()) == []


def test_results_can_be_read_meanwhile(spilling, monkeypatch):
    scores, positive = make(50, 6)
    labels = labels_of(positive)
    monkeypatch.setattr(classification, "_TILE_BYTES", 4 * 6 * 20)
    accumulator = fill(MultiLabelMetrics(6, 50), scores[:30], labels[:30])
    assert accumulator.result() == fill(MultiLabelMetrics(6, 30), scores[:30], labels[:30]).result()
    fill(accumulator, scores[30:], labels[30:])
    assert accumulator.result() == fill(MultiLabelMetrics(6, 50), scores, labels).result()


def test_chance_moves_whole_rows():
    scores, positive = make(80, 7)
    accumulator = fill(MultiLabelMetrics(7, 80), scores, labels_of(positive))
    rng = np.random.default_rng(0)
    moved = [scores[rng.permutation(80)] for _ in range(5)]
    expected = np.mean([average_precision_score(positive, s, average="macro") for s in moved])
    assert accumulator.chance() == pytest.approx(expected, abs=1e-12)


def test_chance_is_close_to_prevalence_while_the_model_is_not():
    scores, positive = make(3000, 10, rate=0.3, levels=3)
    accumulator = fill(MultiLabelMetrics(10, 3000), scores, labels_of(positive), batch=500)
    assert accumulator.chance() == pytest.approx(0.3, abs=0.02)
    assert accumulator.result()["mAP"] > 0.4
    constant = fill(MultiLabelMetrics(10, 3000), np.zeros_like(scores), labels_of(positive), batch=500)
    assert constant.chance() == pytest.approx(positive.mean(), abs=1e-12)
    assert constant.result()["mAP"] == constant.chance()


@pytest.mark.parametrize("classes", [5, 20])
def test_top_k_agrees_with_sklearn(classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 400).astype(np.int32)
    scores = rng.permuted(np.tile(np.arange(classes, dtype=np.float32), (400, 1)), axis=1)
    padded = np.stack([np.full_like(labels, -1), labels], axis=1)
    result = fill(SingleLabelMetrics(classes, 400), scores, padded).result()
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(classes)) if k < classes else 1
        assert result[f"top{k}"] == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1, 300])  # at 300 most probabilities are 0 in float32
def test_superclasses_are_ranked_by_the_summed_probabilities_of_their_classes(scale):
    rng = np.random.default_rng(scale)
    superclass_of = np.array([3, 0, 1, 0, 2, 0, 5, 1, 4, 0, 6, 3], np.int32)
    logits = (scale * rng.normal(size=(400, 12))).astype(np.float32)
    labels = rng.integers(0, 12, 400).astype(np.int32)
    ranks, best_class_is_right = [], []
    for row, label in zip(logits.astype(np.longdouble), labels, strict=True):
        probability = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        summed = [sum(probability[c] for c in range(12) if superclass_of[c] == s) for s in range(7)]
        ranks.append(sorted(summed, reverse=True).index(summed[superclass_of[label]]))
        best_class_is_right.append(superclass_of[row.argmax()] == superclass_of[label])
    padding = np.full((20, 12), np.nan, np.float32)
    metrics = fill(SuperclassMetrics(superclass_of, 400), np.concatenate((padding, logits)),
                   np.concatenate((np.full(20, 99, np.int32), labels))[:, None], np.arange(420) >= 20)
    expected = {f"superclass_top{k}": np.mean(np.array(ranks) < k) for k in (1, 5)}
    assert metrics.result() == pytest.approx(expected)
    if scale == 1:  # so that the sum is not the best class's superclass in another guise
        assert abs(np.mean(best_class_is_right) - expected["superclass_top1"]) > 0.01


def test_ties_count_against_the_model():
    constant = fill(SingleLabelMetrics(10, 4), np.zeros((4, 10), np.float32), pad([[0], [3], [9], [5]]))
    assert constant.result() == {"top1": 0, "top5": 0}
    scores = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], np.float32)
    assert fill(SingleLabelMetrics(6, 2), scores, pad([[0], [1]])).result() == {"top1": 0, "top5": 0.5}
    assert "top5" not in fill(SingleLabelMetrics(4, 1), scores[:1, :4], pad([[0]])).result()


ROWS = np.zeros((2, 3), np.float32)
ALL = np.ones(2, bool)


@pytest.mark.parametrize("kind", [MultiLabelMetrics, SingleLabelMetrics])
def test_bad_batches_are_refused(kind):
    labels = pad([[0], [2]])
    with pytest.raises(UserError, match=r"class 1 is NaN"):
        kind(3, 2).add(np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), labels, ALL)
    for wrong in (3, -2):
        with pytest.raises(UserError, match=rf"label {wrong} is out of range: expected 0 to 2"):
            kind(3, 2).add(ROWS, pad([[0], [wrong]]), ALL)
    full = kind(3, 3)
    full.add(ROWS, labels, ALL)
    with pytest.raises(UserError, match="1 images more"):
        full.add(ROWS, labels, ALL)
    with pytest.raises(UserError, match=r"scores \(2, 3\).*expected \[b, 4\]"):
        kind(4, 2).add(ROWS, labels, ALL)
    for other in (pad([[0]]), labels[:, 0]):  # in tests, signatures are checked before
        with pytest.raises(UserError, match=r"labels .* mask \(2,\): expected \[b, 3\], \[b, k\], \[b\] with one b"):
            classification._unmasked(ROWS, other, ALL, 3, 2)
    for sizes in ((0, 2), (2, 0)):
        with pytest.raises(UserError, match="at least 1"):
            kind(*sizes)


def test_wrong_dtypes_are_refused():
    # The run-time check of signatures in tests comes first, with its own exception.
    with pytest.raises(Exception, match=r"(?i)float32"):
        MultiLabelMetrics(3, 2).add(ROWS.astype(np.float64), pad([[0], [2]]), ALL)


@pytest.mark.parametrize(("labels", "found"), [
    ([[1, 2], [0, 1, 2]], r"2 labels \[1, 2, -1\]"), ([[0], []], r"0 labels \[-1\]")])
def test_single_label_needs_exactly_one(labels, found):
    with pytest.raises(UserError, match=f"an image has {found}, expected exactly one"):
        SingleLabelMetrics(3, 2).add(ROWS, pad(labels), ALL)


def test_without_labels_no_score_exists():
    for metrics in (fill(MultiLabelMetrics(3, 2), ROWS, pad([[], []])), MultiLabelMetrics(3, 2)):
        assert metrics.chance() is None and metrics.result() == {
            "mAP": None, "mAP_instance": None, "mAP@100": None, "precision@1": None, "classes_with_positives": 0,
            "images_with_positives": 0}
    assert SingleLabelMetrics(5, 2).result() == {"top1": None, "top5": None}


def test_a_missing_temporary_folder_is_named(spilling, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no-such-folder"))
    with pytest.raises(UserError, match="no-such-folder"):
        MultiLabelMetrics(3, 2)


def test_too_small_a_disk_is_noticed_at_the_start(spilling):
    with pytest.raises(UserError, match=r"need 40,000,000,000,000,000 bytes in '.*TMPDIR"):
        MultiLabelMetrics(10, 10**15)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_a_disk_that_fills_up_is_named(spilling, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.FileIO("/dev/full", "r+"))
    accumulator = MultiLabelMetrics(3, 2)
    with pytest.raises(UserError, match=rf"need 24 bytes in '{tmp_path}'"):
        accumulator.add(ROWS, pad([[0], [2]]), ALL)


@pytest.mark.slow
def test_jft_sized_evaluation_stays_in_memory():
    code = """
        import resource
        import numpy as np
        from big_vision_lite.evaluation.classification import MultiLabelMetrics

        n, classes, batch = 20_000, 18_291, 200
        rng = np.random.default_rng(0)
        accumulator = MultiLabelMetrics(classes, n)
        for _ in range(n // batch):
            labels = (rng.zipf(1.3, (batch, 3)) - 1) % classes
            labels[:, 1:][rng.random((batch, 2)) > 0.15] = -1
            scores = rng.standard_normal((batch, classes), dtype=np.float32)
            accumulator.add(scores, labels.astype(np.int32), np.ones(batch, bool))
        print(accumulator.result(), accumulator.chance())
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True
    ).stdout
    kilobytes = int(out.split()[-1])  # Linux counts kilobytes, macOS bytes
    assert kilobytes * (1 if sys.platform == "darwin" else 1024) < 4e9
