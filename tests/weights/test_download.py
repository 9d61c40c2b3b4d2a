"""Weights from a server of this machine: caching, lost connections, Hugging Face's client, and what is refused."""

import contextlib
import functools
import hashlib
import http.server
import re
import sys
import threading
import urllib.error
import urllib.request

import huggingface_hub
import numpy as np
import pytest
from flax import nnx

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.errors import UserError
from big_vision_lite.heads.classification import Classifier
from big_vision_lite.training.step import split
from big_vision_lite.training.trees import flatten
from big_vision_lite.weights import convert, download, files


class Server:
    """Serves ``body`` at any path; ``drop``: bytes after which each of the next connections breaks."""

    def __init__(self):
        self.body, self.tag, self.drop, self.ranges, self.status = b"", '"1"', [], True, 200
        self.requests = []
        self.on_request = lambda: None
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
                server.on_request()
                server.answer(self)

            def do_HEAD(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"

    def answer(self, request):
        if self.status != 200:
            request.send_error(self.status)
            return
        start, code = 0, 200
        range_header = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if self.ranges and range_header and request.headers.get("If-Range", self.tag) == self.tag:
            start, code = int(range_header[1]), 206
        request.send_response(code)
        if code == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        request.send_header("Content-Length", str(len(self.body) - start))
        request.send_header("X-Repo-Commit", "0" * 40)  # of Hugging Face
        if self.tag:
            request.send_header("ETag", self.tag)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(self.body[start:start + self.drop.pop(0)] if self.drop else self.body[start:])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "_WAIT", 0.0)
    server = Server()
    server.body = np.random.default_rng(0).bytes(300_000)
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with contextlib.closing(server.httpd.socket):
        yield server
        server.httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path))
    return tmp_path / "weights"


def test_a_path_is_itself(tmp_path):
    assert download.fetch(str(tmp_path / "w.npz")) == tmp_path / "w.npz"


def test_a_downloaded_file_is_cached_and_verified(server, cache):
    digest = hashlib.sha256(server.body).hexdigest()
    source = f"{server.url}/x/model.safetensors#sha256={digest}"
    path = download.fetch(source)
    assert path.read_bytes() == server.body and path.parent == cache and path.name.endswith("-model.safetensors")
    assert download.fetch(source) == path and len(server.requests) == 1
    with pytest.raises(UserError, match=f"have sha256 {digest}, expected {'0' * 64}"):
        download.fetch(f"{server.url}/x/model.safetensors#sha256={'0' * 64}")
    assert not path.exists()


@pytest.mark.parametrize(("ranges", "tag", "drop", "ranges_requested"), [
    (True, '"1"', [100_000, 50_000], [None, "bytes=100000-", "bytes=150000-"]),
    (False, '"1"', [100_000], [None, "bytes=100000-"]),  # a server without ranges sends all of it again
    (True, None, [100_000], [None, None]),  # nothing would tell that it is the same file
])
def test_a_lost_connection_is_resumed(server, ranges, tag, drop, ranges_requested):
    server.ranges, server.tag, server.drop = ranges, tag, drop
    path = download.fetch(f"{server.url}/model.npz")
    assert path.read_bytes() == server.body
    assert [request[1] for request in server.requests] == ranges_requested


def test_a_file_that_changes_meanwhile_is_read_anew(server):
    def change():
        if len(server.requests) == 2:
            server.body, server.tag = server.body[::-1], '"2"'

    server.drop, server.on_request = [100_000], change
    assert download.fetch(f"{server.url}/model.npz").read_bytes() == server.body
    assert server.requests[1][1] == "bytes=100000-"


def test_an_interrupted_download_leaves_no_file(server, cache):
    server.drop = [100_000, 0, 0, 0]
    with pytest.raises(UserError, match=r"cannot fetch weights from 127.0.0.1: .* put the file"):
        download.fetch(f"{server.url}/model.npz")
    assert not list(cache.rglob("*model.npz"))
    assert download.fetch(f"{server.url}/model.npz").read_bytes() == server.body


