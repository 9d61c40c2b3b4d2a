"""Prepared TFDS datasets, their records and metadata. The independent reading is what was prepared."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from fuzz import harness
from fuzz.harness import Case
from fuzz.made import PHOTO, encoded, special
from fuzz.mutate import TEXTS, json_text, of_bytes, of_json_bytes, of_text, pick

CLASSES = ("cat", "dog")
SHARD = {"array_record": "toy-train.array_record-00000-of-00001", "tfrecord": "toy-train.tfrecord-00000-of-00001"}


@pytest.fixture(scope="module")
def prepared(worker, tmp_path_factory) -> Path:
    """A folder with the same dataset as ArrayRecord and as TFRecord, and what is in it."""
    from array_record.python.array_record_module import ArrayRecordReader

    folder = tmp_path_factory.mktemp("prepared")
    truth = {}
    for label, name in enumerate(CLASSES):
        (folder / "photos" / "train" / name).mkdir(parents=True)
        for i in range(4):
            data = encoded("JPEG", seed=9 * label + i, size=(8, 8))
            (folder / "photos" / "train" / name / f"{i}.jpg").write_bytes(data)
            truth[f"train/{name}/{i}.jpg"] = [hashlib.sha256(data).hexdigest(), label]
    command = ("data", "prepare", "photos", "--name", "toy", "--data-dir", "array_record", "--processes", "1")
    result = worker.call(command, folder, seconds=60)
    assert result["code"] == 0, result
    version = folder / "array_record" / "toy" / "1.0.0"
    reader = ArrayRecordReader(str(version / SHARD["array_record"]))
    records = reader.read_all()
    reader.close()
    (folder / "records.json").write_text(json.dumps([record.hex() for record in records]))
    (folder / "truth.json").write_text(json.dumps(truth))
    shutil.copytree(folder / "array_record", folder / "tfrecord")
    version = folder / "tfrecord" / "toy" / "1.0.0"
    shutil.rmtree(version / "label_index")
    (version / SHARD["array_record"]).unlink()
    (version / SHARD["tfrecord"]).write_bytes(b"".join(map(tfrecord, records)))
    text = (version / "dataset_info.json").read_text()
    (version / "dataset_info.json").write_text(text.replace('"array_record"', '"tfrecord"'))
    return folder


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord(data: bytes, length: int | None = None) -> bytes:
    """A record whose header claims this length, with right checksums."""
    head = struct.pack("<Q", len(data) if length is None else length)
    return head + masked(head) + data + masked(data)


def varint(value: int) -> bytes:
    low = b""
    while value > 127:
        low, value = low + bytes((value & 127 | 128,)), value >> 7
    return low + bytes((value,))


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(**features: bytes) -> bytes:
    """A tf.train.Example of serialized Features."""
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items()))


def texts(*values: bytes) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def integers(*values: int) -> bytes:
    return field(3, field(1, b"".join(varint(value & 2**64 - 1) for value in values)))


def floats(*values: float) -> bytes:
    return field(2, field(1, b"".join(struct.pack("<f", value) for value in values)))


GOOD = {"id": texts(b"x"), "image": texts(PHOTO), "label": integers(1)}
ODD_RECORDS: tuple[bytes, ...] = (
    b"",
    b"\0",
    b"no example",
    b"\xff" * 100,
    PHOTO,
    example(),
    example(**GOOD | {"label": integers(5)}),
    example(**GOOD | {"label": integers(-1)}),
    example(**GOOD | {"label": integers(-7)}),
    example(**GOOD | {"label": integers(2**40)}),
    example(**GOOD | {"label": integers()}),
    example(**GOOD | {"label": integers(0, 1)}),
    example(**GOOD | {"label": texts(b"cat")}),
    example(**GOOD | {"label": floats(1.0)}),
    example(**GOOD | {"image": texts()}),
    example(**GOOD | {"image": texts(PHOTO, PHOTO)}),
    example(**GOOD | {"image": integers(3)}),
    example(**GOOD | {"image": texts(b"")}),
    example(**GOOD | {"id": texts(b"\xff\xfe")}),
    example(**GOOD | {"id": texts(b"a\nb")}),
    example(**GOOD | {"id": texts()}),
    example(**GOOD | {"id": integers(1)}),
    example(id=GOOD["id"], image=GOOD["image"]),
    example(**GOOD, more=texts(b"x" * 1000)),
    example(**GOOD)[:-3],
    example(**GOOD) + b"\xff",
    field(1, b"\xff" * 9),
    example(**GOOD) * 2,
)
LENGTHS = (0, 1, 2**31, 2**62, 2**63, 2**64 - 1, 2**64 - 16)
TEMPLATES = (
    "{SPLIT}",
    "{NOWHERE}",
    "{",
    "",
    "../../{DATASET}",
    "/dev/zero",
    "{DATASET}-{SPLIT}.{FILEFORMAT}",
    "{0}",
    "{DATASET.x}",
    "%s",
    "{DATASET!r:>999}",
    "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    "a" * 5000,
    "{DATASET}\0",
    "{SHARD_X_OF_Y}{SHARD_X_OF_Y}",
)
LENGTH_LISTS = (
    [],
    ["-1"],
    ["-1", "9"],
    ["8", "0"],
    ["8", "8"],
    ["0"],
    ["7"],
    ["9"],
    ["x"],
    ["8.5"],
    [8],
    ["999999999999999999999"],
    ["9223372036854775807"] * 2,
    ["1"] * 8,
    [None],
    [["8"]],
    "8",
    {"0": "8"},
    ["1"] * 3000,
    ["-8", "16"],
)


def datasets(base: Path, rng: np.random.Generator, number: int, folder: Path) -> Case:
    form = ("array_record", "tfrecord")[number % 2]
    shutil.copytree(base / form, folder / "data")
    (folder / "truth.json").write_bytes((base / "truth.json").read_bytes())
    version, turn = folder / "data" / "toy" / "1.0.0", number // 2
    shard, info, features = version / SHARD[form], version / "dataset_info.json", version / "features.json"
    records = [bytes.fromhex(text) for text in json.loads((base / "records.json").read_text())]
    if turn < len(ODD_RECORDS):
        what = f"record 3 is {ODD_RECORDS[turn]!r:.40}"
        records[3] = ODD_RECORDS[turn]
        write_shard(shard, form, records)
    elif (turn := turn - len(ODD_RECORDS)) < len(TEMPLATES) + len(LENGTH_LISTS):
        values, what = json.loads(info.read_text()), "metadata"
        if turn < len(TEMPLATES):
            values["splits"][0]["filepathTemplate"] = TEMPLATES[turn]
            what = f"template {TEMPLATES[turn]!r:.40}"
        else:
            values["splits"][0]["shardLengths"] = LENGTH_LISTS[turn - len(TEMPLATES)]
            what = f"shardLengths {LENGTH_LISTS[turn - len(TEMPLATES)]!r:.60}"
        info.write_bytes(json_text(values))
    elif (turn := turn - len(TEMPLATES) - len(LENGTH_LISTS)) < len(LENGTHS) and form == "tfrecord":
        what = f"length {LENGTHS[turn]}"
        shard.write_bytes(
            b"".join(map(tfrecord, records[:3])) + tfrecord(records[3], LENGTHS[turn]) + tfrecord(records[4])
        )
    else:
        kind = pick(
            rng,
            (
                "shard",
                "shard",
                "shard",
                "json",
                "json",
                "features",
                "features",
                "labels",
                "source",
                "cache",
                "missing",
                "special",
                "record",
            ),
        )
        what = kind
        if kind == "shard":
            data, what = of_bytes(rng, shard.read_bytes())
            shard.write_bytes(data)
        elif kind in ("json", "features", "source"):
            path = {"json": info, "features": features, "source": version / "source.json"}[kind]
            data, what = of_json_bytes(rng, json.loads(path.read_text()))
            path.write_bytes(data)
        elif kind == "labels":
            data, what = of_text(
                rng,
                pick(rng, ("cat\ndog", "cat\ndog\n", "cat", "", "cat\n\ndog", "cat\ncat\n", "cat\ndog\nemu", *TEXTS)),
            )
            (version / "label.labels.txt").write_bytes(data)
            what = f"labels {data!r:.60}"
        elif kind == "record":
            data, what = of_bytes(rng, records[3])
            records[3] = data
            write_shard(shard, form, records)
            (folder / "truth.json").write_text("{}")  # what it means now is unknown
        else:
            path = pick(rng, sorted(path for path in version.rglob("*") if path.is_file()))
            if kind == "cache" and (version / "label_index").is_dir():
                path = pick(rng, sorted((version / "label_index").iterdir()))
                path.write_bytes(of_bytes(rng, path.read_bytes())[0])
            else:
                path.unlink()
                if kind == "special":
                    kind = pick(rng, ("pipe", "folder", "zero", "loop", "nowhere"))
                    special(kind, path)
            what = f"{path.name}: {kind}"
    place = pick(rng, ("data/toy/1.0.0", "data/toy/1.0.0", "data/toy/1.0.0:split=train[:50%]"))
    named = ("1.0.0", "toy", "record", "features", "label", "dataset_info", "split")
    return Case(("data", "inspect", place), named, f"{form} {what}", check="fuzz.test_records:equals_what_was_prepared")


def write_shard(path: Path, form: str, records: list[bytes]) -> None:
    if form == "tfrecord":
        path.write_bytes(b"".join(map(tfrecord, records)))
        return
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()


def equals_what_was_prepared(folder: Path, arguments: list[str]) -> str | None:
    """Every example that is read is one that was prepared, under the names of the classes that the file holds."""
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.data.decode import DecodeError, decode
    from big_vision_lite.errors import BadImageError, UserError

    dataset, truth = source_of(arguments[-1]).open(), json.loads((folder / "truth.json").read_text())
    path = folder / "data" / "toy" / "1.0.0" / "label.labels.txt"
    names = path.read_text().splitlines() if path.exists() else ["0", "1"]  # of a feature that has no names
    if list(dataset.classes) != [name for name in names if name]:
        return f"classes {dataset.classes}, and the file has {names}"
    for index in range(len(dataset) if truth else 0):
        try:
            read = dataset[index]
            id_, labels = dataset.labels(index)
            decode(read["image"])
        except (BadImageError, DecodeError, UserError):
            continue
        content = hashlib.sha256(read["image"]).hexdigest()
        if id_ in truth and (truth[id_][0] != content or truth[id_][1:] != labels.tolist()):
            return f"{id_} has {content[:8]} {labels}, prepared were {truth[id_]}"
        if id_ not in truth and (
            content not in {text for text, _ in truth.values()} or not (labels < len(dataset.classes)).all()
        ):
            return f"{id_!r} was never prepared: {read}"[:400]
        if id_ != read["id"] or labels.tolist() != read["labels"].tolist():
            return f"index {index}: {id_} {labels} and {read['id']} {read['labels']}"
    return None


@harness.formats(320, 10, records=datasets)
def test_records(worker, prepared, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, functools.partial(make, prepared), seed, number, record_property)


HIERARCHY = "child,parent\ncat,animal\ndog,animal\nanimal,thing\n"
CONFIG = """
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.curation.steps import AncestorLabels
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD

