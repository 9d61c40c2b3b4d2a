"""Weights in and out: PyTorch's outputs without PyTorch, what is refused and how, and fetching that is interrupted."""

import contextlib
import hashlib
import http.server
import io
import re
import runpy
import threading
import urllib.error
import urllib.request
import zipfile
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from big_vision_lite import weights
from big_vision_lite.backbones.norm import GroupNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.errors import UserError
from big_vision_lite.heads.classification import Classifier
from big_vision_lite.training.checkpoints import flatten
from big_vision_lite.training.step import merge, split
from big_vision_lite.weights import download, naming

MAKE = runpy.run_path(str(Path(__file__).parent / "goldens" / "weights" / "make.py"))
SMALL = ResNet(10, width=1 / 16)


@cache
def described(backbone, classes=10):
    """The structure of a classifier, and its arrays' descriptions by name and as they nest."""
    graphdef, *arrays = split(nnx.eval_shape(
        lambda: Classifier(backbone.build(nnx.Rngs(0)), classes, 0.0, nnx.Rngs(0))))
    return graphdef, {name.partition(".")[2]: leaf for name, leaf in flatten(arrays).items()}, arrays


def like(backbone, classes=10):
    return described(backbone, classes)[1]


def seeded(backbone, export, classes=10):
    """Weights from seeds, by the names and in the layout of another project."""
    shapes = export({name: np.zeros(leaf.shape, bool) for name, leaf in like(backbone, classes).items()})
    return MAKE["tensors"]({name: value.shape for name, value in shapes.items()})


@pytest.mark.parametrize(("name", "backbone", "take", "export"), [
    ("resnet18", ResNet(18, pixels=weights.TORCHVISION_PIXELS), weights.from_torchvision, weights.to_torchvision),
    ("bit", ResNetV2(50), weights.from_bit, lambda arrays: weights.to_bit(arrays, timm=True))])
def test_features_and_logits_are_pytorchs(name, backbone, take, export):
    graphdef, shapes, arrays = described(backbone)
    tensors = seeded(backbone, export)
    found = take(tensors, shapes)
    filled = jax.tree.unflatten(jax.tree.structure(arrays), [found[key] for key in shapes])

    @jax.jit
    def compute(params, stats, images):
        model = merge(graphdef, params, stats)
        features = model.backbone(images, train=False)
        return features, model.head(features[-1].mean((1, 2)))

    images = jnp.asarray(MAKE["images"]())
    features, logits = compute(*filled, images)
    module = nnx.merge(graphdef, *arrays).backbone
    with np.load(MAKE["EXPECTED"]) as expected:
        np.testing.assert_allclose(logits, expected[f"{name}/logits"], atol=1e-4)
        for i, (feature, stride, channels) in enumerate(zip(features, module.strides, module.channels, strict=True)):
            assert feature.shape == (2, 64 // stride, 64 // stride, channels)
            np.testing.assert_allclose(feature.mean((1, 2)), expected[f"{name}/stage{i}"], atol=3e-4, rtol=1e-4)
    back = export(found)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[key], tensors[key]) for key in tensors)


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"width=0.125 makes 8 channels; expected a multiple of norm.groups=32"):
        ResNetV2(50, 0.125)


@pytest.mark.parametrize(("names", "depth"), [
    *((naming.TORCHVISION, depth) for depth in (18, 34)),
    *((names, depth) for names in naming.NAMINGS for depth in (50, 101, 152, 200))],
    ids=lambda value: getattr(value, "title", value))
