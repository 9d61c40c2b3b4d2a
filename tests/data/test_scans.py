"""Labels of many images are columns, made once and read by all machines; large scans have to be asked for."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from made_files import class_folders, jpeg, tars

from big_vision_lite.data import scans
from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.curation.steps import ClassSubset, NestedSubset, curated
from big_vision_lite.data.sources.csv_labels import CsvLabels
from big_vision_lite.data.sources.mixture import Mixture
from big_vision_lite.data.sources.parquet import Parquet
from big_vision_lite.data.sources.web_dataset import WebDataset
from big_vision_lite.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def parquet(folder, name="train-0.parquet", ids=False):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    table = {"image": [jpeg()] * 4, "labels": [["ant"], [], ["cow", "bee"], ["bee", "bee"]]}
    pq.write_table(pa.table(table | ({"key": ["a", "b", "c", "é"]} if ids else {})), folder / name)
    return Parquet(str(folder), id_key="key" if ids else None, classes=("cow", "bee", "ant"))


def web(folder, count=3):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        with tarfile.open(folder / f"{number:03}.tar", "w") as tar:
            for name in ("ant", "bee", "cow"):
                for file, data in ((f"{name}.jpg", b"no pixels"), (f"{name}.cls", name.encode())):
                    info = tarfile.TarInfo(file)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return WebDataset(str(folder), classes=("cow", "bee", "ant"))


def csv(folder):
    folder.mkdir(exist_ok=True)
    (folder / "x.csv").write_text("path,labels\n" + "".join(f"{k}.jpg,bee;cow\n" for k in range(5)))
    return CsvLabels(str(folder / "x.csv"), check="none", classes=("cow", "bee", "ant"))


SOURCES = {
    "folder": class_folders, "tar": tars, "parquet": parquet, "ids": lambda f: parquet(f, ids=True), "web": web,
    "mixture": lambda f: Mixture((web(f), csv(f / "csv"))),
    "named": lambda f: Mixture((web(f), parquet(f / "p"), csv(f / "csv")), names=("w", "p", "c")),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_columns_are_the_labels_read_one_by_one(make, tmp_path, cache, monkeypatch):
    dataset = make(tmp_path / "data").open()
    expected = [dataset.labels(i) for i in range(len(dataset))]
    monkeypatch.setattr("big_vision_lite.data.curation.label_index._scan", None)  # calling it would fail
    for _ in range(2):  # made, and read
        index = label_index(dataset)
        assert [index.id(i) for i in range(len(index))] == [id_ for id_, _ in expected]
        for i, (_, labels) in enumerate(expected):
            np.testing.assert_array_equal(index.labels.row(i), labels)
    assert (cache / "label_index").is_dir()


def test_a_large_scan_has_to_be_asked_for(tmp_path, cache, monkeypatch):
    from made_datasets import Simulated

    monkeypatch.setattr("big_vision_lite.data.curation.label_index.MAX_EXAMPLES", 100)
    monkeypatch.setattr("big_vision_lite.data.sources.web_dataset.MAX_TAR_BYTES", 1000)
    monkeypatch.setattr("big_vision_lite.data.sources.csv_labels.MAX_CSV_BYTES", 10)
    for start in (lambda: manifest(Simulated(101)), web(tmp_path / "web").open, csv(tmp_path / "csv").open):
        with pytest.raises(UserError, match=r"has no index in .*cache, or has changed .*`bvl data index SOURCE --out"):
            start()
        with scans.indexing():
            start()
        start()
    label_index(Simulated(100))
    (tmp_path / "csv" / "x.csv").write_text("path,labels\n" + "".join(f"{k}.jpg,ant\n" for k in range(50)))
    with pytest.raises(UserError, match=r"x\.csv has no index in .*or has changed since it was indexed"):
        csv_again = CsvLabels(str(tmp_path / "csv" / "x.csv"), check="none")
        csv_again.open()


HOST = """
import json, os, sys
opened = []
sys.addaudithook(lambda name, args: opened.append(str(args[0])) if name == "open" else None)
from big_vision_lite.data.curation.steps import ClassSubset, NestedSubset, curated
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.sources.web_dataset import WebDataset
from big_vision_lite.data.curation import stored
stored.LARGE = 10
data = curated(WebDataset({folder!r}, classes=("cow", "bee", "ant")).open(), (ClassSubset(2), NestedSubset(20)))
counted = manifest(data)
print(json.dumps([len([name for name in opened if name.startswith({root!r})]), counted, data.labels(3)[0]]))
"""


@pytest.mark.parametrize("count", [70, 140])
def test_each_process_of_a_run_opens_as_many_files_whatever_the_size(count, tmp_path, monkeypatch):
    monkeypatch.setattr("big_vision_lite.data.curation.stored.LARGE", 10)
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "shared"))
    source = web(tmp_path / "data", count)
    data = curated(source.open(), (ClassSubset(2), NestedSubset(20)))
    expected = manifest(data)
    for host in range(2):
        environment = os.environ | {"BVL_CACHE": str(tmp_path / f"cache{host}"), "BVL_SHARED": str(tmp_path / "shared")}
        code = HOST.format(folder=str(tmp_path / "data"), root=str(tmp_path))
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        opened, counted, id_ = json.loads(done.stdout)
        assert counted == expected and id_ == data.labels(3)[0]
        assert opened <= 16  # and none per shard
        assert not (tmp_path / f"cache{host}").exists()


def test_a_file_that_is_gone_is_named_where_the_others_say_that_it_was(tmp_path, cache):
    source = parquet(tmp_path / "data", "train-00000-of-00003.parquet")
    parquet(tmp_path / "data", "train-00002-of-00003.parquet")
    parquet(tmp_path / "data", "test-0-of-1.parquet")
    with pytest.raises(UserError, match=r"'train-00001-of-00003\.parquet' is missing \(1 of 3 files are\)"):
        dataclasses.replace(source, split="train").open()
    assert len(dataclasses.replace(source, split="test").open()) == 4
    assert len(dataclasses.replace(source, path=f"{source.path}/train-*.parquet").open()) == 8


def test_the_index_of_a_file_that_is_gone_or_damaged_is_noticed_when_it_is_used(tmp_path, cache):
    source = web(tmp_path / "data", 70)
    expected = source.open().labels(100)
    dataset = source.open()
    for path in (cache / "web_dataset").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="the index of a file of the dataset, is missing or damaged; remove it"):
        dataset.labels(100)
    for path in (cache / "web_dataset").glob("*.arrow"):
        path.unlink()
    assert source.open().labels(100)[0] == expected[0]
