"""Rehearsals of the paper's studies at full size: `pytest -m rehearsal`, for whoever changes a recipe of the paper.

Each distinct program once (network, crop and head as at full size) on made-up sets in the real formats, for two steps
of two images, from the weights that the study starts from.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from config_arguments import load_study
from made_files import VOC_OBJECT, VOC_XML, jpeg
from PIL import Image

from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.tools.prepare import prepare
from big_vision_lite.scaling.studies.study import Study
from big_vision_lite.training.loop import train
from big_vision_lite.training.metrics import read_metrics

pytestmark = pytest.mark.rehearsal
WIDTH, HEIGHT, IMAGES, TEST_IMAGES = 160, 120, 24, 4
MIDS = ("/m/01", "/m/02", "/m/03")
CASES = [
    ("imagenet", "random"), ("imagenet", "tuned,large"), ("coco", "imagenet+large"), ("coco", "coco,large"),
    ("voc07", "voc07,large"), ("voc12", "voc12,large"), ("data_size", "frozen,part=1of3"), ("classes", "classes=1K"),
    ("classes", "classes=18K"), ("capacity", "ImageNet,depth=50"), ("capacity", "coco,300M,depth=50"),
    ("capacity", "ImageNet,depth=152"), ("capacity", "coco,300M,depth=152"),
]
"""Tables and runs, which bring those that they start from."""


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / f"{name}.jpg").write_bytes(jpeg(WIDTH, HEIGHT, seed=i))


def open_images(root: Path) -> None:
    """Labels by a machine and by people, three classes, of which two are below the third."""
    for split, first, count in (("train", 0, IMAGES), ("validation", 1000, TEST_IMAGES)):
        ids = [f"{first + i:016x}" for i in range(count)]
        write_images(root / split, ids)
        header = "ImageID,Source,LabelName,Confidence"
        rows = [f"{id_},machine,{MIDS[i % 2]},0.{5 + i % 5}" for i, id_ in enumerate(ids)]
        (root / f"{split}-annotations-machine-imagelabels.csv").write_text("\n".join([header, *rows]))
        rows = [f"{id_},verification,{MIDS[i % 3]},{int(i % 4 > 0)}" for i, id_ in enumerate(ids)]
        (root / f"oidv7-{split}-annotations-human-imagelabels.csv").write_text("\n".join([header, *rows]))
    (root / "oidv7-class-descriptions.csv").write_text("\n".join(["LabelName,DisplayName", *(f"{m},x" for m in MIDS)]))
    below = [{"LabelName": name} for name in MIDS[:2]]
    (root / "bbox_labels_600_hierarchy.json").write_text(json.dumps({"LabelName": MIDS[2], "Subcategory": below}))
    (root / "matching.txt").write_text(f"{MIDS[0]}\n")


def imagenet(root: Path) -> None:
    """TFDS's imagenet2012."""
    for split in ("train", "val"):
        for c in range(2):
            write_images(root / "photos" / split / f"n0{c}", [f"{split}{c}{i}" for i in range(IMAGES // 2)])
    prepare({"train": ImageFolder(str(root / "photos"), "train").open(),
             "validation": ImageFolder(str(root / "photos"), "val").open()}, root, "imagenet2012", processes=1)


def coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train2017", IMAGES), ("val2017", TEST_IMAGES)):
        write_images(root / split, [f"{i:012d}" for i in range(count)])
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(count)]
        boxes = [{"id": 2 * i + k, "image_id": i, "category_id": 1 + (i + k) % 2, "bbox": [10 + 40 * k, 20, 60, 50 + i],
                  "area": 3000, "iscrowd": 0, "segmentation": []} for i in range(count) for k in range(2)]
        categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]
        (root / "annotations" / f"instances_{split}.json").write_text(
            json.dumps({"images": images, "annotations": boxes, "categories": categories}))


def voc(root: Path) -> None:
    """Boxes with the lists of 2007 and 2012 together, and masks with those of train_aug."""
    names = [f"{i:06d}" for i in range(IMAGES)]
    write_images(root / "JPEGImages", names)
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationClass",
                   "SegmentationClassAug"):
        (root / folder).mkdir(parents=True)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:90, 30:100], mask[20:22] = 12, 255  # dog, void
    for i, name in enumerate(names):
        objects = VOC_OBJECT.format(("dog", "cat")[i % 2], 0, 30, 20, 100, 90 + i)
        (root / "Annotations" / f"{name}.xml").write_text(VOC_XML.format(name=name, size=size, objects=objects))
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            Image.fromarray(mask).save(root / folder / f"{name}.png")
    for path, count in (("Main/trainval0712", IMAGES), ("Main/test2007", TEST_IMAGES),
                        ("Segmentation/train_aug", IMAGES), ("Segmentation/val", TEST_IMAGES)):
        (root / "ImageSets" / f"{path}.txt").write_text("\n".join(names[:count]))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for make in (open_images, imagenet, coco, voc):
        make(root / make.__name__)
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def small(inputs: Input) -> Input:
    return dataclasses.replace(inputs, batch_size=2, threads=1)


def trained(study: Study, name: str, workdir: Path) -> Path:
    """The folder of a run after two steps; the run that it starts from is trained first."""
    run, folder = study[name], workdir / name
    if run.start:
        trained(study, run.start, workdir)
    if not folder.exists():
        experiment = study.experiment(run, workdir)
        norm = experiment.backbone.norm
        norm = dataclasses.replace(norm, group=2) if isinstance(norm, BatchNorm) and norm.group else norm
        results = train(dataclasses.replace(
            experiment, train=small(experiment.train), backbone=dataclasses.replace(experiment.backbone, norm=norm),
            evals={key: small(inputs) for key, inputs in experiment.evals.items()}, steps=2, log_every=1,
            eval_every=None), folder)
        assert results[f"{next(iter(experiment.evals))}/images"] > 0
    return folder


@pytest.mark.parametrize(("table", "run"), CASES, ids=[f"{table}: {run}" for table, run in CASES])
def test_rehearsal(table, run, data, runs):
    root = {"coco": "coco", "data_size": "coco", "classes": "coco", "capacity": "coco"}.get(table, "voc")
    oi = data / "open_images"
    study = load_study(f"paper/tables.py:table={table},scale=full,matching={oi}/matching.txt,open_images={oi}"
                       f",data_dir={data}/imagenet,root={data / root}")
    folder = trained(study, f"{run},seed=0", runs)
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2] and all(np.isfinite(line["loss"]) for line in lines)
    assert not json.loads((folder / "run.json").read_text())["bad_images"]
