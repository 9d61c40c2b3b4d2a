"""Verdicts on claims: by pairs of runs of one seed, and never by fewer than three."""

import numpy as np
import pytest

from big_vision_lite.scaling.paper.claims import Contrast, Finding, Runs, find

MORE = Contrast("more images", "val/top1", (Runs(1, {"images": 1000}), Runs(-1, {"images": 100})))


def rows(values, **more):
    return [{"images": images, "seed": seed, "val/top1": str(value), "status": "done", **more}
            for (images, seed), value in values.items()]


def test_runs_are_paired_by_seed():
    found = find(MORE, rows({("1000", "0"): 0.5, ("100", "0"): 0.4, ("1000", "1"): 0.9, ("100", "2"): 0.1,
                             ("1003", "3"): 0.6, ("100", "3"): 0.3}))
    np.testing.assert_allclose(found.values, [0.1, 0.3])
    trunks = rows({("1000", "0"): 0.5, ("100", "0"): 0.4}, stage="trunk")
    missing = [*rows({("1000", "0"): 0.5, ("100", "0"): 0.4}), {"images": "1000", "seed": "1", "val/top1": ""}]
    assert find(MORE, trunks).values.size == 0 and find(MORE, missing).values.size == 1


@pytest.mark.parametrize(("values", "verdict"), [
    ([], "not run"), ([0.1], "cannot be told here"), ([0.1, 0.1001], "cannot be told here"),
    ([0.10, 0.12, 0.11], "holds"), ([-0.10, -0.12, -0.11], "does not hold"),
    ([0.5, 0.5, -0.001], "cannot be told here"),  # one seed disagrees
    ([0.001, 0.3, 0.001], "cannot be told here")])  # all agree, but the mean is within two standard errors
def test_verdicts(values, verdict):
    assert Finding("x", np.array(values)).verdict == verdict


def test_figures():
    finding = Finding("x", np.array([0.10, 0.12, 0.11]))
    assert finding.figures == "+0.1100 ± 0.0058 (3 seeds)"
    assert finding.standard_error == pytest.approx(np.std([0.10, 0.12, 0.11], ddof=1) / 3**0.5)
