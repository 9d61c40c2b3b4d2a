"""Fine-tuning a pretrained network to data of your own: a recipe worked out from the weights, the data and the machine.

What is decided, and by what:

input size   of a run's own evaluation; for published weights by the data: 128 pixels where a typical image is smaller
             than 96, else 224 on CPUs and 384 on accelerators (Kolesnikov et al. 2020, BiT's HyperRule); detection and
             segmentation take larger images on accelerators
batch        on CPUs 64 small images, 32 larger ones, 8 with boxes or masks; on accelerators the largest power of two
             that a count of the step's memory allows, up to BiT's 512 (16 with boxes or masks)
length       as many images as BiT's HyperRule sees (or published detectors and segmenters), but on CPUs at most what a
             count of operations says is done in the minutes given
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from big_vision_lite.backbones.backbone import Backbone
from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.data.decode import DecodeError, image_size
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Dataset, Source
from big_vision_lite.data.sources.box_records import BoxDataset
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.sources.mask_folder import MaskFolder
from big_vision_lite.data.sources.voc_tree import VocTree
from big_vision_lite.data.sources.yolo_txt import YoloDataset, YoloTxt
from big_vision_lite.data.transforms.image import CentreCrop, RandomCropPadded, RandomResizedCrop, Resize
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.data.transforms.photometric import Photometric
from big_vision_lite.errors import BadImageError, UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.heads.segmentation import DeepLabV3Plus, Segmentation, dilated
from big_vision_lite.launch.compiled import count_step
from big_vision_lite.training.optimizers import SGD, AdamW
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.transfer import Transfer

Task = Literal["classify", "detect", "segment"]
SMALL = 96
"""Images of fewer pixels per side are small (BiT's HyperRule)."""
SAMPLE = 200
"""Images whose headers tell the typical size."""
CORE_FLOPS = 20e9
"""Operations per second and core that training steps of these networks are assumed to do on CPUs."""
MEMORY_SHARE = 0.7
"""Share of an accelerator's memory that a step may take by a count, which leaves out workspaces."""
LEAST_STEPS = 100
PASSES = 50
"""On CPUs, at most so many passes over the data: with few images, more time would buy little."""
EVAL_SPLITS = ("val", "validation", "test")


class Machine(NamedTuple):
    """Where a run is to train."""

    platform: str
    """cpu, gpu or tpu."""
    cores: int
    memory: float | None = None
    """Bytes per device; None: unknown."""

    @property
    def on_cpu(self) -> bool:
        return self.platform == "cpu"


class Start(NamedTuple):
    """A pretrained network."""

    init: str
    """Run folder, weights file, hf:REPO or URL."""
    backbone: Backbone
    size: int | None
    """Input size of the run's own evaluation; None for published weights."""


class Data(NamedTuple):
    """What there is to learn from."""

    train: Source
    evals: dict[str, Source]
    opened: Dataset
    """The training data."""
    task: Task
    side: float
    """Side of a typical image in pixels: the median root of the area."""


def find_data(source: Source, task: Task | None = None) -> Data:
    """Open the training split of a source, and find one to evaluate on.

    Args:
      task: None: detect with boxes, segment with masks, else classify.

    Raises:
      UserError: the data cannot be opened, has nothing for the task, or no split to evaluate on.
    """
    if task is None:
        task = "segment" if isinstance(source, MaskFolder) else (
            "detect" if isinstance(source, CocoJson | VocTree | YoloTxt) else "classify")
    if task == "segment" and isinstance(source, VocTree):
        source = dataclasses.replace(source, masks="class")
    train = _with_split(source, "train")
    opened = train.open()
    wanted = {"detect": "boxes", "segment": "class_mask"}.get(task)
    if wanted is not None and wanted not in opened[0]:
        what, other = (("boxes", "VOC trees, COCO's json and YOLO's text files") if wanted == "boxes" else
                       ("class masks", "folders of images/ and masks/, and VOC trees"))
        raise UserError(f"--task {task}: {type(source).__name__} has no {what}; {other} have")
    return Data(train, _evaluation(source), opened, task, _typical_side(opened))


def _with_split(source: Source, split: str) -> Source:
    """The source's other split: by its field, or for COCO's json by the names of its file and folder."""
    if isinstance(source, CocoJson):
        if split == "train":
            return source
        return dataclasses.replace(source, annotations=source.annotations.replace("train", split),
                                   images=source.images.replace("train", split))
    if "split" not in [field.name for field in dataclasses.fields(source)]:
        raise UserError(f"{type(source).__name__} has no splits, so none is left to evaluate on; give a folder, csv or "
                        "json with a train and a val split")
    return dataclasses.replace(source, split=split)


def _evaluation(source: Source) -> dict[str, Source]:
    """The first of `EVAL_SPLITS` that there is. Raises: UserError."""
    errors = []
    for split in EVAL_SPLITS:
        other = _with_split(source, split)
        try:
            if other != _with_split(source, "train"):
                other.open()
                return {split: other}
        except UserError as error:
            errors.append(str(error))
    raise UserError(f"no split to evaluate on, such as val: {errors[0] if errors else 'expected one beside train'}")


def _typical_side(dataset: Dataset) -> float:
    sides = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, SAMPLE).astype(int)).tolist():
        try:
            height, width = image_size(dataset[index]["image"])
        except (BadImageError, DecodeError):
            continue  # a run counts and masks it, or names it
        sides.append(math.sqrt(height * width))
    if not sides:
        raise UserError(f"none of {min(SAMPLE, len(dataset))} sampled images can be read; see bvl data inspect")
    return float(np.median(sides))


