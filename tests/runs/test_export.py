"""Exports: the StableHLO without this package, other converters where they are installed, and a shared folder that
becomes the same run again."""

import base64
import dataclasses
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import huggingface_hub
import jax.export
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

import big_vision_lite as bvl
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.cli import main
from big_vision_lite.config import to_json
from big_vision_lite.data.curation.steps import Exclude
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import CentreCrop, Resize
from big_vision_lite.data.transforms.joint import ResizeToFit
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.heads.segmentation import ASPPL, Segmentation
from big_vision_lite.runs.predict import predictions
from big_vision_lite.runs.serving import write_program
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.weights.files import read_weights

pytestmark = pytest.mark.usefixtures("compile_once")
SOURCE = EmojiScenes("train", 16, size=32, classes=4, objects=(1, 2))
DOCUMENT = Path(__file__).parents[2] / "docs" / "sharing.md"
SNIPPET = re.search(r"\n((?:    .*\n|\n)+)", DOCUMENT.read_text().partition("without this package:\n")[2])[1]
WITHOUT_US = f"""
import sys
sys.modules["big_vision_lite"] = None
import numpy as np
images = np.load("images.npy")
{textwrap.dedent(SNIPPET).replace("exports/stablehlo/", "")}
np.savez("outputs.npz", **outputs)
"""


def experiment(head, view, depth=10, width=1 / 16) -> Experiment:
    inputs = Input(SOURCE, view, 8)
    return Experiment(train=inputs, evals={"validation": inputs}, backbone=ResNet(depth, width=width), head=head,
                      optimizer=SGD(0.1), steps=3, ema=0.9)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return bvl.train(experiment(Classification(), Resize(32)), tmp_path_factory.mktemp("runs") / "tiny")


def expected(trainer, state, images) -> dict[str, np.ndarray]:
    """The outputs of the run itself, for images of the network's size."""
    size = np.broadcast_to(np.array(images.shape[1:3], np.int32), (len(images), 2))
    targets = trainer.experiment.head.targets({"id": "", "labels": ()})
    batch = {name: np.broadcast_to(value, (len(images), *np.shape(value))) for name, value in targets.items()}
    batch |= {name: size for name in ("size", "original_size") if name in targets}
    batch |= {"image": images, "mask": np.ones(len(images), bool)}
    return {name: np.asarray(value) for name, value in
            trainer.eval_step(state.eval_params, state.batch_stats, batch).items()}


@pytest.mark.parametrize(("head", "view"), [
    (Classification("softmax"), CentreCrop(32, resize=40)),
    (Segmentation(ASPPL((1, 2)), size=64), ResizeToFit(64, 64, random=False)),
    (FasterRCNN(FPN(8, 16, pre_nms_topk=(50, 50), post_nms_topk=(20, 20), rois_per_image=8), max_detections=5),
     ResizeToFit(64, 64, random=False))], ids=lambda value: type(value).__name__)
def test_the_program_computes_what_the_run_does(head, view, tmp_path):
    trainer = Trainer(experiment(head, view))
    state, side, rng = trainer.random_init(), view.shape[0], np.random.default_rng(0)
    if not isinstance(head, FasterRCNN):  # scores that differ; those of boxes would change places by rounding
        state = dataclasses.replace(state, ema_params=jax.tree.map(
            lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), state.ema_params))
    summary = write_program(trainer, state, 7, tmp_path, "stablehlo")
    assert summary.startswith(f"stablehlo of step 7: uint8 images [b, {side}, {side}, 3] to ")
    images = rng.integers(0, 256, (8, side, side, 3), np.uint8)
    np.save(tmp_path / "images.npy", images[:5])  # not the number of the run's batches
    subprocess.run([sys.executable, "-c", WITHOUT_US], cwd=tmp_path, check=True)
    with np.load(tmp_path / "outputs.npz") as file:
        found = dict(file)
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["classes"] == list(trainer.data.classes) and {
        name: list(value.shape) for name, value in found.items()} == {
        name: [5, *spec["shape"][1:]] for name, spec in described["outputs"].items()}
    outputs = expected(trainer, state, images)
    assert found.keys() - {"probabilities", "mask"} == outputs.keys() - {"loss", "confusion"}
    for name in found.keys() & outputs.keys():
        np.testing.assert_allclose(found[name], outputs[name][:5], rtol=1e-5, atol=1e-5, err_msg=name)
    if "probabilities" in found:
        np.testing.assert_allclose(found["probabilities"], softmax(outputs["logits"][:5], -1), atol=1e-6)
    if "mask" in found:  # as predict gives it for photos of that size
        masks = {index: one.mask for index, one in predictions(trainer, state, list(images[:5]))}
        assert np.mean(found["mask"] != np.stack([masks[index] for index in range(5)])) < 1e-3  # ties
        assert len(np.unique(found["mask"])) > 1


