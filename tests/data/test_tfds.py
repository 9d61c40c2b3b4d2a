"""Reading prepared TFDS datasets without TensorFlow."""

import concurrent.futures
import json
import multiprocessing
import operator
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

from big_vision_lite.data.sources.record_files import Part, check_parts
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.tools.shard_writer import quiet, write_records
from big_vision_lite.errors import UserError


def png(index: int) -> bytes:
    return cv2.imencode(".png", np.full((6, 5, 3), index, np.uint8))[1].tobytes()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """``toy`` is single-label like cifar10, ``toy_voc/one`` has objects like voc."""
    import tensorflow_datasets as tfds

    names = tfds.features.ClassLabel(names=["ant", "bee", "cat"])

    class Toy(tfds.core.GeneratorBasedBuilder):
        pkg_dir_path = Path(__file__).parent
        VERSION = tfds.core.Version("1.2.0")
        RELEASE_NOTES = {"1.2.0": "toy"}  # noqa: RUF012

        def _info(self):
            features = {"image": tfds.features.Image(), "label": names, "weight": np.float32}
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": png(i), "label": i % 3 if count == 30 else -1, "weight": 0.5}

    class ToyVoc(Toy):
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="one")]  # noqa: RUF012

        def _info(self):
            objects = tfds.features.Sequence({"label": names, "bbox": tfds.features.BBoxFeature()})
            features = {"image": tfds.features.Image(), "objects": objects}
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _generate_examples(self, count):
            for i in range(count):
                box = tfds.features.BBox(0.1, 0.2, 0.3, 0.4)
                objects = [{"label": label, "bbox": box} for label in (2, 0, 2)[: i % 4]]
                yield i, {"image": png(i), "objects": objects}

    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    for builder in (Toy, ToyVoc):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return folder


def test_single_labels_and_encoded_images(data_dir):
    dataset = Tfds("toy", "train", data_dir=str(data_dir)).open()
    assert len(dataset) == 30 and dataset.classes == ("ant", "bee", "cat") and not dataset.multi_label
    for i in (0, 17, 29):
        example = dataset[i]
        assert example["image"] == png(i) and example["labels"].tolist() == [i % 3]
        assert example["labels"].dtype == np.int32 and example["id"] == f"toy/1.2.0/train/{i}"
    assert dataset[-1]["id"] == dataset[29]["id"]
    hidden = Tfds("toy:1.2.0", "test", data_dir=str(data_dir)).open()
    assert hidden[0]["labels"].shape == (0,)


def test_objects_give_labels_and_boxes(data_dir):
    dataset = Tfds("toy_voc/one", "train", data_dir=str(data_dir)).open()
    assert dataset.multi_label
    assert [dataset[i]["labels"].tolist() for i in range(4)] == [[], [2], [0, 2], [0, 2]]
    assert dataset[3]["box_labels"].tolist() == [2, 0, 2]
    np.testing.assert_allclose(dataset[3]["boxes"], [[0.2, 0.1, 0.4, 0.3]] * 3)
    assert dataset[0]["boxes"].shape == (0, 4) and dataset[0]["boxes"].dtype == np.float32


def test_parts_of_splits(data_dir):
    part = Tfds("toy", "train[50%:]", data_dir=str(data_dir)).open()
    whole = Tfds("toy", "train", data_dir=str(data_dir)).open()
    assert len(part) == 15 and part[0]["image"] == png(15) and part.fingerprint != whole.fingerprint
    both = Tfds("toy", "train[:2]+test[:1]", data_dir=str(data_dir)).open()
    assert len(both) == 3 and both[1]["image"] == png(1)
    assert whole.fingerprint == Tfds("toy:1.2.0", "train", data_dir=str(data_dir)).open().fingerprint


