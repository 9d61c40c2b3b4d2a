"""Throughput of this pipeline beside others: JPEG files to random crops of 224, flipped, in batches.

    python benchmarks/input.py --cores 1

Every pipeline runs in a process of its own (`baselines`), pinned to the same cores. They are interleaved in rounds; the
median over rounds counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import baselines
from baselines import SIZE
from experiments import main, write_measurements

from big_vision_lite.data.pipeline import Input
from big_vision_lite.errors import UserError, nearest
from big_vision_lite.system.cores import cores as usable

PHOTOS, NAMES = 128, 8192
"""Generated photos, and names under which they are read: a dataset is large, and Grain's shuffle takes longer per
image of a small one (230 us with 128 images, 7 us with 8,192)."""
PIPELINES = {
    "threads": "this pipeline, one thread per core",
    "bilinear": "the same, with the plain bilinear interpolation of tf.data",
    "workers": "this pipeline, one worker process per core",
    "tf.data": "decode_and_crop_jpeg, resize (bilinear, not antialiased), flip",
    "torch": "DataLoader, one worker process per core; Pillow decodes, crops, resizes (antialiased), flips",
    "torchvision": "DataLoader, one worker process per core; Pillow decodes, torchvision's v2 transforms follow",
    "dali": "NVIDIA DALI's pipeline for CPUs, one thread per core (antialiased)",
    "libjpeg-turbo": "decoding alone, one thread per core, at the scale that the crop needs: no crop, resize or batch",
}
OURS = "threads"
"""The pipeline that the others are compared with."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the throughput of this pipeline and of others, interleaved."""

    images: Path | None = None
    """Folder tree with JPEG files; by default generated ones of 500 x 375 pixels and 110 kB."""
    cores: tuple[int, ...] = (1, 2)
    """Numbers of cores to pin pipelines to; those the machine does not have are left out."""
    rounds: int = 3
    seconds: float = 5.0
    """Duration of each measurement."""
    warm_up: float = 1.0
    """Seconds between the first batch and the start of a measurement."""
    pipelines: tuple[str, ...] = tuple(PIPELINES)
    python: dict[str, str] = dataclasses.field(default_factory=dict)
    """Interpreters to run pipelines with, such as tf.data /path/to/python; by default this one."""
    out: Path | None = None
    """JSON file for all measurements."""


