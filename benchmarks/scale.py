"""Time and memory of the tables around training, without pixels: columns of made-up images, curated, and counted.

    python benchmarks/scale.py --images 100000,1000000 --json scale.json

Each number of images has an empty cache, and each part of the measurement a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from big_vision_lite.data.columns import Columns, id_keys, read_columns, write_columns
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.curation.steps import (
    ClassSubset,
    Curation,
    Exclude,
    LabelNoise,
    NestedSubset,
    curated,
)
from big_vision_lite.data.ragged import Ragged, random_bits
from big_vision_lite.data.source import Dataset
from big_vision_lite.data.sources.csv_labels import CsvLabels
from big_vision_lite.errors import UserError

CLASSES = 18291
"""As many as JFT-300M has."""
PIECE = 1 << 18
BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure opening, curation and manifest of made-up images."""

    images: str = "100000,1000000"
    """Numbers of images, separated by commas."""
    csv: bool = True
    """Also read them from a csv file."""
    folder: Path | None = None
    """Folder for temporary files; by default that of the system."""
    json: Path | None = None
    """JSON file for all measurements."""


@dataclasses.dataclass(eq=False)
class MadeUp(Dataset):
    """Images that have ids and labels but no pixels."""

    columns: Columns
    fingerprint: str
    classes: tuple[str, ...] = tuple(f"class {i}" for i in range(CLASSES))
    multi_label: bool = True

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": self.columns.id(index), "image": b"", "labels": self.columns.labels.row(index)}

    def label_columns(self) -> Columns:
        return self.columns


def made_up(images: int) -> Iterator[Columns]:
    """Ids of 17 characters, and one to three labels, of which those with low numbers are the most frequent."""
    for start in range(0, images, PIECE):
        numbers = np.arange(start, min(start + PIECE, images))
        texts = pa.array(numbers).cast(pa.string())
        ids = pc.binary_join_element_wise("images/", pc.utf8_lpad(texts, 10, "0"), "").cast(
            pa.large_binary())
        counts = 1 + numbers % 3
        rows = np.repeat(np.arange(len(numbers)), counts)
        random = (random_bits(0, start, np.arange(len(rows))) >> np.uint64(11)) * 2.0**-53
        labels = Ragged.from_pairs(rows, (CLASSES * random**3).astype(np.int64), len(numbers), CLASSES)
        yield Columns(labels, id_keys(ids), ids)


def write_csv(images: int, path: Path) -> None:
    """The same ids and labels as a csv file."""
    with open(path, "wb") as file:
        file.write(b"path,labels\n")
        for columns in made_up(images):
            offsets = pa.array(np.concatenate(([0], columns.labels.ends)), pa.int32())
            lists = pa.ListArray.from_arrays(offsets, pa.array(columns.labels.values).cast(pa.string()))
            labels = pc.binary_join(lists, ";")
            rows = pc.binary_join_element_wise(columns.ids.cast(pa.string()), labels, ",")
            file.write("\n".join(rows.to_pylist()).encode() + b"\n")


def measure_csv(images: int, folder: Path) -> dict[str, float]:
    """The first and the second opening of a csv file."""
    path, times = folder / "labels.csv", {}
    write_csv(images, path)
    for name in ("csv, first time", "csv, again"):
        timed(times, name, lambda: CsvLabels(str(path), check="none").open().label_columns())
    return {"bytes of the csv file": path.stat().st_size, **times}


