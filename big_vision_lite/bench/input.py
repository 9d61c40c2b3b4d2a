"""Images a second of this pipeline and of others, side by side: JPEG files to random crops of 224, flipped, in batches.

Every contender runs in a process of its own, pinned to the same cores, in rounds in which they take turns; the median
over rounds counts. `bench.contenders` is the program of those processes.
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

from big_vision_lite.bench import contenders
from big_vision_lite.bench.contenders import SIZE
from big_vision_lite.data.pipeline import Input
from big_vision_lite.errors import UserError, nearest

PHOTOS, NAMES = 128, 8192
"""Photos that are generated, and names under which they are read: a data set is large, and Grain's shuffle takes
longer for each image of a small one (230 us with 128 images, 7 us with 8,192)."""
CONTENDERS = {
    "threads": "this pipeline, a thread a core",
    "bilinear": "the same, with the plain bilinear interpolation of tf.data",
    "workers": "this pipeline, a worker process a core",
    "tf.data": "decode_and_crop_jpeg, resize (bilinear, not antialiased), flip",
    "torch": "DataLoader, a worker process a core; Pillow decodes, crops, resizes (antialiased), flips",
    "libjpeg-turbo": "decoding alone, a thread a core, at the scale that the crop needs: no crop, resize or batch",
}
TOO_BUSY = " (Other programs took the cores: the times are too high, and speeds too low.)"
OURS = "threads"
"""What the others are compared with."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure images a second of this pipeline and of others, side by side."""

    images: Path | None = None
    """Folder with JPEG files, also in folders below; None: 500 x 375 pixels and 110 kB each, generated."""
    cores: tuple[int, ...] = (1, 2)
    """Numbers of cores to which contenders are pinned; those the machine does not have are left out."""
    rounds: int = 3
    seconds: float = 5.0
    """Of each measurement."""
    warm_up: float = 1.0
    """Seconds after the first batch before a measurement starts."""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    python: dict[str, str] = dataclasses.field(default_factory=dict)
    """Interpreters under which contenders run, such as tf.data=/path/to/python; by default this one."""
    gil: bool = True
    """Also measure how long an image holds Python's interpreter lock."""
    out: Path | None = None
    """JSON file for all figures."""


