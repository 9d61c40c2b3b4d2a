"""What is counted over a whole large source is made once: the same data as without, in memory that does not grow."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import Simulated, contents

from big_vision_lite.data import columns
from big_vision_lite.data.columns import Columns, id_keys, is_sound, read_columns, write_columns
from big_vision_lite.data.curation import stored
from big_vision_lite.data.curation.steps import ClassSubset, Exclude, LabelNoise, NestedSubset, curated
from big_vision_lite.data.ragged import Ragged


def made(rows: int) -> Columns:
    ids = pa.array([f"number {i}".encode() for i in range(rows)], pa.large_binary())
    return Columns(Ragged.of([np.arange(i % 4) for i in range(rows)]), id_keys(ids), ids)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_stored_order_is_the_one_that_is_made_and_no_labels_are_read_again(tmp_path, cache, monkeypatch):
    (tmp_path / "exclude.txt").write_text("".join(f"simulated/{i}\n" for i in range(0, 3000, 7)))
    steps = (Exclude(str(tmp_path / "exclude.txt")), ClassSubset(12), NestedSubset(900), LabelNoise(0.7))
    steps_of = {steps: None, (*steps[:2], NestedSubset(500, stratified=True), LabelNoise(0.5, kind="marginal")): None}
    for some in steps_of:
        steps_of[some] = contents(curated(Simulated(3000), some))
    monkeypatch.setattr(stored, "LARGE", 1000)
    for some, expected in steps_of.items():
        assert contents(curated(Simulated(3000), some)) == expected
    monkeypatch.setattr("big_vision_lite.data.curation.curated.label_index", None)  # calling it would fail
    for some, expected in steps_of.items():
        again = curated(Simulated(3000), some)
        assert contents(again) == expected == contents(pickle.loads(pickle.dumps(again)))
        assert len(pickle.dumps(again)) < 10_000  # the order's file is named, and not its indices
    with pytest.raises(TypeError):  # other data, so it has to be read
        curated(Simulated(3000), (steps[0], ClassSubset(11)))


def test_a_damaged_order_is_made_again(cache, monkeypatch):
    monkeypatch.setattr(stored, "LARGE", 1000)
    expected = contents(curated(Simulated(3000), (ClassSubset(5),)))
    (path,) = (cache / "orders").glob("*.uint32")
    for damaged in (path.read_bytes()[:-9], b"", path.read_bytes()[:500] + b"\0\0\0\0" + path.read_bytes()[504:]):
        path.write_bytes(damaged)
        assert contents(curated(Simulated(3000), (ClassSubset(5),))) == expected and is_sound(path)


def test_a_damaged_order_that_cannot_be_replaced_is_not_used(cache, monkeypatch):
    monkeypatch.setattr(stored, "LARGE", 1000)
    expected = contents(curated(Simulated(3000), (ClassSubset(5),)))
    (path,) = (cache / "orders").glob("*.uint32")
    path.write_bytes(path.read_bytes()[:400] + b"\0" * 100 + path.read_bytes()[500:])
    monkeypatch.setattr("big_vision_lite.system.cache.os.access", lambda path, mode: False)  # root may write anywhere
    data = curated(Simulated(3000), (ClassSubset(5),))
    assert not is_sound(path) and contents(data) == expected == contents(pickle.loads(pickle.dumps(data)))
    assert np.concatenate([*data.order.chunks()]).tolist() == data.order(np.arange(len(data))).tolist()


def test_without_a_cache_an_order_is_kept_all_the_same(cache, monkeypatch):
    expected = contents(curated(Simulated(3000), (ClassSubset(5),)))
    monkeypatch.setattr(stored, "LARGE", 1000)
    (cache.parent / "file").write_text("no folder")
    monkeypatch.setenv("BVL_CACHE", str(cache.parent / "file"))
    data = curated(Simulated(3000), (ClassSubset(5),))
    assert contents(data) == expected == contents(pickle.loads(pickle.dumps(data)))


def test_rows_in_any_order_are_the_same_in_parts(tmp_path, monkeypatch):
    expected = made(4000)
    write_columns([expected], tmp_path / "columns")
    indices = np.random.default_rng(0).integers(0, 4000, 3000)
    monkeypatch.setattr(columns, "FEW", 10)
    monkeypatch.setattr(columns, "MAX_RESIDENT", 5000)
    mapped = read_columns(tmp_path / "columns")
    for of in (mapped, mapped.slice(0, 4000), expected):
        assert of.ids_at(indices).to_pylist() == [expected.ids[i].as_py() for i in indices.tolist()]
        np.testing.assert_array_equal(of.keys_at(indices), expected.keys[indices])
        for ours, theirs in zip(of.labels_at(indices), expected.labels.take(indices), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def resident(path) -> int:
    """Bytes of a mapped file that are memory of this process."""
    total, of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            of_file = line.endswith(str(path))
        elif of_file and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_a_pass_gives_pages_back(tmp_path, monkeypatch):
    write_columns([made(100_000)], tmp_path / "columns")
    mapped = read_columns(tmp_path / "columns")
    shuffled = np.random.default_rng(0).permutation(100_000)
    mapped.keys[shuffled].sum()
    assert resident(tmp_path / "columns") >= 800_000  # as it would be
    for take in (mapped.keys_at, mapped.labels_at, mapped.ids_at):
        take(shuffled)
        assert resident(tmp_path / "columns") == 0


def test_a_large_file_has_a_checksum_per_piece_and_some_are_verified_when_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "PIECE", 1 << 10)
    monkeypatch.setattr(columns, "SAMPLE", 8)
    path = tmp_path / "columns"
    write_columns([made(2000)], path)
    content = path.read_bytes()
    assert len(content) > 32 << 10 and is_sound(path, whole=True)
    read = []

    def counted(data, real=columns._checksum):
        read.append(len(data))
        return real(data)

    monkeypatch.setattr(columns, "_checksum", counted)
    assert read_columns(path).id(1999) == "number 1999" and len(read) == 9  # and that of the checksums
    noticed = 0
    for at in range(0, len(content), 511):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert not is_sound(path, whole=True)
        noticed += not is_sound(path)
    assert 0.05 < noticed / len(range(0, len(content), 511)) < 0.5
    for cut in (content[:-1], content[:-5], content[: len(content) // 2], content + b"\0"):
        path.write_bytes(cut)
        assert not is_sound(path)
