"""Shards of a WebDataset: the same images and labels as in a folder, one index per shard, and errors that name both."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from made_files import class_folders, jpeg, tars

from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.sources import web_dataset
from big_vision_lite.data.sources.tar_images import TarImages
from big_vision_lite.data.sources.web_dataset import WebDataset
from big_vision_lite.errors import BadImageError, UserError

NAMES = ("ant", "bee", "cow")


def write(path, *files: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def shard(path, *seeds_and_labels, label=lambda label: ("cls", str(label).encode())):
    """Examples 000.jpg and 000.cls, 001.jpg ..."""
    write(path, *(file for at, (seed, of) in enumerate(seeds_and_labels)
                  for file in ((f"{at:03}.jpg", jpeg(seed=seed)), (f"{at:03}.{label(of)[0]}", label(of)[1]))))


def in_json(value):
    return "json", json.dumps({"url": "https://x", "tags": value}).encode()


@pytest.mark.parametrize(("label", "fields", "multi_label"), [
    (lambda k: ("cls", b"%d\n" % k), {"classes": NAMES}, False),
    (lambda k: ("cls", NAMES[k].encode()), {}, False),
    (lambda k: in_json(k), {"classes": NAMES, "label_key": "tags"}, False),
    (lambda k: in_json([NAMES[k], NAMES[k]]), {"label_key": "tags", "multi_label": True}, True),
])
def test_examples_are_those_of_a_folder(tmp_path, label, fields, multi_label):
    folder = class_folders(tmp_path / "folder", 5).open()
    expected = folder.read(range(len(folder)))
    order = np.random.default_rng(0).permutation(len(expected))
    ids = []
    for number, part in enumerate(np.split(order, [4, 9])):
        files = []
        for i in part:
            key = f"deep/{i}"
            kind, text = label(int(expected[i]["labels"][0]))
            files += [(f"./{key}.{kind}", text), (f"./{key}.jpg", expected[i]["image"]), (f"./{key}.seg.png", b"")]
            ids.append(f"train-{number}.tar/{key}.jpg")
        write(tmp_path / f"train-{number}.tar", *files)
    dataset = pickle.loads(pickle.dumps(WebDataset(str(tmp_path), "train", **fields).open()))
    assert (dataset.classes, dataset.multi_label) == (folder.classes, multi_label)
    shuffled, index_of = np.random.default_rng(1).permutation(len(ids)).tolist(), label_index(dataset).labels
    for index, example in zip(shuffled, dataset.read(shuffled), strict=True):
        stored = expected[order[index]]
        assert (example["id"], example["image"]) == (ids[index], stored["image"])
        assert example["labels"].tolist() == stored["labels"].tolist() == index_of.row(index).tolist()


def test_any_number_of_labels(tmp_path):
    shard(tmp_path / "0.tar", *enumerate(([2, 0, 2], [], None, -1, 3)), label=in_json)
    dataset = WebDataset(str(tmp_path), label_key="tags").open()
    assert (dataset.classes, dataset.multi_label) == (("0", "1", "2", "3"), True)
    assert [dataset.labels(i)[1].tolist() for i in range(5)] == [[0, 2], [], [], [], [3]]


def test_shards_are_recognised_by_their_first_example(tmp_path):
    for name, label in (("train-0", lambda k: ("cls", b"%d" % k)), ("test-0", lambda k: ("cls", b"%d" % k)),
                        ("json", lambda k: ("json", b'{"label": %d}' % k)), ("text", lambda k: ("txt", b"a cat"))):
        shard(tmp_path / f"{name}.tar", (0, 0), (1, 1), label=label)
    (tmp_path / "tars").mkdir()
    tars(tmp_path / "tars")
    for spec, source in ((f"{tmp_path}:split=train", WebDataset(str(tmp_path), "train", "label")),
                         (f"{tmp_path}/t*-*.tar", WebDataset(f"{tmp_path}/t*-*.tar")),
                         (f"{tmp_path}/text.tar", TarImages(f"{tmp_path}/text.tar")),
                         (f"{tmp_path}/tars", TarImages(f"{tmp_path}/tars"))):
        assert source_of(spec) == source


def test_bad_shards(tmp_path):
    good, late = tmp_path / "0.tar", tmp_path / "1.tar"
    shard(good, (0, 0), (1, 1))
    for files, message in (
        ([("a.jpg", jpeg()), ("b.cls", b"1")], r"1.tar: 'a.jpg' has no a.cls with its labels; expected one"),
        ([("a.jpg", jpeg()), ("a.cls", b"1"), ("a.png", jpeg())], "1.tar has both 'a.jpg' and 'a.png' at byte"),
        ([("a.jpg", jpeg()), ("a.cls", b"-1")], "1.tar: 'a.cls' has the class '-1'; expected a number from 0 on"),
        ([("a.jpg", jpeg()), ("a.cls", b"cat")], ".*/0.tar has numbers as labels, but .*/1.tar has names"),
        ([("a.jpg", jpeg()), ("a.cls", b"1"), ("b.jpg", jpeg()), ("b.cls", b"cat")],
         "1.tar: the label of 'a.jpg' is a number, but that of 'b.jpg' a name"),
        ([("a.jpg", jpeg()), ("a.cls", b"1"), ("b.jpg", jpeg()), ("b.cls", b"7"), ("c.jpg", jpeg()), ("c.cls", b"3")],
         r"1.tar: 'b.jpg': label 7; expected 0 to 1, because there are 2 classes \(2 such labels in this file\)"),
        ([("a.txt", b"")], "1.tar has no images; expected KEY.jpg and KEY.cls"),
    ):
        write(late, *files)
        with pytest.raises(UserError, match=message) as error:
            WebDataset(str(tmp_path), classes=("ant", "bee")).open()
        assert "\n" not in str(error.value)
    late.unlink()
    with pytest.raises(UserError, match=r"0.tar: '000.jpg' has no 000.json with its labels; .* another .*label_key"):
        WebDataset(str(tmp_path), label_key="label").open()
    for value, message in (([2.5], "has 2.5 as 'tags'; expected a number"), (True, "has True as 'tags'"),
                           (10**30, "expected a number from 0 to 999,999"), ([1, 2], "has 2 labels; expected one")):
        shard(good, (0, 0), (1, value), label=in_json)
        with pytest.raises(UserError, match=message):
            WebDataset(str(tmp_path), label_key="tags", multi_label=False).open()
    with pytest.raises(UserError, match=r"0.tar: '000.json' has no 'tgas'; did you mean 'tags'"):
        WebDataset(str(tmp_path), label_key="tgas").open()


def test_a_truncated_shard_and_the_rest_of_the_scan(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    scanned, scan = [], web_dataset._scan
    monkeypatch.setattr(web_dataset, "_scan", lambda file, key: scanned.append(file[-5]) or scan(file, key))
    for number in range(3):
        shard(tmp_path / f"{number}.tar", *((10 * number + i, i % 2) for i in range(4)))
    whole = (tmp_path / "2.tar").read_bytes()
    for content, message in ((whole[:1000], r"2.tar is truncated: '000.jpg' ends at byte"),
                             (whole[:2000], "2.tar is damaged or truncated: its list of members ends at byte 1,536"),
                             (b"\x1f\x8b" + whole, "2.tar is compressed")):
        (tmp_path / "2.tar").write_bytes(content)
        with pytest.raises(UserError, match=message):
            WebDataset(str(tmp_path)).open()
    (tmp_path / "2.tar").write_bytes(whole)
    dataset = WebDataset(str(tmp_path)).open()
    assert sorted(scanned) == ["0", "1", *"2222"]  # the others only once
    assert [e["image"] for e in dataset.read(range(12))] == [jpeg(seed=10 * (i // 4) + i % 4) for i in range(12)]
    (tmp_path / "2.tar").write_bytes(whole[:1000])
    with pytest.raises(BadImageError, match=r"'2.tar/003.jpg' cannot be read: .*/2.tar is shorter than when it was"):
        dataset[11]


def test_an_index_beside_a_shard_must_fit_it(tmp_path, monkeypatch):
    first, second = tmp_path / "0.tar", tmp_path / "1.tar"
    for file, seed in ((first, 0), (second, 5)):
        write(file, ("a.jpg", jpeg(seed=seed)[:600]), ("a.cls", b"%d" % (seed > 0)))
    assert first.stat().st_size == second.stat().st_size
    before = WebDataset(str(tmp_path), index_beside=True).open()
    index, other = first.with_name("0.tar.index"), second.with_name("1.tar.index")
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "another machine"))
    with monkeypatch.context() as patch:
        patch.setattr(web_dataset, "_scan", None)
        again = WebDataset(str(tmp_path)).open()
    assert again.fingerprint == before.fingerprint and again.labels(1)[1].tolist() == [1]
    whole, swapped = index.read_bytes(), other.read_bytes()
    shard(tmp_path / "larger.tar", *((i, 0) for i in range(9)))
    larger = first.read_bytes(), (tmp_path / "larger.tar").read_bytes()
    (tmp_path / "larger.tar").unlink()
    for content, tar, message in ((swapped, larger[0], r"0.tar.index is of another tar file than .*/0.tar; remove it"),
                                  (whole, larger[1], r"0.tar.index is of a tar file of 10,240 bytes, but .*/0.tar has"),
                                  (whole[:-9], larger[0], r"0.tar.index is damaged or of another version; remove it")):
        index.write_bytes(content)
        first.write_bytes(tar)
        with pytest.raises(UserError, match=message):
            WebDataset(str(tmp_path)).open()
    index.write_bytes(whole)
    with pytest.raises(UserError, match=r"has labels from 'cls', but WebDataset.label_key is 'label'"):
        WebDataset(str(tmp_path), label_key="label").open()