def measure_index(images: int, folder: Path) -> dict[str, float]:
    """Writing ids, keys and labels as columns."""
    path, times = folder / "index.arrow", {}
    timed(times, "make the index", lambda: write_columns(made_up(images), path))
    (folder / "exclude.txt").write_text(
        "".join(f"images/{i:010d}\n" for i in range(0, images, max(1, images // 1000))))
    return {"bytes of the index": path.stat().st_size, **times}


def measure_first(images: int, folder: Path) -> dict[str, float]:
    """The first run on this data: orders and manifests are counted and stored."""
    times: dict[str, float] = {}
    dataset, steps = opened(images, folder, times), steps_of(images, folder)
    for end, step in enumerate(steps, 1):
        data = timed(times, f"... {type(step).__name__}", lambda end=end: curated(dataset, steps[:end]))
    timed(times, "first batch's ids and labels", lambda: [data.labels(i) for i in range(BATCH)])
    timed(times, "manifest", lambda: manifest(data))
    timed(times, "manifest of the whole source", lambda: manifest(dataset))
    names = ("open", *(f"... {type(step).__name__}" for step in steps), "first batch's ids and labels")
    return times | total_of(times, names, "open to first batch, first time")


def measure_again(images: int, folder: Path) -> dict[str, float]:
    """Any later run on it."""
    times: dict[str, float] = {}

    def start() -> None:
        data = curated(opened(images, folder, {}), steps_of(images, folder))
        for i in range(BATCH):
            data.labels(i)

    timed(times, "open to first batch, again", start)
    return times


def opened(images: int, folder: Path, times: dict[str, float]) -> MadeUp:
    return MadeUp(timed(times, "open", lambda: read_columns(folder / "index.arrow")), f"made-up-{images}")


def steps_of(images: int, folder: Path) -> tuple[Curation, ...]:
    return Exclude(str(folder / "exclude.txt")), ClassSubset(1000), NestedSubset(images // 4), LabelNoise(0.8)


def total_of(times: dict[str, float], names: Sequence[str], title: str) -> dict[str, float]:
    """Seconds of several steps together, and the highest of their peaks."""
    return {title: sum(times[name] for name in names), f"{title}, CPU": sum(times[f"{name}, CPU"] for name in names),
            f"{title}, MB": max(times[f"{name}, MB"] for name in names)}


def timed(times: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """The result of some work; its seconds, those of CPU, and the peak of resident memory meanwhile in MB, with pages
    of mapped files, go into ``times``."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    began, cpu_began = time.perf_counter(), time.process_time()
    result = work()
    times[name], times[f"{name}, CPU"] = time.perf_counter() - began, time.process_time() - cpu_began
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    times[f"{name}, MB"] = int(peak.split()[1]) * 1024 / 1e6
    return result


def exponents(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By least squares, the power of the number of images that the time of each step grows by.

    >>> exponents({"10": {"open": 1.0}, "1000": {"open": 100.0}})
    {'open': 1.0}
    """
    sizes = np.log([int(images) for images in results])
    names = [name for name in next(iter(results.values())) if not name.startswith("bytes") and name[-4:] != ", MB"]
    return {name: round(float(np.polyfit(sizes, np.log([of[name] for of in results.values()]), 1)[0]), 3)
            for name in names}


def benchmark(options: Options = Options()) -> dict[str, Any]:
    """Measure, print, and return all measurements by number of images, and the exponents of their growth.

    Raises:
      UserError: a number of images that is none or too small, or a measurement that fails.
    """
    results: dict[str, Any] = {}
    for images in _numbers(options.images):
        results[str(images)] = {}
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_scale") as folder:
            for name in (*(("measure_csv",) if options.csv else ()), "measure_index", "measure_first", "measure_again"):
                results[str(images)] |= _in_a_process(name, images, folder)
        _show(images, results[str(images)])
    found = {"images": results} | ({"exponents": exponents(results)} if len(results) > 1 else {})
    if len(results) > 1:
        print("time grows by this power of the number of images")
        for name, power in found["exponents"].items():
            if not name.endswith(", CPU"):
                print(f"  {name:32} {power:8.2f}, CPU {found['exponents'][f'{name}, CPU']:8.2f}")
    from experiments import write_measurements  # it imports JAX, whose memory would count

    return write_measurements(options.json, found)


def _numbers(texts: str) -> list[int]:
    try:
        numbers = [int(text) for text in texts.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 10_000 or len(set(numbers)) < len(numbers):
        raise UserError(f"--images {texts}; expected different numbers of at least 10,000, separated by commas")
    return numbers


def _in_a_process(name: str, images: int, folder: str) -> dict[str, float]:
    code = f"import json, pathlib, scale; print(json.dumps(scale.{name}({images}, pathlib.Path({folder!r}))))"
    path = os.pathsep.join((str(Path(__file__).parent), *sys.path[1:]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "BVL_CACHE": folder, "PYTHONPATH": path})
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"{name} of {images:,} images failed: {lines[-1] if lines else f'exit {done.returncode}'}")
    return json.loads(done.stdout)


def _show(images: int, measured: Mapping[str, float]) -> None:
    print(f"{images:,} images")
    for name, value in measured.items():
        if name.startswith("bytes"):
            print(f"  {name:32} {value / images:10.1f} per image")
        elif not name.endswith((", MB", ", CPU")):
            cpu, memory = (measured[f"{name}, {kind}"] for kind in ("CPU", "MB"))
            print(f"  {name:32} {value:8.2f} s, {cpu:8.2f} s of CPU, {cpu / images * 1e9:8.0f} ns per image"
                  f"   peak {memory:7,.0f} MB", flush=True)


if __name__ == "__main__":
    from experiments import main

    main(benchmark, Options)
