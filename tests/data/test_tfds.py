"""Reading prepared TFDS datasets without TensorFlow."""

import concurrent.futures
import importlib
import json
import multiprocessing
import operator
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.tools.shard_writer import write_records
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
    write_records(str(shard), iter([b"record"] * 29))
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


CAME, OLD = {"pythonClassName": "came_with_the_data.Feature"}, {"type": "came_with_the_data.Feature", "content": {}}
FEATURES = "tensorflow_datasets.core.features"


@pytest.mark.parametrize("features", [
    CAME, OLD, {"python_class_name": "came_with_the_data.Feature"},
    {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": {"image": CAME}}},
    {"type": f"{FEATURES}.sequence_feature.Sequence", "content": {"length": 1, "feature": OLD}},
    {"pythonClassName": f"{FEATURES}.sequence_feature.Sequence",
     "jsonFeature": {"json": json.dumps({"length": 1, "feature": OLD})}},
], ids=["name", "old", "field", "in-dict", "in-old-sequence", "in-text"])
def test_a_dataset_cannot_run_code(data_dir, tmp_path, monkeypatch, features):
    shutil.copytree(data_dir / "toy", tmp_path / "toy")
    (tmp_path / "toy" / "1.2.0" / "features.json").write_text(json.dumps(features))
    (tmp_path / "came_with_the_data.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"features.json names the class 'came_with_the_data.Feature'; exp") as raised:
        Tfds("toy", data_dir=str(tmp_path)).open()
    assert not (tmp_path / "sprung").exists() and "\n" not in str(raised.value)


def test_classes_of_imported_modules_are_accepted(data_dir, tmp_path, monkeypatch):
    shutil.copytree(data_dir / "toy", tmp_path / "toy")
    path = tmp_path / "toy" / "1.2.0" / "features.json"
    path.write_text(path.read_text().replace(f"{FEATURES}.image_feature.Image", "my_features.Mine"))
    (tmp_path / "my_features.py").write_text("import tensorflow_datasets as tfds\nclass Mine(tfds.features.Image): ...")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_features")
    assert Tfds("toy", data_dir=str(tmp_path)).open()[3]["image"] == png(3)


@pytest.mark.parametrize("name", ["\0", "x" * 5000])
def test_names_that_no_folder_can_have(data_dir, name):
    with pytest.raises(UserError, match=r"cannot read|is not prepared"):
        Tfds(name, data_dir=str(data_dir)).open()
