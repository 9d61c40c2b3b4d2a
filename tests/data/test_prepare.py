"""Sources written as TFDS datasets, also when interrupted."""

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_files import CountsPickling, coco, csv_table, jpeg, tars, voc
from PIL import Image

from big_vision_lite.cli import main
from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.curation.steps import NestedSubset, curated
from big_vision_lite.data.decode import decode
from big_vision_lite.data.ragged import id_key
from big_vision_lite.data.source import Dataset
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.tools.prepare import prepare
from big_vision_lite.errors import BadImageError, UserError


def assert_equal(prepared, source):
    assert (len(prepared), prepared.classes, prepared.multi_label) == (len(source), source.classes, source.multi_label)
    for i in range(len(source)):
        a, b = prepared[i], source[i]
        assert a["id"] == b["id"] and a["image"] == b["image"] and a["labels"].tolist() == b["labels"].tolist()
        assert a.get("image_id") == b.get("image_id")
        for key in ("boxes", "box_labels", "crowd", "difficult", "area", "visible"):
            if key in b:
                assert a[key].dtype == b[key].dtype
                np.testing.assert_array_equal(a[key], b[key], err_msg=key)
            else:
                assert key not in a
        if "instance_mask" in b:
            np.testing.assert_array_equal(decode(a["instance_mask"])[..., 0], b["instance_mask"])


@pytest.mark.parametrize("make", [coco, voc, tars, lambda f: csv_table(f, "path,labels\nx.jpg,a;b\nw.jpg,\n"),
                                  lambda f: EmojiScenes("train", 6, size=32, classes=9)],
                         ids=["coco", "voc", "tar", "csv", "emoji"])
def test_prepared_examples_equal_the_source(make, tmp_path):
    (tmp_path / "source").mkdir()
    dataset = make(tmp_path / "source").open()
    splits = {"train": dataset, "half": curated(dataset, [NestedSubset(1)])}
    folder = prepare(splits, tmp_path, "mine", processes=1, shard_images=2)
    assert prepare(splits, tmp_path, "mine", shard_images=2) == folder  # again: nothing to do
    prepared = Tfds("mine", "train", str(tmp_path)).open()
    assert_equal(prepared, dataset)
    assert len(list(folder.glob("mine-train.array_record*"))) == -(-len(dataset) // 2)
    with pytest.raises(UserError, match=r"from another source.*; choose a name other than 'mine'"):
        prepare({"train": dataset}, tmp_path, "mine")


def masks(folder):
    for name, save in (("images", Image.new("RGB", (8, 6), "red")), ("masks", Image.new("L", (8, 6), 1))):
        (folder / name).mkdir()
        for i in range(3):
            save.save(folder / name / f"{i}.png")


def photos(folder, count=40):
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / name / f"{i}.jpg").write_bytes(jpeg(seed=i))
    return ImageFolder(str(folder), held_out=0)


def test_other_formats_become_png_and_bad_images_are_named_or_skipped(tmp_path):
    source = photos(tmp_path / "photos", 3)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "ant" / "0.webp", lossless=True)
    (tmp_path / "photos" / "bee" / "1.jpg").write_bytes(b"\xff\xd8 cut")
    with pytest.raises(BadImageError, match=r"bee/1.jpg"):
        prepare({"train": source.open()}, tmp_path, "mine", processes=1)
    assert not (tmp_path / "mine" / "1.0.0").exists()
    folder = prepare({"train": source.open()}, tmp_path, "mine", processes=1, on_bad_image="skip")
    dataset = Tfds("mine", "train", str(tmp_path)).open()
    assert len(dataset) == 6 and "bee/1.jpg" in (folder / "bad_images.txt").read_text()
    webp = next(dataset[i] for i in range(6) if dataset.labels(i)[0].endswith("webp"))
    assert webp["image"][:4] == b"\x89PNG"
    np.testing.assert_array_equal(decode(webp["image"]), pixels)