def test_depths_are_recognised(names, depth):
    theirs, ours, _ = zip(*names.rows(depth), strict=True)
    assert weights.depth_of(ours) == depth
    assert weights.depth_of(theirs) == depth
    assert len(set(theirs)) == len(set(ours)) == len(ours)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_give_back_what_was_written_and_our_own_names_load(tmp_path, suffix):
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(leaf.shape).astype(np.float32) for name, leaf in like(SMALL).items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(path, **ours)
    else:
        weights.write_safetensors(path, ours)
    found = weights.load(str(path), like(SMALL))
    assert found.keys() == ours.keys()
    assert all(np.array_equal(found[name], ours[name]) for name in ours)
    other = weights.load(str(path), like(SMALL, classes=7))
    assert other["head.kernel"].shape[1] == 10  # as the file has it
    headless = {name: leaf for name, leaf in like(SMALL).items() if not name.startswith("head.")}
    assert weights.load(str(path), headless).keys() == headless.keys()


def test_sixteen_bits_are_widened(tmp_path):
    import ml_dtypes

    values = {"a": np.float16([1.5, -2]), "b": np.asarray([1.5, -2], ml_dtypes.bfloat16), "n": np.int64([3])}
    weights.write_safetensors(tmp_path / "x.safetensors", values, {"pixels": "0 to 255"})
    assert weights.read_metadata(tmp_path / "x.safetensors") == {"pixels": "0 to 255"}
    found = weights.read_file(tmp_path / "x.safetensors")
    assert found["a"].dtype == found["b"].dtype == np.float32 and found["n"].dtype == np.int64
    np.testing.assert_array_equal(found["b"], [1.5, -2])


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def plus(name, *shape):
    return lambda tensors: {**tensors, name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(("backbone", "change", "message"), [
    (ResNet(18, 1 / 16), dict, "is a BatchNorm ResNet of depth 10, the run's backbone is a .* ResNet of depth 18"),
    (ResNet(10, 1 / 2, norm=GroupNorm()), dict, "the run's backbone is a GroupNorm ResNet of depth 10"),
    (ResNetV2(50), dict, "the run's backbone is a ResNetV2 of depth 50"),
    (ResNet(10, 1 / 8), dict, r"'conv1.weight' has shape \(7, 7, 3, 4\) .* needs \(7, 7, 3, 8\); its width is "
                              "0.0625, the run's 0.125"),
    (ResNet(10, 1 / 16, stem="half"), dict, "its stem is 7x7, the run's 3x3"),
    (SMALL, plus("conv1.weight", 5, 7, 4, 3), r"'conv1.weight' has shape \(4, 3, 7, 5\)"),
    (SMALL, plus("layer1.0.se.fc1.weight", 2), "has 'layer1.0.se.fc1.weight', which .*a variant"),
    (SMALL, without("layer2.0.bn2.running_var"), "lacks 'layer2.0.bn2.running_var'"),
    (SMALL, plus("layer1.5.conv1.weight", 2), "has blocks as no BatchNorm ResNet here has"),
    (SMALL, without("fc.bias"), "lacks 'fc.bias'"),
    (SMALL, lambda tensors: {"features.0.weight": np.ones(3)}, "of no network known here: 'features.0.weight'"),
    (SMALL, plus("bn1.num_batches_tracked"), None),
])
def test_another_network_is_named(tmp_path, backbone, change, message):
    weights.write_safetensors(tmp_path / "w.safetensors", change(seeded(SMALL, weights.to_torchvision)))
    if message is None:
        assert weights.load(str(tmp_path / "w.safetensors"), like(backbone)).keys() == like(backbone).keys()
        return
    with pytest.raises(UserError, match=message) as caught:
        weights.load(str(tmp_path / "w.safetensors"), like(backbone))
    assert "\n" not in str(caught.value) and "w.safetensors" in str(caught.value)


def test_our_own_file_of_another_network_is_named(tmp_path):
    ours = {name: np.zeros(leaf.shape, np.float32) for name, leaf in like(SMALL).items()}
    weights.write_safetensors(tmp_path / "w.safetensors", ours)
    for backbone, message in ((ResNet(18, 1 / 16), "depth 10, .* depth 18"), (ResNet(10, 1 / 8), r"width is 0.0625"),
                              (ResNetV2(50), "is a ResNetV2 of depth 50")):
        with pytest.raises(UserError, match=message):
            weights.load(str(tmp_path / "w.safetensors"), like(backbone))
    with pytest.raises(UserError, match="is a ResNetV2, the run's network is a BatchNorm ResNet"):
        weights.to_bit(ours)
    with pytest.raises(UserError, match=r"has no place for 'backbone.extra'"):
        weights.to_torchvision({**ours, "backbone.extra": np.zeros(1)})


def archive_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("w.npz", archive_of("notes.txt", b"hello"), "'notes.txt' in it is not an array"),
    ("w.bin", b"", r"expected \.safetensors, \.npz"),
    ("w.npz", None, "no file of weights"),
    ("w.npz", b"no zip", "cannot be read as npz"),
    ("w.npz", {"a": np.asarray([{}])}, "holds Python objects"),
    ("w.npz", {}, "holds no arrays"),
    ("w.npz", {"fine": np.ones(2), "layer1.w": np.float32([1, np.nan, np.inf])}, "'layer1.w' has 2 of 3 values"),
    ("w.safetensors", b"\xff" * 20, "cannot be read as safetensors"),
])
def test_files_that_are_refused(tmp_path, name, content, message):
    if isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        weights.read_file(tmp_path / name)
    assert "\n" not in str(caught.value)


