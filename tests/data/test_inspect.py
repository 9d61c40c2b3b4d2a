"""Statistics of sources against counting by hand, and contact sheets of awkward images."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from big_vision_lite.data.curation.steps import NestedSubset, curated
from big_vision_lite.data.masks import mask_values
from big_vision_lite.data.source import Dataset, Example
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.tools import contact_sheet as sheets
from big_vision_lite.data.tools.inspect import evenly_spaced, format_of, inspect
from big_vision_lite.errors import BadImageError, UserError

CLASSES = ("ant", "bee", "cat", "never")


def encoded(height: int, width: int, kind: str = "PNG", value: int = 200) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(file, format=kind)
    return file.getvalue()


@dataclasses.dataclass(eq=False)
class Given(Dataset):
    """The examples of a list, in which an error stands for one that cannot be read."""

    examples: list
    classes: tuple[str, ...] = CLASSES
    multi_label: bool = True
    fingerprint: str = "given"

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        if isinstance(stored := self.examples[index], BadImageError):
            raise stored
        return stored

    def labels(self, index: int) -> tuple[str, np.ndarray]:
        stored = self.examples[index]
        if isinstance(stored, BadImageError):
            return stored.example_id, np.array([0], np.int32)
        return stored["id"], stored["labels"]


def example(id_: str, image, labels=(0,), **more) -> Example:
    return {"id": id_, "image": image, "labels": np.array(labels, np.int32), **more}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))


def test_statistics_equal_counts_by_hand(tmp_path, capsys):
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.25, 1.0, 1.0]], np.float32)
    mask = np.zeros((40, 80), np.uint8)
    mask[:10] = 1
    objects = {"boxes": boxes, "box_labels": np.array([0, 1], np.int32), "instance_mask": mask}
    dataset = Given([example("a[/b]", encoded(40, 80), (0, 1), **objects), example("b", encoded(30, 10, "JPEG"), (1,)),
                     example("c", encoded(50, 50, "WEBP"), ()), BadImageError("d", "Permission denied"),
                     example("e", b"\xff\xd8 not a photo", (2, 1))])
    out = tmp_path / "new folder" / "sheet.png"
    statistics = inspect(dataset, "five [bold]images[/]", out)
    assert statistics["images"] == 5 and statistics["labels_per_image"] == {"mean": 6 / 5, "max": 2, "without": 1}
    assert statistics["class_images"] == [2, 3, 1, 0] and statistics["classes_without"] == 1
    assert statistics["classes_under_20"] == statistics["classes_under_100"] == 4
    assert statistics["formats"] == {"PNG": 1, "JPEG": 1, "WebP": 1}
    assert [id_ for id_, _ in statistics["unreadable"]] == ["d", "e"]
    assert statistics["unreadable"][0][1] == "Permission denied"
    assert statistics["height"] == [30, 40, 50] and statistics["width"] == [10, 50, 80]
    assert statistics["objects_per_image"] == [2, 2, 2] and statistics["covered"] == [0.25] * 3
    # The boxes are 20 x 40 and 30 x 40 pixels: roots of 800 (small) and 1200 (medium).
    np.testing.assert_allclose(statistics["object_side"], [800**0.5, (800**0.5 + 1200**0.5) / 2, 1200**0.5], rtol=1e-6)
    assert statistics["objects_by_size"] == {"small": 1, "medium": 1, "large": 0}
    json.dumps(statistics)
    printed = capsys.readouterr().out
    for text in ("five [bold]images[/]", "never", "Permission denied", "multi-label", "sheet.png"):
        assert text in printed
    with Image.open(out) as sheet:
        assert sheet.width > 5 * sheets.TILE


def test_statistics_of_a_curated_source(capsys):
    scenes = EmojiScenes("train", 40, size=16, classes=5).open()
    subset = curated(scenes, (NestedSubset(13),))
    statistics = inspect(subset, "subset")
    by_hand = np.bincount(np.concatenate([subset[i]["labels"] for i in range(13)]), minlength=5)
    assert statistics["images"] == 13 and statistics["class_images"] == by_hand.tolist()
    assert inspect(scenes, "all")["masks"] == {"instance_mask": 40, "class_mask": 40}


def test_a_sheet_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the contact sheet .*name another file"):
        inspect(Given([example("a", encoded(4, 4))]), "one", tmp_path / "file" / "sheet.png")


@pytest.mark.parametrize("name", ["x.doc", "sheet", "sheet.jpg"])
def test_a_sheet_is_a_png_file(tmp_path, name):
    with pytest.raises(UserError, match=f"the contact sheet is '.*{name}'; expected a name that ends in .png"):
        inspect(Given([example("a", encoded(4, 4))]), "one", tmp_path / name)
    inspect(Given([example("a", encoded(4, 4))]), "one", tmp_path / "sheet.PNG")
    assert [path.name for path in tmp_path.glob("*.*")] == ["sheet.PNG"]


def test_formats_are_recognised_by_content():
    for kind, name in (("JPEG", "JPEG"), ("PNG", "PNG"), ("GIF", "GIF"), ("BMP", "BMP"), ("TIFF", "TIFF"),
                       ("WEBP", "WebP")):
        assert format_of(encoded(5, 5, kind)) == name
    assert format_of(b"") == format_of(b"RIFF") == "unknown" and format_of(np.zeros((1, 1, 3), np.uint8)) == "array"


@pytest.mark.parametrize("size", [0, 1, 2, 24, 25, 10_007])
def test_evenly_spaced_indices_include_first_and_last(size):
    indices = evenly_spaced(size, 24)
    assert len(indices) == len(set(indices)) == min(size, 24)
    assert not size or (indices[0], indices[-1]) == (0, size - 1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3), (2500, 3300), (48, 48), (127, 128), (300, 200)])
def test_images_of_any_size_fill_their_tile(shape):
    tile = np.asarray(sheets.tile(example("x" * 200, encoded(*shape, value=90), (0, 3)), CLASSES))
    image = (tile[: sheets.TILE] == 90).all(-1)
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    scale = sheets.TILE / max(shape)
    expected = [max(round(side * scale), 1) for side in shape]
    assert [len(rows), len(columns)] == expected and image.sum() == np.prod(expected)


def test_boxes_masks_and_names_are_in_their_places():
    mask = np.zeros((64, 64), np.uint8)
    mask[32:48, 32:48] = 1
    boxes = np.array([[0.5, 0.5, 0.75, 0.75]], np.float32)
    plain = np.asarray(sheets.tile(example("a", encoded(64, 64)), CLASSES)).astype(int)
    with_mask = np.asarray(sheets.tile(example("a", encoded(64, 64), instance_mask=mask), CLASSES)).astype(int)
    with_box = np.asarray(sheets.tile(example("a", encoded(64, 64), boxes=boxes, box_labels=np.array([2], np.int32)),
                                      CLASSES)).astype(int)
    changed = (plain != with_mask).any(-1)
    assert changed[128:192, 128:192].all() and changed.sum() == 64 * 64
    inside = np.zeros_like(changed)
    inside[128:192, 128:192] = True
    colour = np.array(sheets.COLOURS[2])  # of its class, since there are few
    edge = (with_box == colour).all(-1)
    assert edge[128, 128:192].all() and edge[191, 128:192].all() and edge[128:192, 128].all()
    assert not (plain != with_box).any(-1)[130:190, 130:190].any()
    assert (plain != with_box).any(-1)[113:128, 128:].any()  # the name, above its box


def test_a_palette_mask_is_read_as_classes_and_void_stays_untinted():
    values = np.zeros((64, 64), np.uint8)
    values[:32], values[32:40] = 3, 255
    indexed = Image.new("P", (64, 64))
    indexed.putdata(values.ravel().tolist())
    indexed.putpalette([*range(256)] * 3)
    file = io.BytesIO()
    indexed.save(file, format="PNG")
    stored = example("a", encoded(64, 64), class_mask=file.getvalue())
    np.testing.assert_array_equal(mask_values(stored, "class_mask"), values)
    plain = np.asarray(sheets.tile(example("a", encoded(64, 64)), CLASSES))
    masked = np.asarray(sheets.tile(stored, CLASSES))
    changed = (plain != masked).any(-1)
    assert changed[:128].all() and not changed[128:].any()


def test_an_unreadable_image_has_a_marked_tile():
    for bad in (BadImageError("a.jpg", "no such file"), example("a.jpg", b"\xff\xd8 no more")):
        sheet = np.asarray(sheets.contact_sheet([bad], CLASSES, "a title that is much too long for one tile " * 4))
        assert (sheet == sheets.BAD).all(-1).sum() > 2000
    whole = encoded(80, 80, "JPEG")
    tile = np.asarray(sheets.tile(example("b", whole[: len(whole) // 2]), CLASSES))  # its header is intact
    assert (tile == sheets.BAD).all(-1).sum() > 2000


def test_long_names_keep_both_ends():
    assert sheets.shorten("abc", 3) == "abc"
    name = sheets.shorten("n" + "o" * 50 + "_end", 12)
    assert len(name) == 12 and name.startswith("no") and name.endswith("end") and "…" in name
