"""Command lines."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import ROOT, Case
from fuzz.made import special, tree
from fuzz.mutate import NUMBERS, TEXTS, pick

SOURCE = (ROOT / "configs" / "image_folder.py").read_text()
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": (
        "--steps",
        "--seed",
        "--workdir",
        "--mesh.fsdp",
        "--optimizer.learning-rate",
        "--train.batch-size",
        "--eval-every",
        "--save-every",
        "--watchdog",
        "--profile",
        "--grad-accum-steps",
        "--transfer.init",
        "--coordinator",
        "--processes",
        "--process",
        "--ema",
        "--max-checkpoints",
        "--train.workers",
    ),
    "evaluate": ("--split", "--source", "--submission", "--checkpoint", "--import"),
    "probe": ("--train", "--test", "--kinds", "--shots", "--seeds", "--checkpoint"),
    "predict": ("--out", "--checkpoint", "--import"),
    "config show": ("--steps", "--seed", "--backbone.depth", "--head.label-smoothing"),
    "config list": (),
    "config copy": (),
    "study": ("--workdir", "--only", "--jobs", "--import", "--list", "--gather"),
    "report": ("--out", "--table", "--row", "--metric", "--bootstrap"),
    "laws": ("--x", "--target-error", "--law", "--chance", "--bootstrap", "--figure"),
    "preflight": ("--topology", "--classes", "--decode-rate", "--share"),
    "launch": ("--cluster", "--name", "--out"),
    "data inspect": ("--out",),
    "data prepare": ("--name", "--splits", "--data-dir", "--processes", "--on-bad-image"),
    "data hold-out": ("--images", "--out", "--seed"),
    "data duplicates": ("--train", "--against", "--out", "--threshold", "--min-correlation"),
    "weights import": ("--out", "--classes"),
    "weights export": ("--to", "--out", "--checkpoint"),
    "export": ("--to", "--out", "--checkpoint", "--push", "--licence"),
    "bench step": ("--repeat", "--warm-up", "--classes"),
    "doctor": ("--workdir",),
    "": (),
    "nowhere": (),
    "data": (),
}
PLACES = (
    "nowhere.py",
    "photos",
    "photos/train/cat/0.jpg",
    "pipe.jpg",
    "zero.json",
    "zero.csv",
    "pipe.py",
    "folder.py",
    "/",
    "config.py",
    "config.py:",
    "config.py:root=nowhere",
    "config.py:root=photos",
    "http://[::1",
    "http://[::1]:1/x.safetensors",
    "file:///etc/passwd",
    "s3://x/y",
    "gs:",
    "hf:",
    "photos:split=nowhere",
    "photos:nowhere=1",
    "photos:held_out=7",
    "photos:held_out=nan",
    "emoji_scenes:images=-1",
    "emoji_scenes:images=1e9",
    "cifar10",
    "cifar10:9.9.9",
    "out.safetensors",
    "x.pth",
    ".py",
    ".py:",
    "configs",
    "quickstrat.py",
)


SOUND: dict[str, tuple[str, ...]] = {
    "config show": ("config.py:root=photos",),
    "config list": (".",),
    "laws": ("curve.csv", "--bootstrap=20"),
    "data inspect": ("photos",),
    "launch": ("config.py:root=photos", f"--cluster={ROOT}/configs/clusters/local.toml"),
    "data prepare": ("photos", "--name=x", "--data-dir=data"),
    "data hold-out": ("photos", "--images=1", "--out=split"),
    "study": (f"{ROOT}/configs/studies/quickstart.py", "--list"),
    "train": ("config.py:root=photos",),
    "data duplicates": ("--train", "photos", "--against", "photos:split=val"),
}


def commands(rng: np.random.Generator, number: int, folder: Path) -> Case:
    tree(folder / "photos", "train/cat/0.jpg", "train/dog/0.jpg", "val/cat/0.jpg", "val/dog/0.jpg")
    (folder / "config.py").write_text(SOURCE)
    (folder / "curve.csv").write_text("images,error\n100,0.5\n200,0.4\n400,0.3\n800,0.25\n")
    for kind, name in (
        ("pipe", "pipe.jpg"),
        ("zero", "zero.json"),
        ("zero", "zero.csv"),
        ("pipe", "pipe.py"),
        ("folder", "folder.py"),
    ):
        special(kind, folder / name)
    odd = (
        *PLACES,
        *TEXTS,
        *(str(value) for value in NUMBERS if value != 10**400),
        "\udcff\udcfe",
        "a" * 5000,
        "--",
        "-",
        "--x",
        "--help=3",
        "1" * 5000,
        "\n",
        "=",
        "a=b",
        "@x",
    )
    name = pick(rng, sorted(COMMANDS))
    if name in SOUND and rng.random() < 0.7:
        words, most = [*name.split(), *SOUND[name]], 1
    else:
        words, most = [*name.split(), *(pick(rng, odd) for _ in range(int(pick(rng, (0, 1, 1, 2)))))], 3
    for _ in range(int(rng.integers(most + 1))):
        option, value = pick(rng, (*COMMANDS[name], *COMMANDS[name], "--nowhere", "--seed")), pick(rng, odd)
        words += pick(
            rng,
            (
                [option, value],
                [option, value],
                [f"{option}={value}"],
                [option],
                [option.upper(), value],
                [f"{option}x", value],
            ),
        )
    if name in ("train", "bench step", "doctor") and "config.py:root=photos" in words:
        words += ["--steps=0"]  # not to train for minutes
    parts = [part.strip("_")[:40] for part in re.findall(r"\w{2,}", " ".join(words).replace("-", "_"))]
    named = (*parts, *(part.replace("_", "-") for part in parts), "argument", "no command", "there is no", "no config")
    named += ("folder.py", "config.json", "results.csv")
    return Case(tuple(words), named, ascii(" ".join(words))[:150])


@harness.formats(250, 12, commands=commands)
def test_commands(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