class Server:
    """Serves ``body`` at any path on the loopback; ``drop``: bytes after which each of the next connections breaks."""

    def __init__(self):
        self.body, self.tag, self.drop, self.ranges, self.status = b"", '"1"', [], True, 200
        self.seen = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.seen.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
                server.answer(self)

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"

    def answer(self, request):
        if self.status != 200:
            request.send_error(self.status)
            return
        if request.path.startswith("/hub/"):  # as Hugging Face points on to its storage
            request.send_response(302)
            request.send_header("Location", request.path.replace("/hub/", "/storage/"))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start, code = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if self.ranges and asked and request.headers.get("If-Range", self.tag) == self.tag:
            start, code = int(asked[1]), 206
        if start >= len(self.body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.body)}")
            request.end_headers()
            return
        request.send_response(code)
        if code == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        request.send_header("Content-Length", str(len(self.body) - start))
        if self.tag:
            request.send_header("ETag", self.tag)
        request.end_headers()
        request.wfile.write(self.body[start:start + self.drop.pop(0)] if self.drop else self.body[start:])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "_WAIT", 0.0)
    served = Server()
    served.body = np.random.default_rng(0).bytes(300_000)
    thread = threading.Thread(target=served.httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with contextlib.closing(served.httpd.socket):
        yield served
        served.httpd.shutdown()
        thread.join()


def test_a_fetched_file_is_kept(server, tmp_path):
    digest = hashlib.sha256(server.body).hexdigest()
    source = f"{server.url}/x/model.safetensors#sha256={digest}"
    path = weights.fetch(source, tmp_path)
    assert path.read_bytes() == server.body and path.name.endswith("-model.safetensors")
    assert weights.fetch(source, tmp_path) == path and len(server.seen) == 1
    with pytest.raises(UserError, match=f"have sha256 {digest}, expected {'0' * 64}"):
        weights.fetch(f"{server.url}/x/model.safetensors#sha256={'0' * 64}", tmp_path)
    assert not path.exists()


@pytest.mark.parametrize(("ranges", "tag", "drop", "asked"), [
    (True, '"1"', [100_000, 50_000], [None, "bytes=100000-", "bytes=150000-"]),
    (False, '"1"', [100_000], [None, "bytes=100000-"]),  # a server without ranges sends all of it again
    (True, None, [100_000], [None, None]),  # nothing would tell that it is the same file
])
def test_a_lost_connection_is_taken_up_again(server, tmp_path, ranges, tag, drop, asked):
    server.ranges, server.tag, server.drop = ranges, tag, drop
    path = weights.fetch(f"{server.url}/model.npz", tmp_path)
    assert path.read_bytes() == server.body
    assert [entry[1] for entry in server.seen] == asked


def test_an_interrupted_fetch_goes_on_later_unless_the_file_has_changed(server, tmp_path):
    source, whole = f"{server.url}/model.npz", server.body
    server.drop = [100_000, 0, 0, 0]
    with pytest.raises(UserError, match=r"cannot fetch weights from 127.0.0.1: .*100000 bytes are kept.* put the file"):
        weights.fetch(source, tmp_path)
    assert not list(tmp_path.glob("*.npz"))
    server.body, server.tag, server.drop = whole[::-1], '"2"', []
    path = weights.fetch(source, tmp_path)
    assert path.read_bytes() == server.body and server.seen[-1][1] == "bytes=100000-"

    path.rename(tmp_path / (path.name + ".part"))  # whole, but the process ended before it was moved
    (tmp_path / (path.name + ".part.version")).write_text('"2"')
    assert weights.fetch(source, tmp_path).read_bytes() == server.body


def test_hugging_face_names(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    monkeypatch.setenv("HF_TOKEN", "secret")
    weights.fetch("hf:timm/resnet18.a1_in1k", tmp_path)
    weights.fetch("hf:me/mine@v1.0/folder/BiT.npz", tmp_path)
    assert [(path, token) for path, _, token in server.seen] == [
        ("/timm/resnet18.a1_in1k/resolve/main/model.safetensors", "Bearer secret"),
        ("/me/mine/resolve/v1.0/folder/BiT.npz", "Bearer secret")]
    server.seen.clear()
    server.drop = [100_000]
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/hub")
    assert weights.fetch("hf:me/mine", tmp_path).read_bytes() == server.body
    assert [(path.split("/")[1], *rest) for path, *rest in server.seen] == [
        ("hub", None, "Bearer secret"), ("storage", None, None),  # the token stays with its server
        ("hub", "bytes=100000-", "Bearer secret"), ("storage", "bytes=100000-", None)]
    monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1")
    weights.fetch(f"{server.url}/other/model.npz", tmp_path)
    assert server.seen[-1][2] is None
    request = urllib.request.Request("https://127.0.0.1/model.npz")
    with pytest.raises(urllib.error.URLError, match="not https"):
        download._Secure().redirect_request(request, None, 302, "", {}, "http://127.0.0.1/model.npz")


@pytest.mark.parametrize(("source", "message"), [
    ("hf:resnet50", "expected hf:OWNER/NAME"),
    ("hf:me/mine/weights.pth", r"expected one that ends in \.safetensors or \.npz"),
    ("http://example.org/model.npz", "expected https://"),
    ("https://example.org/model.npz#md5=1", "expected #sha256="),
])
def test_names_that_are_refused(tmp_path, source, message):
    with pytest.raises(UserError, match=message):
        weights.fetch(source, tmp_path)


def test_a_missing_file_and_a_missing_network_are_told_apart(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match=r"has no weights at .*: 404"):
        weights.fetch(f"{server.url}/model.npz", tmp_path)
    server.status = 503
    with pytest.raises(UserError, match=r"cannot fetch weights from 127.0.0.1: .*name its path"):
        weights.fetch(f"{server.url}/model.npz", tmp_path)
    assert len(server.seen) == 4
    with pytest.raises(UserError, match=r"cannot fetch weights from 127.0.0.1: .*refused"):
        weights.fetch("http://127.0.0.1:9/model.npz", tmp_path)


def test_load_fetches(server, monkeypatch, tmp_path):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    weights.write_safetensors(tmp_path / "w.safetensors", seeded(SMALL, weights.to_torchvision))
    server.body = (tmp_path / "w.safetensors").read_bytes()
    assert weights.load(f"{server.url}/w.safetensors", like(SMALL)).keys() == like(SMALL).keys()
    assert len(list((tmp_path / "cache" / "weights").glob("*-w.safetensors"))) == 1
