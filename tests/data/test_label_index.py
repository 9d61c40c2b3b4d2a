"""Indices of ids and labels: checked when made, the same when read again, and made again when damaged."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import Simulated

from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.errors import UserError


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda e, i: {**e, "labels": np.array([i + 31], np.int32)} if i > 8 else e,
     "'bad/9' has label 40; expected 0 to 39, because there are 40 classes; 41 labels are out"),
    (lambda e, i: {**e, "labels": np.array([-1], np.int32)} if i == 4 else e, "'bad/4' has label -1; expected 0 to 39"),
    (lambda e, i: {**e, "id": "bad/7"} if i == 9 else e, "examples 7 and 9 have the same id 'bad/7'"),
])
def test_invalid_labels_and_ids_are_refused(spoil, message, tmp_path):
    class Bad(Simulated):
        def __getitem__(self, index):
            return spoil(super().__getitem__(index), index)

    with pytest.raises(UserError, match=message):
        label_index(Bad(50, name="bad"))


def test_the_first_image_without_its_one_label_is_named():
    class Single(Simulated):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "labels": np.arange(3 if index == 20 else 0 if index == 30 else 1)}

    with pytest.raises(UserError, match="'simulated/20' has 3 labels in a source with one label per image"):
        label_index(Single(50, multi_label=False))


def test_the_index_is_memory_mapped_and_keeps_ids_that_are_no_utf8():
    class Undecodable(Simulated):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "id": f"\udcff{index}"}

    dataset = Undecodable(name="undecodable")
    made = label_index(dataset)
    allocated = pa.total_allocated_bytes()
    read = label_index(dataset)
    assert read is not made and pa.total_allocated_bytes() == allocated
    assert [read.id(i) for i in range(4000)] == [made.id(i) for i in range(4000)] == [f"\udcff{i}" for i in range(4000)]
    np.testing.assert_array_equal(read.keys, made.keys)
    for ours, theirs in zip(read.labels, made.labels, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_a_damaged_index_or_one_of_other_data_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path))
    dataset, rng = Simulated(300), np.random.default_rng(0)
    sound = label_index(dataset)
    labels, (path,) = [sound.labels.row(i).tolist() for i in range(300)], (tmp_path / "label_index").iterdir()
    content = path.read_bytes()
    positions = rng.integers(0, len(content), 40)
    damages = [content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :] for at in positions]
    damages += [content[:at] for at in (0, 3, *positions[:5])]
    for damaged in damages:
        path.write_bytes(damaged)
        index = label_index(dataset)
        assert [index.labels.row(i).tolist() for i in range(300)] == labels and path.read_bytes() == content
    shorter = Simulated(200)
    label_index(shorter)
    (of_shorter,) = set((tmp_path / "label_index").iterdir()) - {path}
    shutil.copy(path, of_shorter)
    assert len(label_index(shorter).ids) == 200
