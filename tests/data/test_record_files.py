"""Stored records of prepared TFDS datasets: both formats, one file and many, and damage."""

import concurrent.futures
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from big_vision_lite.data import scans
from big_vision_lite.data.sources import record_files
from big_vision_lite.data.sources.record_files import Part, check_parts
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.tools.shard_writer import quiet, write_records
from big_vision_lite.errors import UserError


def png(index: int) -> bytes:
    return cv2.imencode(".png", np.full((6, 5, 3), index, np.uint8))[1].tobytes()


def write_array_record(path, records):
    write_records(str(path), iter(records))


def prepare_toy(data_dir: Path, shards: int) -> Path:
    """The folder of ``toy``: 30 images of three classes in so many files, without code under test but the writer."""
    import tensorflow_datasets as tfds

    folder = data_dir / "toy" / "1.2.0"
    folder.mkdir(parents=True)
    names = tfds.features.ClassLabel(names=["ant", "bee", "cat"])
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": names})
    records = [features.serialize_example({"image": png(i), "label": i % 3}) for i in range(30)]
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name="toy", split="train",
                                             filetype_suffix="array_record")
    size = 30 // shards
    for k in range(shards):
        write_array_record(template.sharded_filepath(shard_index=k, num_shards=shards), records[k * size :][:size])
    split = tfds.core.SplitInfo(name="train", shard_lengths=[size] * shards, num_bytes=9, filename_template=template)
    with quiet():
        tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split], version="1.2.0",
                                           check_data=False, filename_template=template)
    return folder


