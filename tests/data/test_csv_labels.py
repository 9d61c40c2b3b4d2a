"""CSV files: labels, splits and paths, and what is refused."""

import os

import pytest
from made_files import csv_table, jpeg

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
