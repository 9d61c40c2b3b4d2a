"""Transfer recipes: BiT's fine-tuning, Faster R-CNN and DeepLab."""

from __future__ import annotations

from typing import Literal, NamedTuple

from big_vision_lite.backbones.backbone import Backbone
from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.config import backbone_of
from big_vision_lite.data.curation.steps import Curation
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.coco_json import CocoJson
from big_vision_lite.data.sources.tfds import Tfds
from big_vision_lite.data.transforms.image import Resize, ResizeCrop
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.data.transforms.photometric import Photometric
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import C4, FPN
from big_vision_lite.heads.segmentation import ASPPL, DeepLabV3, Segmentation, dilated
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Poly, Step
from big_vision_lite.training.transfer import Transfer


def bit_finetuning(train: Source, evals: dict[str, Source], train_images: int, *, init: str | None, pixels: int,
                   backbone: Backbone, steps: int | None = None, batch_size: int = 512, seed: int = 0,
                   freeze: bool = False, curate: tuple[Curation, ...] = (),
                   resolution: tuple[int, int] | None = None) -> Experiment:
    """Fine-tune a pretrained network by BiT's HyperRule (Kolesnikov et al., 2020, section 3.3; warm-up as in their
    code): SGD, rate 0.003 per 512 images, momentum 0.9, no weight decay, all layers. The number of training images
    decides on steps, drops of the rate and mixup, the size of the images on the resolution.

    Args:
      train_images: images to learn from.
      init: weights to start from, see `Transfer`.
      pixels: height times width of a typical image.
      steps: None: the rule's.
      freeze: train only the head.
      resolution: (resize, crop) in pixels instead of the rule's.
    """
    resize, crop = resolution or ((160, 128) if pixels < 96 * 96 else (448, 384))
    if train_images < 20_000:
        rule_steps, warmup, drops, mixup = 500, 100, (200 / 500, 300 / 500, 400 / 500), 0.0
    else:
        rule_steps, warmup, drops, mixup = 10_000 if train_images < 500_000 else 20_000, 500, (0.3, 0.6, 0.9), 0.1
    schedule = Step(warmup=warmup / rule_steps, at=drops)
    return Experiment(
        train=Input(train, ResizeCrop(resize=resize, size=crop), batch_size, on_bad_image="mask", curate=curate),
        evals={name: Input(source, Resize(crop), batch_size, on_bad_image="mask") for name, source in evals.items()},
        backbone=backbone,
        head=Classification("softmax", mixup=mixup),
        optimizer=SGD(0.003 * batch_size / 512, schedule=schedule, weight_decay=0.0),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=rule_steps if steps is None else steps,
        seed=seed,
        eval_every=1 / 5,
    )


class TfdsInfo(NamedTuple):
    """A dataset of TFDS's catalogue."""

    images: int
    """Size of the split to learn from."""
    pixels: int
    """Height times width of a typical image."""
    train_split: str
    eval_split: str
    name: str | None = None
    """In the catalogue, where it is not the key."""
    label: str | None = None
    """The feature that is the label, where there are several."""


CATALOGUE = {
    "imagenet2012": TfdsInfo(1_281_167, 500 * 375, "train", "validation"),
    "cifar10": TfdsInfo(50_000, 32 * 32, "train", "test"),
    "cifar100": TfdsInfo(50_000, 32 * 32, "train", "test"),
    "oxford_iiit_pet": TfdsInfo(3_680, 500 * 375, "train", "test"),
    "oxford_flowers102": TfdsInfo(2_040, 500 * 500, "train+validation", "test"),
}
"""The datasets of the paper's successors with their splits (BiT learns flowers from training and validation)."""


