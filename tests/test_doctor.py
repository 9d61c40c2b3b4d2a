"""What the doctor finds, each fault really caused; and all of them at once."""

import collections
import dataclasses
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.image_folder import ImageFolder
from big_vision_lite.data.interpreter_lock import lock_held, lost_beside, usable_cores
from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.source import Records, Source
from big_vision_lite.data.transforms import PadCrop, Squash
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training import doctor as doctors
from big_vision_lite.training.doctor import doctor, exit_code, pipeline_finding, table
from big_vision_lite.training.job import Job
from big_vision_lite.training.mesh import Mesh
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.schedules import Cosine

pytestmark = pytest.mark.usefixtures("compile_once")


def experiment(train: Source, evals: dict[str, Source], batch_size: int = 8, **more) -> Experiment:
    return Experiment(
        train=Input(train, PadCrop(16, pad=2), batch_size, threads=1, prefetch=1),
        evals={name: Input(source, Squash(16), batch_size, threads=1) for name, source in evals.items()},
        backbone=ResNet(10, width=1 / 16, norm=BatchNorm()), head=Classification("sigmoid"),
        **{"optimizer": AdamW(1e-3, schedule=Cosine(warmup=0)), "steps": 3, **more})


def scenes(split: str, images: int, classes: int = 4) -> EmojiScenes:
    return EmojiScenes(split, images, size=16, classes=classes)


def by_check(found: list[doctors.Finding]) -> dict[str, doctors.Finding]:
    assert len({f.check for f in found}) == len(found)
    return {f.check: f for f in found}


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
    found = doctor(given, tmp_path / "runs" / "a", seconds=0.2)
    checks = by_check(found)
    assert checks.keys() == {"devices", "train", "model", "evals.val", "evals.test", "train images", "evals.val images",
                             "evals.test images", "memory", "disk", "step", "pipeline"}
    assert not [f for f in found if f.status == "problem"] and exit_code(found) == 0
    assert checks["train"].found == "64 images, 2 classes"
    assert checks["step"].figures["images_per_second"] > 0
    figures = checks["pipeline"].figures
    assert figures["need"] == checks["step"].figures["images_per_second"] and figures["have"] > 0
    assert set(tmp_path.iterdir()) == before  # it leaves nothing behind


def test_all_problems_are_told_at_once(folder, tmp_path, capsys):
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
    found = doctor(dataclasses.replace(given, evals=evals), unwritable / "run", seconds=0.1)
    checks = by_check(found)
    problems = {f.check: f for f in found if f.status == "problem"}
    assert problems.keys() == {"evals.missing", "evals.cut images", "evals.classes", "evals.batch batch", "disk"}
    assert "has no split 'tset'" in problems["evals.missing"].found
    assert "1 of 1: image 'extra/cat/0.jpg' cannot be read" in problems["evals.cut images"].found
    assert problems["evals.cut images"].figures == {"bad": 1.0, "sample": 1.0}
    assert "evals.classes has 4 classes and training 2" in problems["evals.classes"].found
    assert f"batch_size=3 does not divide over {jax.device_count()} devices" in problems["evals.batch batch"].found
    assert checks["evals.fine"].status == checks["evals.fine images"].status == checks["step"].status == "ok"
    assert exit_code(found) == 1
    Console(width=200).print(table(found))
    printed = capsys.readouterr().out
    assert all(name in printed for name in problems) and "what to do" in printed


@pytest.mark.parametrize(("change", "check", "said"), [
    ({"mesh": Mesh(data=3)}, "devices", "their product must be"),
    ({"batch_size": 12}, "train batch", "batch_size=12 does not divide"),
], ids=["mesh", "batch"])
def test_what_keeps_a_run_from_starting_hides_no_other_problem(folder, change, check, said):
    given = experiment(ImageFolder(str(folder)), {"missing": ImageFolder(str(folder), "tset")}, **change)
    checks = by_check(doctor(given, seconds=0.1))
    assert checks[check].status == "problem" and said in checks[check].found
    assert checks["evals.missing"].status == "problem" and checks["train images"].status == "ok"
    assert "step" not in checks


def test_missing_training_data_is_told_with_the_rest():
    given = experiment(ImageFolder("/nowhere"), {"missing": ImageFolder("/nor/here"), "fine": scenes("test", 8)})
    found = doctor(given, seconds=0.1)
    assert [f.check for f in found if f.status == "problem"] == ["train", "evals.missing"]
    assert by_check(found)["evals.fine"].status == "ok"