def test_hugging_face_is_read_by_its_own_client(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    client = functools.partial(huggingface_hub.hf_hub_download, endpoint=server.url, cache_dir=tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", client)
    digest = hashlib.sha256(server.body).hexdigest()
    path = download.fetch(f"hf:timm/resnet18.a1_in1k#sha256={digest}")
    assert path.read_bytes() == server.body and path.is_relative_to(tmp_path / "hub")
    assert download.fetch("hf:timm/resnet18.a1_in1k") == path
    download.fetch("hf:me/mine@v1.0/folder/BiT.npz")
    assert [(path, token) for path, _, token in server.requests] == [
        ("/timm/resnet18.a1_in1k/resolve/main/model.safetensors", "Bearer secret"),
        ("/me/mine/resolve/v1.0/folder/BiT.npz", "Bearer secret")]
    assert path.with_name("config.json").read_bytes() == server.body  # where timm names the architecture
    with pytest.raises(UserError, match=f"have sha256 {digest}, expected {'0' * 64}"):
        download.fetch(f"hf:timm/resnet18.a1_in1k#sha256={'0' * 64}")
    assert path.exists()  # other programs may use it
    server.status = 404
    with pytest.raises(UserError, match="cannot fetch weights 'hf:me/none'") as caught:
        download.fetch("hf:me/none")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"need huggingface_hub, .*big_vision_lite\[hub\]"):
        download.fetch("hf:me/mine")


def test_redirects_stay_on_https():
    request = urllib.request.Request("https://127.0.0.1/model.npz")
    with pytest.raises(urllib.error.URLError, match="not https"):
        download._HttpsOnly().redirect_request(request, None, 302, "", {}, "http://127.0.0.1/model.npz")


@pytest.mark.parametrize(("source", "message"), [
    ("hf:resnet50", "expected hf:OWNER/NAME"),
    ("hf:me/mine/../x.npz", "expected hf:OWNER/NAME"),
    ("hf:me/mine/weights.pth", r"expected one that ends in \.safetensors or \.npz"),
    ("http://example.org/model.npz", "expected https://"),
    ("https://example.org/model.npz#md5=1", "expected #sha256="),
    ("https://[::1/model.npz", "cannot read weights .*: Invalid IPv6 URL; expected a path"),
    ("https://example.org:port/model.npz", "nonnumeric port: 'port'"),
    ("~no-such-user/model.npz", "cannot read weights '~no-such-user/model.npz': Could not determine home directory"),
])
def test_names_that_are_refused(source, message):
    with pytest.raises(UserError, match=message):
        download.fetch(source)


def test_a_missing_file_and_a_missing_network_are_told_apart(server):
    server.status = 404
    with pytest.raises(UserError, match=r"has no weights at .*: 404"):
        download.fetch(f"{server.url}/model.npz")
    server.status = 503
    with pytest.raises(UserError, match=r"cannot fetch weights from 127.0.0.1: .*give its path"):
        download.fetch(f"{server.url}/model.npz")
    assert len(server.requests) == 4
    with pytest.raises(UserError, match=r"cannot fetch weights from 127.0.0.1: .*refused"):
        download.fetch("http://127.0.0.1:9/model.npz")


def test_weights_are_loaded_from_a_url(server, cache, tmp_path):
    _, *arrays = split(nnx.eval_shape(
        lambda: Classifier(ResNet(10, width=1 / 16).build(nnx.Rngs(0)), 2, 0.0, nnx.Rngs(0))))
    like = {name.partition(".")[2]: leaf for name, leaf in flatten(arrays).items()}
    path = tmp_path / "w.safetensors"
    files.write_safetensors(path, {name: np.ones(leaf.shape, np.float32) for name, leaf in like.items()})
    server.body = path.read_bytes()
    assert convert.to_ours(files.read_weights(f"{server.url}/w.safetensors").arrays, like).keys() == like.keys()
    assert len(list(cache.glob("*-w.safetensors"))) == 1