def get_config():
    train = Input(ImageFolder("photos"), Resize(8), 4, curate=(AncestorLabels("tree.csv", "add"),))
    return Experiment(train, {}, ResNet(10), Classification("sigmoid"), SGD(), steps=1)
"""
TREES = (
    "",
    "\n",
    "child,parent\n",
    "cat\n",
    "cat,animal,thing\n",
    "cat,cat\n",
    "cat,dog\ndog,cat\n",
    "cat\tanimal\n",
    "cat animal\n",
    "cat;animal\n",
    '"cat",animal\n',
    '"cat,animal\n',
    "cat,animal\ncat,animal\n",
    "cat,a\ncat,b\n",
    "# cat,animal\ndog,x\n",
    "emu,bird\n",
    "cat,\n",
    ",animal\n",
    "cat," + "a" * 200_000 + "\n",
    "".join(f"n{i},n{i + 1}\n" for i in range(20_000)) + "cat,n0\n",
    "cat,animal\r\n",
    "cat,animal\rdog,animal\r",
    "cat,an\0imal\n",
    "\ufeffcat,animal\n",
    "Cat,animal\n",
    "cat,\u202eanimal\n",
    "cat , animal \n",
    "".join(f"cat,p{i}\n" for i in range(3000)),
    "cat\x0banimal\n",
    "cat\u2028animal\n",
    "cat,a\x85b\n",
    "cat\u00a0animal\n",
    "\x1ccat,animal\n",
)


def hierarchies(rng: np.random.Generator, number: int, folder: Path) -> Case:
    for name in CLASSES:
        (folder / "photos" / "train" / name).mkdir(parents=True)
        (folder / "photos" / "train" / name / "0.jpg").write_bytes(PHOTO)
    (folder / "config.py").write_text(CONFIG)
    data, what = (TREES[number].encode(), "by hand") if number < len(TREES) else of_text(rng, HIERARCHY)
    if rng.random() < 0.05:
        special(pick(rng, ("pipe", "zero", "folder")), folder / "tree.csv")
    else:
        (folder / "tree.csv").write_bytes(data)
    return Case(
        ("data", "inspect", "config.py"), ("tree.csv",), f"{what} {data!r:.80}", check="fuzz.test_records:equals_graph"
    )


def equals_graph(folder: Path, arguments: list[str]) -> str | None:
    """Labels are those of the folder and all that can be reached from it."""
    from big_vision_lite.commands.sources import input_of

    dataset, parents = input_of(arguments[-1]).open(), {}
    for line in (folder / "tree.csv").read_text("utf-8-sig").split("\n"):
        line = line.strip()
        separator = next((separator for separator in "\t," if separator in line), None)
        names = [name.strip().strip('"') for name in (line.split(separator) if separator else line.split())]
        if line and not line.startswith("#") and names != ["child", "parent"]:
            if len(names) != 2 or not all(names):
                return f"a line of {len(names)} names is accepted: {line!r:.100}"
            parents.setdefault(names[0], set()).add(names[1])
    for index in range(len(dataset)):
        id_, labels = dataset.labels(index)
        expected, above = set(), [id_.split("/")[1]]
        while above:
            name = above.pop()
            above += parents.get(name, set()) - expected if name not in expected else ()
            expected.add(name)
        if {dataset.classes[label] for label in labels} != expected:
            return f"{id_} has {[dataset.classes[label] for label in labels]} instead of {expected}"[:400]
    return None


@harness.formats(90, 5, hierarchies=hierarchies)
def test_hierarchies(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
