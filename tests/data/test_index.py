"""Indexing and preparing on Beam give the files that this machine's own threads and processes give, and resume."""

import functools
import gc
import json
import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import Simulated
from made_files import class_folders, jpeg

from big_vision_lite.cli import main
from big_vision_lite.data.columns import read_columns
from big_vision_lite.data.curation.label_index import index_path, label_index
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.parquet import Parquet
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.tools import index as tool
from big_vision_lite.data.tools.beam import on_beam
from big_vision_lite.data.tools.prepare import prepare
from big_vision_lite.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # Beam's own


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BVL_SHARED", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def beam(tmp_path):
    yield functools.partial(on_beam, shared=str(tmp_path), workers=2)
    with warnings.catch_warnings():  # a pipeline that failed leaves its files open, for the collector to close
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class SimulatedSource(Source):
    """Has neither files nor columns: its labels are read one by one."""

    failing = -1

    def open(self):
        return Failing(3000)


class Failing(Simulated):
    def labels(self, index):
        if index == SimulatedSource.failing:
            raise UserError(f"example {index} is on a disk that is gone")
        return super().labels(index)


def test_labels_read_one_by_one_are_read_in_pieces_which_are_kept(cache, beam, monkeypatch):
    monkeypatch.setattr(tool, "ROWS_PER_JOB", 500)
    monkeypatch.setattr(SimulatedSource, "failing", 1700)
    with pytest.raises(UserError, match=r"^example 1700 is on a disk that is gone$"):
        tool.index(SimulatedSource(), beam)
    (folder,) = (cache / "label_index").glob("*.pieces")
    pieces = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert pieces and folder / "1500-2000.arrow" not in pieces
    monkeypatch.setattr(SimulatedSource, "failing", -1)
    read = []
    monkeypatch.setattr(Simulated, "__getitem__", lambda self, i, real=Simulated.__getitem__: (read.append(i),
                                                                                                real(self, i))[1])
    assert tool.index(SimulatedSource(), beam).images == 3000
    assert len(read) == 3000 - 500 * len(pieces) and not folder.exists()
    stored = read_columns(index_path(Simulated(3000)))
    monkeypatch.setenv("BVL_CACHE", str(cache / "other"))
    expected = label_index(Simulated(3000))
    assert stored.ids.equals(expected.ids) and stored.keys.tolist() == expected.keys.tolist()
    for ours, theirs in zip(stored.labels, expected.labels, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_files_are_indexed_by_all_workers_and_then_only_read(tmp_path, cache, beam, monkeypatch):
    monkeypatch.setattr(tool, "SHARDS_PER_JOB", 2)
    (tmp_path / "data").mkdir()
    for number in range(7):
        table = {"image": [jpeg()] * 3, "label": [number, 0, 1]}
        pq.write_table(pa.table(table), tmp_path / "data" / f"train-{number}.parquet")
    source = Parquet(str(tmp_path / "data"))
    found = tool.index(source, beam)
    assert (found.images, found.labels) == (21, 21)
    monkeypatch.setattr("big_vision_lite.data.sources.parquet._index", None)  # calling it would fail
    assert source.open().fingerprint == found.fingerprint
    (tmp_path / "data" / "train-3.parquet").write_bytes(b"PAR1")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"train-3\.parquet"):
        tool.index(source, beam)


def test_a_prepared_dataset_is_the_same_on_beam_and_finished_shards_are_kept(tmp_path, cache, beam):
    source = class_folders(tmp_path / "photos", 4)
    bad = tmp_path / "photos" / "cow" / "3.jpg"
    good = bad.read_bytes()
    expected = prepare({"train": source.open()}, tmp_path / "plain", "photos", processes=1, shard_images=3)
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cow/3\.jpg"):
        prepare({"train": source.open()}, tmp_path / "beam", "photos", shard_images=3, run=beam)
    work = tmp_path / "beam" / "photos" / "incomplete.1.0.0"
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*00004") if (
        work / f"{path.name}.done.json").is_file()}
    assert kept
    bad.write_bytes(good)
    folder = prepare({"train": source.open()}, tmp_path / "beam", "photos", shard_images=3, run=beam)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    files = {path.relative_to(expected): path.read_bytes() for path in expected.rglob("*") if path.is_file()}
    ours = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert set(ours) == set(files)
    for name, content in files.items():
        assert ours[name] == content or name.name in ("source.json", "dataset_info.json"), name
    dataset = Tfds("photos", "train", str(tmp_path / "beam")).open()
    assert [e["id"] for e in dataset.read(range(12))] == [source.open().labels(i)[0] for i in range(12)]


def test_a_runner_that_cannot_be_started_is_one_line(tmp_path, monkeypatch):
    from apache_beam.runners import runner

    class Absent(runner.PipelineRunner):
        def run_pipeline(self, pipeline, options):
            raise RuntimeError("Unable to fetch the job server\nbecause there is no network")

    monkeypatch.setattr(runner, "create_runner", lambda name: Absent())
    with pytest.raises(UserError, match=r"^Beam's FlinkRunner failed \(RuntimeError: Unable to fetch the job server\)"):
        on_beam(abs, [(1,)], shared=str(tmp_path), runner="FlinkRunner")
    with pytest.raises(UserError, match="Beam cannot write to a name with any of"):
        on_beam(abs, [(1,)], shared="gs://b/*", runner="FlinkRunner")


def test_the_command_indexes_for_other_machines(tmp_path, cache, capsys, monkeypatch):
    class_folders(tmp_path / "photos")
    shared = tmp_path / "shared"
    arguments = ["data", "index", f"{tmp_path / 'photos'}:held_out=0", "--out", str(shared)]
    monkeypatch.setenv("BVL_CACHE", os.environ["BVL_CACHE"])  # is set by the command, and put back by this
    assert main([*arguments, "--runner", "DirectRunner"]) == 0
    printed = capsys.readouterr().out
    assert f"9 images with 9 labels are indexed in {shared}" in printed and f"BVL_SHARED={shared}" in printed
    (manifest,) = (shared / "manifests").iterdir()
    assert json.loads(manifest.read_bytes()[:-16])["images"] == 9 and not cache.exists()
    for wrong, message in ((["--runner", "NoSuchRunner"], "Beam has no runner 'NoSuchRunner'"),
                           (["--beam-options=--project=x"], "without a runner; add --runner")):
        for command in (arguments, ["data", "prepare", arguments[2], "--name=x", f"--data-dir={tmp_path}"]):
            capsys.readouterr()
            assert main([*command, *wrong]) == 2
            assert message in capsys.readouterr().err
