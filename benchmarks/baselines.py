"""The process that measures one pipeline for input.py: JPEG files to random crops of 224, flipped, in batches.

Its top imports only Python's own library, so that a baseline can run under another interpreter, which has its packages
and not ours.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pickle
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from big_vision_lite.data.pipeline import Input

SIZE, BATCH = 224, 64
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
"""Area and aspect of the random crops (Szegedy et al., 2015), for all pipelines."""


def photo_input(folder: str, antialias: bool = True, **options: Any) -> Input:
    """The benchmark's photos through this package's pipeline."""
    from big_vision_lite.data.pipeline import Input
    from big_vision_lite.data.sources.image_folder import ImageFolder
    from big_vision_lite.data.transforms.image import RandomResizedCrop

    return Input(ImageFolder(folder, held_out=0.0), RandomResizedCrop(SIZE, AREA, ASPECT, antialias=antialias), BATCH,
                 **options)


def targets(example: dict[str, Any]) -> dict[str, Any]:
    """One label per image, as a head would return; -1 where there is none."""
    import numpy as np

    return {"label": np.append(example["labels"], np.int32(-1))[:1]}


def input_batches(inputs: Input) -> Iterator[int]:
    """The number of images in each batch of an input, without end."""
    import baselines  # worker processes find `targets` by this name, not as __main__

    from big_vision_lite.data.pipeline import BatchMaker, batches

    for batch in batches(BatchMaker(inputs.open(), inputs, baselines.targets, seed=0), 0, 10**9):
        yield len(batch["image"])


def tf_batches(files: list[str], cores: int) -> Iterator[int]:
    import tensorflow as tf

    whole = tf.constant([0.0, 0.0, 1.0, 1.0], shape=(1, 1, 4))

    def load(path):
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data), whole, min_object_covered=0.0, area_range=AREA, aspect_ratio_range=ASPECT,
            max_attempts=10, use_image_if_no_bounding_boxes=True)
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.resize(tf.image.decode_and_crop_jpeg(data, window, channels=3), (SIZE, SIZE))
        return tf.image.random_flip_left_right(tf.cast(image, tf.uint8))

    data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    data = data.map(load, num_parallel_calls=cores).batch(BATCH).prefetch(4)
    options = tf.data.Options()
    options.threading.private_threadpool_size, options.threading.max_intra_op_parallelism = cores, 1
    for batch in data.with_options(options).as_numpy_iterator():
        yield len(batch)


def _loaded(photos: Any, cores: int) -> Iterator[int]:
    """Batches of a torch dataset, by one worker process per core."""
    import torch

    torch.set_num_threads(1)
    endless = torch.utils.data.RandomSampler(photos, replacement=True, num_samples=10**9)
    for batch in torch.utils.data.DataLoader(photos, BATCH, sampler=endless, num_workers=cores, prefetch_factor=4):
        yield len(batch)


def torch_batches(files: list[str], cores: int) -> Iterator[int]:
    import numpy as np
    import torch
    from PIL import Image

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            image = Image.open(files[index]).convert("RGB")
            width, height = image.size
            left, top, w, h = random_window(width, height)
            image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return torch.from_numpy(np.array(image))

    yield from _loaded(Photos(), cores)


def torchvision_batches(files: list[str], cores: int) -> Iterator[int]:
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    transform = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(SIZE, AREA, ASPECT, antialias=True),
                            v2.RandomHorizontalFlip()])

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(files[index]).convert("RGB"))

    yield from _loaded(Photos(), cores)


def dali_batches(files: list[str], cores: int) -> Iterator[int]:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=BATCH, num_threads=cores, device_id=None, prefetch_queue_depth=4)
    def photos():
        data, _ = fn.readers.file(files=files, random_shuffle=True)
        images = fn.decoders.image_random_crop(data, random_area=AREA, random_aspect_ratio=ASPECT)
        images = fn.resize(images, resize_x=SIZE, resize_y=SIZE, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    pipeline = photos()
    pipeline.build()
    while True:
        (batch,) = pipeline.run()
        yield len(batch)


def random_window(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random crop, for pipelines without their own."""
    for _ in range(10):
        area = width * height * random.uniform(*AREA)
        aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side  # very elongated images: the central square


