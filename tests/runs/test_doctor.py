"""What the doctor finds: each fault is really caused, and all of them are reported at once."""

import collections
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.runs import doctor as doctors
from big_vision_lite.runs.doctor import doctor, pipeline_finding, print_findings
from big_vision_lite.system.cores import usable_cores
from big_vision_lite.training.mesh import Mesh
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("compile_once")


def experiment(train: Source, evals: dict[str, Source], batch_size: int = 8, **more) -> Experiment:
    return Experiment(
        train=Input(train, RandomCropPadded(16, pad=2), batch_size, threads=1, prefetch=1),
        evals={name: Input(source, Resize(16), batch_size, threads=1) for name, source in evals.items()},
        backbone=ResNet(10, width=1 / 16, norm=BatchNorm()), head=Classification("sigmoid"),
        **{"optimizer": AdamW(1e-3, schedule=Cosine(warmup=0)), "steps": 3, **more})


def scenes(split: str, images: int, classes: int = 4) -> EmojiScenes:
    return EmojiScenes(split, images, size=16, classes=classes)


def by_check(findings: list[doctors.Finding]) -> dict[str, doctors.Finding]:
    assert len({f.check for f in findings}) == len(findings)
    return {f.check: f for f in findings}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                pixels = np.random.default_rng(2 * i + label).integers(0, 256, (20, 20, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


def test_a_sound_experiment(tmp_path):
    before = set(tmp_path.iterdir())
    given = experiment(scenes("train", 64, 2), {"val": scenes("validation", 20, 2), "test": scenes("test", 20, 2)})
    findings = list(doctor(given, tmp_path / "runs" / "a", seconds=0.2))
    checks = by_check(findings)
    assert checks.keys() == {"devices", "train", "model", "evals.val", "evals.test", "train images", "evals.val images",
                             "evals.test images", "memory", "disk", "step", "pipeline"}
    assert not [f for f in findings if f.status == "problem"]
    assert checks["train"].found == "64 images, 2 classes"
    assert checks["step"].values["images_per_second"] > 0
    values = checks["pipeline"].values
    assert values["device_rate"] == checks["step"].values["images_per_second"] and values["pipeline_rate"] > 0
    assert set(tmp_path.iterdir()) == before  # it leaves nothing behind


def test_all_problems_are_reported_at_once(folder, tmp_path, capsys, monkeypatch):
    (folder / "extra" / "cat").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9)).save(folder / "extra" / "cat" / "0.jpg")
    cut = (folder / "extra" / "cat" / "0.jpg").read_bytes()
    (folder / "extra" / "cat" / "0.jpg").write_bytes(cut[: len(cut) // 2])
    other = ImageFolder(str(folder), "val")
    given = experiment(ImageFolder(str(folder)), {
        "missing": ImageFolder(str(folder), "tset"), "cut": ImageFolder(str(folder), "extra"),
        "classes": scenes("validation", 8), "batch": other, "fine": other})
    evals = {**given.evals, "batch": dataclasses.replace(given.evals["batch"], batch_size=3)}
    unwritable = tmp_path / "file"
    unwritable.write_text("")
    findings = list(doctor(dataclasses.replace(given, evals=evals), unwritable / "run", seconds=0.1))
    checks = by_check(findings)
    problems = {f.check: f for f in findings if f.status == "problem"}
    assert problems.keys() == {"evals.missing", "evals.cut images", "evals.classes", "evals.batch batch", "disk"}
    assert "has no split 'tset'" in problems["evals.missing"].found
    assert "1 of 1: image 'extra/cat/0.jpg' cannot be read" in problems["evals.cut images"].found
    assert problems["evals.cut images"].values == {"bad": 1.0, "sample": 1.0}
    assert "evals.classes has 4 classes and training 2" in problems["evals.classes"].found
    assert f"batch_size=3 does not divide over {jax.device_count()} devices" in problems["evals.batch batch"].found
    assert checks["evals.fine"].status == checks["evals.fine images"].status == checks["step"].status == "ok"
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctors, "doctor", lambda *_: findings)
    assert print_findings(given) == 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in problems) and "what to do" in printed
    monkeypatch.setattr(doctors, "doctor", lambda *_: [f for f in findings if f.status != "problem"])
    assert print_findings(given) == 0


@pytest.mark.parametrize(("change", "check", "message"), [
    ({"mesh": Mesh(data=3)}, "devices", "their product must be"),
    ({"batch_size": 12}, "train batch", "batch_size=12 does not divide"),
], ids=["mesh", "batch"])
def test_what_keeps_a_run_from_starting_hides_no_other_problem(folder, change, check, message):
    given = experiment(ImageFolder(str(folder)), {"missing": ImageFolder(str(folder), "tset")}, **change)
    checks = by_check(list(doctor(given, seconds=0.1)))
    assert checks[check].status == "problem" and message in checks[check].found
    assert checks["evals.missing"].status == "problem" and checks["train images"].status == "ok"
    assert "step" not in checks


def test_missing_training_data_is_reported_with_the_rest():
    given = experiment(ImageFolder("/nowhere"), {"missing": ImageFolder("/nor/here"), "fine": scenes("test", 8)})
    findings = list(doctor(given, seconds=0.1))
    assert [f.check for f in findings if f.status == "problem"] == ["train", "evals.missing"]
    assert by_check(findings)["evals.fine"].status == "ok"


