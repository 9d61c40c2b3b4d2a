"""The studies of the paper's tables at full size, without data, against what is known of the paper.

The values here were written down from the paper and its sources, not from the recipes; `DEVIATIONS` has the rest.
"""

import dataclasses
import math

import pytest
from config_arguments import CONFIGS, TABLE_STUDIES
from config_arguments import load_study as load

from big_vision_lite.commands.study import listing
from big_vision_lite.data.curation.steps import AncestorLabels, ClassSubset, ImagesWith, NestedSubset
from big_vision_lite.data.sources.open_images import OpenImages
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.transforms.image import ResizeCrop
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.recipes.paper import DEVIATIONS
from big_vision_lite.scaling.paper.tables import TABLES
from big_vision_lite.scaling.studies.study import Run, Study

MATCHING = "/imagenets.txt"
ROWS = {
    "imagenet": {"random": None, "300M": "large"},
    "coco": {"ImageNet": "imagenet", "300M": "large", "ImageNet+300M": "both"},
    "voc07": {"ImageNet": "imagenet", "300M": "large", "ImageNet+300M": "both"},
    "voc12": {"ImageNet": "imagenet", "300M": "large", "ImageNet+300M": "both"},
    "data_size": {"10M": 1 / 30, "30M": 1 / 10, "100M": 1 / 3, "300M": 1.0},
    "training_length": {"12M": 12, "24M": 24, "36M": 36},
    "classes": {"1K": ClassSubset(MATCHING), "18K": ImagesWith(MATCHING)},
    "capacity": {f"ResNet-{depth}, {data}": (depth, data) for depth in (50, 101, 152) for data in ("ImageNet", "300M")},
}
"""What each row of a table is about."""
LARGE_SEEN, IMAGENET_SEEN = 36e6 * 32, 5e6 * 32


def full(table: str, **more: object) -> Study:
    return load(f"paper/tables.py:table={table},scale=full,matching={MATCHING}", **more)


def row(study: Study, name: str) -> Run:
    (found,) = [run for run in study.runs if run.factors.get("row") == name]
    return found


def seen(experiment: Experiment) -> int:
    return experiment.steps * experiment.train.batch_size


def rates(experiment: Experiment, *shares: float) -> list[float]:
    """The learning rate at shares of the run."""
    factor = experiment.optimizer.schedule.build(experiment.steps)
    return [experiment.optimizer.learning_rate * float(factor(round(share * experiment.steps))) for share in shares]


def check_pixels(experiment: Experiment) -> None:
    """Resized to 340, a random crop of 299 in training, the central one in evaluation."""
    assert experiment.train.transform == ResizeCrop(340, 299)
    assert [inputs.transform for inputs in experiment.evals.values()] == [ResizeCrop(340, 299, random=False)]


def check_large(run: Run, length: float = 1.0, depth: int = 101) -> None:
    """Pretraining on the large set: sigmoid, RMSProp 1e-3 and 0.9, a decay every 3 of 36 million steps, 1e-4."""
    experiment = run.experiment
    check_pixels(experiment)
    optimizer, root = experiment.optimizer, math.sqrt(experiment.train.batch_size / 32)
    assert (type(optimizer).__name__, optimizer.momentum, optimizer.weight_decay) == ("RMSProp", 0.9, 1e-4)
    assert seen(experiment) == pytest.approx(length * LARGE_SEEN, rel=1e-3)
    after = [0.02, 1.5 / 12, 6.5 / 12, 0.999]
    assert rates(experiment, *after) == pytest.approx([1e-3 * root * 0.9 ** int(12 * share) for share in after])
    head, backbone = experiment.head, experiment.backbone
    assert (head.loss_kind, head.max_labels, backbone.depth, backbone.width) == ("sigmoid", None, depth, 1.0)
    assert backbone.norm.group == 32 and experiment.train.on_bad_image == "mask"
    train, (validation,) = experiment.train.source, [inputs.source for inputs in experiment.evals.values()]
    assert (train, validation) == (OpenImages("open_images_v7"), OpenImages("open_images_v7", "validation", "human"))
    above = AncestorLabels("open_images_v7/bbox_labels_600_hierarchy.json", "skip")
    assert experiment.train.curate[0] == above
    assert all(inputs.curate == (above,) for inputs in experiment.evals.values())