def benchmark(options: Options = Options(), inputs: Mapping[str, Input] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return all measurements.

    Args:
      inputs: further pipelines by name: any `data.pipeline.Input`, with its own source, transform and curation. Its
        threads (where None) become one per core.

    Raises:
      UserError: unknown pipelines, no JPEG files, or a pipeline that fails.
    """
    names = [*options.pipelines, *(inputs or {})]
    for name in [*options.pipelines, *options.python]:
        if name not in PIPELINES:
            raise UserError(f"no pipeline {name!r}" + nearest(name, PIPELINES))
    if options.rounds < 1 or options.seconds <= 0 or not names:
        raise UserError(f"rounds={options.rounds}, seconds={options.seconds}, {len(names)} pipelines; expected at "
                        "least one of each")
    available = usable()
    counts = [count for count in options.cores if 1 <= count <= len(available)]
    if not counts:
        raise UserError(f"cores={options.cores}; this process may use {len(available)}")
    with tempfile.TemporaryDirectory(prefix="bench_input") as folder:
        photos = gather_photos(options.images, Path(folder) / "photos")
        for name, input_ in (inputs or {}).items():
            (Path(folder) / f"{name}.pickle").write_bytes(pickle.dumps(input_))
        runs = [{"pipeline": name, "cores": cores, "round": number,
                 **_measure(name, folder, available[:cores], options)}
                for number in range(options.rounds) for cores in counts for name in names]
    result = {"machine": _machine(len(available)), "photos": photos, "seconds": options.seconds, "runs": runs,
              "summary": _summary(runs)}
    _print_tables(result, names, counts)
    return write_measurements(options.out, result)


def gather_photos(images: Path | None, folder: Path, limit: int = 512) -> dict[str, Any]:
    """Put JPEG files into ``folder/photo/``: up to ``limit`` of those below ``images``, or generated ones, each under
    several names. Returns their number and mean size in bytes. Raises: UserError when there are none."""
    (folder / "photo").mkdir(parents=True)
    if images is None:
        generated = folder.with_name(folder.name + "_generated")
        generated.mkdir()
        photos = [generated / f"{i}.jpg" for i in range(PHOTOS)]
        for i, path in enumerate(photos):
            path.write_bytes(photo(i))
    else:
        photos = [path.resolve() for path in sorted(images.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
        photos = photos[:: -(-len(photos) // limit) or 1]
        if not photos:
            raise UserError(f"no .jpg or .jpeg file in {str(images)!r}; expected a folder of photos")
    for i in range(-(-NAMES // len(photos)) * len(photos)):
        (folder / "photo" / f"{i}.jpg").symlink_to(photos[i % len(photos)])
    size = round(statistics.mean(path.stat().st_size for path in photos))
    return {"images": len(photos), "bytes": size, "from": str(images or "generated")}


def photo(seed: int, width: int = 500, height: int = 375) -> bytes:
    """A JPEG file that takes as long to decode as a photo of ImageNet: noise whose power falls with frequency as in
    natural images (Field, 1987), some shapes with sharp edges, quality 95, chroma at half resolution; 110 kB."""
    import cv2
    import numpy as np
    import simplejpeg

    rng = np.random.default_rng(seed)
    decay = rng.uniform(0.8, 1.0)  # of the amplitude per octave, for smooth and for busy photos
    pixels = np.full((height, width, 3), rng.uniform(80, 170, 3), np.float32)
    for octave in range(9):
        h, w = (min(side, 2**octave + 2) for side in (height, width))
        grey, colour = rng.standard_normal((h, w, 1), np.float32), rng.standard_normal((h, w, 3), np.float32)
        noise = cv2.resize(grey + 0.35 * colour, (width, height), interpolation=cv2.INTER_CUBIC)
        pixels += 32 * decay**octave * noise
    for _ in range(12):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(8, 90)), int(rng.integers(8, 90)))
        shade = np.zeros((height, width), np.uint8)
        cv2.ellipse(shade, centre, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
        pixels += shade[..., None] * rng.uniform(-0.27, 0.27, 3).astype(np.float32)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8)), quality=95,
                                  colorspace="RGB", colorsubsampling="420")


def _measure(name: str, folder: str, cores: Sequence[int], options: Options) -> dict[str, Any]:
    """What the process of a pipeline reports."""
    python = options.python.get(name, sys.executable)
    command = [python, os.path.abspath(baselines.__file__), name, folder, "--cores", ",".join(map(str, cores)),
               "--seconds", str(options.seconds), "--warm-up", str(options.warm_up)]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    # Output goes to files, and the session is its own: worker processes may outlive the process and hold a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, stdout=out, stderr=errors, env={**os.environ, **quiet},
                                       start_new_session=True)
        except OSError as error:
            raise UserError(f"pipeline {name!r}: cannot run {python!r}: {error.strerror}") from None
        try:
            process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        errors.seek(0)
        output, complaints = out.read().splitlines(), errors.read().strip().splitlines()
    try:
        report = json.loads(output[-1])
    except (IndexError, ValueError):
        report = {"failed": complaints[-1] if complaints else f"exit code {process.returncode}"}
    if reason := report.get("failed"):
        raise UserError(f"pipeline {name!r} failed under {python}: {reason}")
    return report


def _summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per pipeline and number of cores: median and range over rounds, and the speed of ours relative to it, by the
    clock and by CPU time per image, which depends less on what else the machine does."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run in runs:
        if "images_per_second" in run:
            groups.setdefault((run["cores"], run["pipeline"]), []).append(run)
    rows = []
    for (cores, name), group in groups.items():
        rates = [run["images_per_second"] for run in group]
        rows.append({"cores": cores, "pipeline": name, "median": statistics.median(rates), "least": min(rates),
                     "most": max(rates), "cpu_per_image": statistics.median(run["cpu_per_image"] for run in group),
                     "first_batch": statistics.median(run["first_batch"] for run in group)})
    ours = {row["cores"]: row for row in rows if row["pipeline"] == OURS}
    for row in rows:
        if reference := ours.get(row["cores"]):
            row["speedup"] = reference["median"] / row["median"]
            row["speedup_by_cpu"] = row["cpu_per_image"] / reference["cpu_per_image"]
    return rows


def _print_tables(result: dict[str, Any], names: Sequence[str], counts: Sequence[int]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    photos, machine = result["photos"], result["machine"]
    console.print(f"{photos['images']} photos ({photos['from']}) of {photos['bytes'] / 1e3:.0f} kB to crops of {SIZE}; "
                  f"{machine['cpu']}, {machine['cores']} cores", markup=False)
    for cores in counts:
        table = Table(title=f"images/s on {cores} core{'s' * (cores > 1)}", title_justify="left")
        for column in ("pipeline", "median", "range", f"{OURS} / this", "CPU per image", f"{OURS} / this by CPU",
                       "first batch"):
            table.add_column(column, justify="left" if column == "pipeline" else "right")
        for row in result["summary"]:
            if row["cores"] == cores:
                speedups = [f"{row[key]:.2f}" if key in row else "" for key in ("speedup", "speedup_by_cpu")]
                table.add_row(escape(row["pipeline"]), f"{row['median']:,.0f}",
                              f"{row['least']:,.0f} to {row['most']:,.0f}", speedups[0],
                              f"{row['cpu_per_image'] * 1e3:.2f} ms", speedups[1], f"{row['first_batch']:.1f} s")
        console.print(table)
    skipped = {run["pipeline"]: run["skipped"] for run in result["runs"] if "skipped" in run}
    for name in names:
        text = f"left out: {skipped[name]}" if name in skipped else PIPELINES.get(name, "the given input")
        console.print(f"{name}: {text}", markup=False)


def _machine(cores: int) -> dict[str, Any]:
    """What the measurements depend on. A ``load`` above the number of pinned cores means that others ran too."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"cpu": cpu, "cores": cores, "python": platform.python_version(), "load": os.getloadavg()[0]}


if __name__ == "__main__":
    main(benchmark, Options)
