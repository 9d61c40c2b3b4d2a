"""Generated scenes of emoji, in minutes on two cores: pretraining on one artist's drawings, then boxes and masks of
another's."""

from __future__ import annotations

from typing import Literal

from big_vision_lite.backbones.backbone import Backbone
from big_vision_lite.backbones.norm import whole_batch
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes, vocabulary
from big_vision_lite.data.tools.prepare import PreparedEmojiScenes
from big_vision_lite.data.transforms.image import RandomResizedCrop, Resize
from big_vision_lite.data.transforms.joint import ResizeToFit, ScaleJitter
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.detection.variants import FPN
from big_vision_lite.heads.segmentation import DeepLabV3Plus, Segmentation, dilated
from big_vision_lite.recipes.pretraining import curated_by
from big_vision_lite.training.optimizers import AdamW
from big_vision_lite.training.probe import Probe
from big_vision_lite.training.schedules import Cosine, Poly
from big_vision_lite.training.transfer import Transfer

Task = Literal["boxes", "masks"]


def emoji_pretraining(backbone: Backbone, *, images: int = 100_000, subset: int | None = None, size: int = 64,
                      steps: int = 1_600, batch_size: int = 64, probes: bool = True, eval_every: float | None = None,
                      subset_seed: int = 0, seed: int = 0) -> Experiment:
    """Multi-label classification of one to three emoji per scene: 774 of the 824 classes, spread over all categories,
    in Twemoji's style.

    Args:
      images: scenes to generate; ``subset``: learn from this many of them, None: all; ``subset_seed``: which ones.
      size: width and height of the scenes and of the network's input in pixels.
      probes: probe the features on OpenMoji's drawings of the 50 classes that are left out ("unseen") and of 50 others
        ("seen").
    """
    names = vocabulary().names
    unseen, seen = names[::16][:50], names[8::16][:50]
    pretrained = tuple(name for name in names if name not in unseen)

    def scenes(split: str, count: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, count, size=size, classes=pretrained, objects=(1, 3), zipf=0.5)

    def other_style(split: str, count: int, classes: tuple[str, ...]) -> Input:
        source = EmojiScenes(split, count, size=size, style="openmoji", classes=classes, objects=(1, 1), zipf=0.0)
        return Input(source, Resize(size), batch_size)

    style_probes = {name: Probe(other_style("train", 5_000, classes), other_style("test", 2_000, classes),
                                kinds=("few_shot", "linear"), shots=(1, 5, 10, 25))
                    for name, classes in (("unseen", unseen), ("seen", seen))}
    return Experiment(
        train=Input(scenes("train", images), RandomResizedCrop(size, area=(0.5, 1.0)), batch_size,
                    curate=curated_by(subset=subset, seed=subset_seed)),
        evals={"validation": Input(scenes("validation", 2_000), Resize(size), batch_size)},
        backbone=backbone,
        head=Classification("sigmoid"),
        optimizer=AdamW(3e-3 * (batch_size / 64) ** 0.5, schedule=Cosine(warmup=0.05), weight_decay=0.02),
        probes=style_probes if probes else {},
        steps=steps,
        seed=seed,
        log_every=50,
        eval_every=eval_every,
    )


def scenes_detection(init: str | None, *, backbone: Backbone, images: int = 2_000, subset: int | None = None,
                     classes: int = 20, size: int = 96, steps: int = 600, batch_size: int = 16, rate: float = 1e-3,
                     eval_images: int = 500, freeze: bool = False, subset_seed: int = 0, seed: int = 0) -> Experiment:
    """Boxes of one to four emoji per scene by Faster R-CNN with a small FPN, scored by AP50.

    Args:
      init: see `Transfer.init`; None: from scratch, in the same steps.
      images: scenes to generate; ``subset``: learn from this many of them, None: all; ``subset_seed``: which ones.
      size: width and height of the scenes and of the network's input in pixels.
      rate: peak of the learning rate.
      freeze: train only the detector.
    """
    def scenes(split: str, count: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, count, size=size, style="openmoji", classes=classes, objects=(1, 4), zipf=0.5)

    head = FasterRCNN(FPN(channels=64, width=256, anchor_sizes=(12, 20, 32, 52, 84), pre_nms_topk=(300, 200),
                          post_nms_topk=(150, 100), rois_per_image=48), max_boxes=16, metric="AP50")
    jitter = ScaleJitter(size, scale=(0.7, 1.4), of="fit", min_visibility=0.3, masks=False)
    view = ResizeToFit(size, size, ((size, size),), random=False, masks=False)
    return Experiment(
        train=Input(scenes("train", images), jitter, batch_size, curate=curated_by(subset=subset, seed=subset_seed)),
        evals={"test": Input(scenes("test", eval_images), view, batch_size)},
        # Batches are too small for groups: BatchNorm uses the whole batch.
        backbone=whole_batch(backbone),
        head=head,
        optimizer=AdamW(rate, schedule=Cosine(warmup=0.05), weight_decay=0.02, grad_clip_norm=10.0),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )


def scenes_segmentation(init: str | None, *, backbone: Backbone, images: int = 2_000, subset: int | None = None,
                        classes: int = 20, size: int = 64, steps: int = 500, batch_size: int = 32, rate: float = 2e-3,
                        eval_images: int = 500, ohem_fraction: float = 0.2, freeze: bool = False,
                        subset_seed: int = 0, seed: int = 0) -> Experiment:
    """Masks of one to three emoji per scene by DeepLabV3+ at output stride 8, scored by mIoU.

    Args:
      init, images, subset, subset_seed, size, rate: as in `scenes_detection`.
      ohem_fraction: share of an image's pixels to learn from, the hardest ones; most pixels are easy background.
      freeze: train only the decoder.
    """
    def scenes(split: str, count: int) -> PreparedEmojiScenes:
        return PreparedEmojiScenes(split, count, size=size, style="openmoji", classes=classes, objects=(1, 3), zipf=0.5)

    decoder = DeepLabV3Plus((1, 2, 3), channels=64, low_level_channels=16)
    view = ResizeToFit(size, size, ((size, size),), random=False)
    return Experiment(
        train=Input(scenes("train", images), ScaleJitter(size, scale=(0.75, 1.5)), batch_size,
                    curate=curated_by(subset=subset, seed=subset_seed)),
        evals={"test": Input(scenes("test", eval_images), view, batch_size)},
        backbone=dilated(whole_batch(backbone), 8),
        head=Segmentation(decoder, size, ohem_fraction=ohem_fraction),
        optimizer=AdamW(rate, Poly(warmup=0.05), weight_decay=0.02),
        transfer=Transfer(init, freeze=("backbone",) if freeze else ()),
        steps=steps,
        seed=seed,
        log_every=50,
    )