KILLED = """
import sys
from pathlib import Path
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.tools.prepare import prepare
if __name__ == "__main__":
    splits = {"train": ImageFolder(sys.argv[1], held_out=0).open()}
    prepare(splits, Path(sys.argv[2]), "mine", processes=2, shard_images=5)
"""


def test_a_killed_preparation_resumes(tmp_path):
    source = photos(tmp_path / "photos", 400)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "photos"), str(tmp_path / "killed")])
    work = tmp_path / "killed" / "mine" / "incomplete.1.0.0"
    while len(list(work.glob("*.done.json"))) < 20:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # its workers exit when they notice
    done = {path: path.stat().st_mtime_ns for path in work.glob("*array_record*") if (
        work / f"{path.name}.done.json").exists()}
    assert 20 <= len(done) < 160 and not (tmp_path / "killed" / "mine" / "1.0.0").exists()
    damaged = min(done)  # as after a power failure: finished, but only half reached the disk
    os.truncate(damaged, damaged.stat().st_size // 2)
    del done[damaged]
    folder = prepare({"train": source.open()}, tmp_path / "killed", "mine", processes=1, shard_images=5)
    whole = prepare({"train": source.open()}, tmp_path / "whole", "mine", processes=1, shard_images=5)
    assert all((folder / path.name).stat().st_mtime_ns == time_ for path, time_ in done.items())  # not rewritten
    assert files_in(folder) == files_in(whole)
    assert_equal(Tfds("mine", "train", str(tmp_path / "whole")).open(), source.open())


@dataclasses.dataclass(eq=False)
class Given(Dataset):
    """Images with given ids and labels; labels of None stand for an image that cannot be read."""

    given: dict
    classes: tuple = ("ant", "bee")
    more: dict = dataclasses.field(default_factory=dict)
    multi_label = False

    @property
    def fingerprint(self) -> str:
        return f"{self.given} {self.classes}"

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        id_, labels = list(self.given.items())[index]
        if labels is None:
            raise BadImageError(id_, "gone")
        return {"id": id_, "image": jpeg(seed=index), "labels": np.array(labels, np.int32)} | self.more


def finished_shards(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*array_record-0000?-of-0000?")
            if Path(f"{path}.done.json").exists()}


def test_a_preparation_goes_on_after_its_bad_image_was_mended(tmp_path):
    """Shards whose images are the same are kept; those with a changed image are written again."""
    source, shown = photos(tmp_path / "photos", 6), {"processes": 1, "shard_images": 2}
    bad = tmp_path / "photos" / "bee" / "5.jpg"
    good = bad.read_bytes()
    bad.write_bytes(b"\xff\xd8 cut")
    with pytest.raises(BadImageError, match=r"bee/5.jpg"):
        prepare({"train": source.open()}, tmp_path, "mine", **shown)
    work = tmp_path / "mine" / "incomplete.1.0.0"
    before = finished_shards(work)
    assert len(before) == 5
    bad.write_bytes(good)
    changed = tmp_path / "photos" / "ant" / "3.jpg"  # in a finished shard, the second, and as large as before
    changed.write_bytes(jpeg(seed=3).replace(b"\xff\xd9", b"\xff\xd8"))
    folder = prepare({"train": source.open()}, tmp_path, "mine", **shown)
    kept = {name for name, time_ in before.items() if (folder / name).stat().st_mtime_ns == time_}
    assert kept == before.keys() - {"mine-train.array_record-00001-of-00006"}
    assert_equal(Tfds("mine", "train", str(tmp_path)).open(), source.open())
    assert not list(folder.glob("*.done.json"))


def test_only_what_was_written_makes_it_another_source(tmp_path):
    dataset = Given({f"{i}.jpg": [0] for i in range(6)} | {"bad.jpg": None})
    with pytest.raises(BadImageError):
        prepare({"train": dataset}, tmp_path, "mine", processes=1, shard_images=3)
    work = tmp_path / "mine" / "incomplete.1.0.0"
    before = finished_shards(work)
    assert len(before) == 2
    other = Given({f"other/{i}.jpg": [0] for i in range(7)})
    for splits, shard_images in (({"train": other}, 3), ({"test": dataset}, 3), ({"train": dataset}, 2)):
        with pytest.raises(UserError, match=r"is an unfinished preparation of another source; remove it, or choose"):
            prepare(splits, tmp_path, "mine", processes=1, on_bad_image="skip", shard_images=shard_images)
        assert finished_shards(work) == before  # nothing is lost
    for damaged in ("mine-train.array_record-00000-of-00003", "mine-train.array_record-00001-of-00003.done.json"):
        (work / damaged).write_bytes(b"\xff{")  # says nothing about the source
    (work / "mine-train.array_record-00009-of-00010").write_bytes(b"left over")
    folder = prepare({"train": other}, tmp_path, "mine", processes=1, shard_images=3)
    assert_equal(Tfds("mine", "train", str(tmp_path)).open(), other)
    assert len(list(folder.glob("mine-train*"))) == 3
    (folder / "source.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match=r"cannot read .*source.json: .*; choose a name other than 'mine'"):
        prepare({"train": other}, tmp_path, "mine", processes=1, shard_images=3)


def test_unreadable_first_images_hidden_labels_and_odd_names(tmp_path):
    not_utf8 = os.fsdecode(b"\xff.jpg")
    dataset = Given({"first.jpg": None, "hidden.jpg": [], not_utf8: [1]})
    with pytest.raises(BadImageError, match=r"'first.jpg' cannot be read: gone"):
        prepare({"train": dataset}, tmp_path, "mine", processes=1, shard_images=1)
    prepare({"train": dataset}, tmp_path, "mine", processes=1, on_bad_image="skip", shard_images=1)
    prepared = Tfds("mine", "train", str(tmp_path)).open()
    assert [(id_, labels.tolist()) for id_, labels in map(prepared.labels, range(2))] == [
        ("hidden.jpg", []), (not_utf8, [1])]
    other = Given(dataset.given | {not_utf8: [0]})  # as many bytes, but different data
    prepare({"train": other}, tmp_path / "other", "mine", processes=1, on_bad_image="skip", shard_images=1)
    assert Tfds("mine", "train", str(tmp_path / "other")).open().fingerprint != prepared.fingerprint


def test_copies_of_a_source_are_prepared_as_the_same_data(tmp_path):
    """Although their times differ, and with them the fingerprints of the folders."""
    folders = [tmp_path / "photos", tmp_path / "copy"]
    photos(folders[0], 2)
    shutil.copytree(*folders, copy_function=shutil.copy)
    opened = []
    for folder in folders:
        prepare({"train": ImageFolder(str(folder), held_out=0).open()}, folder / "tfds", "mine", processes=1)
        opened.append(Tfds("mine", "train", str(folder / "tfds")).open())
    assert opened[0].fingerprint == opened[1].fingerprint
    os.remove(folders[1] / "tfds" / "mine" / "1.0.0" / "content.json")  # as in older folders
    assert Tfds("mine", "train", str(folders[1] / "tfds")).open().fingerprint != opened[0].fingerprint


def test_images_skipped_before_an_interruption_are_not_lost_silently(tmp_path):
    dataset = Given({"a.jpg": [0], "gone.jpg": None, "b.jpg": [0, 1]})
    with pytest.raises(UserError, match=r"'b.jpg' has 2 labels"):
        prepare({"train": dataset}, tmp_path, "mine", processes=1, on_bad_image="skip", shard_images=2)
    assert len(list((tmp_path / "mine" / "incomplete.1.0.0").glob("*.done.json"))) == 1  # without gone.jpg
    with pytest.raises(BadImageError, match=r"'gone.jpg'"):
        prepare({"train": dataset}, tmp_path, "mine", processes=1, shard_images=2)


@pytest.mark.parametrize(("dataset", "fields", "message"), [
    ({}, {"data_dir": Path("gs://bucket/data")}, r"gs://bucket/data, but datasets are written to local folders"),
    ({}, {"name": "my-photos"}, "dataset name 'my-photos' is invalid"),
    ({}, {"on_bad_image": "skp"}, "on_bad_image is 'skp'; did you mean 'skip'"),
    ({}, {"split": "train[:10%]"}, r"split name 'train\[:10%\]' is invalid"),
    ({}, {"split": "all"}, "split name 'all' is invalid; .*reserves for all splits"),
    ({"classes": ("ant", "ant")}, {}, "class 'ant' cannot be stored; expected unique names"),
    ({"classes": ("ant ", "bee")}, {}, "class 'ant ' cannot be stored"),
    ({"classes": ("ant\nbee", "cat")}, {}, r"class 'ant\\nbee' cannot be stored"),
    ({"given": {"x.jpg": [0], "y.jpg": [2]}}, {}, "example 'y.jpg' cannot be stored: .* 2 greater"),
    ({"given": {"x.jpg": [0, 1]}}, {}, "example 'x.jpg' has 2 labels, but the source has one label per image"),
    ({"more": {"boxes": np.float32([[0, 0, 2, 1]]), "box_labels": np.int32([0])}}, {},
     "example 'x.jpg' cannot be stored: .*BBox coordinates should be between 0 and 1"),
])
def test_what_cannot_be_stored_is_named(dataset, fields, message, tmp_path):
    fields = {"split": "train", "data_dir": tmp_path, "name": "mine", "processes": 1} | fields
    with pytest.raises(UserError, match=message) as error:
        prepare({fields.pop("split"): Given(**{"given": {"x.jpg": [0]}} | dataset)}, **fields)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*/1.0.0")) and not Path("gs:").exists()


def test_a_full_disk(tmp_path):
    dataset = Given({f"{i}.jpg": [0] for i in range(40)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a limit on the size of any file
    try:
        with pytest.raises(UserError, match=r"cannot write dataset mine in .*File too large.*make room there and"):
            prepare({"train": dataset}, tmp_path, "mine", processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    prepare({"train": dataset}, tmp_path, "mine", processes=1)
    assert_equal(Tfds("mine", "train", str(tmp_path)).open(), dataset)


def test_a_dataset_is_pickled_once_and_not_for_each_shard(tmp_path):
    plain = photos(tmp_path / "photos", 20).open()
    dataset = CountsPickling(**vars(plain))
    folder = prepare({"train": dataset}, tmp_path, "mine", processes=2, shard_images=2)
    assert len(list(folder.glob("mine-train*"))) == 20 and CountsPickling.pickled == 1
    assert {p.name for p in folder.iterdir() if p.name.startswith(".")} == set()
    assert_equal(Tfds("mine", "train", str(tmp_path)).open(), plain)


@pytest.mark.parametrize(("make", "field"), [
    (tars, ""), (tars, ":split=all"), (masks, ":split=all"),
    (lambda folder: csv_table(folder, "path,labels,split\nx.jpg,a,all\nw.jpg,b,all\n"), ":split=all"),
    (lambda folder: csv_table(folder, "path,labels\nx.jpg,a\nw.jpg,b\n"), ""),
    (lambda folder: (voc(folder), (folder / "ImageSets/Main/all.txt").write_text("a\nb\n")), ":split=all"),
    (coco, ":images={folder}/images"),
], ids=["tars", "tars-all", "masks-all", "csv-all", "csv", "voc-all", "coco"])
def test_all_images_of_every_source_are_stored_as_train(make, field, tmp_path, capsys):
    """TFDS reserves the split name "all" for all splits together."""
    folder = tmp_path / "source"
    folder.mkdir()
    make(folder)
    path = next((file for file in (*folder.glob("*.csv"), *folder.glob("*.json"))), folder)
    spec = f"{path}{field.format(folder=folder)}"
    assert main(["data", "prepare", spec, "--name", "mine", "--data-dir", str(tmp_path), "--processes", "1"]) == 0
    assert "with train" in capsys.readouterr().out
    source = source_of(spec).open()
    for split in ("train", "all"):
        assert_equal(Tfds("mine", split, str(tmp_path)).open(), source)


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def labels_of(columns):
    return [(columns.id(i), columns.labels.row(i).tolist()) for i in range(len(columns))]


def test_labels_stored_beside_the_records_are_those_in_them(tmp_path, monkeypatch, capsys):
    photos(tmp_path / "photos", 20)
    data_dir = tmp_path / "data"
    arguments = ["data", "prepare", f"{tmp_path}/photos:held_out=0.2", "--name", "mine", "--splits", "train", "test",
                 "--data-dir", str(data_dir)]
    assert main(arguments) == 0 and "mine/1.0.0 is ready" in capsys.readouterr().out
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "empty"))
    for split in ("train", "test[1:]", "train[:50%]", "test+train", "all"):
        dataset = Tfds("mine", split, str(data_dir)).open()
        expected = [dataset.labels(i) for i in range(len(dataset))]
        with monkeypatch.context() as patched:
            patched.setattr(type(dataset), "labels", None)  # reading records would fail
            assert labels_of(label_index(dataset)) == [(id_, labels.tolist()) for id_, labels in expected]
        assert label_index(dataset).keys.tolist() == [id_key(id_) for id_, _ in expected]
    assert not os.path.exists(tmp_path / "empty")


@pytest.mark.parametrize(("options", "bad"), [({"shard_images": 3}, ()), ({"shard_images": 2, "on_bad_image": "skip"},
                                                                         (2, 3, 5))])
def test_labels_of_any_shards_and_without_skipped_images(tmp_path, monkeypatch, options, bad):
    rows = "".join(f"{i}.jpg,{';'.join('ab'[: i % 3])}\n" for i in range(8))
    source = csv_table(tmp_path, "path,labels\n" + rows, check="none")
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(b"no photo" if i in bad else jpeg(seed=i))
    prepare({"train": source.open()}, tmp_path, "mine", processes=1, **options)
    expected = [(f"{i}.jpg", list(range(i % 3))) for i in range(8) if i not in bad]
    for start in range(len(expected) - 1):
        dataset = Tfds("mine", f"train[{start}:]", str(tmp_path)).open()
        assert labels_of(dataset.label_columns()) == expected[start:]


def test_labels_that_are_damaged_or_of_other_data_are_refused(tmp_path):
    folders = []
    for name, seed in (("mine", 0), ("other", 1)):
        source = csv_table(tmp_path, "path,labels\nx.jpg,a\nw.jpg,b\n")
        (tmp_path / "x.jpg").write_bytes(jpeg(seed=seed))
        folders.append(prepare({"train": source.open()}, tmp_path, name, processes=1))
    dataset = Tfds("mine", "train", str(tmp_path)).open()
    path = folders[0] / "label_index" / "train.arrow"
    sound = path.read_bytes()
    for damaged in (sound[:-1], sound[: len(sound) // 2], b"", sound[:99] + b"!" + sound[100:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"mine/1.0.0/label_index/train.arrow is damaged or was not written to .*"
                                            r"end; remove it, so that labels are read from the records") as raised:
            label_index(dataset)
        assert "\n" not in str(raised.value)
    shutil.copy(folders[1] / "label_index" / "train.arrow", path)
    with pytest.raises(UserError, match=r"train.arrow holds 2 ids and labels of other data than the 2 records"):
        label_index(dataset)
    path.unlink()
    assert labels_of(label_index(dataset)) == [("x.jpg", [0]), ("w.jpg", [1])]
    path.write_bytes(sound)
    (folders[0] / "content.json").unlink()
    with pytest.raises(UserError, match="of other data"):
        label_index(Tfds("mine", "train", str(tmp_path)).open())


def test_two_images_of_one_id_are_not_prepared(tmp_path):
    class Twice(Dataset):
        classes, multi_label, fingerprint = ("a",), False, "twice"

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"id": f"{index % 2}", "image": jpeg(), "labels": np.zeros(1, np.int32)}

    with pytest.raises(UserError, match="examples 0 and 2 have the same id '0'"):
        prepare({"train": Twice()}, tmp_path, "mine", processes=1)
