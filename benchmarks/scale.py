"""Time and memory of the tables around training, without pixels: columns of made-up images, curated, and counted.

    python benchmarks/scale.py --images 1000000

Each number of images has a process of its own, with an empty cache.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from big_vision_lite.data.columns import Columns, id_keys, read_columns, write_columns
from big_vision_lite.data.curation.manifest import manifest
from big_vision_lite.data.curation.steps import ClassSubset, Exclude, LabelNoise, NestedSubset, curated
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

    images: tuple[int, ...] = (100_000, 1_000_000)
    csv: bool = True
    """Also read them from a csv file."""
    folder: Path | None = None
    """Folder for temporary files; by default that of the system."""
    out: Path | None = None
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
    """The first and the second opening of a csv file; a process of its own calls this."""
    path, times = folder / "labels.csv", {}
    write_csv(images, path)
    for name in ("csv, first time", "csv, again"):
        timed(times, name, lambda: CsvLabels(str(path), check="none").open().label_columns())
    return {"bytes of the csv file": path.stat().st_size, **times}


def measure(images: int, folder: Path) -> dict[str, float]:
    """All steps from an index on; a process of its own calls this."""
    path, times = folder / "index.arrow", {}
    timed(times, "make the index", lambda: write_columns(made_up(images), path))
    exclude = folder / "exclude.txt"
    exclude.write_text("".join(f"images/{i:010d}\n" for i in range(0, images, max(1, images // 1000))))
    dataset = MadeUp(timed(times, "open", lambda: read_columns(path)), f"made-up-{images}")
    steps = (Exclude(str(exclude)), ClassSubset(1000), NestedSubset(images // 4), LabelNoise(0.8))
    for end, step in enumerate(steps, 1):
        data = timed(times, f"... {type(step).__name__}", lambda end=end: curated(dataset, steps[:end]))
    timed(times, "first batch's ids and labels", lambda: [data.labels(i) for i in range(BATCH)])
    timed(times, "manifest", lambda: manifest(data))
    timed(times, "manifest of the whole source", lambda: manifest(dataset))
    return {"bytes of the index": path.stat().st_size, **times}


def timed(times: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """The result of some work; its seconds, those of CPU, and the peak of resident memory so far in MB, go into
    ``times``."""
    began, cpu_began = time.perf_counter(), time.process_time()
    result = work()
    times[name], times[f"{name}, CPU"] = time.perf_counter() - began, time.process_time() - cpu_began
    times[f"{name}, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return result


def benchmark(options: Options = Options()) -> dict[str, Any]:
    """Measure, print, and return all measurements by number of images.

    Raises:
      UserError: too few images, or a measurement that fails.
    """
    if not options.images or min(options.images) < 10_000:
        raise UserError(f"images={options.images}; expected at least 10,000")
    results: dict[str, Any] = {}
    for images in options.images:
        results[str(images)] = {}
        for name in ("measure_csv", "measure") if options.csv else ("measure",):
            with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_scale") as folder:
                code = ("import json, pathlib, scale; "
                        f"print(json.dumps(scale.{name}({images}, pathlib.Path({folder!r}))))")
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                      env={**os.environ, "BVL_CACHE": folder,
                                           "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path[1:]))})
            if done.returncode:
                raise UserError(f"{name} of {images:,} images failed: {done.stderr.strip().splitlines()[-1]}")
            results[str(images)] |= json.loads(done.stdout)
        print(f"{images:,} images")
        for name, value in results[str(images)].items():
            if name.startswith("bytes"):
                print(f"  {name:32} {value / images:10.1f} per image")
            elif not name.endswith((", MB", ", CPU")):
                cpu, memory = (results[str(images)][f"{name}, {kind}"] for kind in ("CPU", "MB"))
                print(f"  {name:32} {value:8.2f} s, {cpu:8.2f} s of CPU, {cpu / images * 1e9:8.0f} ns per image"
                      f"   peak {memory:7,.0f} MB")
    from experiments import write_measurements  # it imports JAX, whose memory would count

    return write_measurements(options.out, results)


if __name__ == "__main__":
    from experiments import main

    main(benchmark, Options)
