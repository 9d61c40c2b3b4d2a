"""What a run writes about its data, counted independently."""

import hashlib
import json

import numpy as np
import pytest
from made_datasets import Simulated, contents

from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.curation.steps import ClassSubset, LabelNoise, NestedSubset, curated
from big_vision_lite.errors import UserError
from big_vision_lite.training.workdir import save_dataset_info


@pytest.fixture(scope="module")
def source():
    return Simulated()


def test_a_manifest_counts_images_labels_and_classes(source):
    steps = [ClassSubset(30), NestedSubset(500), LabelNoise(0.8)]
    dataset = curated(source, steps)
    counted = manifest(dataset)
    counts = np.bincount(np.concatenate([*contents(dataset).values()]), minlength=30)
    assert counted["images"] == 500 and counted["class_images"] == counts.tolist()
    assert counted["classes_under_20"] == sum(counts < 20) and counted["classes_under_100"] == sum(counts < 100)
    assert counted["labels_per_image"]["mean"] == sum(counts) / 500
    ids = [dataset.labels(i)[0] for i in range(500)]
    assert counted["sha256"] == hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()
    assert [step["stage"] for step in counted["curation"]] == ["ClassSubset", "NestedSubset", "LabelNoise"]
    assert counted["labels"] == sum(counts) and counted["classes_without"] == sum(counts == 0)
    few = curated(source, [ClassSubset(("class 8", "class 39"), "keep")])
    counts = np.array([len(labels) for labels in contents(few).values()])
    assert manifest(few)["labels_per_image"] == {"mean": counts.mean(), "max": max(counts), "without": sum(counts == 0)}
    assert manifest(few)["noise"] == []
    json.dumps(counted)
    assert manifest(curated(Simulated(), steps)) == counted
    assert manifest(curated(source, [*steps[:1], NestedSubset(500, seed=1)]))["sha256"] != counted["sha256"]


def test_a_run_keeps_its_manifest_and_refuses_other_data(source, tmp_path):
    steps = [NestedSubset(500), LabelNoise(0.8)]
    dataset = curated(source, steps)
    save_dataset_info(tmp_path, dataset)
    kept = json.loads((tmp_path / "data.json").read_text())
    assert kept["noise"][0]["precision"] == pytest.approx(0.8, abs=0.05) and kept["images"] == 500
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)  # now there is something to lose
    save_dataset_info(tmp_path, curated(source, steps))
    with pytest.raises(UserError, match=r"was trained on other data: 500 images .*, now 500 .*bring the data back"):
        save_dataset_info(tmp_path, curated(source, [NestedSubset(500, seed=1), *steps[1:]]))
    kept["sha256"] = "0" * 64  # as if other ids had been under the same fingerprint
    (tmp_path / "data.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=r"00000000.*bring the data back"):
        save_dataset_info(tmp_path, dataset)
