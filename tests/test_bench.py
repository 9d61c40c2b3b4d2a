"""The benchmark of the input measures what it says, alternates, leaves out what is not there, and ends. And what makes
the pipeline fast changes no batch."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from big_vision_lite.bench import contenders
from big_vision_lite.bench import input as bench
from big_vision_lite.bench.input import Options, bench_input
from big_vision_lite.data import decode as decoding
from big_vision_lite.data.decode import DecodeError, decode
from big_vision_lite.data.image_folder import ImageFolder
from big_vision_lite.data.pipeline import BatchMaker, Input, batches
from big_vision_lite.data.transforms import Squash
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


def test_a_table_of_contenders(photos, tmp_path, capsys):
    # torch runs under an interpreter that has nothing: it is left out with a line, and the rest goes on.
    bare = tmp_path / "python"
    bare.write_text(f"#!/bin/sh\nexec {sys.executable} -I -S \"$@\"\n")
    bare.chmod(0o755)
    options = Options(photos, cores=(1, 64_000), rounds=2, seconds=0.2, warm_up=0.1, gil=False,
                      contenders=("threads", "torch", "libjpeg-turbo"), python={"torch": str(bare)},
                      out=tmp_path / "figures.json")
    own = Input(ImageFolder(str(photos), held_out=0.0), Squash(32), batch_size=3)
    found = bench_input(options, {"mine": own})
    assert [(run["round"], run["contender"]) for run in found["runs"]] == [
        (n, c) for n in range(2) for c in ("threads", "torch", "libjpeg-turbo", "mine")]
    summary = {row["contender"]: row for row in found["summary"]}
    assert summary.keys() == {"threads", "libjpeg-turbo", "mine"}
    for name, row in summary.items():
        measured = [run["images_per_second"] for run in found["runs"] if run["contender"] == name]
        assert row["median"] == pytest.approx(np.median(measured)) and row["cores"] == 1
        assert 0 < row["least"] <= row["median"] <= row["most"]
        assert row["ours_to_it"] == pytest.approx(summary["threads"]["median"] / row["median"])
    assert found["photos"]["images"] == 6
    assert json.loads(options.out.read_text()) == json.loads(json.dumps(found))
    printed = capsys.readouterr().out
    assert "torch: left out: No module named" in printed and "images/s on 1 core" in printed


@pytest.mark.parametrize(("options", "said"), [
    ({"contenders": ("treads",)}, "no contender 'treads'; did you mean 'threads'"),
    ({"python": {"tf": "/python"}}, "no contender 'tf'"),
    ({"rounds": 0}, "rounds=0"),
    ({"cores": (64_000,)}, "cores=\\(64000,\\); this process may use"),
    ({"images": Path("/nowhere")}, "no .jpg or .jpeg file in '/nowhere'"),
    ({"python": {"threads": "/no/python"}}, "contender 'threads': cannot run '/no/python': No such file"),
], ids=str)
def test_bad_options_are_one_line(photos, options, said):
    with pytest.raises(UserError, match=said):
        bench_input(Options(**{"images": photos, "seconds": 0.1, "gil": False, **options}))


def test_a_contender_that_fails_is_an_error(photos, tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "cat" / "0.jpg")
    broken = Input(ImageFolder(str(tmp_path), held_out=0.0), Squash(32), batch_size=1)
    (tmp_path / "cat" / "0.jpg").write_bytes(b"\xff\xd8 no more")
    options = Options(photos, cores=(1,), rounds=1, seconds=0.1, contenders=(), gil=False)
    with pytest.raises(UserError, match=r"contender 'broken' failed .*'cat/0\.jpg' cannot be read"):
        bench_input(options, {"broken": broken})


def test_the_rate_is_of_the_time_after_the_warm_up():
    def slow_at_first():
        time.sleep(0.3)
        for n in range(10**6):
            time.sleep(0.3 if n == 0 else 0.01)
            yield 5

    found = contenders.rate(slow_at_first(), seconds=0.5, warm_up=0.1)
    assert 0.6 <= found["first_batch"] < 1.5
    assert 100 < found["images_per_second"] <= 500


def test_a_photo_decodes_and_is_as_large_as_imagenets():
    files = [bench.photo(i) for i in range(4)]
    assert len(set(files)) == 4 and files[0] == bench.photo(0)
    assert decode(files[0]).shape == (375, 500, 3)
    assert 60e3 < np.mean([len(file) for file in files]) < 160e3


def test_random_windows_are_inception_crops():
    windows = np.array([contenders.random_window(500, 375) for _ in range(300)])
    left, top, width, height = windows.T
    assert (windows >= 0).all() and (left + width <= 500).all() and (top + height <= 375).all()
    share, aspect = width * height / (500 * 375), width / height
    assert 0.07 < share.min() < 0.2 and share.max() > 0.7
    assert aspect.min() > 0.72 and aspect.max() < 1.37
    assert contenders.random_window(5000, 3)[2:] == (3, 3)


def test_the_file_needs_nothing_of_ours_to_run_a_contender(photos):
    # As under another interpreter: isolated, without site-packages.
    code = ("import sys, runpy; runpy.run_path(sys.argv[1]); "
            "print([m for m in ('numpy', 'rich', 'big_vision_lite') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, contenders.__file__], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_worker_processes_make_the_same_batches_and_pass_them_in_shared_memory(photos, tmp_path):
    def stream(**options):
        folder = tmp_path / "linked"
        if not folder.exists():
            bench.gather_photos(photos, folder)
        inputs = contenders.photo_input(str(folder), **options)
        return batches(BatchMaker(inputs.open(), inputs, contenders.targets, seed=3), 0, 4)

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


def saved(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


PIXELS = decode(bench.photo(5, 301, 403))
KINDS = {
    **{kind: simplejpeg.encode_jpeg(PIXELS, colorsubsampling=kind) for kind in ("444", "422", "420", "440", "411")},
    "grey": saved(PIXELS[:, :, 0]),
    "upright": saved(PIXELS, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "progressive": saved(PIXELS, progressive=True),
    "restarts": saved(PIXELS, restart_marker_rows=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_decoded_change_no_pixel(kind, monkeypatch):
    found = []

    def first_rows(*args):
        found.append(first(*args))
        return found[-1]

    first = decoding._first_rows
    monkeypatch.setattr(decoding, "_first_rows", first_rows)
    monkeypatch.setattr(decoding, "WORTH_SKIPPING", 16)
    data, rng = KINDS[kind], np.random.default_rng(0)
    full_height, full_width = decoding.image_size(data)
    for size in (10, 30, 60, 224):  # an eighth to all of the resolution
        for _ in range(25):
            height, width = rng.uniform(20, full_height - 20), rng.uniform(20, full_width - 20)
            window = (rng.uniform(0, full_height - height), rng.uniform(0, full_width - width), height, width)
            part, whole = np.zeros((2, size, size, 3), np.uint8)
            decoding.decode_crop_resize(data, window, part)
            with monkeypatch.context() as patch:
                patch.setattr(decoding, "WORTH_SKIPPING", 10**9)
                decoding.decode_crop_resize(data, window, whole)
            np.testing.assert_array_equal(part, whole, err_msg=f"{window} to {size}")
    assert len(found) > 50
    assert all((part is None) == (kind in ("progressive", "restarts")) for part in found)


def test_a_cut_or_damaged_file_is_an_error_where_its_last_rows_are_not_decoded():
    data, out = bench.photo(0), np.empty((64, 64, 3), np.uint8)
    window = (10, 20, 100, 100)
    decoding.decode_crop_resize(data, window, out)
    for length in range(len(data) // 2, len(data), 5001):
        with pytest.raises(DecodeError, match="Premature end"):
            decoding.decode_crop_resize(data[:length], window, out)
    damaged = bytearray(data)
    damaged[len(data) // 10 : len(data) // 10 + 30] = b"\xff\xc7" * 15
    with pytest.raises(DecodeError):
        decoding.decode_crop_resize(bytes(damaged), window, out)


def test_random_choices_of_an_example_depend_on_its_position_alone(photos):
    class Draws(Squash):
        def write(self, image, header, rng, out):
            out[...] = rng.integers(0, 256, out.shape, np.uint8)
            rng.random(3, np.float32)  # leaves half of its last 64 bits

    inputs = Input(ImageFolder(str(photos), held_out=0.0), Draws(8), batch_size=5)
    batch = BatchMaker(inputs.open(), inputs, contenders.targets, seed=3)(2)
    for position, image in enumerate(batch["image"], start=10):
        rng = np.random.Generator(np.random.Philox(key=(3, position)))
        np.testing.assert_array_equal(image, rng.integers(0, 256, image.shape, np.uint8))
