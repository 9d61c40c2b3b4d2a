"""Speeds of this package relative to reference computations made in the same run, to see whether something got slower.

    python benchmarks/all.py --quick                           # under five minutes on two cores
    python benchmarks/all.py --torch-python OTHER/bin/python --json ratios.json

Each pair is interleaved (`interleaved`) and its ratio is the reference's median time divided by ours: higher is better.
Ratios against torch are left out where torch is missing. The ratios are appended to ``--csv``; the exit code is 1 when
one is more than 30 % below its last value from the same processor and number of cores.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import small_steps
from interleaved import Step, measure, work

LARGEST_DROP = 0.3
COLUMNS = ("time", "commit", "processor", "cores", "name", "ratio")
HERE = Path(__file__).resolve().parent


def products() -> Step:
    """A reference that needs no torch: NumPy's matrix product."""
    a = np.random.default_rng(0).standard_normal((1536, 1536), np.float32)
    return lambda: float((a @ a)[0, 0])


def photos(count: int = 64) -> list[bytes]:
    """JPEGs of 375 x 500 pixels: smooth noise."""
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        image.resize((500, 375), Image.Resampling.BICUBIC).save(file := io.BytesIO(), "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def our_photos() -> Step:
    """Random crops of 224 pixels, decoded, resized and mirrored, on one core."""
    from big_vision_lite.data.transforms.image import RandomResizedCrop

    transform, files, rng = RandomResizedCrop(224), photos(), np.random.default_rng(0)
    out = np.zeros((224, 224, 3), np.uint8)

    def step() -> float:
        for file in files:
            transform({"id": "", "image": file, "labels": np.zeros(1, np.int32)}, rng, out)
        return float(out[0, 0, 0])

    return step


def pillow_photos() -> Step:
    """The same work by Pillow."""
    from baselines import random_window
    from PIL import Image

    files = photos()

    def step() -> float:
        for file in files:
            image = Image.open(io.BytesIO(file)).convert("RGB")
            left, top, width, height = random_window(*image.size)
            image = image.crop((left, top, left + width, top + height)).resize((224, 224), Image.Resampling.BILINEAR)
            pixels = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        return float(pixels[0, 0, 0])

    return step


def small_batches(resident: bool) -> Step:
    """Four batches of 256 images of 32 pixels, cropped with padding and mirrored: kept ones, or decoded each time."""
    import dataclasses

    from PIL import Image

    from big_vision_lite.data.pipeline import BatchMaker, Input
    from big_vision_lite.data.resident import ResidentBatchMaker, keep
    from big_vision_lite.data.sources.image_folder import ImageFolder
    from big_vision_lite.data.transforms.image import RandomCropPadded

    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    rng = np.random.default_rng(0)
    for i in range(1024):
        path = folder / f"class{i % 10}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    inputs = Input(ImageFolder(str(folder), held_out=0.0), RandomCropPadded(32), 256)

    def targets(example: dict) -> dict[str, np.ndarray]:
        return {"label": np.append(example["labels"], np.int32(-1))[:1]}

    dataset = inputs.open()
    if resident:
        inputs = dataclasses.replace(inputs, resident="host")
        maker = ResidentBatchMaker(keep(dataset, inputs), dataset, inputs, targets, 0, fixed_targets=True)
    else:
        maker = BatchMaker(dataset, inputs, targets, 0)

    def step(_: object = temporary) -> float:  # which is removed with this function
        return float(sum(int(maker(number)["image"][0, 0, 0, 0]) for number in range(4)))

    return step


def average_precision(ours: bool) -> Step:
    """mAP of 4,000 images and 300 classes, against the bare sorting that it needs."""
    from big_vision_lite.evaluation.classification import MultiLabelMetrics

    rng = np.random.default_rng(0)
    scores, labels = rng.random((4_000, 300), np.float32), rng.integers(0, 300, (4_000, 5)).astype(np.int32)

    def step() -> float:
        metrics = MultiLabelMetrics(300, len(scores))
        metrics.add(scores, labels, np.ones(len(scores), bool))
        return float(metrics.result()["mAP"])

    return step if ours else lambda: float(np.argsort(-scores.T, axis=1, kind="stable")[0, 0])


def process(*command: str) -> Step:
    """A command's run time, from start to end."""
    def step() -> float:
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        return 0.0

    return step


def pairs() -> dict[str, tuple[Callable[[], Step], Callable[[], Step]]]:
    """By name of the ratio: ours and the reference. Names of references to torch end in "torch"."""
    made = {}
    for name, network in small_steps.NETWORKS.items():
        ours = partial(small_steps.jax_step, network)
        made[f"{name}_step_vs_torch"] = ours, partial(small_steps.torch_step, network)
    made["quickstart_step_vs_products"] = (partial(small_steps.jax_step, small_steps.NETWORKS["quickstart"]), products)
    made["photos_vs_pillow"] = our_photos, pillow_photos
    made["kept_batches_vs_decoded"] = partial(small_batches, True), partial(small_batches, False)
    made["average_precision_vs_sorting"] = partial(average_precision, True), partial(average_precision, False)
    made["help_vs_importing_numpy"] = (partial(process, "-m", "big_vision_lite", "--help"),
                                       partial(process, "-c", "import numpy"))
    return made


def last_ratios(path: Path, processor: str, cores: int) -> dict[str, float]:
    """The newest ratio of each name from this processor."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["name"]: float(row["ratio"]) for row in csv.DictReader(file)
                if (row["processor"], row["cores"]) == (processor, str(cores))}


def append(path: Path, rows: list[tuple]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows] if new else rows)


def processor_name() -> str:
    """The processor's model, with its widest vectors, since virtual machines name different ones alike."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    flags = values.get("flags", "").split()
    vectors = next((flag for flag in ("amx_tile", "avx512f", "avx2") if flag in flags), "")
    numbers = "/".join(values.get(key, "") for key in ("cpu family", "model"))
    return f"{values.get('model name', platform.machine())} {numbers} {vectors}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 turns instead of 15")
    parser.add_argument("--json", type=Path, help="file for the ratios by name")
    parser.add_argument("--csv", type=Path, default=HERE / "ratios.csv", help="file to append to and to compare with")
    parser.add_argument("--torch-python", default=sys.executable, help="the Python that has torch")
    parser.add_argument("--names", nargs="*", help="measure these ratios only")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        side, name = options.only.split(" ", 1)
        return work(pairs()[name][side.startswith("torch") or side == "reference"]())

    has_torch = not subprocess.run([options.torch_python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode
    ratios, began = {}, time.perf_counter()
    for name in options.names or pairs():
        if name.endswith("torch") and not has_torch:
            print(f"{name:32} left out: {options.torch_python} has no torch")
            continue
        reference = f"torch {name}" if name.endswith("torch") else f"reference {name}"
        pythons = {f"ours {name}": sys.executable,
                   reference: options.torch_python if name.endswith("torch") else sys.executable}
        ours, theirs = measure(pythons, [], 5 if options.quick else 15, quiet=True).values()
        ratios[name] = statistics.median(theirs) / statistics.median(ours)
        spread = [a / b for a, b in zip(theirs, ours, strict=True)]
        print(f"{name:32} {ratios[name]:6.2f}   ({min(spread):.2f} to {max(spread):.2f})", flush=True)
    cores, processor = os.cpu_count() or 1, processor_name()
    print(f"{time.perf_counter() - began:.0f} s on {cores} cores of {processor}")
    if options.json:
        options.json.write_text(json.dumps(ratios, indent=1) + "\n")
    before = last_ratios(options.csv, processor, cores)
    commit = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty=+"], capture_output=True,
                            text=True).stdout.strip()
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    append(options.csv, [(now, commit, processor, cores, name, f"{ratio:.4g}") for name, ratio in ratios.items()])
    slower = {name: ratio for name, ratio in ratios.items() if ratio < (1 - LARGEST_DROP) * before.get(name, 0)}
    for name, ratio in slower.items():
        print(f"{name} fell from {before[name]:.2f} to {ratio:.2f}, by more than {LARGEST_DROP:.0%}")
    sys.exit(bool(slower))


if __name__ == "__main__":
    main()
