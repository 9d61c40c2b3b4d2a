"""What sources have in common: they can be scanned, pickled, and recognised on the command line."""

import pickle

import pytest
from made_files import coco, csv_table, tars, voc

from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.curation.label_index import label_index
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.sources.csv_labels import CsvLabels
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.sources.mask_folder import MaskFolder
from big_vision_lite.data.sources.tar_images import TarImages
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.errors import UserError


def test_all_can_be_scanned_and_pickled(tmp_path):
    opened = []
    for make in (coco, voc, lambda f: csv_table(f, "path,labels\nx.jpg,a\n"), tars):
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
    assert source_of("imagenet2012:5.1.0:split=train[:1%]").split == "train[:1%]"
    for spec, message in ((f"{tmp_path}/voc:spilt=val", "VocTree has no field 'spilt'; did you mean 'split'"),
                          (f"{tmp_path}/tars:held_out=x", "held_out='x' is not float"),
                          (f"{tmp_path}/none.csv", "there is no source at '.*none.csv'"),
                          ("./none", "there is no source at './none'"),
                          ("photos.zip", "there is no source at 'photos.zip'")):
        with pytest.raises(UserError, match=message):
            source_of(spec)