def test_bad_images_that_are_masked_are_a_warning(folder, tmp_path):
    source = ImageFolder(str(folder))
    given = experiment(source, {})
    records = source.open()
    inputs = dataclasses.replace(given.train, on_bad_image="mask")
    first = folder / records.labels(0)[0]
    whole = first.read_bytes()
    try:
        first.write_bytes(b"")
        finding = doctors._decoded("train", inputs, records, given.head)
        assert finding.status == "warning" and finding.figures == {"bad": 1.0, "sample": 16.0}
        assert "the file is empty" in finding.found
    finally:
        first.write_bytes(whole)


def test_room_for_checkpoints_and_batches(monkeypatch, tmp_path):
    given = experiment(scenes("train", 16), {}, keep=2)
    job = Job(given)
    needed = doctors._disk(job, tmp_path).figures["needed"]
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(job.init())]
    assert needed == 3 * sum(sizes)  # two that are kept, and one being written
    usage = collections.namedtuple("usage", "total used free")
    for free, status in ((needed - 1, "problem"), (1.5 * needed, "warning"), (3 * needed, "ok")):
        monkeypatch.setattr(doctors.shutil, "disk_usage", lambda path, free=free: usage(0, 0, int(free)))
        assert doctors._disk(job, tmp_path / "not" / "yet").status == status
    assert doctors._disk(job, Path("gs://bucket/run")).status == "ok"

    many = dataclasses.replace(given, train=dataclasses.replace(given.train, prefetch=4, threads=2, workers=3))
    assert doctors._memory(many, job).figures["needed"] == 3 * (4 + 4) * 8 * 16 * 16 * 3
    monkeypatch.setattr(doctors, "_free_memory", lambda: 100_000)
    assert doctors._memory(many, job).status == "problem" and "prefetch" in doctors._memory(many, job).advice


@pytest.mark.parametrize(("options", "need", "have", "held", "status", "advice"), [
    ({"threads": 8}, 1000, 3000, None, "ok", ""),
    ({"threads": 2}, 1000, 600, None, "warning", "set --train.threads=4"),
    ({"threads": 8}, 5000, 2000, None, "warning", "it needs about 24 cores and 8 are here"),
    ({"threads": 8}, 4000, 2000, 400e-6, "warning", "set --train.workers=2 --train.threads=4: threads of one process"),
    ({"threads": 4, "workers": 2}, 4000, 2000, 400e-6, "warning", "it needs about 20 cores"),
    ({"threads": 1, "workers": 2}, 1000, 600, 400e-6, "warning", "set --train.threads=2"),
], ids=["enough", "threads", "cores", "lock", "lock but workers", "threads of workers"])
def test_advice_on_speed(options, need, have, held, status, advice):
    inputs = Input(scenes("train", 8), Squash(16), **options)
    measured = held and {"alone": 1.5e-3, "held": held, "held_alone": held / 2, "busy": 0.0}
    finding = pipeline_finding(inputs, float(need), float(have), measured, cores=8)
    assert finding.status == status and advice in finding.advice
    assert ("threads of one process" in finding.advice) == ("threads of one process" in advice)


@dataclasses.dataclass(eq=False)
class Slow(Records):
    """Reading an example takes 4 ms, with the lock or without it."""

    with_lock: bool
    classes: tuple[str, ...] = ("a",)
    multi_label: bool = False
    fingerprint: str = "slow"

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int):
        start = time.thread_time()
        if self.with_lock:
            while time.thread_time() - start < 4e-3:
                pass
        else:
            time.sleep(4e-3)
        return {"id": str(index), "image": np.zeros((2, 2, 3), np.uint8), "labels": np.zeros(1, np.int32)}


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_the_time_an_image_holds_the_lock():
    # One that computes in Python holds it all the time; one that waits outside of it, hardly.
    def measured(with_lock: bool) -> dict[str, float]:
        inputs = Input(scenes("train", 64), Squash(2), batch_size=4)
        return lock_held(BatchMaker(Slow(with_lock), inputs, lambda e: {"label": e["labels"][:0]}, seed=0), seconds=1.0)

    threads = threading.active_count()
    computing = measured(True)
    for _ in range(6):  # what else takes the cores adds to the times
        waiting = measured(False)
        assert computing["alone"] > 4e-3 and waiting["alone"] > 4e-3
        assert waiting["held_alone"] <= waiting["held"] and waiting["busy"] > 0.5  # it slept
        if computing["held"] > 4 * waiting["held_alone"]:
            break
    else:
        pytest.fail(f"{computing} when computing, {waiting} when waiting")
    assert threading.active_count() == threads


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_an_error_beside_the_counting_thread_is_raised():
    def fails() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        lost_beside(fails, 0.1)