def bench_input(options: Options = Options(), inputs: Mapping[str, Input] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return all figures.

    Args:
      inputs: further contenders by name: any `data.pipeline.Input`, with its own source, transform and curation. Its
        threads (where None) become one a core.

    Raises:
      UserError: unknown contenders, no JPEG files, or a contender of ours that fails.
    """
    names = [*options.contenders, *(inputs or {})]
    for name in [*options.contenders, *options.python]:
        if name not in CONTENDERS:
            raise UserError(f"no contender {name!r}" + nearest(name, CONTENDERS))
    if options.rounds < 1 or options.seconds <= 0 or not names:
        raise UserError(f"rounds={options.rounds}, seconds={options.seconds}, {len(names)} contenders; expected at "
                        "least one of each")
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
    counts = [count for count in options.cores if 1 <= count <= len(available)]
    if not counts:
        raise UserError(f"cores={options.cores}; this process may use {len(available)}")
    with tempfile.TemporaryDirectory(prefix="bench_input") as folder:
        photos = gather_photos(options.images, Path(folder) / "photos")
        for name, one in (inputs or {}).items():
            (Path(folder) / f"{name}.pickle").write_bytes(pickle.dumps(one))

        def child(name: str, cores: int) -> dict[str, Any]:
            return _child(name, folder, available[:cores], options)

        runs = [{"contender": name, "cores": cores, "round": number, **child(name, cores)}
                for number in range(options.rounds) for cores in counts for name in names]
        gil = child("gil", 2) if options.gil and len(available) >= 2 else None
    found = {"machine": _machine(len(available)), "photos": photos, "seconds": options.seconds, "runs": runs,
             "summary": _summary(runs), "gil": gil}
    _show(found, names, counts)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def gather_photos(images: Path | None, folder: Path, most: int = 512) -> dict[str, Any]:
    """Put JPEG files into ``folder/photo/``: up to ``most`` of those below ``images``, or generated ones, each under
    several names. Returns their number and mean size in bytes. Raises: UserError when there are none."""
    (folder / "photo").mkdir(parents=True)
    if images is None:
        made = folder.with_name(folder.name + "_made")
        made.mkdir()
        photos = [made / f"{i}.jpg" for i in range(PHOTOS)]
        for i, path in enumerate(photos):
            path.write_bytes(photo(i))
    else:
        photos = [path.resolve() for path in sorted(images.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
        photos = photos[:: -(-len(photos) // most) or 1]
        if not photos:
            raise UserError(f"no .jpg or .jpeg file in {str(images)!r}; expected a folder of photos")
    for i in range(-(-NAMES // len(photos)) * len(photos)):
        (folder / "photo" / f"{i}.jpg").symlink_to(photos[i % len(photos)])
    size = round(statistics.mean(path.stat().st_size for path in photos))
    return {"images": len(photos), "bytes": size, "from": str(images or "generated")}


def photo(seed: int, width: int = 500, height: int = 375) -> bytes:
    """A JPEG file that takes a decoder as long as a photo of ImageNet does: noise whose power falls with frequency as
    in natural images (Field, 1987), some shapes with sharp edges, quality 95, chroma at half resolution; 110 kB."""
    import cv2
    import numpy as np
    import simplejpeg

    rng = np.random.default_rng(seed)
    fall = rng.uniform(0.8, 1.0)  # of the amplitude an octave: smooth and busy photos
    pixels = np.full((height, width, 3), rng.uniform(80, 170, 3), np.float32)
    for octave in range(9):
        h, w = (min(side, 2**octave + 2) for side in (height, width))
        grey, colour = rng.standard_normal((h, w, 1), np.float32), rng.standard_normal((h, w, 3), np.float32)
        noise = cv2.resize(grey + 0.35 * colour, (width, height), interpolation=cv2.INTER_CUBIC)
        pixels += 32 * fall**octave * noise
    for _ in range(12):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(8, 90)), int(rng.integers(8, 90)))
        shade = np.zeros((height, width), np.uint8)
        cv2.ellipse(shade, centre, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
        pixels += shade[..., None] * rng.uniform(-0.27, 0.27, 3).astype(np.float32)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8)), quality=95,
                                  colorspace="RGB", colorsubsampling="420")


def _child(name: str, folder: str, cores: Sequence[int], options: Options) -> dict[str, Any]:
    """What the process of a contender reports."""
    python = options.python.get(name, sys.executable)
    command = [python, os.path.abspath(contenders.__file__), name, folder, "--cores", ",".join(map(str, cores)),
               "--seconds", str(options.seconds), "--warm-up", str(options.warm_up)]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    # Into files, and in a session of its own: worker processes may outlive the contender and hold a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, stdout=out, stderr=errors, env={**os.environ, **quiet},
                                       start_new_session=True)
        except OSError as error:
            raise UserError(f"contender {name!r}: cannot run {python!r}: {error.strerror}") from None
        try:
            process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        errors.seek(0)
        said, complaints = out.read().splitlines(), errors.read().strip().splitlines()
    try:
        reported = json.loads(said[-1])
    except (IndexError, ValueError):
        reported = {"failed": complaints[-1] if complaints else f"exit code {process.returncode}"}
    if reason := reported.get("failed"):
        raise UserError(f"contender {name!r} failed under {python}: {reason}")
    return reported


def _summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median and range over rounds of each contender and number of cores, and how many times as fast ours is: by the
    clock, and by the CPU time that an image takes, which depends less on what else runs on the machine."""
    rates: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run in runs:
        if "images_per_second" in run:
            rates.setdefault((run["cores"], run["contender"]), []).append(run)
    rows = []
    for (cores, name), found in rates.items():
        values = [run["images_per_second"] for run in found]
        rows.append({"cores": cores, "contender": name, "median": statistics.median(values), "least": min(values),
                     "most": max(values), "cpu_per_image": statistics.median(run["cpu_per_image"] for run in found)})
    ours = {row["cores"]: row for row in rows if row["contender"] == OURS}
    for row in rows:
        if same := ours.get(row["cores"]):
            row["ours_to_it"] = same["median"] / row["median"]
            row["ours_to_it_by_cpu"] = row["cpu_per_image"] / same["cpu_per_image"]
    return rows


def _show(found: dict[str, Any], names: Sequence[str], counts: Sequence[int]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    photos, runs = found["photos"], found["runs"]
    console.print(f"{photos['images']} photos ({photos['from']}) of {photos['bytes'] / 1e3:.0f} kB to crops of {SIZE}; "
                  f"{found['machine']['cpu']}, {found['machine']['cores']} cores", markup=False)
    for cores in counts:
        table = Table(title=f"images/s on {cores} core{'s' * (cores > 1)}", title_justify="left")
        for column in ("contender", "median", "range", f"{OURS} / it", "CPU an image", f"{OURS} / it by CPU",
                       "first batch"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for name in names:
            row = next((r for r in found["summary"] if (r["contender"], r["cores"]) == (name, cores)), None)
            first = [r["first_batch"] for r in runs if r["contender"] == name and r["cores"] == cores
                     and "first_batch" in r]
            if row:
                ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("ours_to_it", "ours_to_it_by_cpu")]
                table.add_row(escape(name), f"{row['median']:,.0f}", f"{row['least']:,.0f} to {row['most']:,.0f}",
                              ratios[0], f"{row['cpu_per_image'] * 1e3:.2f} ms", ratios[1],
                              f"{statistics.median(first):.1f} s")
        console.print(table)
    for name in names:
        skipped = next((r["skipped"] for r in runs if r["contender"] == name and "skipped" in r), None)
        says = f"left out: {skipped}" if skipped else CONTENDERS.get(name, "the input given")
        console.print(f"{name}: {says}", markup=False)
    if gil := found["gil"]:
        console.print(f"An image takes {gil['alone'] * 1e6:.0f} us and holds Python's interpreter lock for some "
                      f"{gil['held_alone'] * 1e6:.0f} of them; with handing it over, {gil['held'] * 1e6:.0f}. Threads "
                      f"of one process reach about {1 / gil['held']:,.0f} images/s, on any number of cores. Worker "
                      "processes add up beyond that." + TOO_BUSY * (gil["busy"] > 0.15), markup=False)


def _machine(cores: int) -> dict[str, Any]:
    """What the figures depend on. ``load``: above the number of cores that the benchmark kept busy, others ran too."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"cpu": cpu, "cores": cores, "python": platform.python_version(), "load": os.getloadavg()[0]}
