"""The benchmark of the input measures what it says, interleaves, leaves out what is missing, and ends. And the fast
parts of the pipeline change no batch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import baselines
import input as bench
import numpy as np
import pytest
from input import Options, benchmark
from PIL import Image

from big_vision_lite.data.decode import DecodeError, decode, decode_crop_resize
from big_vision_lite.data.pipeline import BatchMaker, Input, batches
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import UserError


@pytest.fixture(autouse=True)
def few_names(monkeypatch):
    monkeypatch.setattr(bench, "NAMES", 64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / f"{i}.jpg").write_bytes(bench.photo(i, 120, 90))
    (folder / "notes.txt").write_text("not a photo")
    return folder


def test_a_table_of_pipelines(photos, tmp_path, capsys):
    # torch runs under an interpreter without packages: it is left out with a line, and the rest goes on.
    bare = tmp_path / "python"
    bare.write_text(f"#!/bin/sh\nexec {sys.executable} -I -S \"$@\"\n")
    bare.chmod(0o755)
    options = Options(photos, cores=(1, 64_000), rounds=2, seconds=0.2, warm_up=0.1,
                      pipelines=("threads", "torch", "libjpeg-turbo"), python={"torch": str(bare)},
                      out=tmp_path / "measurements.json")
    own = Input(ImageFolder(str(photos), held_out=0.0), Resize(32), batch_size=3)
    result = benchmark(options, {"mine": own})
    assert [(run["round"], run["pipeline"]) for run in result["runs"]] == [
        (n, c) for n in range(2) for c in ("threads", "torch", "libjpeg-turbo", "mine")]
    summary = {row["pipeline"]: row for row in result["summary"]}
    assert summary.keys() == {"threads", "libjpeg-turbo", "mine"}
    for name, row in summary.items():
        measured = [run["images_per_second"] for run in result["runs"] if run["pipeline"] == name]
        assert row["median"] == pytest.approx(np.median(measured)) and row["cores"] == 1
        assert 0 < row["least"] <= row["median"] <= row["most"]
        assert row["speedup"] == pytest.approx(summary["threads"]["median"] / row["median"])
    assert result["photos"]["images"] == 6
    assert json.loads(options.out.read_text()) == json.loads(json.dumps(result))
    printed = capsys.readouterr().out
    assert "torch: left out: No module named" in printed and "images/s on 1 core" in printed


@pytest.mark.parametrize(("options", "message"), [
    ({"pipelines": ("treads",)}, "no pipeline 'treads'; did you mean 'threads'"),
    ({"python": {"tf": "/python"}}, "no pipeline 'tf'"),
    ({"rounds": 0}, "rounds=0"),
    ({"cores": (64_000,)}, "cores=\\(64000,\\); this process may use"),
    ({"images": Path("/nowhere")}, "no .jpg or .jpeg file in '/nowhere'"),
    ({"python": {"threads": "/no/python"}}, "pipeline 'threads': cannot run '/no/python': No such file"),
], ids=str)
def test_bad_options_are_one_line(photos, options, message):
    with pytest.raises(UserError, match=message):
        benchmark(Options(**{"images": photos, "seconds": 0.1, **options}))


def test_a_pipeline_that_fails_is_an_error(photos, tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "cat" / "0.jpg")
    broken = Input(ImageFolder(str(tmp_path), held_out=0.0), Resize(32), batch_size=1)
    (tmp_path / "cat" / "0.jpg").write_bytes(b"\xff\xd8 no more")
    options = Options(photos, cores=(1,), rounds=1, seconds=0.1, pipelines=())
    with pytest.raises(UserError, match=r"pipeline 'broken' failed .*'cat/0\.jpg' cannot be read"):
        benchmark(options, {"broken": broken})


def test_the_rate_is_of_the_time_after_the_warm_up():
    def slow_at_first():
        time.sleep(0.3)
        for n in range(10**6):
            time.sleep(0.3 if n == 0 else 0.01)
            yield 5

    measured = baselines.rate(slow_at_first(), seconds=0.5, warm_up=0.1)
    assert 0.6 <= measured["first_batch"] < 1.5
    assert 100 < measured["images_per_second"] <= 500


def test_a_photo_decodes_and_is_as_large_as_imagenets():
    files = [bench.photo(i) for i in range(4)]
    assert len(set(files)) == 4 and files[0] == bench.photo(0)
    assert decode(files[0]).shape == (375, 500, 3)
    assert 60e3 < np.mean([len(file) for file in files]) < 160e3


def test_random_windows_are_inception_crops():
    windows = np.array([baselines.random_window(500, 375) for _ in range(300)])
    left, top, width, height = windows.T
    assert (windows >= 0).all() and (left + width <= 500).all() and (top + height <= 375).all()
    share, aspect = width * height / (500 * 375), width / height
    assert 0.07 < share.min() < 0.2 and share.max() > 0.7
    assert aspect.min() > 0.72 and aspect.max() < 1.37
    assert baselines.random_window(5000, 3)[2:] == (3, 3)


def test_the_file_needs_nothing_of_ours_to_run_a_baseline(photos):
    # As under another interpreter: isolated, without site-packages.
    code = ("import sys, runpy; runpy.run_path(sys.argv[1]); "
            "print([m for m in ('numpy', 'rich', 'big_vision_lite') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, baselines.__file__], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_worker_processes_make_the_same_batches_and_pass_them_in_shared_memory(photos, tmp_path):
    def stream(**options):
        folder = tmp_path / "linked"
        if not folder.exists():
            bench.gather_photos(photos, folder)
        inputs = baselines.photo_input(str(folder), **options)
        return batches(BatchMaker(inputs.open(), inputs, baselines.targets, seed=3), 0, 4)

    def shared() -> set[str]:
        return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()

    before = shared()
    ours = list(stream(threads=1))
    made, segments = [], set()
    for batch in stream(threads=1, workers=2):
        segments |= shared() - before
        made.append(batch)
    assert len(made) == len(ours) == 4
    for a, b in zip(ours, made, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    if os.path.isdir("/dev/shm"):  # each array of a batch is a segment that the worker wrote and this process maps
        assert any(name.startswith("psm_") for name in segments)


def test_a_cut_or_damaged_file_is_an_error_even_below_the_crop():
    data, out = bench.photo(0), np.empty((64, 64, 3), np.uint8)
    window = (10, 20, 100, 100)
    decode_crop_resize(data, window, out)
    for length in range(len(data) // 2, len(data), 5001):
        with pytest.raises(DecodeError, match="Premature end"):
            decode_crop_resize(data[:length], window, out)
    damaged = bytearray(data)
    damaged[len(data) // 10 : len(data) // 10 + 30] = b"\xff\xc7" * 15
    with pytest.raises(DecodeError):
        decode_crop_resize(bytes(damaged), window, out)


def test_random_choices_of_an_example_depend_on_its_position_alone(photos):
    class Draws(Resize):
        def write(self, image, header, rng, out):
            out[...] = rng.integers(0, 256, out.shape, np.uint8)
            rng.random(3, np.float32)  # leaves half of its last 64 bits

    inputs = Input(ImageFolder(str(photos), held_out=0.0), Draws(8), batch_size=5)
    batch = BatchMaker(inputs.open(), inputs, baselines.targets, seed=3)(2)
    for position, image in enumerate(batch["image"], start=10):
        rng = np.random.Generator(np.random.Philox(key=(3, position)))
        np.testing.assert_array_equal(image, rng.integers(0, 256, image.shape, np.uint8))
