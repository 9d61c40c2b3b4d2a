"""Reading prepared TFDS data sets without TensorFlow."""

import concurrent.futures
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

from big_vision_lite.data.tfds_source import Tfds
from big_vision_lite.errors import UserError


def png(index: int) -> bytes:
    return cv2.imencode(".png", np.full((6, 5, 3), index, np.uint8))[1].tobytes()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """``toy`` is single-label as cifar10 is, ``toy_voc/one`` has objects as voc has."""
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
    records = Tfds("toy", "train", data_dir=str(data_dir)).open()
    assert len(records) == 30 and records.classes == ("ant", "bee", "cat") and not records.multi_label
    for i in (0, 17, 29):
        example = records[i]
        assert example["image"] == png(i) and example["labels"].tolist() == [i % 3]
        assert example["labels"].dtype == np.int32 and example["id"] == f"toy/1.2.0/train/{i}"
    assert records[-1]["id"] == records[29]["id"]
    hidden = Tfds("toy:1.2.0", "test", data_dir=str(data_dir)).open()
    assert hidden[0]["labels"].shape == (0,)


def test_objects_give_labels_and_boxes(data_dir):
    records = Tfds("toy_voc/one", "train", data_dir=str(data_dir)).open()
    assert records.multi_label
    assert [records[i]["labels"].tolist() for i in range(4)] == [[], [2], [0, 2], [0, 2]]
    assert records[3]["box_labels"].tolist() == [2, 0, 2]
    np.testing.assert_allclose(records[3]["boxes"], [[0.1, 0.2, 0.3, 0.4]] * 3)
    assert records[0]["boxes"].shape == (0, 4) and records[0]["boxes"].dtype == np.float32


def test_parts_of_splits(data_dir):
    part = Tfds("toy", "train[50%:]", data_dir=str(data_dir)).open()
    whole = Tfds("toy", "train", data_dir=str(data_dir)).open()
    assert len(part) == 15 and part[0]["image"] == png(15) and part.fingerprint != whole.fingerprint
    assert whole.fingerprint == Tfds("toy:1.2.0", "train", data_dir=str(data_dir)).open().fingerprint


def test_threads_and_processes_share_records(data_dir):
    records = Tfds("toy", "train", data_dir=str(data_dir)).open()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        images = [e["image"] for e in threads.map(records.__getitem__, list(range(30)) * 10)]
    assert images == [png(i) for i in range(30)] * 10
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as processes:
        assert processes.submit(operator.getitem, records, 7).result()["image"] == png(7)


def test_the_import_is_light():
    code = "import sys, big_vision_lite.data.tfds_source; assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "tos"}, "'tos' is not prepared: .*/tos; did you mean 'toy'.*tfds build tos"),
        ({"name": "toy_voc"}, "'toy_voc' is not prepared: .*'toy_voc/one'"),
        ({"name": "toy:9.0.0"}, "no version '9.0.0' .*1.2.0"),
        ({"split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"split": "train[:x%]"}, r"cannot read split 'train\[:x%\]'"),
        ({"split": "train[:0%]"}, r"'train\[:0%\]' of .* has no records"),
        ({"label_key": "lable"}, "label_key='lable'; did you mean 'label'"),
        ({"image_key": "picture"}, "image_key='picture'; valid: image"),
    ],
)
def test_errors_say_what_to_do(data_dir, fields, message):
    with pytest.raises(UserError, match=message) as error:
        Tfds(**{"name": "toy", "data_dir": str(data_dir)} | fields).open()
    assert "\n" not in str(error.value)


def test_damaged_data_sets_are_told(data_dir, tmp_path):
    shutil.copytree(data_dir / "toy", tmp_path / "toy")
    folder = tmp_path / "toy" / "1.2.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    source = Tfds("toy", "train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"is tfrecord, expected array_record.*tfds build toy"):
        source.open()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    next(folder.glob("*train*")).unlink()
    with pytest.raises(UserError, match="lacks 1 files of 'train', such as toy-train"):
        source.open()
    (folder / "features.json").unlink()
    with pytest.raises(UserError, match="not a prepared TFDS data set"):
        source.open()