def crc32c(data: bytes) -> int:
    """Bit by bit, with the Castagnoli polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def as_tfrecord(folder: Path) -> None:
    """Converts a prepared dataset to TFRecord files, independently of the code under test."""
    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)

    for path in folder.glob("*array_record*"):
        reader = ArrayRecordReader(str(path))
        with open(folder / path.name.replace("array_record", "tfrecord"), "wb") as file:
            for record in reader.read_all():
                length = struct.pack("<Q", len(record))
                file.write(length + masked(length) + record + masked(record))
        reader.close()
        path.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))


def test_tfrecord_files_without_tensorflow(tmp_path):
    folder = prepare_toy(tmp_path, 1)
    as_tfrecord(folder)
    dataset = Tfds("toy", "train[20%:]", data_dir=str(tmp_path)).open()
    assert len(dataset) == 24
    for i in (0, 5, 23):
        assert dataset[i]["image"] == png(i + 6) and dataset.labels(i)[1].tolist() == [(i + 6) % 3]
    copy = pickle.loads(pickle.dumps(dataset))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        images = [e["image"] for e in threads.map(copy.__getitem__, list(range(24)) * 5)]
    assert images == [png(i) for i in range(6, 30)] * 5
    assert "tensorflow" not in sys.modules

    shard = next(folder.glob("*train*"))
    whole = shard.read_bytes()
    for cut, message in ((len(whole) - 3, "is truncated: its last record ends at byte"),
                         (len(whole) - len(whole) // 30 + 5, "is damaged or truncated at byte|is truncated"),
                         (0, "has 0 records, but the dataset's metadata says 30")):
        shard.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=message):
            Tfds("toy", "train", data_dir=str(tmp_path)).open()
    damaged = bytearray(whole)
    damaged[15 * (len(whole) // 30) + 40] ^= 1  # within a record's data
    shard.write_bytes(damaged)
    dataset = Tfds("toy", "train", data_dir=str(tmp_path)).open()
    with pytest.raises(UserError, match=r"record 1[45] is damaged \(wrong checksum\)"):
        [dataset[i] for i in range(30)]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """``toy`` in 30 files of each format."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("array_record", "tfrecord")}
    for folder in folders.values():
        prepare_toy(folder, 30)
    as_tfrecord(folders["tfrecord"] / "toy" / "1.2.0")
    return folders


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_parts_of_splits_over_many_files(sharded, file_format):
    data_dir = str(sharded[file_format])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))  # fewer than files
    try:
        whole = Tfds("toy", "train", data_dir).open()
        assert [e["image"] for e in whole.read(range(30))] == [png(i) for i in range(30)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for split, expected in (("train[:10%]", range(3)), ("train[7:9]+train[-2:]", (7, 8, 28, 29))):
        part = Tfds("toy", split, data_dir).open()
        assert [part[i]["image"] for i in range(len(part))] == [png(i) for i in expected]
    with pytest.raises(IndexError):
        part[len(part)]


def test_no_tensorflow(sharded):
    code = ("import sys; from big_vision_lite.data.sources.tfds import Tfds\n"
            "for data_dir in sys.argv[1:]: assert Tfds('toy', 'train', data_dir).open()[29]['labels'] == 2\n"
            "assert 'tensorflow' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, *map(str, sharded.values())], check=True)


def test_a_damaged_record_of_an_array_record_file(sharded, tmp_path):
    shutil.copytree(sharded["array_record"], tmp_path, dirs_exist_ok=True)
    shard = tmp_path / "toy" / "1.2.0" / "toy-train.array_record-00005-of-00030"
    damaged = bytearray(shard.read_bytes())
    damaged[120] ^= 1  # within the only record
    shard.write_bytes(damaged)
    dataset = Tfds("toy", "train", str(tmp_path)).open()
    assert dataset[4]["image"] == png(4)
    with pytest.raises(UserError, match=r"00005-of-00030: record 0 cannot be read \(.*; if the file is dama") as error:
        dataset[5]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("record", [b"", b"record", b"\xff" * 50, b"\n\0"], ids=["empty", "text", "bytes", "bare"])
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_records_that_are_no_examples_are_named(sharded, tmp_path, record, file_format):
    folder = tmp_path / "toy" / "1.2.0"
    shutil.copytree(sharded["array_record"] / "toy" / "1.2.0", folder)
    write_array_record(folder / "toy-train.array_record-00007-of-00030", [record])
    if file_format == "tfrecord":
        as_tfrecord(folder)
    dataset = Tfds("toy", "train", str(tmp_path)).open()
    assert dataset[6]["image"] == png(6)
    for read in (dataset.__getitem__, dataset.labels):
        with pytest.raises(UserError, match=rf"{file_format}-00007-of-00030: record 0 cannot be read \(") as raised:
            read(7)
        assert "\n" not in str(raised.value)


def test_values_that_no_feature_can_have_are_named(sharded, tmp_path):
    import tensorflow_datasets as tfds

    shutil.copytree(sharded["array_record"], tmp_path, dirs_exist_ok=True)
    for shard, image, label in ((7, 7, 1), (8, png(8), 3)):
        kind = np.int64 if shard == 7 else np.str_
        features = tfds.features.FeaturesDict({"image": kind, "label": np.int64})
        record = features.serialize_example({"image": image, "label": label})
        write_array_record(tmp_path / f"toy/1.2.0/toy-train.array_record-0000{shard}-of-00030", [record])
    dataset = Tfds("toy", "train", str(tmp_path)).open()
    assert dataset.labels(7)[1].tolist() == [1]
    with pytest.raises(UserError, match=r"00007-of-00030: record 0 cannot be read \('image' is not the bytes"):
        dataset[7]
    for read in (dataset.labels, dataset.__getitem__):
        with pytest.raises(UserError, match=r"00008-of-00030: record 0 cannot be read \(label 3, but there are 3 cl"):
            read(8)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_damaged_file_is_noticed_or_reads_as_before(sharded, tmp_path, file_format):
    shutil.copytree(sharded[file_format], tmp_path, dirs_exist_ok=True)
    shard = next((tmp_path / "toy" / "1.2.0").glob("*-00004-of-00030"))
    sound, rng, noticed = shard.read_bytes(), np.random.default_rng(0), 0
    used = len(sound.rstrip(b"\0"))  # ArrayRecord pads
    for trial in range(36):
        damaged, at = bytearray(sound), int(rng.integers(used))
        if trial % 3 == 0:
            del damaged[at:]
        elif trial % 3 == 1:
            damaged[at] ^= 1 << int(rng.integers(8))
        else:
            damaged[at : at + 64] = bytes(64)
        shard.write_bytes(damaged)
        try:
            assert Tfds("toy", "train", str(tmp_path)).open()[4]["image"] == png(4)
        except UserError as error:
            noticed += shard.name in str(error)
    assert noticed == 36 if file_format == "tfrecord" else noticed >= 10
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(UserError, match=r"00004-of-00030 is not a regular file; copy or prepare it again"):
        Tfds("toy", "train", str(tmp_path)).open()


def test_a_bucket_that_cannot_be_read_from_here(monkeypatch):
    part = Part("gs://bucket/toy-train.array_record-00000-of-00001", 0, 1, 1)

    class Reader:  # behaves as the installed one does with a missing path
        def __init__(self, path): ...
        ok = num_records = lambda self: 0

    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordReader", Reader)
    with pytest.raises(UserError, match=r"cannot be read from here; mount the bucket .*storage cp -r gs://bucket DIR"):
        check_parts([part], "array_record")
    with pytest.raises(UserError, match=r"cannot read 's3://bucket.*mount the bucket"):
        Tfds("toy", data_dir="s3://bucket").open()  # no extra installs its reader


def test_of_many_files_some_are_checked_when_a_run_starts_and_all_by_indexing(tmp_path, monkeypatch):
    folder = prepare_toy(tmp_path, shards=30)
    monkeypatch.setattr(record_files, "MANY_FILES", 8)
    counted = []

    def count(path, real=record_files._count_array_records):
        counted.append(path)
        return real(path)

    monkeypatch.setattr(record_files, "_count_array_records", count)
    Tfds("toy", data_dir=str(tmp_path)).open()
    assert len(counted) == 8 and counted[0].endswith("00000-of-00030") and counted[-1].endswith("00029-of-00030")
    damaged = next(path for path in sorted(folder.glob("*.array_record-*")) if str(path) not in counted)
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    dataset = Tfds("toy", data_dir=str(tmp_path)).open()
    with pytest.raises(UserError, match=rf"{damaged.name}: record 0 cannot be read"):
        dataset[int(damaged.name.split("-")[2])]
    with scans.indexing(), pytest.raises(UserError, match=rf"{damaged.name} is missing or not a complete ArrayRecord"):
        Tfds("toy", data_dir=str(tmp_path)).open()