def test_the_command_writes_the_newest_checkpoint(run, tmp_path, capsys):
    assert main(["export", str(run.folder), "--to", "stablehlo"]) == 0
    assert "stablehlo of step 3: uint8 images [b, 32, 32, 3] to logits, probabilities" in capsys.readouterr().out
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    program = jax.export.deserialize(bytearray((run.folder / "exports/stablehlo/model.stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call(images)["logits"], expected(*run._opened[:2], images)["logits"], rtol=1e-5,
                               atol=1e-5)


@pytest.mark.parametrize(("form", "packages"), [("onnx", ("jax2onnx", "onnxruntime")), ("savedmodel", ("tensorflow",))])
def test_other_converters(form, packages, run, tmp_path):
    for package in packages:
        pytest.importorskip(package)
    assert main(["export", str(run.folder), "--to", form, "--out", str(tmp_path)]) == 0
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        found = dict(zip([one.name for one in session.get_outputs()], session.run(None, {"images": images[:5]}),
                         strict=True))
    else:
        import tensorflow as tf

        found = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](images=tf.constant(images[:5]))
    np.testing.assert_allclose(found["logits"], expected(*run._opened[:2], images)["logits"][:5], rtol=1e-5, atol=1e-5)


def test_a_converter_that_is_missing(run, monkeypatch, capsys, tmp_path):
    for form, package in (("onnx", "jax2onnx"), ("savedmodel", "tensorflow")):
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["export", str(run.folder), "--to", form, "--out", str(tmp_path / form)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"--to {form} needs {package}, which is not installed; pip install" in error
        assert not (tmp_path / form).exists()
    assert main(["export", str(run.folder), "--to", "stablehlo", "--push", "me/mine"]) == 2
    assert "--push and --licence are for --to hf-folder" in capsys.readouterr().err


def test_a_shared_folder_is_the_same_run_again(run, tmp_path, capsys):
    folder = tmp_path / "shared"
    assert main(["export", str(run.folder), "--to", "hf-folder", "--out", str(folder), "--license", "cc0-1.0"]) == 0
    assert "under our names; no other library has this network" in capsys.readouterr().out
    again = bvl.load(folder)
    photos = [np.random.default_rng(k).integers(0, 256, (30 + k, 50, 3), np.uint8) for k in range(3)]
    assert again.classes == run.classes and again.step == run.step == 3
    assert again.predict(photos) == run.predict(photos)  # the same weights, EMA and preprocessing
    text = (folder / "config.json").read_text()
    assert json.loads(text)["label_names"] == list(run.classes) and "EmojiScenes" not in text
    card = (folder / "README.md").read_text()
    metrics = json.loads((run.folder / "run.json").read_text())["results"]
    assert all(text in card for text in ("license: cc0-1.0", "on 16 images", "3 steps: 24 images seen",
                                         f"| validation/mAP | {metrics['validation/mAP']:.6g} |", "`Resize(size=32)`"))
    with pytest.raises(UserError, match="has no images of its own"):
        again.evaluate()
    damaged = json.loads(text)
    damaged["big_vision_lite"]["experiment"]["head"]["class"] = "os:system"
    (folder / "config.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match="'os:system' is outside big_vision_lite"):
        bvl.load(folder / "model.safetensors", classes=None)


def test_paths_of_this_machine_are_not_shared(run, tmp_path):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    source = ImageFolder(str(tmp_path / "secret"), "train")
    config["train"] |= to_json({"source": source, "curate": (Exclude(str(tmp_path / "secret.txt")),)})
    config["transfer"]["init"] = str(tmp_path / "secret")
    (copy / "config.json").write_text(json.dumps(config))
    assert main(["export", str(copy), "--to", "hf-folder"]) == 0
    files = [*(copy / "exports" / "hf-folder").iterdir()]
    assert len(files) == 3 and not any(word in file.read_bytes() for file in files
                                       for word in (b"secret", str(tmp_path).encode()))


def test_networks_that_timm_has_are_written_for_it(tmp_path, capsys):
    run = bvl.train(experiment(Classification("softmax"), CentreCrop(32, resize=36), 18, 1.0), tmp_path / "run")
    assert main(["export", str(run.folder), "--to", "hf-folder"]) == 0
    assert "under timm's names for resnet18" in capsys.readouterr().out
    folder = run.folder / "exports" / "hf-folder"
    config, weights = json.loads((folder / "config.json").read_text()), read_weights(str(folder / "model.safetensors"))
    assert config["pretrained_cfg"]["crop_pct"] == pytest.approx(32 / 36) and "layer4.1.conv2.weight" in weights.arrays
    photo = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    assert bvl.load(folder).predict(photo) == run.predict(photo)


class Hub:
    """As much of Hugging Face as an upload needs."""

    def __init__(self):
        self.requests, self.files, hub = [], {}, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub.requests.append((self.path, self.headers.get("Authorization"), body))
                self.answer(hub.answer(self.path, body))

            def do_GET(self):
                self.answer({"sha": "0" * 40, "id": "me/mine", "siblings": []})

            def answer(self, value):
                text = json.dumps(value).encode()
                self.send_response(200 if value is not None else 403)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def answer(self, path, body):
        if path == "/api/repos/create":
            return {"url": f"{self.url}/me/mine", "name": "me/mine"} if b'"mine"' in body else None
        if path.startswith("/api/models/me/mine/preupload/"):
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                              for file in json.loads(body)["files"]]}
        if path.startswith("/api/models/me/mine/commit/"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{self.url}/me/mine/commit/{'0' * 40}", "commitOid": "0" * 40}
        return {}


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.httpd.shutdown()
    hub.httpd.server_close()


def test_a_folder_is_uploaded(run, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", functools.partial(huggingface_hub.HfApi, endpoint=hub.url))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    command = ["export", str(run.folder), "--to", "hf-folder", "--out", str(tmp_path / "shared"), "--push"]
    assert main([*command, "me/mine"]) == 2 and "needs a token of Hugging Face" in capsys.readouterr().err
    assert not hub.requests
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    Image.new("RGB", (8, 8)).save(tmp_path / "shared" / "private.png")  # not of the export
    assert main([*command, "me/mine"]) == 0
    assert capsys.readouterr().out.endswith(f"{hub.url}/me/mine\n")
    assert hub.files == {name: (tmp_path / "shared" / name).read_bytes()
                         for name in ("README.md", "config.json", "model.safetensors")}
    assert {token for _, token, _ in hub.requests} == {"Bearer secret"}
    created = json.loads(hub.requests[0][2])
    assert created.get("private") is True or created.get("visibility") == "private", created
    assert main([*command, "me/other"]) == 2
    assert (error := capsys.readouterr().err).startswith("bvl: --push me/other: ") and error.count("\n") == 1
    hub.httpd.shutdown()
