"""What sources have in common: they are scanned, pickled, identified, and recognised on the command line."""

import dataclasses
import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_files import coco, csv_table, jpeg, tars, voc
from PIL import Image

from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.sources.csv_labels import CsvLabels
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.sources.mask_folder import MaskFolder
from big_vision_lite.data.sources.parquet import Parquet
from big_vision_lite.data.sources.tar_images import TarImages
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.data.sources.web_dataset import WebDataset
from big_vision_lite.errors import UserError
from big_vision_lite.training.workdir import save_dataset_info


def test_all_can_be_scanned_and_pickled(tmp_path):
    opened = []
    for make in (coco, voc, lambda f: csv_table(f, "path,labels\nx.jpg,a\n"), tars, parquet,
                 web_dataset):
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        opened.append(make(folder).open())
    for dataset in opened:
        index = label_index(dataset)
        copy = pickle.loads(pickle.dumps(dataset))
        for i in range(len(dataset)):
            example = dataset[i]
            assert dataset.labels(i)[0] == example["id"] == index.id(i) == copy[i]["id"]
            assert dataset.labels(i)[1].tolist() == example["labels"].tolist() == index.labels.row(i).tolist()
            assert copy[i]["image"] == example["image"]


def test_the_most_specific_format_is_recognised(tmp_path):
    (tmp_path / "archive.tar").touch()
    assert source_of(str(tmp_path)) == TarImages(str(tmp_path))
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    assert source_of(str(tmp_path)) == MaskFolder(str(tmp_path))
    (tmp_path / "Annotations").mkdir()
    assert source_of(f"{tmp_path}:split=val") == VocTree(str(tmp_path), "val")
    prepared = tmp_path / "photos" / "1.0.0"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").touch()
    assert source_of(str(prepared)) == Tfds("photos:1.0.0", data_dir=str(tmp_path))
    assert source_of("emoji_scenes:images=5") == EmojiScenes(images=5)


def test_sources_are_recognised_on_the_command_line(tmp_path):
    for name, make in (("voc", voc), ("tars", tars), ("coco", coco)):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    csv_table(tmp_path, "path,labels\nx.jpg,a\n")
    assert source_of(f"{tmp_path}/voc:split=val") == VocTree(f"{tmp_path}/voc", "val")
    assert source_of(f"{tmp_path}/tars:held_out=0.2,split=test") == TarImages(f"{tmp_path}/tars", "test", 0.2)
    assert source_of(f"{tmp_path}/labels.csv:multi_label=true") == CsvLabels(f"{tmp_path}/labels.csv", multi_label=True)
    images = f"{tmp_path}/coco/images"
    json = f"{tmp_path}/coco/instances.json"
    assert source_of(f"{json}:images={images}") == CocoJson(json, images)
    assert source_of(str(tmp_path)) == ImageFolder(str(tmp_path))
    (tmp_path / "labels.csv").rename(tmp_path / "LABELS.CSV")
    assert source_of(f"{tmp_path}/LABELS.CSV") == CsvLabels(f"{tmp_path}/LABELS.CSV")
    assert source_of("imagenet2012:5.1.0:split=train[:1%]").split == "train[:1%]"
    for spec, message in ((f"{tmp_path}/voc:spilt=val", "VocTree has no field 'spilt'; did you mean 'split'"),
                          (f"{tmp_path}/tars:held_out=x", "held_out='x' is not float"),
                          (f"{tmp_path}/none.csv", "there is no source at '.*none.csv'"),
                          ("./none", "there is no source at './none'"), ("", "there is no source at ''"),
                          ("a\0b", r"there is no source at 'a\\x00b'"), (f"{tmp_path}\0", "there is no source at"),
                          ("x" * 5000, "cannot read 'x{100}': File name too long; expected a folder"),
                          ("photos.zip", "there is no source at 'photos.zip'")):
        with pytest.raises(UserError, match=message):
            source_of(spec)


def image_folder(folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "x.jpg").write_bytes(jpeg(seed=ord(name)))
    return ImageFolder(str(folder), held_out=0)


def mask_folder(folder):
    for name in ("images", "masks"):
        (folder / name).mkdir()
    (folder / "images" / "x.jpg").write_bytes(jpeg())
    Image.fromarray(np.eye(10, 20, dtype=np.uint8)).save(folder / "masks" / "x.png")
    return MaskFolder(str(folder), "all", classes=("line",))