def libjpeg_batches(files: list[str], cores: int) -> Iterator[int]:
    """Threads that decode and discard; what they decode within 20 ms counts as a batch."""
    import simplejpeg

    done = [0] * cores

    def decode(thread: int) -> None:
        while True:
            data = Path(random.choice(files)).read_bytes()
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            _, _, w, h = random_window(width, height)
            eighths = next((n for n in (1, 2, 4) if h * n >= 8 * SIZE and w * n >= 8 * SIZE), 8)
            simplejpeg.decode_jpeg(data, min_height=height * eighths // 8, min_width=width * eighths // 8)
            done[thread] += 1

    for thread in range(cores):
        threading.Thread(target=decode, args=(thread,), daemon=True).start()
    before = 0
    while True:
        time.sleep(0.02)
        now = sum(done)
        if now > before:
            yield now - before
        before = now


def rate(stream: Iterator[int], seconds: float, warm_up: float) -> dict[str, float]:
    """Throughput of a stream of batch sizes, and seconds until its first batch."""
    start = time.perf_counter()
    next(stream)
    first = time.perf_counter() - start
    while (began := time.perf_counter()) - start < first + warm_up:
        next(stream)
    images, now, used = 0, began, cpu_seconds()
    while now - began < seconds:
        images += next(stream)
        now = time.perf_counter()
    return {"images_per_second": images / (now - began), "cpu_per_image": (cpu_seconds() - used) / images,
            "first_batch": first}


def cpu_seconds() -> float:
    """CPU time so far of this process and the workers in its session; without /proc, of this process alone."""
    total, session, tick = 0, os.getsid(0), getattr(os, "sysconf", lambda name: 100)("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = stat.read_text().rpartition(")")[2].split()
            total += (int(fields[3]) == session) * (int(fields[11]) + int(fields[12]))
    return total / tick if total else time.process_time()


def measure(name: str, folder: str, cores: int, seconds: float, warm_up: float) -> dict[str, Any]:
    """Measure one pipeline in this process. A missing package of a baseline is reported, not raised."""
    photos = os.path.join(folder, "photos")
    pickled = os.path.join(folder, f"{name}.pickle")
    if os.path.exists(pickled):
        with open(pickled, "rb") as file:
            inputs = pickle.load(file)
        return rate(input_batches(dataclasses.replace(inputs, threads=inputs.threads or cores)), seconds, warm_up)
    if name in ("threads", "bilinear"):
        return rate(input_batches(photo_input(photos, name == "threads", threads=cores)), seconds, warm_up)
    if name == "workers":
        return rate(input_batches(photo_input(photos, threads=1, workers=cores)), seconds, warm_up)
    files = sorted(str(path) for path in Path(photos).rglob("*.jpg"))
    make = {"tf.data": tf_batches, "torch": torch_batches, "torchvision": torchvision_batches,
            "dali": dali_batches, "libjpeg-turbo": libjpeg_batches}[name]
    try:
        return rate(make(files, cores), seconds, warm_up)
    except ImportError as error:
        return {"skipped": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures one pipeline; started by input.py.")
    parser.add_argument("name")
    parser.add_argument("folder")
    parser.add_argument("--cores", required=True, help="cores to run on, as 0,1")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-up", type=float, required=True)
    options = parser.parse_args()
    cores = [int(number) for number in options.cores.split(",")]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        report = measure(options.name, options.folder, len(cores), options.seconds, options.warm_up)
    except Exception as error:
        report = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(report), flush=True)
    os._exit(0)  # threads and worker processes of some pipelines do not end by themselves


if __name__ == "__main__":
    main()