def tfds_finetuning(name: str, info: TfdsInfo, *, init: str | None, depth: int = 50, backbone: Backbone | None = None,
                    steps: int | None = None, batch_size: int = 512, freeze: bool = False, data_dir: str | None = None,
                    subset: int | None = None, seed: int = 0, resolution: tuple[int, int] | None = None) -> Experiment:
    """`bit_finetuning` on a TFDS dataset, with the backbone of the run that ``init`` names, else a ResNet.

    Args:
      depth: of the ResNet.
      backbone: instead of these.
      subset: learn from this many images, with the classes in their proportions.
    """
    train, evaluation = (Tfds(info.name or name, split, data_dir, label_key=info.label)
                         for split in (info.train_split, info.eval_split))
    return bit_finetuning(
        train, {"evaluation": evaluation}, subset or info.images, init=init, pixels=info.pixels,
        backbone=backbone or backbone_of(init) or ResNet(depth), steps=steps, batch_size=batch_size, freeze=freeze,
        seed=seed, resolution=resolution, curate=curated_by(subset=subset, stratified=True))


def coco(root: str | None = None, minival: str | None = None,
         data_dir: str | None = None) -> tuple[Source, dict[str, Source]]:
    """COCO 2017 detection: the training source, and the evaluation source by the name of its split.

    Args:
      root: folder of COCO's own files (annotations/, train2017/, val2017/); None: TFDS's coco/2017.
      minival: file of image ids of val2014, one per line, to evaluate on under the name minival. They are left out of
        train2017, which contains all of 2014 except val2017. Needs ``root``. None: evaluate on val2017.

    Raises:
      UserError: ``minival`` without ``root``.
    """
    if root is None:
        if minival is not None:
            raise UserError(f"minival={minival} lists COCO's image ids; give the folder of COCO's files as root=FOLDER")
        return Tfds("coco/2017", "train", data_dir), {"val2017": Tfds("coco/2017", "validation", data_dir)}

    def split(name: str, **lists: str | None) -> CocoJson:
        return CocoJson(f"{root}/annotations/instances_{name}.json", f"{root}/{name}", **lists)

    evals = {"val2017": split("val2017")} if minival is None else {"minival": split("val2014", only=minival)}
    return split("train2017", without=minival), evals


def faster_rcnn(train: Source, evals: dict[str, Source], *, recipe: Literal["paper", "c4", "fpn"], length: int,
                warmup: int, drops: tuple[float, ...], init: str | None, image_rate: float = 4e-4,
                steps: int | None = None, depth: int = 50,
                batch_size: int | None = None, freeze: bool = False, train_batchnorm: bool = False, metric: str = "AP",
                seed: int = 0) -> Experiment:
    """Transfer to detection, by the paper's recipe or by detectron2's (Wu et al. 2019, Base-RCNN-C4 and -FPN).

    paper: C4 with res5 at stride 16, short side 600 and long at most 1024, anchors of 64 to 512 pixels, 300 proposals,
    64 boxes per image, smooth L1 with weight 2, NMS at 0.6, no threshold of the score, 300 detections, momentum 0.9,
    gradients clipped at 10, all layers but BatchNorm learn (Sun et al., 2017, section 4, after Huang et al., 2017, and
    their code; in parts unverified). Its nine workers' steps of one image become synchronous steps of 9 images.
    c4, fpn: short side 640 to 800, long at most 1333; stem and first stage frozen, 512 boxes per image; rate 0.02 for
    16 images.

    Args:
      length: steps at the recipe's batch of 9 (paper) or 16 images. For other batches the rate grows linearly, and the
        number of steps falls.
      warmup: steps of ``length`` for warm-up.
      drops: when the rate falls to a tenth, as shares of the run.
      image_rate: learning rate of the paper's recipe per image of a step: 4e-4 on COCO, 3e-4 on VOC.
      steps: overrides the number of steps that follows from ``length`` and the batch.
      batch_size: None: the recipe's.
      freeze: freeze the whole backbone.
      train_batchnorm: BatchNorm learns and normalizes by the batch, and no layer is frozen: for networks of your own,
        whose statistics and rates are not those of published ones.
    """
    usual_batch, rate = (9, 9 * image_rate) if recipe == "paper" else (16, 0.02)
    batch_size = batch_size or usual_batch
    scale = batch_size / usual_batch
    if recipe == "paper":
        c4 = C4(anchor_sizes=(64.0, 128.0, 256.0, 512.0), pooler_resolution=7)
        head = FasterRCNN(c4, beta=1.0, box_weight=2.0, nms_iou=0.6, score_threshold=0.0, max_detections=300,
                          metric=metric)
        min_size, max_size = 600, 1024
    else:
        c4 = C4(rpn_channels=1024, pre_nms_topk=(6000, 6000), post_nms_topk=(2000, 1000), rois_per_image=512)
        head = FasterRCNN(c4 if recipe == "c4" else FPN(dtype="bfloat16"), metric=metric)
        min_size, max_size = (640, 672, 704, 736, 768, 800), 1333
    first_layers = ("backbone.stem", "backbone.stem_norm", "backbone.stages.0")
    frozen = ("backbone",) if freeze else () if recipe == "paper" or train_batchnorm else first_layers
    view = ResizeToFit(min_size, max_size, random=False, masks=False)
    backbone = whole_batch(backbone_of(init) or ResNet(depth, dtype="bfloat16"))
    return Experiment(
        train=Input(train, ResizeToFit(min_size, max_size, masks=False), batch_size, on_bad_image="mask"),
        evals={name: Input(source, view, batch_size, on_bad_image="mask") for name, source in evals.items()},
        backbone=dilated(backbone, 16) if recipe == "paper" else backbone,
        head=head,
        optimizer=SGD(rate * scale, schedule=Step(warmup=warmup / length, at=drops), weight_decay=1e-4,
                      grad_clip_norm=10.0 if recipe == "paper" else None),
        transfer=Transfer(init, freeze=frozen, freeze_batchnorm=not train_batchnorm),
        steps=max(1, round(length / scale)) if steps is None else steps,
        seed=seed,
        log_every=50,
        eval_every=1 / 6,
    )


