"""Shards in a bucket are read like local ones; slow and failing requests are made again, and then are bad images."""

import io
import pickle
import tarfile
import time

import fsspec
import numpy as np
import object_store
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from made_files import jpeg

from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.sources import remote
from big_vision_lite.data.sources.parquet import Parquet
from big_vision_lite.data.sources.web_dataset import WebDataset
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import BadImageError, UserError


@pytest.fixture(autouse=True)
def fast(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote.Counts, "retried", 0)
    monkeypatch.setattr(remote.Counts, "failed", 0)
    remote._blocks.clear()


def tar_bytes(first, images=4):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for k in range(first, first + images):
            for name, data in ((f"{k:03}.jpg", jpeg(64, 48, seed=k)), (f"{k:03}.cls", str(k % 3).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def parquet_bytes(first):
    packed = io.BytesIO()
    rows = range(first, first + 4)
    pq.write_table(pa.table({"image": [jpeg(64, 48, seed=k) for k in rows], "label": [k % 3 for k in rows]}), packed,
                   row_group_size=2)
    return packed.getvalue()


@pytest.fixture
def stored(tmp_path):
    """The same shards in a folder and in memory."""
    store = fsspec.filesystem("memory")
    for kind, make in (("tar", tar_bytes), ("parquet", parquet_bytes)):
        (tmp_path / kind).mkdir()
        for number in range(3):
            data = make(4 * number)
            (tmp_path / kind / f"train-{number}.{kind}").write_bytes(data)
            store.pipe_file(f"/data/{kind}/train-{number}.{kind}", data)
    yield tmp_path
    store.rm("/data", recursive=True)


def examples(dataset):
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    return [(e["id"], e["image"], e["labels"].tolist()) for e in dataset.read(order)]


@pytest.mark.parametrize(("make", "kind"), [(WebDataset, "tar"), (Parquet, "parquet")])
@pytest.mark.parametrize("form", ["memory://data/{}", "memory:/data/{}", "memory://data/{}/train-*.{}"])
def test_examples_are_those_of_local_files(make, kind, form, stored):
    local = make(str(stored / kind), "train").open()
    there = make(form.format(kind, kind), "train").open()
    assert there.classes == local.classes and examples(there) == examples(local) == examples(
        pickle.loads(pickle.dumps(there)))
    again = make(form.format(kind, kind), "train").open()
    assert again.fingerprint == there.fingerprint != local.fingerprint
    fsspec.filesystem("memory").pipe_file(f"/data/{kind}/train-1.{kind}", {"tar": tar_bytes, "parquet": parquet_bytes}[
        kind](20))
    assert make(form.format(kind, kind), "train").open().fingerprint != there.fingerprint


@pytest.fixture
def requests(monkeypatch):
    """The ranges that are requested; ``fail`` decides of each what goes wrong."""
    class Requests(list):
        fail = staticmethod(lambda number: None)

    seen = Requests()

    def cat_file(self, path, start=None, end=None, real=MemoryFileSystem.cat_file, **options):
        seen.append((path, start, end))
        seen.fail(len(seen))
        return real(self, path, start, end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return seen


def opened(monkeypatch):
    """A dataset whose next reads are random ones, though the files are small."""
    dataset = WebDataset("memory://data/tar", "train").open()
    monkeypatch.setattr(remote, "NEAR", -1)
    return dataset


def test_a_random_read_is_one_request_and_reads_in_order_are_read_ahead_and_forgotten(stored, requests, monkeypatch):
    dataset = opened(monkeypatch)
    requests.clear()
    image = dataset[9]["image"]
    ((_, start, end),) = requests
    assert end - start == len(image)
    monkeypatch.setattr(remote, "NEAR", 100)
    monkeypatch.setattr(remote, "READ_AHEAD", 2048)
    monkeypatch.setattr(remote, "CACHE_BYTES", 5000)
    content = tar_bytes(0)
    file = remote.RemoteFile("memory://data/tar/train-0.tar")
    file.pread(10, 0)
    requests.clear()
    read = b"".join(file.pread(500, offset) for offset in range(10, len(content), 500))
    assert read == content[10:] and len(requests) == -(-len(content) // 2048) - 1  # one is there
    assert 0 < sum(map(len, remote._blocks.values())) <= 5000


def test_failing_requests_are_made_again_and_counted(stored, requests, monkeypatch):
    dataset = opened(monkeypatch)
    expected = examples(dataset)
    requests.clear()

    def fail(number):
        if number % 3:
            raise ConnectionResetError("reset by peer")

    requests.fail = fail
    assert examples(dataset) == expected
    assert remote.Counts.retried == 2 * len(expected) and remote.Counts.failed == 0


def test_what_fails_each_time_is_a_bad_image(stored, requests, monkeypatch):
    def targets(example):
        return {"label": np.append(example["labels"], np.int32(-1))[:1]}

    dataset = opened(monkeypatch)
    offset = int(dataset.index.columns(0)["offset"][2].as_py())

    def fail(number):
        if requests[-1][:2] == ("/data/tar/train-0.tar", offset):
            raise OSError("the disk behind it is broken")

    requests.fail = fail
    with pytest.raises(BadImageError, match=r"train-0\.tar/002\.jpg.*OSError: the disk behind it is broken, 5 times$"):
        dataset[2]
    assert remote.Counts.failed == 1 and remote.Counts.retried == 4
    inputs = Input(WebDataset("memory://data/tar", "train"), Resize(16), 12, on_bad_image="mask", threads=1)
    batch = BatchMaker(dataset, inputs, targets, None)(0)
    assert batch["mask"].tolist() == [k != 2 for k in range(12)]


def test_a_request_without_an_answer_is_given_up(stored, requests, monkeypatch):
    dataset = opened(monkeypatch)
    expected = dataset[5]["image"]
    monkeypatch.setattr(remote, "SLOW", 0.3)
    requests.clear()
    requests.fail = lambda number: time.sleep(2 if number == 1 else 0)
    began = time.monotonic()
    assert dataset[5]["image"] == expected and time.monotonic() - began < 1.5 and remote.Counts.retried == 1


def test_what_cannot_be_read_is_one_line(stored):
    for source, message in (
            (WebDataset("memory://data/nothing"), "there is no .tar file at 'memory://data/nothing'"),
            (WebDataset("memory://data/tar/train-9.tar"), "there is no .tar file at"),
            (WebDataset("nostore://data/tar"), "nostore://data/tar cannot be read from here: Protocol not known"),
            (WebDataset("memory://data/tar", index_beside=True), "index_beside with memory://.*bvl data index --out"),
            (Parquet("memory://data/parquet", fingerprint="content"), "would read all of them; expected 'mtime'")):
        with pytest.raises(UserError, match=message) as caught:
            source.open()
        assert "\n" not in str(caught.value)


def test_a_bucket_without_permission_is_one_line():
    with object_store.serving() as server:
        server.objects["shards/train-0.tar"] = (tar_bytes(0), 1)
        assert len(WebDataset("gs://bucket/shards").open()) == 4
        server.away = True
        with pytest.raises(UserError, match=r"^cannot list gs://bucket/shards: OSError: Forbidden.*may read it$"):
            WebDataset("gs://bucket/shards").open()