def test_threads_and_processes_share_a_dataset(data_dir):
    dataset = Tfds("toy", "train", data_dir=str(data_dir)).open()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        images = [e["image"] for e in threads.map(dataset.__getitem__, list(range(30)) * 10)]
    assert images == [png(i) for i in range(30)] * 10
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as processes:
        assert processes.submit(operator.getitem, dataset, 7).result()["image"] == png(7)


def test_the_import_is_light():
    code = "import sys, big_vision_lite.data.sources.tfds; assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "tos"}, "'tos' is not prepared: .*/tos; did you mean 'toy'.*tfds build tos"),
        ({"name": "toy_voc"}, "'toy_voc' is not prepared: .*'toy_voc/one'"),
        ({"name": "toy:9.0.0"}, "no version '9.0.0' .*1.2.0"),
        ({"split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"split": "train+trian[:3]"}, r"no split 'trian\[:3\]'; did you mean 'train'"),
        ({"split": "train[:x%]"}, r"cannot read split 'train\[:x%\]'"),
        ({"split": "train[:0%]"}, r"'train\[:0%\]' of .* is empty"),
        ({"label_key": "lable"}, "label_key='lable'; did you mean 'label'"),
        ({"image_key": "picture"}, "image_key='picture'; valid: image"),
    ],
)
def test_errors_say_what_to_do(data_dir, fields, message):
    with pytest.raises(UserError, match=message) as error:
        Tfds(**{"name": "toy", "data_dir": str(data_dir)} | fields).open()
    assert "\n" not in str(error.value)


