"""`bvl finetune`: what it works out, the config that it keeps, and that this trains."""

import copy
import json

import pytest
from made_files import coco, jpeg, voc
from runs.test_import_export import torchvision_resnet18

from big_vision_lite import config
from big_vision_lite.backbones.backbone import PixelNormalization
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.cli import main
from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.sources.image_folder import ImageFolder, ImageFolderDataset
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import read_experiment
from big_vision_lite.launch.compiled import count_step
from big_vision_lite.recipes.as_python import as_python
from big_vision_lite.recipes.finetune import CORE_FLOPS, MEMORY_SHARE, Machine, Start, find_data, finetuning
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.weights.files import write_safetensors

pytestmark = pytest.mark.usefixtures("compile_once")
CPU, RUN = Machine("cpu", 2), Start("runs/x", ResNet(10, width=1 / 16), 48)
PUBLISHED = RUN._replace(size=None)


@pytest.fixture
def photos(tmp_path):
    """Two classes of 200 x 100 pixels, with a test split."""
    for split, count in (("train", 70), ("test", 4)):
        for name in ("ant", "bee"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count // 2):
                (tmp_path / "photos" / split / name / f"{i}.jpg").write_bytes(jpeg(200, 100, i))
    return tmp_path / "photos"


@pytest.mark.parametrize("spec", [
    "quickstart.py", "image_folder.py:root=/photos", "transfer/bccd_detection.py:root=/bccd",
    "transfer/folder_segmentation.py:root=/m's", "pretrain/emoji.py", "cifar100_resnet18.py:root=/cifar100",
])
def test_an_experiment_as_python_is_the_experiment(tmp_path, spec):
    experiment = config.load(f"configs/{spec}")
    text = as_python(experiment, "A summary.")
    (tmp_path / "written.py").write_text(text)
    assert config.load(str(tmp_path / "written.py")) == experiment
    assert config.load(f"{tmp_path}/written.py:steps=7,seed=3").steps == 7
    assert max(map(len, text.splitlines())) <= 120


def test_the_input_fits_the_weights_and_the_photos(photos):
    data = find_data(ImageFolder(str(photos)))
    assert data.task == "classify" and list(data.evals) == ["test"] and data.side == pytest.approx(141.4, abs=0.1)

    def size(start, machine, data=data):
        return finetuning(start, data, machine, 10, steps=1, batch_size=2).train.transform.size

    assert size(RUN, CPU) == 48 and size(PUBLISHED, CPU) == 224 and size(PUBLISHED, Machine("gpu", 2)) == 384
    assert size(PUBLISHED, CPU, data._replace(side=32.0)) == 128
    assert finetuning(RUN, data, CPU, 10, steps=1, size=64).train.transform.size == 64


def test_the_batch_fits_the_memory_and_the_length_the_time(photos):
    data = find_data(ImageFolder(str(photos)))
    assert finetuning(RUN, data, CPU, 10, steps=1).train.batch_size == 64
    full = finetuning(RUN, data, Machine("gpu", 2, 1e12), 10, steps=1)
    needed = count_step(Trainer(full, data.opened)).memory
    assert full.train.batch_size == 64  # 70 images
    less = finetuning(RUN, data, Machine("gpu", 2, 0.7 * needed / MEMORY_SHARE), 10, steps=1)
    assert less.train.batch_size == 32
    many = data._replace(opened=copy.copy(data.opened))
    many.opened.__class__ = Many
    slower = RUN._replace(backbone=ResNet(10))
    long, short = (finetuning(slower, many, CPU, minutes) for minutes in (10, 1))
    seconds = count_step(Trainer(short, data.opened)).flops / (2 * CORE_FLOPS)
    assert short.steps * seconds == pytest.approx(60, rel=0.05) and long.steps > 5 * short.steps
    assert finetuning(RUN, data, CPU, 0.001).steps == 100
    assert finetuning(RUN, data, Machine("gpu", 2, 1e12), 1).steps == 256_000 // 64  # BiT's images


class Many(ImageFolderDataset):
    """So many images that time alone limits their number."""

    def __len__(self):
        return 5_000_000


def test_boxes_and_masks(tmp_path):
    detection = find_data(voc(tmp_path / "voc"))
    experiment = finetuning(RUN, detection, CPU, 10, steps=1)
    assert detection.task == "detect" and list(detection.evals) == ["val"] and experiment.head.metric == "VOC_AP50"
    assert experiment.train.batch_size == 2 and experiment.train.transform.max_size == 64
    assert not experiment.transfer.freeze_batchnorm
    assert finetuning(PUBLISHED, detection, CPU, 10, steps=1).transfer.freeze_batchnorm
    with pytest.raises(UserError, match="has no class masks; folders of images/ and masks/, and VOC trees have"):
        find_data(coco(tmp_path), "segment")
    with pytest.raises(UserError, match="no split to evaluate on, such as val: expected one beside train"):
        find_data(coco(tmp_path))


def test_the_folder_of_coco(tmp_path):
    made = coco(tmp_path)
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / f"annotations/instances_{split}.json").write_text(
            (tmp_path / "instances.json").read_text())
        (tmp_path / split).symlink_to(made.images)
    data = find_data(source_of(str(tmp_path)))
    assert data.task == "detect" and data.evals["val"].images == str(tmp_path / "val2017")
    assert data.evals["val"].annotations == str(tmp_path / "annotations/instances_val2017.json")


def test_one_command_trains_and_goes_on(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = PixelNormalization(std=(50.0, 50.0, 50.0))
    write_safetensors(tmp_path / "w.safetensors", torchvision_resnet18(),
                      {"pixels": json.dumps([pixels.mean, pixels.std])})
    command = ["finetune", "photos", "--from", "torchvision:w.safetensors", "--steps", "2", "--size", "32",
               "--batch-size", "8"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "runs" / "photos-finetuned"
    assert (run / "config.py").read_text() in printed and "next: bvl predict runs/photos-finetuned" in printed
    experiment = read_experiment(run / "config.json")
    assert experiment.backbone == ResNet(18, width=1 / 16, pixels=pixels)
    assert experiment.transfer.init == "w.safetensors" and (run / "predictions.png").is_file()
    assert main(command) == 0
    assert "config.py is there: trained as it is" in (again := capsys.readouterr().out) and "were done before" in again
    assert main(["finetune", "photos", "--from", "runs/photos-finetuned", "--dry-run", "--workdir", "runs/more"]) == 0
    assert config.load("runs/more/config.py").train.transform.size == 32
    assert not (tmp_path / "runs/more/config.json").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "needs data and weights"), (["photos"], "needs data and weights"),
    (["photos", "--from", "nowhere"], "no weights file 'nowhere'"),
    (["photos", "--from", "x", "--minutes", "0"], "--minutes 0: expected a number above 0"),
    (["photos", "--from", "x", "--workdir", "gs://bucket/run"], "expected a folder on a disk"),
    (["photos", "--from", "x", "--size", "0"], "--size 0: expected at least 1"),
    (["photos", "--from", "x", "--task", "detect"], "--task detect: ImageFolder has no boxes"),
    (["nowhere.csv", "--from", "x"], "there is no source at 'nowhere.csv'"),
])
def test_what_is_refused(photos, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(photos.parent)
    assert main(["finetune", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (photos.parent / "runs").exists()
