"""Arguments of the configs: each word means one thing, each is documented, and lengths are given once."""

import dataclasses
import importlib.util
import inspect
import re

import pytest
from config_arguments import CONFIGS, REQUIRED

from big_vision_lite import config
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.training.schedules import Cosine, Step

MEANING = {
    "root": "folder|VOC tree|COCO's own files", "name": "name of .* TFDS", "init": "a run",
    "images": "size of|scenes to generate", "subset": "learn from this many", "subsets": "numbers of .* to",
    "train_split": "to learn from", "eval_split": "split to evaluate on", "steps": "length",
    "epochs": "length .*passes over", "size": "pixels",
    "pixels": "height times width", "depth": "layers of", "depths": "layers of", "width": "width factor",
    "batch_size": "images per step", "seed": "seed of .*initialization", "seeds": "number of seeds",
    "freeze": "freeze the backbone|train only", "learning_rate": "peak rate", "classes": "size of the vocabulary",
    "vocabulary": "learn this many classes", "precision": "share of the labels to keep",
    "exclude": "file of image ids", "hierarchy": "child,parent", "data_dir": "folder of TFDS's datasets",
    "seen": "seen", "target": "other photos", "target_images": "to learn from", "wrong": "percentages",
    "rates": "learning rate", "recipe": "the paper's", "study_name": "tell studies apart", "scale": "full, .*mini",
}
"""What a word's description says, in every config that has it."""
ONLY_HERE = {
    "pretrain/emoji.py": {"probes"}, "pretrain/imagenet1k.py": {"v2"}, "pretrain/open_images.py": {"confidence"},
    "tfds.py": {"multi_label"}, "transfer/bccd_detection.py": {"min_size", "max_size"},
    "transfer/coco_detection.py": {"schedule", "minival", "train_batchnorm"},
    "transfer/coco_keypoints.py": {"boxes"}, "paper/coco_keypoints.py": {"boxes", "transfer_steps"},
    "transfer/emoji_segmentation.py": {"ohem_fraction"}, "transfer/folder_segmentation.py": {"channels"},
    "transfer/voc07_detection.py": {"train_batchnorm"}, "transfer/voc12_segmentation.py": {"multi_scale_flip"},
    "transfer/vtab.py": {"task"}, "studies/boxes.py": {"task"},
    "studies/detection_start.py": {"lengths", "head_rates", "fixed_statistics"},
    "studies/surface.py": {"superclasses", "max_passes", "kind", "sweep", "schedule", "resident"},
    "studies/self_supervised.py": {"methods", "target_steps"},
    "studies/pseudo_labels.py": {"labelled", "rounds", "labels", "min_confidence", "soft", "teacher_seen"},
    "studies/pruning.py": {"fractions", "scores", "score", "which", "stratified"},
    "paper/tables.py": {"table", "minival", "equal", "sweep", "transfer_steps", "transfer_rate", "open_images",
                        "matching"},
    "paper/near_duplicates.py": {"open_images"},
    "paper/bit_pretraining_size.py": {"tasks", "small", "large"},
}
"""Further words, by the configs that may have them."""
BY_TABLE = ("paper/tables.py", "paper/coco_keypoints.py", "paper/bit_pretraining_size.py", "studies/surface.py",
            "studies/detection_start.py", "studies/self_supervised.py", "studies/pseudo_labels.py",
            "studies/pruning.py")
"""Studies whose lengths are those of the paper, in images seen, or several."""
PATHS = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py"))
WITH_STEPS = [path for path in PATHS if re.search(r"\bsteps: ", (CONFIGS / path).read_text())]


def function_of(path: str):
    spec = importlib.util.spec_from_file_location("config_under_test", CONFIGS / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "get_config", None) or module.get_study


def experiments(path: str, argument: str = "") -> dict[str, Experiment]:
    """The experiment of a config, or those of a study by name."""
    arguments = ",".join(filter(None, (REQUIRED.get(path, ""), argument)))
    spec = f"{CONFIGS / path}:{arguments}"
    if "def get_config" in (CONFIGS / path).read_text():
        return {"": config.load(spec)}
    return {run.name: run.experiment for run in config.load(spec, "study").runs}


@pytest.mark.parametrize("path", PATHS)
def test_each_argument_means_one_thing_and_is_documented(path):
    function = function_of(path)
    names = list(inspect.signature(function).parameters)
    described = dict(re.findall(r"^ {6}(\w+): ((?:.|\n {8,})+)", function.__doc__, re.MULTILINE))
    assert list(described) == [name for name in described if name in names] and set(described) == set(names)
    unknown = set(names) - MEANING.keys() - ONLY_HERE.get(path, set())
    assert not unknown, f"{unknown}: use a word of MEANING, or add one"
    for name in set(names) & MEANING.keys():
        assert re.search(MEANING[name], " ".join(described[name].split())), f"{name}: {described[name]}"
    lengths = {"steps", "epochs"} & set(names)
    assert len(lengths) == 1 or path in BY_TABLE or (lengths and "instead of" in described["epochs"])


@pytest.mark.parametrize("path", WITH_STEPS)
def test_steps_as_argument_and_as_option_are_one_experiment(path):
    usual, shorter = experiments(path), experiments(path, "steps=777")
    assert usual.keys() == shorter.keys()
    for name, experiment in shorter.items():  # a study's argument is the length of its pretrainings
        assert experiment in (dataclasses.replace(usual[name], steps=777), usual[name])
    assert 777 in {experiment.steps for experiment in shorter.values()}
    for experiment in shorter.values():
        experiment.optimizer.schedule.build(experiment.steps)


@pytest.mark.parametrize("path", [path for path in PATHS if "epochs: " in (CONFIGS / path).read_text()])
def test_epochs_change_only_the_number_of_steps(path):
    usual = experiments(path)
    for name, experiment in experiments(path, "epochs=2").items():
        assert experiment == dataclasses.replace(usual[name], steps=experiment.steps)


def test_a_share_of_the_run_or_a_number_of_steps():
    experiment = next(iter(experiments("quickstart.py", "steps=200").values()))
    assert (experiment.optimizer.schedule.warmup_steps(200), experiment.eval_interval, experiment.save_interval) == (
        10, 100, 100)
    for steps in (1, 16, 50, 156, 1234, 112_603, 36_000_000):  # what configs used to write as a number of steps
        for divisor in (2, 4, 5, 6, 10, 18, 20, 40, 100):
            run = dataclasses.replace(experiment, steps=steps, eval_every=1 / divisor, save_every=1 / divisor)
            assert run.eval_interval == run.save_interval == max(1, steps // divisor)
            assert Cosine(warmup=1 / divisor).warmup_steps(steps) == steps // divisor
    run = dataclasses.replace(experiment, eval_every=7, save_every=1, steps=2000)
    assert (run.eval_interval, run.save_interval) == (7, 1)
    run = dataclasses.replace(run, eval_every=None, save_every=None)
    assert (run.eval_interval, run.save_interval) == (None, 200)
    assert Step(warmup=0.05).build(100)(2) == Step(warmup=5).build(100)(2) == 0.5
    for field in ("eval_every", "save_every"):
        for wrong in (0, -1, 1.5):
            with pytest.raises(UserError, match=rf"{field}={wrong}; expected a share of the run below 1"):
                dataclasses.replace(experiment, **{field: wrong})
    for wrong in (-1, -0.1, 2.5):
        with pytest.raises(UserError, match=rf"warmup={wrong}; expected a share of the run below 1"):
            Cosine(warmup=wrong)