def deeplab(train: Source, evals: dict[str, Source], *, recipe: Literal["paper", "mmseg"], init: str | None,
            depth: int = 101, batch_size: int | None = None, steps: int = 20_000, freeze: bool = False,
            multi_scale_flip: bool = False, seed: int = 0, dtype: str = "float32") -> Experiment:
    """Transfer to segmentation of images of at most 500 pixels per side, at output stride 8.

    paper: DeepLab-ASPP-L, rate 3e-3, momentum 0.9 (Sun et al., 2017, section 4; unverified). Its steps, batch, crop,
    stride and decay are unknown; these are DeepLab v2's (Chen et al. 2016: power 0.9, 20,000 steps of 10 images, 321
    pixels, BatchNorm not trained). No CRF.
    mmseg: DeepLabV3 with an auxiliary head, 16 crops of 512 pixels (mmsegmentation's deeplabv3_r101-d8, 20k).

    Args:
      depth: of the backbone, if ``init`` is not a run.
      batch_size: the rate grows linearly with it; None: the recipe's.
      freeze: train only the decoder.
      multi_scale_flip: evaluate at six scales, each also mirrored.
    """
    usual_batch = 10 if recipe == "paper" else 16
    batch_size = batch_size or usual_batch
    test_time = dict(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True) if multi_scale_flip else {}
    if recipe == "paper":
        crop, size = ScaleJitter(321), 513
        view = ScaleJitter(size, scale=(1.0, 1.0), random=False)
        head = Segmentation(ASPPL(), size, **test_time)
        optimizer = SGD(3e-3 * batch_size / usual_batch, schedule=Poly(), weight_decay=5e-4)
    else:
        crop, size = ScaleJitter(512, augment=(Photometric(),)), 768
        view = ResizeToFit(min_size=512, max_size=size, buckets=((512, size), (size, 512)), random=False)
        head = Segmentation(DeepLabV3((12, 24, 36), channels=512), size, auxiliary=0.4, **test_time)
        optimizer = SGD(0.01 * batch_size / usual_batch, schedule=Poly(final=0.01), weight_decay=5e-4)
    return Experiment(
        train=Input(train, crop, batch_size, on_bad_image="mask"),
        evals={name: Input(source, view, batch_size, on_bad_image="mask") for name, source in evals.items()},
        backbone=dilated(whole_batch(backbone_of(init) or ResNet(depth, dtype=dtype)), 8),
        head=head,
        optimizer=optimizer,
        transfer=Transfer(init, freeze=("backbone",) if freeze else (),
                          freeze_batchnorm=recipe == "paper" and init is not None),
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=1 / 5,
    )
