"""Tar files: random access without unpacking, and errors where images would be lost."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import io
import os
import tarfile

import numpy as np
import pytest
from made_files import jpeg, tars

from big_vision_lite.data.sources.tar_images import TarImages
from big_vision_lite.errors import BadImageError, UserError


def test_tar_files_and_a_tar_of_them(tmp_path):
    dataset = tars(tmp_path / "tars").open()
    assert dataset.classes == ("n01", "n02") and len(dataset) == 6
    assert [dataset.labels(i)[0] for i in range(6)] == [f"{n}/{n}_{i}.JPEG" for n in ("n01", "n02") for i in range(3)]
    assert [e["image"] for e in dataset.read(range(6))] == [jpeg(seed=s) for s in (10, 11, 12, 0, 1, 2)]
    with tarfile.open(tmp_path / "all.tar", "w") as outer:
        for name in ("n02", "n01"):
            outer.add(tmp_path / "tars" / f"{name}.tar", f"winter/{name}.tar")
    nested = TarImages(str(tmp_path / "all.tar")).open()
    for a, b in zip(nested.read(range(6)), dataset.read(range(6)), strict=True):
        assert (a["id"], a["image"], a["labels"].tolist()) == (b["id"], b["image"], b["labels"].tolist())


def test_tar_files_in_splits(tmp_path):
    whole = tars(tmp_path / "tars", 30).open()
    parts = [TarImages(str(tmp_path / "tars"), split, 0.3).open() for split in ("train", "validation", "test")]
    ids = sorted(part.labels(i)[0] for part in parts for i in range(len(part)))
    assert ids == sorted(whole.labels(i)[0] for i in range(60)) and len({part.fingerprint for part in parts}) == 3


def test_truncated_tar_files(tmp_path):
    source = tars(tmp_path / "tars")
    file = tmp_path / "tars" / "n01.tar"
    whole = file.read_bytes()
    with tarfile.open(file) as opened:
        first, second, *_ = opened.getmembers()
    garbage = whole[: second.offset] + b"\x55" * 512 + whole[second.offset_data :]
    for content, message in (
        (whole[: first.offset_data + 100], "is truncated: 'n01_0.JPEG' ends at byte .*, but its tar file at 612"),
        (whole[: second.offset], f"members ends at byte {second.offset:,} of {second.offset:,}"),  # between two members
        (whole[: second.offset + 99], f"members ends at byte {second.offset:,} of {second.offset + 99:,}"),
        (garbage, f"members ends at byte {second.offset:,} of {len(whole):,}"),
        (whole + whole, f"members ends at byte .* of {2 * len(whole):,}"),  # the second one would be ignored
        (b"", r"n01.tar is not a complete tar file \(empty file\)"),
        (bytes(10240), "n01.tar has no images .*each tar file is a class"),
        (b"\x1f\x8b" + whole, "n01.tar is compressed"),
        (b"n" * 5000, r"n01.tar is not a complete tar file"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            source.open()
    file.write_bytes(whole)
    dataset = source.open()
    file.write_bytes(whole[:700])  # truncated after it was indexed
    with pytest.raises(BadImageError, match=r"n01.tar is shorter than when it was indexed"):
        dataset[2]
    with tarfile.open(tmp_path / "all.tar", "w") as outer:
        outer.add(file, "n01.tar")
    with pytest.raises(UserError, match=r"all.tar is truncated: 'n01_0.JPEG' ends at byte"):
        TarImages(str(tmp_path / "all.tar")).open()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "all.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"no tar file in .*all.tar.gz is compressed"):
        TarImages(str(tmp_path / "empty")).open()


def test_members_that_would_be_lost_or_confused(tmp_path):
    source = tars(tmp_path / "tars")
    file = tmp_path / "tars" / "n01.tar"
    whole = file.read_bytes()
    for name, kind, message in (("n01_1.JPEG", tarfile.REGTYPE, "both contain 'n01_1.JPEG' of class 'n01'"),
                                ("n01_9.JPEG", tarfile.LNKTYPE, "'n01_9.JPEG' is a link"),
                                ("._n01_1.JPEG", tarfile.REGTYPE, None)):
        file.write_bytes(whole)
        with tarfile.open(file, "a") as opened:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "n01_0.JPEG"
            opened.addfile(info, io.BytesIO(b""))
        with contextlib.nullcontext() if message is None else pytest.raises(UserError, match=message):
            assert len(source.open()) == 6


def test_the_index_of_tar_files_is_cached_and_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    source = tars(tmp_path / "tars")
    dataset = source.open()
    (index,) = (tmp_path / "cache" / "tar").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert source.open().fingerprint == dataset.fingerprint
    index.write_bytes(index.read_bytes()[:500])
    assert source.open()[5]["image"] == dataset[5]["image"]
    content = dataclasses.replace(source, fingerprint="content")
    before = content.open().fingerprint
    os.utime(tmp_path / "tars" / "n01.tar", (0, 0))  # as a copy on another machine: indexed again
    assert source.open().fingerprint != dataset.fingerprint and content.open().fingerprint == before
    assert len(list((tmp_path / "cache" / "tar").iterdir())) == 2
    assert tars(tmp_path / "tars", 4).open().fingerprint != dataset.fingerprint


def test_a_damaged_index_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    source = tars(tmp_path / "tars")
    expected = [(e["id"], e["image"], e["labels"].tolist()) for e in source.open().read(range(6))]
    (path,) = (tmp_path / "cache" / "tar").iterdir()
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for at in rng.choice(len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        assert [(e["id"], e["image"], e["labels"].tolist()) for e in source.open().read(range(6))] == expected, at


def test_a_full_cache_costs_only_time(tmp_path, monkeypatch):
    def full(*args, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = tars(tmp_path / "tars")
    monkeypatch.setattr(np, "savez", full)
    assert len(source.open()) == len(source.open()) == 6


def test_parts_of_a_class_are_merged_and_threads_share_a_dataset(tmp_path):
    dataset = tars(tmp_path / "tars", 20).open()
    image_of = {example["id"]: example["image"] for example in dataset.read(range(40))}
    (tmp_path / "parts").mkdir()
    for part in range(3):
        with tarfile.open(tmp_path / "parts" / f"{part}.tar", "w") as outer:
            for name in ("n02", "n01"):
                packed = io.BytesIO()
                with tarfile.open(fileobj=packed, mode="w") as inner:
                    for i in range(part, 20, 3):
                        info = tarfile.TarInfo(f"./{name}_{i}.JPEG")
                        info.size = len(image_of[f"{name}/{name}_{i}.JPEG"])
                        inner.addfile(info, io.BytesIO(image_of[f"{name}/{name}_{i}.JPEG"]))
                info = tarfile.TarInfo(f"{name}.tar")
                info.size = len(packed.getvalue())
                outer.addfile(info, io.BytesIO(packed.getvalue()))
    merged = TarImages(str(tmp_path / "parts"), fingerprint="content").open()
    assert merged.fingerprint == TarImages(str(tmp_path / "tars"), fingerprint="content").open().fingerprint
    assert merged.classes == dataset.classes
    indices = np.random.default_rng(0).integers(0, 40, 1000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for example in pool.map(merged.__getitem__, indices):
            assert example["image"] == image_of[example["id"]]


def shard(path, files):
    with tarfile.open(path, "w") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def test_shards_of_a_web_dataset(tmp_path):
    """The class is in KEY.cls, and not the name of the shard."""
    labels = {0: ["3", "10"], 1: ["10\n", "0"]}
    for number, texts in labels.items():
        shard(tmp_path / f"train-{number}.tar", {f"s/{i}.{suffix}": content for i, text in enumerate(texts) for
              suffix, content in (("jpg", jpeg(seed=10 * number + i)), ("cls", text.encode()), ("json", b"{}"))})
    dataset = TarImages(str(tmp_path)).open()
    assert dataset.classes == tuple(map(str, range(11)))
    assert [(e["id"], e["labels"].tolist(), e["image"]) for e in dataset.read(range(4))] == [
        ("0/train-1/s/1.jpg", [0], jpeg(seed=11)), ("3/train-0/s/0.jpg", [3], jpeg(seed=0)),
        ("10/train-0/s/1.jpg", [10], jpeg(seed=1)), ("10/train-1/s/0.jpg", [10], jpeg(seed=10))]
    shard(tmp_path / "train-1.tar", {"a.jpg": jpeg(), "a.cls": b"cow", "b.jpg": jpeg(), "b.cls": b"ant"})
    assert TarImages(str(tmp_path)).open().classes == ("10", "3", "ant", "cow")
    for files, message in (({"a.jpg": jpeg(), "a.cls": b"-1"}, r"'a.cls' has the class '-1'; expected a number"),
                           ({"a.jpg": jpeg(), "a.cls": b"1", "b.jpg": jpeg()}, r"'b.jpg' has no b.cls"),
                           ({"a.jpg": jpeg(), "a.json": b"{}"}, r"'a.jpg' has no a.cls"),
                           ({"a.jpg": jpeg()}, r"train-1.tar has images without classes, but others have .cls")):
        shard(tmp_path / "train-1.tar", files)
        with pytest.raises(UserError, match=message):
            TarImages(str(tmp_path)).open()


def test_what_tarfile_would_choke_on(tmp_path):
    source = tars(tmp_path / "tars")
    file = tmp_path / "tars" / "n01.tar"
    data = file.read_bytes()
    for _ in range(360):
        shard(file, {"x.tar": data})
        data = file.read_bytes()
    with pytest.raises(UserError, match=r"'x.tar' is a tar file within 8 others"):
        source.open()
    info = tarfile.TarInfo("endless")
    info.type = b"Z"  # of unknown type, and a size of -512: tarfile reads the same header for ever
    header = bytearray(info.tobuf())
    header[124:136] = (-512).to_bytes(12, signed=True)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    file.write_bytes(bytes(header) + data)
    with pytest.raises(UserError, match=r"n01.tar is damaged: wrong size at byte 0"):
        source.open()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=r"cannot read .*n01.tar: it is not a regular file"):
        source.open()
