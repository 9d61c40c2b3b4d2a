"""Folders of runs: config.json, data.json, run.json, metrics.jsonl, results.csv and checkpoints.

The independent readings are json's, and the arrays that were saved.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzz import harness
from fuzz.harness import Case
from fuzz.made import encoded, special
from fuzz.mutate import json_text, of_bytes, of_json_bytes, of_text, pick

EXPORT = ("weights", "export", "run", "--to", "safetensors", "--out", "out.safetensors")
CONFIG = harness.ROOT / "configs" / "image_folder.py"
TRAIN = ("train", f"{CONFIG}:root=photos,size=16,steps=2,batch_size=8,width=0.0625", "--workdir=run", "--save-every=1")


@pytest.fixture(scope="module")
def trained(worker, tmp_path_factory) -> Path:
    """Photos, a run of two steps, and truth.json with what each of its checkpoints holds."""
    folder = tmp_path_factory.mktemp("trained")
    for split, images in (("train", 4), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(images):
                (folder / "photos" / split / name / f"{i}.jpg").write_bytes(
                    encoded("JPEG", seed=9 * label + i, size=(16, 16))
                )
    result = worker.call(TRAIN, folder, seconds=120)
    assert result["code"] == 0, result
    truth = {}
    for step in (1, 2):
        result = worker.call((*EXPORT, f"--checkpoint={step}"), folder, seconds=60)
        assert result["code"] == 0, result
        truth[str(step)] = [digest(folder / "out.safetensors"), scores(folder / "run", step)]
    assert truth["1"] != truth["2"]
    (folder / "truth.json").write_text(json.dumps(truth))
    for name in ("tensorboard", "evaluations"):
        shutil.rmtree(folder / "run" / name, ignore_errors=True)
    return folder


def digest(path: Path) -> str:
    """Of a safetensors file's names and values."""
    from safetensors.numpy import load_file

    state = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        state.update(name.encode() + repr(value.shape).encode() + value.tobytes())
    return state.hexdigest()