def test_damaged_data_sets_are_named(data_dir, tmp_path):
    shutil.copytree(data_dir / "toy", tmp_path / "toy")
    folder = tmp_path / "toy" / "1.2.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "riegeli"}))
    source = Tfds("toy", "train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"file format riegeli, expected array_record or tfrecord.*tfds build toy"):
        source.open()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    shard = next(folder.glob("*train*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"array_record-00000-of-00001 is missing or not a complete ArrayRecord"):
        source.open()
    write_array_record(shard, [b"record"] * 29)
    with pytest.raises(UserError, match=r"of-00001 has 29 records, but the dataset's metadata says 30"):
        source.open()
    shard.unlink()
    with pytest.raises(UserError, match="lacks 1 files of 'train', such as 'toy-"):
        source.open()
    (folder / "features.json").unlink()
    with pytest.raises(UserError, match="not a prepared TFDS dataset, or damaged"):
        source.open()


@pytest.mark.parametrize(("name", "file"), [("toy", "label"), ("toy_voc/one", "objects-label")])
@pytest.mark.parametrize(("content", "message"), [
    (b"ant\n", "holds 1 class names, 1 of them different; expected 3"),
    (b"ant\nbee\nca", "3 of them different, and its last line is cut"),
    (b"", "holds 0 class names"), (b"\n\n\n", "holds 0 class names"),
    (b"ant\nbee\nbee\n", "holds 3 class names, 2 of them different"),
    (b"ant\nbee\ncat\n" * 2, "holds 6 class names, 3 of them different"),
    (b"ant\n\xff\n", "cannot read .*: 'utf-8' codec"),
], ids=["cut", "cut-name", "empty", "blank", "doubled", "twice", "bytes"])
def test_damaged_names_of_classes_are_refused(data_dir, tmp_path, name, file, content, message):
    folder = tmp_path / name / "1.2.0"
    shutil.copytree(data_dir / name / "1.2.0", folder)
    (folder / f"{file}.labels.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        Tfds(name, data_dir=str(tmp_path)).open()
    assert f"{file}.labels.txt" in str(raised.value) and "\n" not in str(raised.value)


def replaced(old, new):
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(("file", "change", "message"), [
    ("dataset_info", replaced('"30"', '"-30"'), "a shard of a negative length"),
    ("dataset_info", replaced('"30"', '"31", "-1"'), "a shard of a negative length"),
    ("dataset_info", replaced('"30"', f'"{2**62}"'), "has 30 records, but the dataset's metadata says 4,611,"),
    ("dataset_info", replaced('"30"', '"many"'), "cannot read .*Failed to parse .*it is not a prepared TFDS dataset"),
    ("dataset_info", replaced("{SHARD_X_OF_Y}", "{NOPE}"), "cannot read split 'train' .*Could not format template"),
    ("dataset_info", replaced("{SHARD_X_OF_Y}", "{"), r"cannot read split 'train' .*Single '\{' encountered"),
    ("dataset_info", replaced('"train"', '"all"'), "has a split named 'all', which TFDS reserves"),
    ("dataset_info", lambda text: '{"a":' * 100_000 + "1" + "}" * 100_000, "cannot read .*(nest|recursion|too deep)"),
    ("dataset_info", lambda text: "[]", "cannot read .*not a prepared TFDS dataset"),
    ("dataset_info", lambda text: text[: len(text) // 2], "cannot read .*not a prepared TFDS dataset"),
    ("features", lambda text: '{"a":' * 100_000 + "1" + "}" * 100_000, "cannot read .*(nest|recursion|too deep)"),
    ("features", lambda text: "null", "cannot read .*not a prepared TFDS dataset"),
    ("features", replaced('"numClasses": "3"', '"numClasses": "4"'), "label.labels.txt holds 3 .*expected 4"),
])
def test_damaged_metadata_is_refused_in_one_line(data_dir, tmp_path, file, change, message):
    shutil.copytree(data_dir / "toy", tmp_path / "toy")
    path = tmp_path / "toy" / "1.2.0" / f"{file}.json"
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    with pytest.raises(UserError, match=message) as raised:
        Tfds("toy", data_dir=str(tmp_path)).open()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["\0", "x" * 5000])
def test_names_that_no_folder_can_have(data_dir, name):
    with pytest.raises(UserError, match=r"cannot read|is not prepared"):
        Tfds(name, data_dir=str(data_dir)).open()


def write_array_record(path, records):
    write_records(str(path), iter(records))


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


def test_tfrecord_files_without_tensorflow(data_dir, tmp_path):
    shutil.copytree(data_dir / "toy", tmp_path / "toy")
    folder = tmp_path / "toy" / "1.2.0"
    as_tfrecord(folder)
    dataset, expected = (Tfds("toy", "train[20%:]", data_dir=str(d)).open() for d in (tmp_path, data_dir))
    assert len(dataset) == 24
    for i in (0, 5, 23):
        assert dataset[i]["image"] == expected[i]["image"] and dataset.labels(i)[1] == expected.labels(i)[1]
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
def sharded(data_dir, tmp_path_factory):
    """The training images of ``toy`` in 30 files of each format."""
    import tensorflow_datasets as tfds

    folders = {}
    for name in ("array_record", "tfrecord"):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        place = folder / "toy" / "1.2.0"
        place.mkdir(parents=True)
        features = tfds.builder_from_directory(data_dir / "toy" / "1.2.0").info.features
        template = tfds.core.ShardedFileTemplate(data_dir=place, dataset_name="toy", split="train",
                                                 filetype_suffix="array_record")
        reader = ArrayRecordReader(str(next((data_dir / "toy" / "1.2.0").glob("*train*"))))
        for k, record in enumerate(reader.read_all()):
            write_array_record(template.sharded_filepath(shard_index=k, num_shards=30), [record])
        reader.close()
        split = tfds.core.SplitInfo(name="train", shard_lengths=[1] * 30, num_bytes=9, filename_template=template)
        with quiet():
            tfds.folder_dataset.write_metadata(data_dir=place, features=features, split_infos=[split],
                                               version="1.2.0", check_data=False, filename_template=template)
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
        features = tfds.features.FeaturesDict({"image": kind, "label": np.int64, "weight": np.float32})
        record = features.serialize_example({"image": image, "label": label, "weight": 0.5})
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
