"""A folder of images without labels, by itself and on the command line."""

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.commands.sources import source_of
from big_vision_lite.data.curation.steps import NestedSubset, curated
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.sources.unlabelled_folder import UnlabelledFolder
from big_vision_lite.errors import UserError


def photos(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(folder / name)
    return folder


def test_all_images_in_the_order_of_their_ids_without_labels(tmp_path):
    root = photos(tmp_path, "b/2.png", "a.png", "b/c/1.png")
    (root / "notes.txt").touch()
    dataset = UnlabelledFolder(str(root)).open()
    assert dataset.unlabelled and dataset.classes == ()
    examples = dataset.read(range(3))
    assert [example["id"] for example in examples] == ["a.png", "b/2.png", "b/c/1.png"]
    assert all(example["unlabelled"] and not len(example["labels"]) for example in examples)
    subset = curated(dataset, (NestedSubset(2),))
    assert subset.unlabelled and {subset[0]["id"], subset[1]["id"]} < {example["id"] for example in examples}
    photos(root, "d.png")
    assert UnlabelledFolder(str(root)).open().fingerprint != dataset.fingerprint


def test_the_command_line_takes_flat_folders_for_unlabelled_ones(tmp_path):
    assert source_of(str(photos(tmp_path / "flat", "1.png"))) == UnlabelledFolder(str(tmp_path / "flat"))
    assert source_of(str(photos(tmp_path / "classes", "cat/1.png"))) == ImageFolder(str(tmp_path / "classes"))
    assert source_of(f"unlabelled:root={tmp_path}") == UnlabelledFolder(str(tmp_path))


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a folder; expected one with images"):
        UnlabelledFolder(str(tmp_path / "none")).open()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"there are no images in .* but 1 other files"):
        UnlabelledFolder(str(tmp_path)).open()
