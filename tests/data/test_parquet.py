"""Parquet files: the same images and labels as in a folder, row groups read once, errors that name file and row."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_files import class_folders, jpeg

from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.sources import parquet
from big_vision_lite.data.sources.parquet import Parquet
from big_vision_lite.errors import BadImageError, UserError


def metadata(feature) -> dict:
    features = {"image": {"_type": "Image"}, "label": feature}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def write(path, images, labels, key="label", feature=None, rows=3):
    """A file as Hugging Face's library writes it."""
    table = pa.table({"image": [{"bytes": image, "path": None} for image in images], key: labels})
    pq.write_table(table.replace_schema_metadata(metadata(feature) if feature else None), path, row_group_size=rows)


CLASS_LABEL = {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}
LABELS = {
    "named numbers": (lambda labels: pa.array(labels, pa.int64()), CLASS_LABEL, None, False),
    "names": (lambda labels: [CLASS_LABEL["names"][label] for label in labels], None, None, False),
    "categories": (lambda labels: pa.array([CLASS_LABEL["names"][k] for k in labels]).dictionary_encode(), None, None,
                   False),
    "numbers": (lambda labels: pa.array(labels, pa.uint8()), None, ("ant", "bee", "cow"), False),
    "lists": (lambda labels: [[label] for label in labels], {"feature": CLASS_LABEL, "_type": "List"}, None, True),
    "lists, older": (lambda labels: [[label] for label in labels], [CLASS_LABEL], None, True),
    "lists of names": (lambda labels: [[CLASS_LABEL["names"][k]] * 2 for k in labels], None, None, True),
}


@pytest.mark.parametrize("kind", LABELS)
def test_examples_are_those_of_a_folder(tmp_path, kind):
    make, feature, classes, multi_label = LABELS[kind]
    folder = class_folders(tmp_path / "folder", 5).open()
    expected = folder.read(range(len(folder)))
    order = np.random.default_rng(0).permutation(len(expected))
    for file, part in enumerate(np.split(order, [7])):
        write(tmp_path / f"train-{file}-of-2.parquet", [expected[i]["image"] for i in part],
              make([int(expected[i]["labels"][0]) for i in part]), feature=feature)
    dataset = pickle.loads(pickle.dumps(Parquet(str(tmp_path), classes=classes).open()))
    assert (dataset.classes, dataset.multi_label) == (folder.classes, multi_label)
    ids = [*(f"train-0-of-2.parquet/{row}" for row in range(7)), *(f"train-1-of-2.parquet/{row}" for row in range(8))]
    shuffled, index_of = np.random.default_rng(1).permutation(len(ids)).tolist(), label_index(dataset).labels
    for index, example in zip(shuffled, dataset.read(shuffled), strict=True):
        stored = expected[order[index]]
        assert (example["id"], example["image"]) == (ids[index], stored["image"])
        assert example["labels"].tolist() == stored["labels"].tolist() == index_of.row(index).tolist()


def test_lists_hidden_labels_bytes_and_ids(tmp_path):
    images = [jpeg(seed=i) for i in range(4)]
    table = pa.table({"jpg": images, "tags": [[3, 1, 1], [], None, [-1, 2]], "key": ["a", "b", "c", "d"]})
    pq.write_table(table, tmp_path / "x.parquet")
    dataset = Parquet(str(tmp_path / "x.parquet"), label_key="tags", id_key="key").open()
    assert dataset.classes == ("0", "1", "2", "3")
    assert [dataset.labels(i)[0] for i in range(4)] == ["a", "b", "c", "d"]
    assert [e["labels"].tolist() for e in dataset.read(range(4))] == [[1, 3], [], [], [2]]
    assert [e["image"] for e in dataset.read(range(4))] == images


def test_splits_and_patterns(tmp_path):
    (tmp_path / "data").mkdir()
    for name, count in (("train-0-of-2", 3), ("train-1-of-2", 3), ("test-0-of-1", 2)):
        write(tmp_path / "data" / f"{name}.parquet", [jpeg()] * count, [0] * count)
    assert len(source_of(f"{tmp_path}:split=training").open()) == 6
    assert source_of(f"{tmp_path}/data/te*.parquet") == Parquet(f"{tmp_path}/data/te*.parquet")
    assert Parquet(f"{tmp_path}/data/te*.parquet").open().labels(1)[0] == "test-0-of-1.parquet/1"
    assert Parquet(str(tmp_path), "test").open().labels(1)[0] == "data/test-0-of-1.parquet/1"
    for source, message in (
        (Parquet(str(tmp_path)), "files of the splits test, train; expected split=train"),
        (Parquet(str(tmp_path), "val"), "no file of split 'val', only of test, train"),
        (Parquet(str(tmp_path), "tran"), "split is 'tran'; expected one of train, .*did you mean 'train'"),
        (Parquet(f"{tmp_path}/data/x*.parquet"), "there is no .parquet file at '.*x\\*.parquet'; expected"),
    ):
        with pytest.raises(UserError, match=message):
            source.open()