def parquet(folder):
    images = [{"bytes": jpeg(seed=i), "path": None} for i in range(2)]
    pq.write_table(pa.table({"image": images, "label": ["a", "b"]}), folder / "x.parquet", compression="none")
    return Parquet(str(folder))


def web_dataset(folder):
    with tarfile.open(folder / "0.tar", "w") as file:
        for name, data in (("x.jpg", jpeg()), ("x.cls", b"a"), ("y.jpg", jpeg(seed=1)), ("y.cls", b"b")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return WebDataset(str(folder))


SOURCES = {
    "folder": (image_folder, "a/x.jpg"),
    "csv": (lambda folder: csv_table(folder, "path,labels\nx.jpg,a\nw.jpg,b\n"), "x.jpg"),
    "coco": (coco, "images/5.jpg"),
    "voc": (voc, "JPEGImages/b.jpg"),
    "images and masks": (mask_folder, "masks/x.png"),
    "tar": (tars, "n01.tar"),
    "parquet": (parquet, "x.parquet"),
    "web dataset": (web_dataset, "0.tar"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_replaced_and_copied_files(kind, tmp_path):
    """A file replaced by another of the same size changes both kinds of fingerprint, a copy only that of times."""
    make, file = SOURCES[kind]
    folder, copy = tmp_path / "data", tmp_path / "copy"
    folder.mkdir()
    times = make(folder)
    content = dataclasses.replace(times, fingerprint="content")
    before = times.open().fingerprint, content.open().fingerprint
    assert before == (times.open().fingerprint, content.open().fingerprint)

    shutil.copytree(folder, copy)  # keeps times
    os.utime(copy / file, ns=(0, 10**18))
    moved = [dataclasses.replace(source, **{field.name: getattr(source, field.name).replace(str(folder), str(copy))
                                            for field in dataclasses.fields(source)
                                            if str(folder) in str(getattr(source, field.name))})
             for source in (times, content)]
    assert moved[0].open().fingerprint != before[0] and moved[1].open().fingerprint == before[1]

    data, status = (folder / file).read_bytes(), (folder / file).stat()
    swapped = data.replace(b"\xff\xda", b"\xff\xdb", 1) if b"\xff\xda" in data else data[:-1] + b"\0"
    (folder / file).write_bytes(swapped)
    assert len(swapped) == len(data) and swapped != data
    assert times.open().fingerprint != before[0] and content.open().fingerprint != before[1]
    os.utime(folder / file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert times.open().fingerprint == before[0]  # as its docstring says


@pytest.mark.parametrize(("place", "make", "read"), [
    ("image_sizes", tars, lambda source: source.open().image_sizes().tolist()),
    ("mask_values", mask_folder, lambda source: dataclasses.replace(source, classes=None).open().classes),
    ("content", tars, lambda source: dataclasses.replace(source, fingerprint="content").open().fingerprint),
])
def test_damaged_caches_are_made_again(tmp_path, monkeypatch, place, make, read):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    source = make(tmp_path / "data")
    expected = read(source)
    sound = {path: path.read_bytes() for path in (tmp_path / "cache" / place).iterdir()}
    for damage in (lambda data: data[:-1], lambda data: b"", lambda data: data[:3] + bytes([data[3] ^ 1]) + data[4:],
                   lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]):
        for path, data in sound.items():
            path.write_bytes(damage(data))
        assert read(source) == expected
    assert sound == {path: path.read_bytes() for path in sound}


def test_a_run_is_not_resumed_on_replaced_images(tmp_path):
    folder, run = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    source = image_folder(folder)
    (run / "checkpoints" / "10").mkdir(parents=True)
    save_dataset_info(run, source.open())
    (folder / "a" / "x.jpg").write_bytes(jpeg(seed=ord("a"))[::-1])
    with pytest.raises(UserError, match=r"other data: 2 images .* now 2 .* the ids are the same, .*remove .*data.json"):
        save_dataset_info(run, source.open())
    (run / "data.json").unlink()
    save_dataset_info(run, source.open())
    save_dataset_info(run, source.open())