def test_bad_images_that_are_masked_are_a_warning(folder, tmp_path):
    source = ImageFolder(str(folder))
    given = experiment(source, {})
    dataset = source.open()
    inputs = dataclasses.replace(given.train, on_bad_image="mask")
    first = folder / dataset.labels(0)[0]
    whole = first.read_bytes()
    try:
        first.write_bytes(b"")
        finding = doctors._decoded("train", inputs, dataset, given.head)
        assert finding.status == "warning" and finding.values == {"bad": 1.0, "sample": 16.0}
        assert "the file is empty" in finding.found
    finally:
        first.write_bytes(whole)


def test_space_for_checkpoints_and_batches(monkeypatch, tmp_path):
    given = experiment(scenes("train", 16), {}, max_checkpoints=2)
    trainer = Trainer(given)
    needed = doctors._disk(trainer, tmp_path).values["needed"]
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trainer.init())]
    assert needed == 3 * sum(sizes)  # two to keep, and one being written
    usage = collections.namedtuple("usage", "total used free")
    for free, status in ((needed - 1, "problem"), (1.5 * needed, "warning"), (3 * needed, "ok")):
        monkeypatch.setattr(doctors.shutil, "disk_usage", lambda path, free=free: usage(0, 0, int(free)))
        assert doctors._disk(trainer, tmp_path / "not" / "yet").status == status
    assert doctors._disk(trainer, Path("gs://bucket/run")).status == "ok"
    finding = doctors._disk(trainer, Path("s3://bucket/run"))
    assert finding.status == "problem" and "expected a folder on a disk, or gs://BUCKET/FOLDER" in finding.found

    many = dataclasses.replace(given, train=dataclasses.replace(given.train, prefetch=4, threads=2, workers=3))
    assert doctors._memory(many, trainer).values["needed"] == 3 * (4 + 4) * 8 * 16 * 16 * 3
    monkeypatch.setattr(doctors, "free_memory", lambda: 100_000)
    assert doctors._memory(many, trainer).status == "problem" and "prefetch" in doctors._memory(many, trainer).advice


@pytest.mark.parametrize(("options", "device_rate", "rates", "status", "advice"), [
    ({"threads": 8}, 1000, {8: 3000}, "ok", ""),
    ({"threads": 2}, 1000, {2: 600, 4: 1150}, "warning", "set --train.threads=4"),
    ({"threads": 8}, 5000, {4: 1050, 8: 2000}, "warning", "it needs about 24 cores and 8 are here"),
    ({"threads": 8}, 4000, {4: 1900, 8: 2000}, "warning", "set --train.workers=3 --train.threads=2"),
    ({"threads": 4, "workers": 2}, 4000, {2: 1900, 4: 2000}, "warning", "set --train.workers=5 --train.threads=1"),
    ({"threads": 1, "workers": 8}, 4000, {1: 2000}, "warning", "it needs about 20 cores"),
    ({"threads": 1, "workers": 2}, 1000, {1: 600, 2: 1150}, "warning", "set --train.threads=2"),
], ids=["enough", "threads", "cores", "lock", "lock but workers", "workers on all cores", "threads of workers"])
def test_advice_on_speed(options, device_rate, rates, status, advice):
    inputs = Input(scenes("train", 8), Resize(16), **options)
    finding = pipeline_finding(inputs, float(device_rate), {n: float(rate) for n, rate in rates.items()}, cores=8)
    assert finding.status == status and advice in finding.advice
    assert ("threads of one process" in finding.advice) == ("workers=" in advice)


@dataclasses.dataclass(frozen=True)
class Slow(Resize):
    """Takes 4 ms per image, computing in Python (which one thread can do at a time) or sleeping."""

    computes: bool = False

    def __call__(self, example, rng, out):
        start = time.thread_time()
        while self.computes and time.thread_time() - start < 4e-3:
            pass
        if not self.computes:
            time.sleep(4e-3)
        return super().__call__(example, rng, out)


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
@pytest.mark.parametrize("computes", [True, False])
def test_threads_that_wait_for_each_other(computes):
    given = experiment(scenes("train", 64), {})
    train = dataclasses.replace(given.train, transform=Slow(16, computes=computes), prefetch=4)
    trainer = Trainer(dataclasses.replace(given, train=train))
    for _ in range(6):  # other programs may take the cores meanwhile
        rates = {threads: doctors._input_rate(trainer, dataclasses.replace(train, threads=threads), 1.0)
                 for threads in (1, 2)}
        finding = pipeline_finding(train, 10 * rates[1], rates, cores=8)
        if ("threads of one process wait for each other" in finding.advice) == computes:
            break
    else:
        pytest.fail(f"{rates} images/s, {finding}")


def test_a_second_thread_count_is_measured_where_the_first_is_too_slow(monkeypatch):
    given, measured = experiment(scenes("train", 64), {}), []
    monkeypatch.setattr(doctors, "_device_rate", lambda *_: (100.0, 1.0, 1.0))
    monkeypatch.setattr(doctors, "usable_cores", lambda: 4)
    for rate, threads, expected in ((200.0, 2, [2]), (50.0, 2, [2, 4]), (50.0, 4, [4, 2]), (50.0, 1, [1, 2])):
        monkeypatch.setattr(doctors, "_input_rate", lambda trainer, inputs, seconds, rate=rate:
                            measured.append(inputs.thread_count) or rate)
        trainer = Trainer(dataclasses.replace(given, train=dataclasses.replace(given.train, threads=threads)))
        assert [finding.check for finding in doctors._speed(trainer, 0.1)] == ["step", "pipeline"]
        assert measured == expected
        measured.clear()