def test_bad_files(tmp_path):
    good, late = tmp_path / "train-0.parquet", tmp_path / "train-1.parquet"
    images = [jpeg(seed=i) for i in range(8)]
    write(good, images, [0, 1] * 4, feature=CLASS_LABEL)
    for labels, key, feature, message in (
        ([0, 1, 0, 1, 0, 3, 7, 1], "label", CLASS_LABEL, r"train-1.parquet row 5: label 3; expected 0 to 2, "
         r"because there are 3 classes \(2 such labels in this file\)"),
        ([0, 1, 0, -2, 0, 3, 7, 1], "label", CLASS_LABEL, r"train-1.parquet row 3: label -2; expected"),
        ([0, 1, 0, 2, 0, 10**9, 7, 1], "label", CLASS_LABEL, r"train-1.parquet row 5.*: label 1,000,000,000; expected"),
        ([0.5] * 8, "label", CLASS_LABEL, "labels are of type double; expected integers, texts, or lists"),
        ([0, 1] * 4, "lable", CLASS_LABEL, r"train-1.parquet has the columns image \(struct\), lable \(int64\); "
         "expected .* 'label'"),
        ([0, 1] * 4, "label", CLASS_LABEL | {"names": ["ant", "cow", "bee"]}, "train-1.parquet has other class names"),
        (["ant"] * 8, "label", CLASS_LABEL, r"train-0.parquet has numbers as labels, but .*train-1.* names"),
        ([[0], [1]] * 4, "label", CLASS_LABEL, "has images in .image.bytes. and lists of labels in .label., but"),
    ):
        write(late, images, labels, key, feature)
        with pytest.raises(UserError, match=message) as error:
            Parquet(str(tmp_path)).open()
        assert "\n" not in str(error.value)
    write(good, images, ["ant", "bee"] * 4)
    write(late, images, [*["bee"] * 7, "bea"])
    with pytest.raises(UserError, match=r"train-1.parquet row 7: there is no class 'bea'; did you mean 'bee'"):
        Parquet(str(tmp_path), classes=("ant", "bee")).open()
    whole = good.read_bytes()
    for content in (whole[:-100], b"", whole[:50] + whole[-50:], b"x" * 1000):
        good.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*train-0.parquet: .*; copy or download it again"):
            Parquet(str(tmp_path)).open()


def test_images_that_cannot_be_read_are_named(tmp_path):
    file = tmp_path / "x.parquet"
    images = [jpeg(seed=i) for i in range(9)]
    write(file, [*images[:8], None], [0] * 9)
    dataset = Parquet(str(file)).open()
    with pytest.raises(BadImageError, match=r"'x.parquet/8' cannot be read: its row in .*x.parquet has no bytes"):
        dataset[8]
    column = pq.read_metadata(file).row_group(1).column(0)
    data = bytearray(file.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    file.write_bytes(data)
    read = Parquet(str(file)).open().read(range(9))  # its labels are sound
    assert [i for i in range(9) if isinstance(read[i], BadImageError)] == [3, 4, 5, 8]
    assert "row group 1 is damaged" in str(read[4]) and read[6]["image"] == images[6]


def test_labels_are_read_once_per_file(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    made, make = [], parquet._index
    monkeypatch.setattr(parquet, "_index", lambda path, *more: made.append(path[-9:-8]) or make(path, *more))
    write(tmp_path / "1.parquet", [jpeg()] * 5, list("abcab"))
    before = Parquet(str(tmp_path)).open()
    assert Parquet(str(tmp_path)).open().fingerprint == before.fingerprint and made == ["1"]
    write(tmp_path / "2.parquet", [jpeg()] * 5, list("aabbd"))
    both = Parquet(str(tmp_path)).open()
    assert made == ["1", "2"] and both.classes == ("a", "b", "c", "d") and both.fingerprint != before.fingerprint
    expected = [both.labels(i)[1].tolist() for i in range(10)]
    stored = {path: path.read_bytes() for path in (tmp_path / "cache" / "parquet").iterdir()}
    for damage in (lambda data: data[:-1], lambda data: b"", lambda data: data[:99] + b"!" + data[100:]):
        for path, data in stored.items():
            path.write_bytes(damage(data))
        assert [Parquet(str(tmp_path)).open().labels(i)[1].tolist() for i in range(10)] == expected
    assert len(made) == 2 + 3 * 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "file" / "cache"))  # which cannot be written
    copy = pickle.loads(pickle.dumps(Parquet(str(tmp_path)).open()))
    assert [copy.labels(i)[1].tolist() for i in range(10)] == expected


def test_row_groups_are_read_once_and_few_are_kept(tmp_path, monkeypatch):
    images = [jpeg(seed=i) for i in range(40)]
    write(tmp_path / "x.parquet", images, [0] * 40, rows=4)
    dataset = Parquet(str(tmp_path)).open()
    groups, read = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group",
                        lambda self, group, *more, **how: groups.append(group) or read(self, group, *more, **how))
    monkeypatch.setattr(parquet, "CACHE_BYTES", 3 * 4 * max(map(len, images)))
    assert [e["image"] for e in dataset.read(np.random.default_rng(0).permutation(40).tolist())]
    assert groups == list(range(10))
    assert dataset.row_groups._bytes <= parquet.CACHE_BYTES and 2 <= len(dataset.row_groups._kept) <= 3
    groups.clear()
    assert [dataset[i]["image"] for i in range(40)] == images and groups == list(range(10))
    assert not dataset.notes
    monkeypatch.setattr(parquet, "LARGE_GROUP", 1000)
    assert "all of which is read for one image" in Parquet(str(tmp_path)).open().notes[0]
