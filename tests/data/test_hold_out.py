"""Validation images put aside from a folder of training and test images."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from big_vision_lite.cli import main
from big_vision_lite.data.curation.steps import NestedSubset, curated
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.tools.hold_out import hold_out
from big_vision_lite.errors import UserError

COUNTS = {"ant": 60, "bee": 30, "cat": 10}


@pytest.fixture
def root(tmp_path):
    for split, share in (("train", 10), ("test", 2)):
        for name, count in COUNTS.items():
            for i in range(count * share // 10):
                path = tmp_path / "photos" / split / name / ("deep/er" if i % 7 == 3 else "") / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f"{split} {name} {i}".encode())
    return tmp_path / "photos"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jpg")}


def test_every_image_is_in_one_split_and_validation_has_the_shares_of_the_classes(root, tmp_path, capsys):
    assert main(["data", "hold-out", str(root), "--images", "20", "--out", str(tmp_path / "split")]) == 0
    assert "split is ready: train 80, val 20, test 20 images" in capsys.readouterr().out
    out = files(tmp_path / "split")
    by_split = {split: {name.removeprefix(f"{split}/"): content for name, content in out.items()
                        if name.startswith(f"{split}/")} for split in ("train", "val", "test")}
    before = files(root)
    assert by_split["test"] == {name[5:]: content for name, content in before.items() if name.startswith("test/")}
    assert by_split["train"] | by_split["val"] == {
        name[6:]: content for name, content in before.items() if name.startswith("train/")}
    assert not by_split["train"].keys() & by_split["val"].keys()
    assert Counter(name.split("/")[0] for name in by_split["val"]) == {"ant": 12, "bee": 6, "cat": 2}
    chosen = curated(ImageFolder(str(root)).open(), [NestedSubset(20, stratified=True)])
    assert {chosen[i]["id"] for i in range(20)} == {f"train/{name}" for name in by_split["val"]}


def test_the_choice_depends_on_the_names_and_the_seed_alone(root, tmp_path):
    os.rename(root, tmp_path / "elsewhere")
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        hold_out(tmp_path / "elsewhere", tmp_path / out, 20, seed)
    a, b, c = (set(files(tmp_path / out / "val")) for out in "abc")
    assert a == b and len(a - c) > 5


def test_a_disk_without_links_gets_copies_with_the_same_times(root, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError

    hold_out(root, tmp_path / "linked", 20)
    monkeypatch.setattr(os, "link", no_links)
    hold_out(root, tmp_path / "copied", 20)
    assert files(tmp_path / "linked") == files(tmp_path / "copied")
    linked, copied = (ImageFolder(str(tmp_path / name)).open().fingerprint for name in ("linked", "copied"))
    assert linked == copied
    (tmp_path / "copied/train/ant/0.jpg").write_bytes(b"")
    assert (root / "train/ant/0.jpg").read_bytes()


def test_a_run_that_was_stopped_is_started_anew(root, tmp_path, monkeypatch):
    calls = np.zeros(1)

    def full_disk(*_):
        calls[0] += 1
        if calls[0] > 50:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copy2", full_disk)
    monkeypatch.setattr(os, "link", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*split': No space left on device; choose another folder"):
        hold_out(root, tmp_path / "split", 20)
    assert not (tmp_path / "split").exists()
    monkeypatch.undo()
    assert hold_out(root, tmp_path / "split", 20) == {"train": 80, "val": 20, "test": 20}
    assert len(files(tmp_path / "split")) == 120 and sorted(os.listdir(tmp_path)) == ["photos", "split"]


@pytest.mark.parametrize(("change", "images", "message"), [
    (lambda root: (root / "Val").mkdir(), 20, "has validation images already, in 'Val'; nothing to hold out"),
    (lambda root: (root.parent / "split").mkdir(), 20, "split' exists; name a new folder, or remove this one"),
    (lambda root: (root / "train").rename(root / "other"), 20, "has no folder 'train'; of a folder that just has"),
    (lambda root: None, 96, "96 of 100 images held out leave class 'cat' without training images; hold out fewer"),
    (lambda root: None, 101, "NestedSubset of 101 images, but there are 100"),
    (lambda root: None, 0, "expected 1 image or more"),
])
def test_errors(root, tmp_path, change, images, message):
    change(root)
    with pytest.raises(UserError, match=message) as raised:
        hold_out(root, tmp_path / "split", images)
    assert "\n" not in str(raised.value)
