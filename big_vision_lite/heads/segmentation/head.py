"""The segmentation head: model, loss, metrics and pictures."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from big_vision_lite.backbones.backbone import Backbone, BackboneModule, Keys
from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.data.masks import VOID
from big_vision_lite.data.source import Dataset, DatasetInfo, Example
from big_vision_lite.errors import UserError
from big_vision_lite.evaluation.boundaries import BoundaryMetrics, boundary_f
from big_vision_lite.evaluation.details import Details
from big_vision_lite.evaluation.segmentation import (
    BACKGROUND,
    ConfusionMatrix,
    check_masks,
    confusion,
    mask_at_original_size,
    true_mask,
)
from big_vision_lite.heads.head import Batch, Head, MainMetric, Metrics, Prediction, view_of
from big_vision_lite.heads.segmentation.decoders import ASPPL, FCN, DeepLabV3, DeepLabV3Plus, upsample
from big_vision_lite.heads.segmentation.drawing import annotate_mask, draw_masks
from big_vision_lite.heads.segmentation.losses import pixel_accuracy, pixel_loss


@dataclasses.dataclass(frozen=True)
class Segmentation(Head):
    """A class, or background, for every pixel, at the output stride of the backbone: usually 16 or 8, as in
    ``ResNet(output_stride=16)``. Needs a joint transform (`data.transforms.joint`).

    Raises: UserError for a field out of range.
    """

    decoder: ASPPL | DeepLabV3 | DeepLabV3Plus = DeepLabV3()
    size: int | tuple[int, int] = 513
    """Side, or (height, width), of the padded masks in pixels: at least the transforms' largest."""
    auxiliary: float = 0.0
    """Weight of the loss of an FCN on the next-to-last stage, in training only; 0: none. 0.4 is usual."""
    ohem_fraction: float = 1.0
    """Training averages the loss over this share of the pixels of an image, those with the highest loss. 0.1 to 0.25
    help small objects and rare classes (online bootstrapping; Wu, Shen and van den Hengel 2016)."""
    scales: tuple[float, ...] = (1.0,)
    """Evaluate the image at each of these scales and average the probabilities; tables with multi-scale evaluation use
    (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)."""
    flip: bool = False
    """Evaluate the mirror image too."""
    score_at: Literal["original", "input"] = "original"
    """``original``: count pixels of the image as stored, as tables do. ``input``: count pixels of the network's input,
    on the device and without reading masks again: faster, for monitoring a run."""
    boundary: float | None = None
    """Score outlines too (`evaluation.boundaries`), with this tolerance as a share of the image's diagonal, such as
    0.0075. None: not scored. Needs ``score_at`` original."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the decoder's convolutions; class scores and losses are float32."""

    def __post_init__(self) -> None:
        if self.auxiliary < 0:
            raise UserError(f"Segmentation: auxiliary={self.auxiliary}; expected a weight of at least 0")
        if not 0 < self.ohem_fraction <= 1:
            raise UserError(f"Segmentation: ohem_fraction={self.ohem_fraction}; expected a share above 0, at most 1")
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"Segmentation: scales={self.scales}; expected at least one, each above 0")
        if min(_height_width(self.size)) < 1:
            raise UserError(f"Segmentation: size={self.size}; expected pixels, at least 1")
        if self.boundary is not None and not (0 <= self.boundary < 1 and self.score_at == "original"):
            raise UserError(f"Segmentation: boundary={self.boundary}, score_at={self.score_at!r}; expected a share of "
                            "0 to below 1, such as 0.0075, and score_at='original'")

    def build(self, backbone: BackboneModule, data: DatasetInfo, rngs: nnx.Rngs) -> Segmenter:
        if len(data.classes) >= VOID:
            raise UserError(f"segmentation of {len(data.classes)} classes; 8-bit masks hold {VOID - 1} beside "
                            "background and void: choose fewer, for example by curate=(ClassSubset(...),)")
        return Segmenter(self, backbone, len(data.classes) + 1, rngs)

    def targets(self, example: Example) -> dict[str, np.ndarray]:
        """The class mask, padded to ``size`` with void, and the image's view (see `view_of`).

        Raises: UserError when there is no mask, or it is too large.
        """
        view, mask, name = view_of(example), example.get("class_mask"), example["id"]
        padded = np.full(_height_width(self.size), VOID, np.uint8)
        if mask is not None:
            height, width = mask.shape
            if height > padded.shape[0] or width > padded.shape[1]:
                raise UserError(f"the mask of {name!r} has {height} x {width} pixels; the head has room for size="
                                f"{self.size}; raise it to the transforms' size")
            padded[:height, :width] = mask
        elif name and not example.get("unlabelled"):
            raise UserError(f"image {name!r} has no class mask; segmentation needs a source with a mask for every "
                            "image, such as MaskFolder or VocTree(masks='class'), and no curation of labels but "
                            "ClassSubset")
        return {"class_mask": padded, **view}

    def loss(self, model: Segmenter, batch: Batch) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        scores, auxiliary = model(batch["image"], train=True, keys=batch["key"])
        mask, pixels = self._mask(batch), batch["image"].shape[1:3]
        scores = upsample(scores, pixels)
        loss = pixel_loss(scores, mask, self.ohem_fraction)
        metrics = {"pixel_accuracy": pixel_accuracy(scores, mask)}
        if auxiliary is not None:
            metrics["auxiliary_loss"] = pixel_loss(upsample(auxiliary, pixels), mask, self.ohem_fraction)
            loss = loss + self.auxiliary * metrics["auxiliary_loss"]
        return loss, metrics

    def predict(self, model: Segmenter, batch: Batch) -> dict[str, Array]:
        """"scores" float32 ``[b, gh, gw, k]`` on the decoder's grid, log-probabilities where several views of the image
        are averaged; "loss"; and with ``score_at`` input "confusion" int32 ``[b, k, k]``."""
        scores = self._scores(model, batch["image"])
        mask, pixels = self._mask(batch), batch["image"].shape[1:3]
        full = upsample(scores, pixels)
        outputs = {"scores": scores, "loss": pixel_loss(full, mask)}
        if self.score_at == "input":
            outputs["confusion"] = confusion(mask, jnp.argmax(full, -1), scores.shape[-1])
        return outputs

    def serve(self, model: Segmenter, batch: Batch) -> dict[str, Array]:
        """"mask" uint8 ``[b, h, w]``, of the input's size: 0 background, c + 1 for class c; "scores" as `predict`."""
        scores = self.predict(model, batch)["scores"]
        full = upsample(scores, batch["image"].shape[1:3])
        return {"mask": jnp.argmax(full, -1).astype(jnp.uint8), "scores": scores}

    def _scores(self, model: Segmenter, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b gh gw k"]:
        if self.scales == (1.0,) and not self.flip:
            return model(images, train=False)[0]
        views = []
        for scale in sorted(self.scales, reverse=True):  # largest first, which gives the finest grid
            view = images
            if scale != 1.0:
                pixels = tuple(max(1, round(side * scale)) for side in images.shape[1:3])
                view = jax.image.resize(images.astype(jnp.float32), (len(images), *pixels, 3), "bilinear")
                view = jnp.clip(jnp.round(view), 0, 255).astype(jnp.uint8)
            views.append(model(view, train=False)[0])
            if self.flip:
                views.append(model(view[:, :, ::-1], train=False)[0][:, :, ::-1])
        grid = views[0].shape[1:3]
        mean = sum(upsample(jax.nn.softmax(view, -1), grid) for view in views) / len(views)
        return jnp.log(jnp.maximum(mean, 1e-30))

    def _mask(self, batch: Batch) -> UInt8[Array, "b h w"]:
        """A batch's masks, cropped to the shape of its images."""
        (height, width), mask = batch["image"].shape[1:3], batch["class_mask"]
        if height > mask.shape[1] or width > mask.shape[2]:
            raise UserError(f"images have {height} x {width} pixels, and the head has room for masks of size="
                            f"{self.size}; raise it")
        return mask[:, :height, :width]

    def metrics(self, dataset: Dataset) -> Metrics:
        return SegmentationMetrics(dataset, self.boundary)

    def check_eval(self, dataset: Dataset) -> None:
        check_masks(dataset)

    def main_metric(self, data: DatasetInfo) -> MainMetric:
        return MainMetric("mIoU")

    def to_json(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """"size": (height, width) of the image as stored; "classes": the share of pixels of each class, largest
        first."""
        return [prediction.values for prediction in self.predictions(batch, outputs, classes)]

    def predictions(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                    classes: tuple[str, ...]) -> list[Prediction]:
        names, answers = (BACKGROUND, *classes), []
        for row, scores in enumerate(outputs["scores"]):
            mask = _predicted(scores, batch, row)
            counts = np.bincount(mask.ravel(), minlength=len(names))
            order = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
            shares = {names[c]: round(float(counts[c] / mask.size), 6) for c in order}
            answers.append(Prediction({"size": list(mask.shape), "classes": shares}, mask))
        return answers

    def draw(self, path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
             classes: tuple[str, ...]) -> None:
        rows = []
        for row, scores in enumerate(outputs["scores"]):
            height, width = size = tuple(batch["size"][row].tolist())
            rows.append((batch["image"][row, :height, :width], batch["class_mask"][row, :height, :width],
                         mask_at_original_size(scores, batch["image"].shape[1:3], size, size)))
        draw_masks(path, rows, (BACKGROUND, *classes))

    def annotate(self, photo: UInt8[np.ndarray, "h w 3"], prediction: Prediction, classes: tuple[str, ...],
                 score: float | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """The classes in VOC's colours over the photo, and their shares of its pixels below."""
        return annotate_mask(photo, prediction.mask, (BACKGROUND, *classes))


class Segmenter(nnx.Module):
    """From uint8 images to class scores on a grid, and in training those of the auxiliary head."""

    def __init__(self, head: Segmentation, backbone: BackboneModule, num_classes: int, rngs: nnx.Rngs):
        dtype = jnp.dtype(head.dtype)
        self.backbone = backbone
        self.decoder = head.decoder.build(backbone, num_classes, dtype, rngs)
        self.has_auxiliary = head.auxiliary > 0
        if self.has_auxiliary:
            norm, dropout = getattr(head.decoder, "norm", BatchNorm()), getattr(head.decoder, "dropout", 0.0)
            self.auxiliary = FCN(backbone.channels[-2], num_classes, norm, dropout, dtype, rngs)

    def __call__(self, images: UInt8[Array, "b h w 3"], train: bool,
                 keys: Keys = None) -> tuple[Float[Array, "b gh gw k"], Float[Array, "b ah aw k"] | None]:
        """``keys``: for dropout; None: no dropout."""
        stages = self.backbone(images, train, keys)
        scores = self.decoder(stages, train, keys)
        auxiliary = self.auxiliary(stages[-2], train, keys) if train and self.has_auxiliary else None
        return scores, auxiliary


class SegmentationMetrics(Metrics):
    """The metrics of one confusion matrix over the dataset, the mean loss, and boundary F scores with the tolerance
    ``boundary``, unless that is None."""

    def __init__(self, dataset: Dataset, boundary: float | None = None):
        self.dataset, self.boundary = dataset, boundary
        self.matrix = ConfusionMatrix(dataset.classes)
        self.outlines = BoundaryMetrics(self.matrix.names)
        self.loss, self.images = 0.0, 0

    def add(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> None:
        rows = np.flatnonzero(batch["mask"])
        if not np.isfinite(outputs["scores"][rows]).all():
            raise UserError("a class score is not finite; has training diverged?")
        self.loss += float(outputs["loss"][rows].sum(dtype=np.float64))
        self.images += len(rows)
        if "confusion" in outputs:
            self.matrix.add(outputs["confusion"][rows].sum(0, dtype=np.int64))
            return

        def masks(row: int) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
            size = tuple(batch["original_size"][row].tolist())
            truth = true_mask(self.dataset[int(batch["index"][row])], len(self.dataset.classes), size)
            predicted = _predicted(outputs["scores"][row], batch, row)
            return truth, predicted, {} if self.boundary is None else boundary_f(truth, predicted, self.boundary)

        with ThreadPoolExecutor() as pool:
            for truth, predicted, outlines in pool.map(masks, rows.tolist()):
                self.matrix.add_masks(truth, predicted)
                self.outlines.add(outlines)

    def result(self) -> dict[str, float | None]:
        """Those of `ConfusionMatrix.result` and, where outlines are scored, `BoundaryMetrics.result`; "loss" (at the
        network's input) and "images"."""
        outlines = {} if self.boundary is None else self.outlines.result()
        return {**self.matrix.result(), **outlines, "loss": self.loss / max(self.images, 1), "images": self.images}

    def details(self) -> Details:
        return self.matrix.details()


def dilated(backbone: Backbone, output_stride: int) -> Backbone:
    """The backbone, such as that of a pretraining run, at another output stride. Its parameters do not change.

    Raises:
      UserError: it cannot dilate.
    """
    if "output_stride" not in [field.name for field in dataclasses.fields(backbone)]:
        raise UserError(f"{type(backbone).__name__} has no output_stride to set to {output_stride}; segmentation needs "
                        "a backbone that dilates, such as ResNet")
    return dataclasses.replace(backbone, output_stride=output_stride)


def _predicted(scores: np.ndarray, batch: dict[str, np.ndarray], row: int) -> UInt8[np.ndarray, "h w"]:
    """The predicted mask of one image of a batch, at its original size. Raises: UserError when only a part of the image
    was seen."""
    size, original = (tuple(batch[name][row].tolist()) for name in ("size", "original_size"))
    if np.any(np.abs(batch["original_size"][row] * batch["scale"][row] - batch["size"][row]) > 1):
        raise UserError(f"evaluation sees a window of {size[0]} x {size[1]} pixels in an image of {original[0]} x "
                        f"{original[1]}; give it a transform that shows whole images, such as ResizeToFit")
    return mask_at_original_size(scores, batch["image"].shape[1:3], size, original)


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
