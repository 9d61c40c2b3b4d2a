"""Open Images: the labels that count, against a reference by row; images in folders and tar files; what is refused."""

import csv
import os
import pickle
import random
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from made_files import jpeg

from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.curation.label_index import check_columns, label_index
from big_vision_lite.data.sources import open_images_labels
from big_vision_lite.data.sources.open_images import OpenImages
from big_vision_lite.errors import UserError

ID = "00000000000000ab"
CLASSES = tuple(f"/m/{i:03x}" for i in range(6))
HEADER = ("ImageID", "Source", "LabelName", "Confidence")


def write(root: Path, machine: list, human: list, split: str = "train", images: tuple[str, ...] = ()) -> None:
    (root / split).mkdir(parents=True, exist_ok=True)
    for name, rows in ((f"{split}-annotations-machine-imagelabels.csv", machine),
                       (f"oidv7-{split}-annotations-human-imagelabels.csv", human)):
        with open(root / name, "w", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
    lines = ["LabelName,DisplayName", *(f'{name},"Thing, {name}"' for name in CLASSES)]
    (root / "oidv7-class-descriptions.csv").write_text("\n".join(lines))
    for id_ in images:
        (root / split / f"{id_}.jpg").write_bytes(jpeg(seed=int(id_, 16) % 1000))


def random_rows(seed: int, ids: list[str]) -> tuple[list, list]:
    rng = random.Random(seed)
    names = (*CLASSES, "/m/other")
    machine = [(id_, "machine", rng.choice(names), rng.choice(("0.5", "0.6", "0.9", "1.0")))
               for id_ in ids for _ in range(rng.randrange(6))]
    human = [(rng.choice(ids), "verification", rng.choice(names), rng.choice(("0", "1"))) for _ in range(40)]
    rng.shuffle(machine)  # the files need not be sorted
    return machine, human


def expected(machine: list, human: list, present: set[str], confidence: float) -> dict[str, list[str]]:
    """The rule, row by row."""
    labels, rejected = defaultdict(set), set()
    for id_, _, name, given in machine:
        if float(given) >= confidence:
            labels[id_].add(name)
    for id_, _, name, given in human:
        (rejected.add((id_, name)) if given == "0" else labels[id_].add(name))
    kept = {id_: sorted(name for name in names & set(CLASSES) if (id_, name) not in rejected)
            for id_, names in labels.items() if id_ in present}
    return {id_: names for id_, names in kept.items() if names}


def read(data) -> dict[str, list[str]]:
    return {id_: [data.classes[c] for c in labels] for id_, labels in map(data.labels, range(len(data)))}


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("confidence", [0.5, 0.7])
def test_labels_are_those_of_the_rule(tmp_path, monkeypatch, piece, confidence):
    monkeypatch.setattr(open_images_labels, "_PIECE", piece)
    ids = [f"{random.Random(i).getrandbits(64):016x}" for i in range(30)]
    machine, human = random_rows(3, ids)
    write(tmp_path, machine, human, images=tuple(ids[:25]))
    data = OpenImages(str(tmp_path), min_confidence=confidence).open()
    assert read(data) == expected(machine, human, set(ids[:25]), confidence)
    assert data.classes == CLASSES and data.multi_label
    index = label_index(data)
    check_columns(index, len(CLASSES), True)
    missing = len({row[0] for row in (*machine, *human)} - set(ids[:25]))
    assert f"{missing} images have labels and no file; they are left out" in data.notes
    only = OpenImages(str(tmp_path), labels="human").open()
    assert read(only) == expected([], human, set(ids[:25]), 0.5)
    assert only.fingerprint != data.fingerprint


def test_images_are_read_from_folders_and_from_tar_files(tmp_path):
    ids = [f"{i:016x}" for i in range(0, 60, 5)]
    machine = [(id_, "m", CLASSES[i % 6], "0.8") for i, id_ in enumerate(ids)]
    write(tmp_path, machine, [], images=tuple(ids))
    (tmp_path / "train" / "deep").mkdir()
    (tmp_path / "train" / f"{ids[0]}.jpg").rename(tmp_path / "train" / "deep" / f"{ids[0]}.jpg")
    folder = OpenImages(str(tmp_path)).open()
    (tmp_path / "tars").mkdir()
    for part in range(2):
        with tarfile.open(tmp_path / "tars" / f"train_{part}.tar", "w") as file:
            for path in sorted((tmp_path / "train").rglob("*.jpg"))[part::2]:
                file.add(path, f"train_{part}/{path.name}")
    for _ in range(2):  # the second time from the cache
        packed = pickle.loads(pickle.dumps(OpenImages(str(tmp_path), images=str(tmp_path / "tars")).open()))
        assert len(packed) == len(folder) == len(ids)
        for i, id_ in enumerate(ids):
            for data in (folder, packed):
                assert (data[i]["id"], data[i]["image"]) == (id_, jpeg(seed=int(id_, 16) % 1000))
            assert np.array_equal(folder[i]["labels"], packed[i]["labels"])


def test_a_changed_table_is_read_again(tmp_path):
    id_ = "00000000000000ab"
    write(tmp_path, [(id_, "m", CLASSES[0], "0.8")], [], images=(id_,))
    before = OpenImages(str(tmp_path)).open()
    write(tmp_path, [(id_, "m", CLASSES[1], "0.8"), (id_, "m", CLASSES[2], "0.8")], [])
    after = OpenImages(str(tmp_path)).open()
    assert (read(before), read(after)) == ({id_: [CLASSES[0]]}, {id_: [CLASSES[1], CLASSES[2]]})
    assert before.fingerprint != after.fingerprint


def test_it_is_recognised_and_a_replaced_image_is_noticed(tmp_path):
    write(tmp_path, [(ID, "m", CLASSES[0], "0.8")], [], images=(ID,))
    assert source_of(f"{tmp_path}:min_confidence=0.7") == OpenImages(str(tmp_path), min_confidence=0.7)
    path = tmp_path / "train" / f"{ID}.jpg"
    before = [OpenImages(str(tmp_path), check=check).open().fingerprint for check in ("all", "none")]
    os.utime(path, ns=(0, 10**18))
    after = [OpenImages(str(tmp_path), check=check).open().fingerprint for check in ("all", "none")]
    assert before[0] != after[0] and before[1] == after[1] and before[0] != before[1]


@pytest.mark.parametrize("machine, human, message", [
    ([("ab", "m", CLASSES[0], "0.8")], [], r"machine-imagelabels.csv line 2: \['ab', '/m/000', '0.8'\]; expected an"),
    ([(ID, "m", CLASSES[0], "0.8"), (ID, "m", CLASSES[1], "8")], [], "line 3: .*a confidence from 0 to 1"),
    ([(ID, "m", CLASSES[0], "0.8")], [(ID, "v", CLASSES[0], "0.5")], "human-imagelabels.csv line 2: .* of 0 or 1"),
    ([(ID, "m", CLASSES[0], "nan")], [], "from 0 to 1"),
    ([(ID.upper(), "m", CLASSES[0], "0.8")], [], "16 hex digits"),
    ([(ID, "m")], [], "line 2: .*None"),
    ([("00000000000000cd", "m", CLASSES[0], "0.8")], [], "none of the 1 images .* has a label that counts, of 1 rows "
                                                        "for 1 other images; is it the folder of split 'train'?"),
])
def test_rows_that_are_refused(tmp_path, machine, human, message):
    write(tmp_path, machine, human, images=(ID,))
    with pytest.raises(UserError, match=message):
        OpenImages(str(tmp_path)).open()


def test_files_that_are_refused(tmp_path):
    write(tmp_path, [(ID, "m", CLASSES[0], "0.8")], [], images=(ID,))

    def refused(message: str, **fields) -> None:
        with pytest.raises(UserError, match=message):
            OpenImages(str(tmp_path), **fields).open()

    refused("there is no validation-annotations-machine-imagelabels.csv", split="validation")
    refused("there is no image in", images=str(tmp_path / "nowhere"))
    (tmp_path / "twice").mkdir()
    (tmp_path / "train" / "twice").mkdir()
    (tmp_path / "train" / "twice" / f"{ID}.jpg").write_bytes(jpeg())
    refused(f"image {ID} is in .* and in .*twice; expected each once")
    (tmp_path / "classes.txt").write_text("/m/000\n/m/000\n")
    refused("has the class '/m/000' twice", classes=str(tmp_path / "classes.txt"))
    (tmp_path / "old-class-descriptions.csv").write_text("LabelName\n/m/0\n")
    refused("expected one .*class-descriptions.csv .*, found several files")
    (tmp_path / "oidv6-train-annotations-machine-imagelabels.csv").write_text("a,b\n")
    refused("several files of machine labels of train", classes=str(tmp_path / "oidv7-class-descriptions.csv"))
