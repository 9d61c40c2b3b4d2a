"""CSV files: labels, splits and paths, and what is refused."""

import os
import pickle
import random
import shutil

import numpy as np
import pytest
from made_files import csv_table, jpeg

from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.ragged import id_key
from big_vision_lite.data.sources.csv_table import CsvTable
from big_vision_lite.errors import UserError


def test_csv(tmp_path):
    text = 'path,labels,split\nx.jpg,red;apple,train\n"deep/y, z.jpg",,train\nw.jpg,apple,val\n'
    dataset = csv_table(tmp_path, text, split="train").open()
    assert dataset.classes == ("apple", "red") and dataset.multi_label and len(dataset) == 2
    assert dataset[0]["labels"].tolist() == [0, 1] and dataset[1]["id"] == "deep/y, z.jpg"
    assert dataset[1]["labels"].tolist() == [] and dataset[1]["image"] == jpeg(seed=1)
    absolute = csv_table(tmp_path, f"path, label\n{tmp_path}/deep/../x.jpg,red\n./w.jpg,apple\n").open()
    assert [absolute.labels(i)[0] for i in range(2)] == ["x.jpg", "w.jpg"]  # the same on every machine
    names = tmp_path / "names.txt"
    names.write_text("red\nblue\napple\n")
    single = csv_table(tmp_path, "path,label\nx.jpg,red\nw.jpg,apple\n", classes=str(names)).open()
    assert not single.multi_label and [e["labels"].tolist() for e in single.read(range(2))] == [[0], [2]]


@pytest.mark.parametrize(("text", "fields", "message"), [
    ("path,labels\nx.jpg,a\nnone.jpg,a\nnor.jpg,b\n", {}, r"line 3: there is no file .*none.jpg' \(2 are missing\)"),
    ("path,labels\nx.jpg,a\nw.jpg,a\n./x.jpg,b\n", {}, "line 4: 'x.jpg' is also in line 2"),
    ("path,labels,split\nx.jpg,a,val\nx.jpg,a,train\n", {"split": "val"}, "line 3: 'x.jpg' is also in line 2"),
    ("path,labels\nx.jpg,a\ndeep/y, z.jpg,a\n", {}, "line 3 has more values than columns"),
    ("path,labels\nx.jpg,\n", {}, "has no classes"),
    ("path,labels\nx.jpg,a\n", {"classes": ("a", "b", "a")}, "CsvLabels.classes has the class 'a' twice"),
    ("file,labels\nx.jpg,a\n", {}, "has the columns file, labels; expected path,labels"),
    ("path,labels\nx.jpg,a\n", {"split": "val"}, "expected path,labels,split"),
    ("path,labels,split\nx.jpg,a,train\n", {"split": "trian"}, "no rows of split 'trian'; did you mean 'train'"),
    ("path,labels\n", {}, "has no rows; expected path,labels"),
    ("path,labels\nx.jpg\n", {}, "line 2 has no path or no labels"),
    ("path,labels\nx.jpg,a;b\n", {"multi_label": False}, "line 2: 2 labels; expected one"),
    ("path,labels\nx.jpg,aple\n", {"classes": ("apple",)}, "line 2: there is no class 'aple'; did you mean 'apple'"),
    ("path,labels\n../x.jpg,a\n", {}, "line 2: '../x.jpg' leads out of its folder"),
    ("path,labels\n/etc/passwd,a\n", {}, "leads out of its folder"),
    ("path,labels\nx\0.jpg,a\n", {}, r"line 2: there is no file .*x\\x00.jpg"),
    ("path,labels\ndeep,a\n", {}, r"line 2: there is no file .*deep'"),
    ("path,labels,labels\nx.jpg,a,b\n", {}, "has the columns path, labels, labels; expected each once"),
    ('path,labels\n"x.jpg,"a\n', {}, "cannot read CsvLabels.file .*expected after"),
    ('path,labels\n"x.jpg",a\nw.jpg,"b\n', {}, "cannot read CsvLabels.file .*unexpected end of data"),
    ("path,labels\nx.jpg," + "a" * 200_000, {}, "cannot read CsvLabels.file .*field larger than field limit"),
])
def test_malformed_csv(tmp_path, text, fields, message):
    with pytest.raises(UserError, match=message):
        csv_table(tmp_path, text, **fields).open()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_a_csv_in_another_encoding(tmp_path, encoding):
    source = csv_table(tmp_path, "")
    (tmp_path / "labels.csv").write_bytes("path,labels\nx.jpg,kö\n".encode(encoding))
    with pytest.raises(UserError, match=r"cannot read CsvLabels.file .*in UTF-8|has the columns"):
        source.open()
    (tmp_path / "labels.csv").write_bytes("path,labels\nx.jpg,kö\n".encode("utf-8-sig"))
    assert source.open().classes == ("kö",)


def test_a_csv_that_is_a_pipe_and_a_name_that_only_looks_the_same(tmp_path):
    source = csv_table(tmp_path, "path,labels\ncaf\u00e9.jpg,a\n")
    (tmp_path / "cafe\u0301.jpg").write_bytes(jpeg())
    with pytest.raises(UserError, match=r"there is no file .* \(1 are missing\); there is 'cafe\\u0301.jpg', which"):
        source.open()
    (tmp_path / "labels.csv").unlink()
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(UserError, match=r"cannot read CsvLabels.file .*it is not a regular file; expected rows"):
        source.open()


