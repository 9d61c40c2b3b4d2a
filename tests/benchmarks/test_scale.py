"""The benchmark of columns measures all sizes and says how time grows."""

import json
import sys

import experiments
import pytest
import scale

from big_vision_lite.errors import UserError


def test_each_size_is_measured_and_growth_is_fitted(tmp_path, monkeypatch, capsys):
    out = tmp_path / "scale.json"
    monkeypatch.setattr(sys, "argv", ["scale.py", "--images=10000,20000", "--no-csv", f"--json={out}",
                                      f"--folder={tmp_path}"])
    experiments.main(scale.benchmark, scale.Options)
    found = json.loads(out.read_text())
    assert set(found["images"]) == {"10000", "20000"} and set(found["exponents"]) >= {"make the index", "manifest"}
    of = found["images"]["20000"]
    assert 40 < of["bytes of the index"] / 20_000 < 60 and 20 < of["manifest, MB"] < 2000
    assert of["open to first batch, first time"] >= of["... LabelNoise"] > 0 < of["open to first batch, again"]
    assert "20,000 images" in capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["scale.json"]


@pytest.mark.parametrize("images", ["", "1e5", "9999", "10000,10000", "20000,-1"])
def test_numbers_that_cannot_be_measured(images):
    with pytest.raises(UserError, match="expected different numbers of at least 10,000"):
        scale.benchmark(scale.Options(images))