def check_imagenet(experiment: Experiment, rate: float = 0.1, depth: int = 101) -> None:
    """SGD 0.9, 1e-4, softmax; no label smoothing, no mixup: ``rate`` is per 256 images."""
    check_pixels(experiment)
    optimizer = experiment.optimizer
    assert (type(optimizer).__name__, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.9, 1e-4)
    assert seen(experiment) == pytest.approx(IMAGENET_SEEN, rel=1e-3)
    peak = rate * experiment.train.batch_size / 256
    assert rates(experiment, 0.3, 0.34, 0.7, 0.9) == pytest.approx([peak, peak / 10, peak / 100, peak / 1000])
    head = experiment.head
    assert (head.loss_kind, head.label_smoothing, head.mixup, head.ten_crop) == ("softmax", 0.0, 0.0, None)
    assert experiment.backbone.depth == depth and experiment.train.source == Tfds("imagenet2012", "train")
    assert experiment.train.curate == () and list(experiment.evals) == ["validation"]


def check_detection(experiment: Experiment, updates: float, rate: float, drop: float, metric: str,
                    depth: int = 101, frozen: tuple[str, ...] = ()) -> None:
    """Nine workers' updates of an image each, as one step: Huang et al.'s detector."""
    assert experiment.train.batch_size == 9 and seen(experiment) == pytest.approx(updates, rel=1e-3)
    assert rates(experiment, 0.5, drop - 0.001, drop + 0.001) == pytest.approx([9 * rate, 9 * rate, 0.9 * rate])
    transform, head, c4 = experiment.train.transform, experiment.head, experiment.head.variant
    assert (transform.min_size, transform.max_size) == (600, 1024)
    assert (head.beta, head.box_weight, head.score_threshold, head.nms_iou, head.rpn_nms) == (1.0, 2.0, 0.0, 0.6, 0.7)
    assert (head.rpn_samples, head.rpn_iou, c4.rois_per_image, head.roi_positives) == (256, (0.3, 0.7), 64, 0.25)
    assert (c4.post_nms_topk, head.max_detections, head.metric) == ((300, 300), 300, metric)
    assert c4.anchor_sizes == (64, 128, 256, 512) and len(head.aspect_ratios) == 3
    assert (c4.pooler_resolution, experiment.backbone.output_stride, experiment.backbone.depth) == (7, 16, depth)
    assert experiment.transfer.freeze_batchnorm and experiment.transfer.freeze == frozen
    assert (experiment.optimizer.momentum, experiment.optimizer.grad_clip_norm) == (0.9, 10.0)


def check_coco(experiment: Experiment, **more: object) -> None:
    check_detection(experiment, 3e6, 4e-4, 2.5 / 3, "AP", **more)
    assert experiment.train.source == Tfds("coco/2017", "train")


@pytest.mark.parametrize("table", TABLE_STUDIES)
def test_each_row_has_its_run(table):
    study = full(table)
    rows = [run.factors["row"] for run in study.runs if "row" in run.factors]
    assert rows == list(ROWS[table]) and set(rows) <= set(TABLES[table].rows)


def test_compute_of_the_two_sets():
    coco = full("coco")
    ratio = seen(coco["large,seed=0"].experiment) / seen(coco["imagenet,seed=0"].experiment)
    assert ratio == pytest.approx(7.2, rel=1e-2)


def test_imagenet_has_one_protocol():
    study = full("imagenet")
    random, tuned = row(study, "random").experiment, row(study, "300M").experiment
    check_imagenet(random)
    check_imagenet(tuned, rate=0.01)
    rate = dataclasses.replace(tuned.optimizer, learning_rate=random.optimizer.learning_rate)
    assert dataclasses.replace(tuned, transfer=random.transfer, optimizer=rate) == random
    assert random.transfer.init is None and not tuned.transfer.freeze
    check_large(study[row(study, "300M").start])


