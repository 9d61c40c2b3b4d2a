"""Robustness sets in their published layouts, made up, scored by hand and by the command."""

import json

import numpy as np
import pytest
from PIL import Image
from toy_backbone import Toy

import big_vision_lite as bvl
from big_vision_lite.cli import main
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.sources.robustness import BORDER, KINDS
from big_vision_lite.data.transforms.image import Resize
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training import loop
from big_vision_lite.training.optimizers import SGD

WNIDS = ("n01440764", "n01443537", "n02123045", "n02504458", "n03000684", "n03481172")
NAMES = ("tench", "goldfish", "tabby", "elephant", "chain saw", "hammer")
"""Of the same classes, as ObjectNet's files call them."""
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200))
REAL = [[0, 2], [5], [], [1, 3, 4], [2]]
OBJECTNET = {"fish": ("Fish", "goldfish; tench"), "saw": ("Saw", "chain saw"), "mug": ("Mug", None)}
"""Folder, label and classes; a mug is none of ImageNet's here."""


def photo(path, colour, rng, frame=0):
    pixels = np.clip(np.array(colour) + rng.normal(0, 60, (20, 20, 3)), 0, 255).astype(np.uint8)
    framed = np.full((20 + 2 * frame, 20 + 2 * frame, 3), (255, 0, 0), np.uint8)
    framed[frame:20 + frame, frame:20 + frame] = pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(framed).save(path)
    return pixels


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Folder by kind, with everything that the published archives have beside the images."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for kind, known in (("imagenet-a", (1, 4)), ("imagenet-r", (0, 2, 5)), ("imagenet-sketch", range(6))):
        for k in known:
            for i in range(4):
                photo(root / kind / WNIDS[k] / f"{i}.png", COLOURS[(k + i % 2) % 6], rng)
        (root / kind / "README.txt").write_text("n01440764 tench\n")
    for k in range(6):
        for i in range(2):
            photo(root / "imagenet-v2" / str(k) / f"{i}.png", COLOURS[k], rng)
    for i in range(5):
        photo(root / "imagenet-real" / "val" / f"ILSVRC2012_val_{i + 1:08}.JPEG", COLOURS[i], rng)
    (root / "imagenet-real" / "real.json").write_text(json.dumps(REAL))
    for folder, k in (("fish", 1), ("saw", 4), ("mug", 0)):
        for i in range(3):
            photo(root / "objectnet" / "images" / folder / f"{i}.png", COLOURS[(k + i) % 6], rng, frame=BORDER)
    mappings = root / "objectnet" / "mappings"
    mappings.mkdir()
    shuffled = rng.permutation(6)  # ObjectNet's files number the classes in an order of their own
    (mappings / "imagenet_to_label_2012_v2").write_text("".join(f"{NAMES[k]}\n" for k in shuffled))
    for name, content in (
            ("folder_to_objectnet_label", {folder: label for folder, (label, _) in OBJECTNET.items()}),
            ("objectnet_to_imagenet_1k", {label: names for label, names in OBJECTNET.values() if names}),
            ("pytorch_to_imagenet_2012_id", {str(k): line for line, k in enumerate(shuffled.tolist())})):
        (mappings / f"{name}.json").write_text(json.dumps(content))
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory):
    """A network that has learned a little about the colours."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(1)
    for k, name in enumerate(WNIDS):
        for i in range(8):
            photo(root / name / f"{i}.png", COLOURS[k], rng)
    view = Input(ImageFolder(str(root), held_out=0.0), Resize(16), 16)
    experiment = Experiment(view, {"photos": view}, Toy(), Classification("softmax"), SGD(0.2), steps=30)
    folder = tmp_path_factory.mktemp("runs") / "run"
    loop.train(experiment, folder)
    return bvl.load(folder, imports=("toy_backbone",))


def expected_answers() -> dict[str, dict[str, set[int]]]:
    """The right classes of each image, by hand."""
    by_folder = {kind: {f"{WNIDS[k]}/{i}.png": {k} for k in known for i in range(4)}
                 for kind, known in (("imagenet-a", (1, 4)), ("imagenet-r", (0, 2, 5)), ("imagenet-sketch", range(6)))}
    return by_folder | {
        "imagenet-v2": {f"{k}/{i}.png": {k} for k in range(6) for i in range(2)},
        "imagenet-real": {f"val/ILSVRC2012_val_{i + 1:08}.JPEG": set(labels) for i, labels in enumerate(REAL)
                          if labels},
        "objectnet": {f"{folder}/{i}.png": right for folder, right in (("fish", {0, 1}), ("saw", {4}))
                      for i in range(3)}}


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (3, 1, 0, 5, 4, 2)])
def test_every_image_has_its_classes(sets, order):
    """Also of a network whose classes are in another order than the sorted ids."""
    classes = tuple(WNIDS[k] for k in order)
    for kind, expected in expected_answers().items():
        dataset = KINDS[kind](str(sets[kind]), classes)
        read = {dataset[i]["id"]: {order[c] for c in dataset.answers.row(i)} for i in range(len(dataset))}
        assert read == expected
        restricted = kind in ("imagenet-a", "imagenet-r", "imagenet-sketch")
        known = set().union(*expected.values()) if restricted else set(order)
        assert {order[c] for c in np.flatnonzero(dataset.candidates)} == known


def test_classes_may_be_numbers(sets):
    dataset = KINDS["imagenet-v2"](str(sets["imagenet-v2"]), ("5", "0", "1", "2", "3", "4"))
    assert {dataset[i]["id"][0]: int(dataset.answers.row(i)[0]) for i in range(len(dataset))} == {
        "5": 0, "0": 1, "1": 2, "2": 3, "3": 4, "4": 5}


def test_objectnets_frame_is_cut_off(sets):
    dataset = KINDS["objectnet"](str(sets["objectnet"]), WNIDS)
    example = dataset[0]
    whole = np.asarray(Image.open(sets["objectnet"] / "images" / example["id"]))
    np.testing.assert_array_equal(example["image"], whole[BORDER:-BORDER, BORDER:-BORDER])
    assert (whole[0, :, 0] == 255).all() and example["image"].shape == (20, 20, 3)


def test_the_command_scores_what_the_run_predicts(run, sets, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run.folder), "--import", "toy_backbone", "--robustness",
                 *(f"{kind}={folder}" for kind, folder in sets.items())]) == 0
    scores, tops = json.loads(capsys.readouterr().out), []
    for kind, expected in expected_answers().items():
        dataset = KINDS[kind](str(sets[kind]), WNIDS)
        images = [Image.open(f"{dataset.root}/{name}") for name in expected]
        if kind == "objectnet":
            images = [image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER)) for image in images]
        allowed = {WNIDS[c] for c in np.flatnonzero(dataset.candidates)}
        best = [next(one["label"] for one in answer["labels"] if one["label"] in allowed)
                for answer in run.predict([np.asarray(image.convert("RGB")) for image in images])]
        top1 = np.mean([WNIDS.index(name) in right for name, right in zip(best, expected.values(), strict=True)])
        assert scores[f"{kind}/top1"] == top1 and scores[f"{kind}/images"] == len(expected)
        assert 0 <= scores[f"{kind}/ece"] <= 1
        saved = run.folder / "evaluations" / f"{kind}-{run.step}"
        assert json.loads(saved.with_suffix(".json").read_text())["top1"] == top1
        details = json.loads((saved.parent / f"{saved.name}-details.json").read_text())
        assert sum(one["images"] for one in details["calibration"]["bins"]) == len(expected)
        tops.append(top1)
    assert 0 < min(tops) < max(tops)  # the network is neither perfect nor useless, so that the scores can be wrong


def test_any_classification_run_has_a_calibration(run, tmp_path, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run.folder), "--import", "toy_backbone"]) == 0
    scores = json.loads(capsys.readouterr().out)
    details = json.loads((run.folder / "evaluations" / f"photos-{run.step}-details.json").read_text())
    bins = details["calibration"]["bins"]
    assert scores["photos/ece"] == details["calibration"]["ece"] > 0
    assert sum(one["accuracy"] * one["images"] for one in bins) / 48 == pytest.approx(scores["photos/top1"], abs=1e-5)
    assert main(["report", str(run.folder), "--out", str(tmp_path), "--import", "toy_backbone"]) == 0
    report = (tmp_path / "report.html").read_text()
    assert "Calibration on photos" in report and f"calibration error {scores['photos/ece']:.3f}" in report


def test_sets_of_another_layout(sets, tmp_path, run):
    def refused(kind, folder, classes=WNIDS):
        with pytest.raises(UserError) as error:
            KINDS[kind](str(folder), classes)
        return str(error.value)

    assert "there is no folder" in refused("imagenet-a", tmp_path / "none")
    assert "'n01443537', which is none of the network's 2 classes" in refused("imagenet-a", sets["imagenet-a"], "01")
    assert "folder '2'; expected numbers from 0 to 1" in refused("imagenet-v2", sets["imagenet-v2"], WNIDS[:2])
    assert "image 1 has the label 2; expected 0 to 1" in refused("imagenet-real", sets["imagenet-real"], WNIDS[:2])
    assert "real.json" in refused("imagenet-real", sets["imagenet-v2"])
    assert "expected mappings/ and images/" in refused("objectnet", sets["imagenet-v2"])
    photo(tmp_path / "flat" / "1.png", COLOURS[0], np.random.default_rng(0))
    assert "beside its folders" in refused("imagenet-r", tmp_path / "flat")
    (tmp_path / "flat" / "real.json").write_text("[[0]]")
    assert "has the image '1.png'; expected ILSVRC2012_val_00000001.JPEG" in refused("imagenet-real", tmp_path / "flat")
    (tmp_path / "empty").mkdir()
    assert "none of the 0 images" in refused("imagenet-sketch", tmp_path / "empty")
    command = ["evaluate", str(run.folder), "--import", "toy_backbone", "--robustness"]
    assert main([*command, "imagenet-b=/x"]) == main([*command, "imagenet-a"]) == 2
    assert main([*command, f"imagenet-a={sets['imagenet-a']}", "--split=test"]) == 2
