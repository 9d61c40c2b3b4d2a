"""The Python API: its page runs, it agrees with the commands, and what it is not given right."""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_files import jpeg
from PIL import Image

import big_vision_lite as bvl
from big_vision_lite import api, config, experiment
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.segmentation import ASPPL, Segmentation
from big_vision_lite.training.metrics import read_metrics
from big_vision_lite.training.optimizers import SGD

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("compile_once")


def tiny(head=None, view=None) -> Experiment:
    view = view or Resize(32)
    source = EmojiScenes("train", 16, size=32, classes=4, objects=(1, 2))
    return Experiment(train=Input(source, view, 8), evals={"validation": Input(source, view, 8)},
                      backbone=ResNet(10, width=1 / 16), head=head or Classification(), optimizer=SGD(0.1), steps=3,
                      log_every=1, eval_every=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return bvl.train(tiny(), tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def photos(tmp_path):
    """Three ways to give one image; the file is on its side, and upright by its EXIF orientation."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    return [pixels, Image.fromarray(pixels), tmp_path / "turned.png", str(tmp_path / "turned.png"),
            Image.open(tmp_path / "turned.png")]


def test_the_page_runs(tmp_path, monkeypatch):
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(jpeg(64, 48))
    monkeypatch.setattr(experiment, "load_experiment", lambda spec: tiny())
    here, text = {}, (ROOT / "docs" / "api.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block.replace("seconds=300", "seconds=300, bootstrap=20"), "api.md", "exec"), here)
    assert len(blocks) == 5 and here["run"].step == 3 and here["vectors"].shape == (2, here["vectors"].shape[1])
    assert (tmp_path / "predicted.png").is_file() and here["slower"].experiment.seed == 1
    assert 0 < here["law"].at(1e6).low <= here["law"].at(1e6).median <= here["law"].at(1e6).high < 1
    assert len(here["advice"].answers) > 3


def test_one_image_in_many_forms_has_one_answer(run, photos):
    first, *others = run.predict(photos)
    assert set(label["label"] for label in first["labels"]) == set(run.classes)
    assert all(other == first for other in others)
    assert run.predict(photos[0]) == [first] and run.predict(np.stack(photos[:1])) == [first]
    vectors = run.features(photos)
    assert vectors.shape[0] == 5 and np.ptp(vectors, axis=0).max() < 1e-6 < vectors.std()
    assert run.draw(photos[0])[0].width == 8 * 60


def test_answers_are_in_the_order_of_the_images(tmp_path):
    """Although wide and tall ones are in different batches."""
    view = ResizeToFit(min_size=32, max_size=48, buckets=((32, 48), (48, 32)), random=False)
    segmenter = bvl.train(tiny(Segmentation(ASPPL((1, 2)), size=48), view), tmp_path / "run")
    sizes = [(20, 40), (40, 20), (10, 30), (33, 22)]
    answers = segmenter.predict([np.full((*size, 3), 90, np.uint8) for size in sizes])
    assert [answer["mask"].shape for answer in answers] == sizes == [tuple(answer["size"]) for answer in answers]
    assert segmenter.features([np.zeros((*size, 3), np.uint8) for size in sizes]).shape[0] == 4


def test_scores_and_columns(run):
    lines, columns = read_metrics(run.folder / "metrics.jsonl"), run.metrics()
    assert columns["step"].tolist() == [1, 2, 3] and np.isnan(columns["validation/mAP"]).tolist() == [1, 0, 0]
    assert columns["loss"].tolist() == [line["loss"] for line in lines if "loss" in line]
    scores = run.evaluate()
    assert scores["validation/mAP"] == pytest.approx(columns["validation/mAP"][-1])
    other = run.evaluate(EmojiScenes("test", 8, size=32, classes=4, objects=(1, 2)))
    assert other["EmojiScenes/images"] == 8


def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path, monkeypatch):
    from big_vision_lite.system.signals import Stopped
    from big_vision_lite.training import loop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_signals", lambda: contextlib.nullcontext([2]))
        with pytest.raises(KeyboardInterrupt, match="after step 1, which is saved") as stopped:
            bvl.train(tiny(), tmp_path / "run")
        assert isinstance(stopped.value.__cause__, Stopped)
    assert bvl.train(tiny(), tmp_path / "run").step == 3


def test_what_is_not_given_right(run, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:-50])
    with pytest.raises(bvl.UserError, match=r"image '.*cut\.jpg' cannot be read"):
        run.predict(tmp_path / "cut.jpg")
    with pytest.raises(bvl.UserError, match=r"image 1 is float64 \[4, 4, 3\]; expected a file"):
        run.predict([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3))])
    with pytest.raises(bvl.UserError, match="no images"):
        run.predict([])
    with pytest.raises(bvl.UserError, match=r"config\.json"):
        bvl.load(tmp_path)
    with pytest.raises(bvl.UserError, match="needs a folder: workdir="):
        bvl.train(tiny())
    with pytest.raises(bvl.UserError, match="errors are missing"):
        bvl.fit_law([1, 2, 3, 4])
    with pytest.raises(bvl.UserError, match="has no checkpoint of step 7"):
        bvl.load(run.folder, checkpoint=7).predict(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        bvl.trian  # noqa: B018


def test_fitted_laws_are_those_of_the_command():
    from big_vision_lite.scaling.laws import curves, prediction

    images = 100.0 * 2.0 ** np.arange(7)
    errors = 0.1 + 4 * images**-0.5
    law = bvl.fit_law(images, errors, bootstrap=20)
    expected, = prediction.predict(curves.from_points(images, errors), samples=20).errors([1e5])
    assert law.at(1e5) == (expected.median, *expected.intervals[-1])
    assert law.images_for(0.2).median == pytest.approx(1600, rel=0.05) and "at 12,800 images" in str(law)


def test_the_import_is_quick_and_its_names_are_typed():
    code = ("import sys, time; began = time.perf_counter(); import big_vision_lite; took = time.perf_counter() - began;"
            "print(took, [m for m in ('jax', 'numpy', 'matplotlib', 'cv2') if m in sys.modules])")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    took, heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                                 env=environment).stdout.split(" ", 1)
    assert float(took) < 0.3 and heavy.strip() == "[]"
    stub = (ROOT / "big_vision_lite" / "__init__.pyi").read_text()
    assert sorted(re.findall(r"import (\w+) as \1$", stub, re.MULTILINE)) == bvl.__all__ == api.__all__
    assert (ROOT / "big_vision_lite" / "py.typed").is_file()


def test_a_config_of_the_api_is_that_of_the_command(run):
    assert dataclasses.asdict(config.read(run.folder / "config.json")) == dataclasses.asdict(tiny())