FINGERPRINTS = {
    "path,labels\nx.jpg,red;apple\nw.jpg,apple\n": "e0847d5a4127427a",
    'path,labels,split\r\nx.jpg,red,train\r\n\r\n"deep/y, z.jpg", b;a;;b,val\r\n': "6e5c12c250e445ee",
    "path,label,more\nw.jpg,b,\n./x.jpg,a,1\n": "8e6050fbe3b4556d",
}  # in every version: a run is resumed on the same data only


@pytest.mark.parametrize("text", FINGERPRINTS)
def test_fingerprints_are_the_same_in_every_version(text, tmp_path):
    source = csv_table(tmp_path, "")
    (tmp_path / "labels.csv").write_bytes(text.encode())
    for name in ("x.jpg", "deep/y, z.jpg", "w.jpg"):
        (tmp_path / name).write_bytes(b"photo")
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    assert source.open().fingerprint == f"csv-{FINGERPRINTS[text]}-29de37aa8cfcdaa9"


def test_every_size_of_pieces_gives_the_same_columns(tmp_path, monkeypatch):
    rng = random.Random(0)
    names = [f"{rng.choice('abé')}{i}.jpg" for i in range(60)]
    labels = [rng.choice(("cat", " dog ;cat", "", "cat;cat", "a b;;dog;emu")) for _ in names]
    rows = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    rows[::7] = [f"./{row}" for row in rows[::7]]
    rows[40:40] = ["", ""]
    classes = ("a b", "cat", "dog", "emu")
    expected = [sorted({classes.index(name.strip()) for name in label.split(";") if name.strip()}) for label in labels]
    for quoted in (False, True):
        if quoted:
            rows[33] = '"' + rows[33].replace(",", '","') + '"'
        source = csv_table(tmp_path, "path,labels\n" + "\n".join(rows), check="none")
        fingerprints = set()
        for block, python_rows, piece in ((1 << 22, 1 << 16, 1 << 16), (9, 4, 7), (200, 1, 1)):
            monkeypatch.setattr("big_vision_lite.data.sources.csv_table.BLOCK", block)
            monkeypatch.setattr("big_vision_lite.data.sources.csv_table.ROWS", python_rows)
            monkeypatch.setattr("big_vision_lite.data.sources.csv_columns.PIECE", piece)
            monkeypatch.setenv("BVL_CACHE", str(tmp_path / f"{quoted} {block}"))
            dataset = source.open()
            assert dataset.classes == classes and dataset.multi_label
            assert [dataset.labels(i)[0] for i in range(len(dataset))] == names
            assert [dataset.labels(i)[1].tolist() for i in range(len(dataset))] == expected
            index = label_index(dataset)
            assert index.keys.tolist() == [id_key(name) for name in names] and index.labels.values.dtype == np.int32
            fingerprints.add(dataset.fingerprint)
        assert len(fingerprints) == 1


def test_lines_are_those_of_the_file_wherever_rows_begin(tmp_path, monkeypatch):
    monkeypatch.setattr("big_vision_lite.data.sources.csv_table.BLOCK", 8)
    text = 'path,labels,split\nx.jpg,a,val\n\nw.jpg,b,"tr\nain"\n\nnone.jpg,a,val\n'
    for split in ("val", None):
        with pytest.raises(UserError, match=r"line 7: there is no file .*none.jpg"):
            csv_table(tmp_path, text, split=split).open()


def test_only_files_that_are_checked_are_missed(tmp_path, monkeypatch):
    monkeypatch.setattr("big_vision_lite.data.sources.csv_labels.SAMPLE", 3)
    text = "path,labels\n" + "".join(f"{i}.jpg,a\n" for i in range(5))
    every, sample, none = (csv_table(tmp_path, text, check=check) for check in ("all", "sample", "none"))
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg())
    prints = {source.check: source.open().fingerprint for source in (every, sample, none)}
    assert len({*prints.values()}) == 3
    (tmp_path / "1.jpg").unlink()  # the sample has 0, 2 and 4
    with pytest.raises(UserError, match=r"line 3: there is no file .*1.jpg"):
        every.open()
    assert [s.open().fingerprint for s in (sample, none)] == [prints["sample"], prints["none"]]
    (tmp_path / "2.jpg").write_bytes(b"another")
    assert sample.open().fingerprint != prints["sample"]
    (tmp_path / "4.jpg").unlink()
    with pytest.raises(UserError, match=r"line 6: there is no file .*4.jpg' \(1 are missing\)"):
        sample.open()
    assert none.open().fingerprint == prints["none"]
    with pytest.raises(UserError, match=r"check='none' with fingerprint='content'.*expected check='all'"):
        csv_table(tmp_path, text, check="none", fingerprint="content").open()


def test_an_unchanged_file_is_read_once_and_workers_map_the_same_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    source = csv_table(tmp_path, "path,labels\n" + "".join(f"{i}.jpg,{i % 3}\n" for i in range(3000)), check="none")
    dataset = source.open()
    assert len(pickle.dumps(dataset)) < 1000
    with monkeypatch.context() as patched:
        patched.setattr(CsvTable, "batches", None)  # reading it would fail
        again = source.open()
        copy = pickle.loads(pickle.dumps(again))
    (cached,) = (tmp_path / "cache" / "csv").iterdir()
    cached.write_bytes(cached.read_bytes()[:-9])
    repaired = source.open()
    shutil.rmtree(tmp_path / "cache")
    for other in (again, copy, repaired, pickle.loads(pickle.dumps(again))):
        assert other.fingerprint == dataset.fingerprint
        assert [other.labels(i)[0] for i in (0, 2999)] == ["0.jpg", "2999.jpg"] and other.labels(2)[1].tolist() == [2]
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("new.jpg,1\n")
    assert len(source.open()) == 3001