def scores(run: Path, step: int) -> dict[str, float]:
    """Of the evaluation at a step, by metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(
        {name: line[name] for name in ("val/top1", "val/loss")}
        for line in lines
        if line["step"] == step and "val/top1" in line
    )


def copied(base: Path, folder: Path) -> Path:
    for name in ("photos", "run"):
        shutil.copytree(base / name, folder / name)
    shutil.copy(base / "truth.json", folder)
    return folder / "run"


CLASSES = (
    "os:system",
    "pathlib:Path",
    "big_vision_lite.cli:main",
    "big_vision_lite.errors:UserError",
    "",
    ":",
    "x",
    "big_vision_lite",
    "a.b:",
    "big_vision_lite.nowhere:X",
    "big_vision_lite.experiment:Experiment.nowhere",
    "big_vision_lite.data.source:Source",
    "builtins:dict",
    "big_vision_lite.training.schedules:Cosine",
    "big_vision_lite.data.sources.image_folder:ImageFolder",
    "big_vision_lite.__main__:x",
    "\0:\0",
    "big_vision_lite.config:json.JSONEncoder",
    "big_vision_lite.data.sources.tar_images:TarImages",
    ["x"],
    3,
    None,
    "..:x",
    "a" * 5000,
)
PLACES = (
    (),
    ("train",),
    ("train", "source"),
    ("train", "transform"),
    ("backbone",),
    ("backbone", "norm"),
    ("head",),
    ("optimizer",),
    ("evals", "val"),
)


def config_files(base: Path, rng: np.random.Generator, number: int, folder: Path) -> Case:
    path = copied(base, folder) / "config.json"
    values = json.loads(path.read_text())
    if number < len(CLASSES) or rng.random() < 0.15:
        place, value = pick(rng, PLACES), CLASSES[number % len(CLASSES)]
        node = values
        for key in place:
            node = node[key]
        node["class"] = value
        data, what = json_text(values), f"class of {'.'.join(place)} is {value!r:.50}"
    else:
        data, what = of_json_bytes(rng, values)
    path.write_bytes(data)
    command = pick(
        rng,
        (
            EXPORT,
            EXPORT,
            EXPORT,
            ("evaluate", "run"),
            ("predict", "run", "photos/val/cat/0.jpg"),
            ("report", "run"),
            TRAIN,
        ),
    )
    return Case(command, ("config", "run", "Experiment", "photos"), what, check="fuzz.test_runs:equals_json")


def equals_json(folder: Path, arguments: list[str]) -> str | None:
    """What is read is what json reads, with fields that are missing at their defaults; the network is the saved one."""
    from big_vision_lite.experiment import read_experiment

    values = json.loads((folder / "run" / "config.json").read_text("utf-8-sig"))
    if arguments[0] == "train":  # which writes its own
        return None
    if (wrong := _differs(values, read_experiment(folder / "run" / "config.json"), "config")) is not None:
        return wrong
    return equals_saved(folder, arguments)


def _differs(values, read, where: str) -> str | None:
    if isinstance(values, dict):
        if isinstance(read, dict) and set(read) != set(values):
            return f"{where}: {set(read)}"
        for key, value in values.items():
            if key in ("class", "format"):
                continue
            inner = read[key] if isinstance(read, dict) else getattr(read, key)
            if (wrong := _differs(value, inner, f"{where}.{key}")) is not None:
                return wrong
        return None
    if isinstance(values, list):
        if not isinstance(read, tuple | list) or len(read) != len(values):
            return f"{where}: {read!r} instead of {values!r}"[:300]
        return next(
            (
                wrong
                for i, pair in enumerate(zip(values, read, strict=True))
                if (wrong := _differs(*pair, f"{where}[{i}]")) is not None
            ),
            None,
        )
    same_kind = type(values) is type(read) or {type(values), type(read)} == {int, float}
    return None if values == read and same_kind else f"{where}: {read!r} instead of {values!r}"[:300]


def equals_saved(folder: Path, arguments: list[str]) -> str | None:
    """An export has the arrays of its checkpoint."""
    if arguments[0] != "weights":
        return None
    step = Path(f"{folder}.log", "stdout").read_text().rpartition("step ")[2].strip()
    if digest(folder / "out.safetensors") != json.loads((folder / "truth.json").read_text()).get(step, [0])[0]:
        return f"the arrays of step {step} are not those that were saved"
    return None


def equals_undisturbed(folder: Path, arguments: list[str]) -> str | None:
    """Over damaged checkpoints: scores are those of the step, and a resumed run ends as the first one did."""
    truth, shown = json.loads((folder / "truth.json").read_text()), Path(f"{folder}.log", "stdout").read_text()
    if arguments[0] == "evaluate":
        metrics = json.loads(shown)
        expected = truth[str(metrics["step"])][1]
        return None if {**metrics, **expected} == metrics else f"{metrics} instead of {expected}"
    if arguments[0] == "train" and scores(folder / "run", 2) != truth["2"][1]:
        return f"resumed, it ends with {scores(folder / 'run', 2)} instead of {truth['2'][1]}"
    return equals_saved(folder, arguments)


RESULTS = """run,study,status,stage,head,images,depth,seed,steps,images_seen,main_metric,direction,unit,\
val/top1,val/loss
a,x,done,pretraining,Classification,100,18,0,10,640,val/top1,higher,,0.4,1.5
b,x,done,pretraining,Classification,200,18,0,10,640,val/top1,higher,,0.5,1.2
c,x,done,pretraining,Classification,400,18,0,10,640,val/top1,higher,,0.6,1.0
d,x,missing,pretraining,Classification,800,18,0,10,640,,,,,
e,x,done,transfer,Detection,400,18,1,10,640,val/mAP,higher,%,31.5,1.0
"""
REPORT = ("report", "run", "--bootstrap", "20")


def run_files(base: Path, rng: np.random.Generator, number: int, folder: Path) -> Case:
    run = copied(base, folder)
    name = ("data.json", "run.json", "metrics.jsonl", "results.csv")[number % 4]
    path, commands = run / name, [REPORT, TRAIN, ("evaluate", "run")]
    if name == "results.csv":
        data, what = of_text(rng, RESULTS)
        commands = [REPORT, REPORT, (*REPORT, "--metric", "val/loss")]
    elif name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        at = int(rng.integers(len(lines)))
        data, what = of_json_bytes(rng, lines[at])
        data = b"\n".join([*map(json_text, lines[:at]), data, *map(json_text, lines[at + 1 :])]) + b"\n"
        if rng.random() < 0.3:
            data, what = of_bytes(rng, path.read_bytes())
    else:
        data, what = of_json_bytes(rng, json.loads(path.read_text()))
        if name == "data.json":
            commands += [EXPORT, ("predict", "run", "photos/val/cat/0.jpg")]
    if rng.random() < 0.08:
        path.unlink(missing_ok=True)
        what = pick(rng, ("pipe", "folder", "zero", "loop", "nowhere"))
        special(what, path)
    else:
        path.write_bytes(data)
    return Case(pick(rng, commands), (name, "run"), f"{name}: {what}", check="fuzz.test_runs:equals_data_json")


def equals_data_json(folder: Path, arguments: list[str]) -> str | None:
    from big_vision_lite.training.workdir import read_dataset_info

    if arguments[0] in ("weights", "predict", "evaluate"):
        values, info = (
            json.loads((folder / "run" / "data.json").read_text("utf-8-sig")),
            read_dataset_info(folder / "run"),
        )
        for field in ("classes", "multi_label", "fingerprint", "images", "sha256"):
            if (wrong := _differs(values[field], getattr(info, field), field)) is not None:
                return wrong
    return equals_saved(folder, arguments)


def checkpoints(base: Path, rng: np.random.Generator, number: int, folder: Path) -> Case:
    run = copied(base, folder)
    step = pick(rng, ("2", "2", "2", "1"))
    path = pick(rng, sorted(path for path in (run / "checkpoints" / step).rglob("*") if path.is_file()))
    kind = pick(rng, ("bytes", "bytes", "bytes", "missing", "empty", "special", "swap", "other", "folder"))
    what = f"{path.relative_to(run)}: {kind}"
    if kind == "bytes":
        data, how = of_bytes(rng, path.read_bytes())
        path.write_bytes(data)
        what += f" {how}"
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "swap":
        other = Path(str(path).replace(f"/checkpoints/{step}/", f"/checkpoints/{3 - int(step)}/"))
        if other.is_file():
            path.write_bytes(other.read_bytes())
    elif kind == "folder":
        (run / "checkpoints" / pick(rng, ("3", "x", "2.tmp", "007", "9" * 40))).mkdir()
    elif kind == "other":
        (path.parent / "more").write_bytes(b"x")
    else:
        path.unlink()
        if kind == "special":
            special(pick(rng, ("pipe", "folder", "zero", "loop")), path)
    command = pick(rng, (EXPORT, EXPORT, EXPORT, (*EXPORT, f"--checkpoint={step}"), ("evaluate", "run"), TRAIN))
    return Case(command, ("checkpoint", path.name), what, check="fuzz.test_runs:equals_undisturbed")


@harness.formats(220, 7, config_json=config_files)
def test_config_json(worker, trained, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, functools.partial(make, trained), seed, number, record_property)


@harness.formats(160, 6, run_files=run_files)
def test_run_files(worker, trained, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, functools.partial(make, trained), seed, number, record_property)


@harness.formats(150, 5, checkpoints=checkpoints)
def test_checkpoints(worker, trained, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, functools.partial(make, trained), seed, number, record_property)