def finetuning(start: Start, data: Data, machine: Machine, minutes: float, *, size: int | None = None,
               batch_size: int | None = None, steps: int | None = None, seed: int = 0) -> Experiment:
    """The experiment, see the top of this file.

    Args:
      minutes: on CPUs, about how long training may take, without evaluations.
      size, batch_size, steps: instead of what would be worked out.

    Raises:
      UserError: the backbone or the data does not fit the task.
    """
    recipe = {"classify": _classification, "detect": _detection, "segment": _segmentation}[data.task]
    side = size or _size(start, data, machine)
    batch = batch_size or _batch(lambda batch: recipe(start, data, machine, side, batch, LEAST_STEPS), data, machine,
                                 side)
    draft = recipe(start, data, machine, side, batch, LEAST_STEPS)
    length = steps or _length(draft, data, machine, minutes)
    return dataclasses.replace(draft, steps=length, seed=seed, log_every=max(1, min(20, length // 20)))


def _size(start: Start, data: Data, machine: Machine) -> int:
    """Pixels of the network's input: of a side for classification, of the long side otherwise."""
    if data.task != "classify":
        largest = {"detect": 320, "segment": 256} if machine.on_cpu else {"detect": 1024, "segment": 512}
        return min(largest[data.task], max(64, -(-round(1.2 * data.side) // 32) * 32))
    if start.size is not None:
        return start.size
    return 128 if data.side < SMALL else 224 if machine.on_cpu else 384


def _batch(draft: Callable[[int], Experiment], data: Data, machine: Machine, size: int) -> int:
    dense = data.task != "classify"
    most = 2 ** int(math.log2(max(len(data.opened), 2)))
    if machine.on_cpu:
        return min(8 if dense else 64 if size <= 128 else 32, most)
    batch = min(16 if dense else 512, most)
    while machine.memory is not None and batch > 2:
        if count_step(Trainer(draft(batch), data.opened)).memory <= MEMORY_SHARE * machine.memory:
            break
        batch //= 2
    return batch


def _length(draft: Experiment, data: Data, machine: Machine, minutes: float) -> int:
    """Steps: as many images as usual for the task, or as a CPU has time for."""
    batch = draft.train.batch_size
    usual = {"classify": 256_000 if len(data.opened) < 20_000 else 5_120_000, "detect": 12_000 + 12 * len(data.opened),
             "segment": 64_000}[data.task]
    most = max(1, usual // batch)
    if not machine.on_cpu:
        return most
    seconds = count_step(Trainer(draft, data.opened)).flops / (CORE_FLOPS * machine.cores)
    possible = min(round(60 * minutes / seconds), PASSES * len(data.opened) // batch)
    return min(most, max(LEAST_STEPS, possible // 20 * 20))


def _classification(start: Start, data: Data, machine: Machine, size: int, batch: int, steps: int) -> Experiment:
    if data.side <= 1.2 * size:  # small images show all they have
        crop, view = RandomCropPadded(size, pad=size // 8), Resize(size)
    else:
        crop, view = RandomResizedCrop(size, area=(0.25, 1.0)), CentreCrop(size, resize=round(size * 8 / 7))
    published = start.size is None
    multi_label = data.opened.multi_label
    head = Classification("sigmoid") if multi_label else Classification("softmax", label_smoothing=0.1)
    return Experiment(
        train=Input(data.train, crop, batch, on_bad_image="mask"),
        evals={name: Input(source, view, batch, on_bad_image="mask") for name, source in data.evals.items()},
        backbone=whole_batch(start.backbone),
        head=head,
        optimizer=SGD((0.01 if published else 0.05) * batch / 64, schedule=Cosine(warmup=0.05), weight_decay=5e-4,
                      nesterov=True),
        transfer=Transfer(start.init),
        steps=steps,
        eval_every=1 / 4,
    )


def _detection(start: Start, data: Data, machine: Machine, size: int, batch: int, steps: int) -> Experiment:
    short = -(-round(0.75 * size) // 16) * 16
    sizes = tuple(round(short * share / 16) * 16 for share in (0.8, 0.9, 1.0))
    buckets = ((short, size), (size, short))
    smallest = 16 if size <= 512 else 32
    widths = {"channels": 96, "width": 256, "pre_nms_topk": (600, 300), "post_nms_topk": (300, 150),
              "rois_per_image": 96} if machine.on_cpu else {"dtype": "bfloat16"}
    head = FasterRCNN(FPN(anchor_sizes=tuple(smallest * 2**level for level in range(5)), **widths),
                      max_boxes=_room(data.opened), metric="VOC_AP50" if isinstance(data.train, VocTree) else "AP")
    view = ResizeToFit(short, size, buckets, random=False, masks=False)
    return Experiment(
        train=Input(data.train, ResizeToFit(sizes, size, buckets, augment=(Photometric(),), masks=False), batch,
                    on_bad_image="mask"),
        evals={name: Input(source, view, batch, on_bad_image="mask") for name, source in data.evals.items()},
        backbone=whole_batch(start.backbone),
        head=head,
        optimizer=AdamW(1e-3 * math.sqrt(batch / 8) * (0.3 if start.size is None else 1.0),
                        schedule=Cosine(warmup=0.05), weight_decay=0.02, grad_clip_norm=10.0),
        transfer=Transfer(start.init, freeze_batchnorm=start.size is None),
        steps=steps,
        eval_every=1 / 4,
    )


def _segmentation(start: Start, data: Data, machine: Machine, size: int, batch: int, steps: int) -> Experiment:
    channels = 64 if machine.on_cpu else 256
    view = ResizeToFit(size, size, ((size, size),), random=False)
    return Experiment(
        train=Input(data.train, ScaleJitter(size, of="fit", augment=(Photometric(),)), batch, on_bad_image="mask"),
        evals={name: Input(source, view, batch, on_bad_image="mask") for name, source in data.evals.items()},
        backbone=dilated(whole_batch(start.backbone), 16),
        head=Segmentation(DeepLabV3Plus(channels=channels, low_level_channels=max(channels // 5, 8)), size),
        optimizer=AdamW(1e-3 * (0.3 if start.size is None else 1.0), schedule=Cosine(warmup=0.05), weight_decay=0.02,
                        grad_clip_norm=10.0),
        transfer=Transfer(start.init),
        steps=steps,
        eval_every=1 / 4,
    )


def _room(dataset: Dataset) -> int:
    """Slots for boxes per image: the next power of two above the most of an image, at least 100."""
    most = int(dataset.objects.counts().max()) if isinstance(dataset, BoxDataset | YoloDataset) else 0
    return max(100, 2 ** math.ceil(math.log2(most + 1)))