@pytest.mark.parametrize("table", ["coco", "voc07", "voc12"])
def test_three_pretrainings(table):
    study = full(table)
    for name, kind in ROWS[table].items():
        run = row(study, name)
        before = study[run.start]
        if kind == "imagenet":
            check_imagenet(before.experiment)
        else:
            check_large(before)
            assert before.start == ("imagenet,seed=0" if kind == "both" else None)
        if table == "coco":
            check_coco(run.experiment)
        elif table == "voc07":
            check_detection(run.experiment, 590e3, 3e-4, 490 / 590, "VOC07_AP50")
            source, (test,) = run.experiment.train.source, run.experiment.evals.values()
            assert (source.split, test.source.split) == ("trainval0712", "test2007")
        else:
            assert run.experiment.optimizer.learning_rate == 3e-3
            assert run.experiment.head.decoder.rates == (6, 12, 18, 24) and run.experiment.backbone.output_stride == 8
            assert run.experiment.train.source.split == "train_aug"


@pytest.mark.parametrize("equal", ["steps", "passes"])
def test_sizes_are_shares_of_the_source(equal):
    study = full("data_size", equal=equal)
    for name, part in ROWS["data_size"].items():
        before = study[row(study, name).start]
        check_large(before, part if equal == "passes" else 1.0)
        assert before.experiment.train.curate[1:] == ((NestedSubset(fraction=part),) if part < 1 else ())
        check_coco(row(study, name).experiment)
        check_coco(study[f"frozen,{before.name}"].experiment, frozen=("backbone",))


def test_lengths():
    study = full("training_length")
    for name, millions in ROWS["training_length"].items():
        check_large(study[row(study, name).start], millions / 36)
        check_coco(row(study, name).experiment)


def test_both_vocabularies_have_the_same_images():
    study = full("classes")
    curates = {}
    for name, step in ROWS["classes"].items():
        before = study[row(study, name).start]
        check_large(before)
        curates[name] = before.experiment.train.curate[1:]
        assert curates[name] == (step, NestedSubset(fraction=0.1))
        check_coco(row(study, name).experiment)
    with pytest.raises(UserError, match="table=classes with scale=full needs matching=FILE"):
        load("paper/tables.py:table=classes,scale=full")


def test_capacity():
    study = full("capacity")
    for name, (depth, data) in ROWS["capacity"].items():
        before = study[row(study, name).start]
        if data == "ImageNet":
            check_imagenet(before.experiment, depth=depth)
        else:
            check_large(before, depth=depth)
        check_coco(row(study, name).experiment, depth=depth)


def test_other_large_sets_and_their_hierarchy():
    run = full("coco", name="photos", hierarchy="/above.csv")["large,seed=0"]
    assert run.experiment.train.source == Tfds("photos", "train[:99%]") and run.images is None
    assert run.experiment.train.curate == (AncestorLabels("/above.csv", "skip"),)
    boxed = full("coco", name="open_images_v4")["large,seed=0"]
    assert boxed.experiment.train.curate == () and boxed.images == 1_743_042  # TFDS's train split


def test_the_documents_list_every_deviation():
    text = (CONFIGS.parent / "docs" / "reproducing.md").read_text()
    table = text.partition("| | the paper | here | why |\n|---|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [f"| {' | '.join(row)} |" for row in DEVIATIONS]


def test_a_list_says_what_deviates_and_what_it_costs(tmp_path):
    study = full("training_length")
    lines = listing(study, tmp_path, study.runs).splitlines()
    large = next(line for line in lines if line.startswith("length=36M")).split()
    assert large[2:6] == ["9,011,219", "1,125,000", "1,152,000,000", "127.8"]
    assert float(large[6]) == pytest.approx(float(large[7]) * 3600 * 80e12, rel=0.06)
    assert [line for line in lines if line.startswith("deviation: ")] == [
        f"deviation: {what}: the paper {theirs}; here {ours} ({why})" for what, theirs, ours, why in DEVIATIONS]
