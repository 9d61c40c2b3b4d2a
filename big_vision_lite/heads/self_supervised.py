"""Learning without labels: the two views of an image should have similar embeddings.

`TwoViews` makes the views. What is learned is the backbone; `Transfer` leaves the rest of the model behind, and probes
(`Experiment.probes`) say while training what the features are worth.
"""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, UInt8

from big_vision_lite.backbones.backbone import BackboneModule, Keys
from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.data.source import Dataset, DatasetInfo, Example
from big_vision_lite.errors import UserError
from big_vision_lite.heads.drawing import grid, show
from big_vision_lite.heads.head import Batch, Head, MainMetric, Metrics
from big_vision_lite.heads.losses import embedding_std, nt_xent, unit, view_match
from big_vision_lite.system.fields import at_least
from big_vision_lite.system.palette import TRUTH

COLLAPSED = 0.05
"""Below this `embedding_std`, embeddings are all but equal."""


@dataclasses.dataclass(frozen=True)
class SelfSupervised(Head):
    """What heads that compare two views share: views, metrics and pictures.

    In training and evaluation, "match" is the share of views whose nearest view in the batch is the other one of their
    image, and "embedding_std" is near 0 where the network gives all images the same embedding. Both depend on the batch
    size. With gradient accumulation, a view is compared with those of its micro-batch.
    """

    hidden: int = 2048
    """Width of the projector's hidden layer."""
    size: int = 128
    """Dimensions of an embedding."""

    def __post_init__(self) -> None:
        at_least(self, 1, "hidden")
        at_least(self, 2, "size")

    @property
    def needs_labels(self) -> bool:
        return False

    @property
    def fixed_targets(self) -> bool:
        return True

    def targets(self, example: Example) -> dict[str, np.ndarray]:
        """Raises: UserError when the image comes without its two views."""
        if example["id"] and example.get("views") != 2:
            raise UserError(f"{type(self).__name__}: image {example['id']!r} comes without two views; expected the "
                            "transform TwoViews, for training and for evaluations")
        return {"key": np.asarray(example.get("key", (0, 0)), np.uint32)}

    @abc.abstractmethod
    def view_losses(self, model: Any, images: UInt8[Array, "v h w 3"], mask: Bool[Array, " v"], train: bool,
                    keys: Keys) -> tuple[Float[Array, "v d"], Float[Array, " v"]]:
        """The embedding, of length 1, and the loss of each view; rows 2i and 2i + 1 are the views of image i."""

    def _compare(self, model: Any, batch: Batch, train: bool) -> tuple[Float[Array, "b 2 d"], Array, dict[str, Array]]:
        """Embeddings, losses ``[b]``, and for each image the metrics of a step."""
        images, mask = batch["image"], jnp.repeat(batch["mask"], 2)
        # An image's views follow each other, so that they stay on its device.
        views = images.reshape(2 * images.shape[0], images.shape[1] // 2, *images.shape[2:])
        keys = None
        if train and "key" in batch:
            keys = jnp.stack([batch["key"], ~batch["key"]], 1).reshape(-1, 2)
        embeddings, losses = self.view_losses(model, views, mask, train, keys)
        match = view_match(embeddings, mask)
        std = jnp.broadcast_to(embedding_std(embeddings, mask), batch["mask"].shape)
        of_images = embeddings.reshape(-1, 2, embeddings.shape[1])
        return of_images, losses.reshape(-1, 2).mean(1), {
            "match": match.astype(jnp.float32).reshape(-1, 2).mean(1), "embedding_std": std}

    def loss(self, model: Any, batch: Batch) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """Raises: UserError for a batch of one image."""
        if batch["image"].shape[0] < 2:
            raise UserError(f"{type(self).__name__}: a batch, or micro-batch, of one image has no others to tell it "
                            "from; set --train.batch-size to at least 2 x grad_accum_steps")
        _, losses, metrics = self._compare(model, batch, True)
        return losses, metrics

    def predict(self, model: Any, batch: Batch) -> dict[str, Array]:
        """"loss" and "match" ``[b]``, "similarity" ``[b]`` (the cosine of an image's two embeddings), and "embedding"
        ``[b, d]``, of its first view."""
        batch = {**batch, "mask": batch.get("mask", jnp.ones(batch["image"].shape[:1], jnp.bool_))}
        embeddings, losses, metrics = self._compare(model, batch, False)
        return {"loss": losses, "match": metrics["match"], "similarity": embeddings.prod(1).sum(-1),
                "embedding": embeddings[:, 0]}

    def warning(self, metrics: dict[str, float]) -> str | None:
        if metrics.get("embedding_std", 1.0) >= COLLAPSED:
            return None
        return (f"the embeddings have collapsed: embedding_std is below {COLLAPSED} (1 is spread evenly), so that "
                "images are hardly told apart; lower --optimizer.learning-rate, or take larger batches")

    def metrics(self, dataset: Dataset) -> Metrics:
        return ViewMetrics(self.size)

    def main_metric(self, data: DatasetInfo) -> MainMetric:
        return MainMetric("match")

    def to_json(self, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
                classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """"similarity": the cosine of the embeddings of two random views."""
        return [{"similarity": round(float(value), 6)} for value in outputs["similarity"]]

    def draw(self, path: Path, batch: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
             classes: tuple[str, ...]) -> None:
        figure, axes = grid(len(batch["image"]), (1.6, 3.5), columns=6)
        for axis, image, similarity in zip(axes, batch["image"], outputs["similarity"], strict=False):
            show(axis, image)
            axis.text(0.0, -0.05, f"similarity {similarity:.2f}", transform=axis.transAxes, va="top", fontsize=8,
                      color=TRUTH)
        figure.savefig(path, bbox_inches="tight")


@dataclasses.dataclass(frozen=True)
class SimCLR(SelfSupervised):
    """Contrast (Chen et al. 2020): a view should be told from those of all other images in the batch, on all devices.

    As in the paper, the projector has one hidden layer; as in its published code, that layer has BatchNorm.
    """

    temperature: float = 0.1
    """Of the softmax over views; the paper has 0.1 on ImageNet and 0.5 on CIFAR-10."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(f"SimCLR: temperature={self.temperature}; expected above 0")

    def build(self, backbone: BackboneModule, data: DatasetInfo, rngs: nnx.Rngs) -> Encoder:
        return Encoder(backbone, self.hidden, self.size, rngs)

    def view_losses(self, model: Encoder, images: UInt8[Array, "v h w 3"], mask: Bool[Array, " v"], train: bool,
                    keys: Keys) -> tuple[Float[Array, "v d"], Float[Array, " v"]]:
        embeddings = unit(model(images, train, keys))
        return embeddings, nt_xent(embeddings, mask, self.temperature)


@dataclasses.dataclass(frozen=True)
class BYOL(SelfSupervised):
    """Self-distillation (Grill et al. 2020): a predictor maps the embedding of a view to that of the other one by a
    target network, whose parameters follow the trained ones as a moving average.

    The target network is part of the saved state. It takes its step when the next one begins, by the parameters that
    the last one left, which is the paper's order; with gradient accumulation, in each micro-batch. Unlike in the paper,
    its momentum is constant, and BatchNorm sees both views at once.
    """

    hidden: int = 4096
    """Width of the hidden layers of projector and predictor."""
    size: int = 256
    momentum: float = 0.99
    """Weight of the old target in each step; the paper has 0.996 for 1,000 epochs of ImageNet, 0.99 for 300."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.momentum < 1.0:
            raise UserError(f"BYOL: momentum={self.momentum}; expected from 0 to below 1")

    def build(self, backbone: BackboneModule, data: DatasetInfo, rngs: nnx.Rngs) -> Bootstrapped:
        return Bootstrapped(backbone, self.hidden, self.size, rngs)

    def view_losses(self, model: Bootstrapped, images: UInt8[Array, "v h w 3"], mask: Bool[Array, " v"], train: bool,
                    keys: Keys) -> tuple[Float[Array, "v d"], Float[Array, " v"]]:
        if train:
            model.update_target(self.momentum)
        embeddings = model(images, train, keys)
        predicted = unit(model.predictor(embeddings, train))
        targets = jax.lax.stop_gradient(unit(model.target(images, train, keys)))
        others = targets.reshape(-1, 2, self.size)[:, ::-1].reshape(-1, self.size)
        # Averaged over an image's views, half of the paper's loss, which is their sum (equation 2): the same optimum.
        losses = 2.0 - 2.0 * (predicted * others).sum(-1)
        return unit(embeddings), jnp.where(mask, losses, 0.0)


class MLP(nnx.Module):
    """Linear, BatchNorm, ReLU, linear; float32 ``[n, inputs]`` to ``[n, outputs]``."""

    def __init__(self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(inputs, hidden, use_bias=False, rngs=rngs)  # BatchNorm has one
        self.norm = BatchNorm().build(hidden, zero=False, dtype=jnp.float32, rngs=rngs)
        self.last = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "n c"], train: bool) -> Float[Array, "n d"]:
        x = self.norm(self.first(x)[:, None, None], train)[:, 0, 0]
        return self.last(nnx.relu(x))


class Encoder(nnx.Module):
    """A backbone and a projector: uint8 images to embeddings, not normalised."""

    def __init__(self, backbone: BackboneModule, hidden: int, size: int, rngs: nnx.Rngs):
        self.backbone = backbone
        self.projector = MLP(backbone.channels[-1], hidden, size, rngs)

    def __call__(self, images: UInt8[Array, "v h w 3"], train: bool, keys: Keys = None) -> Float[Array, "v d"]:
        features = self.backbone(images, train, keys)[-1].astype(jnp.float32)
        return self.projector(features.mean((1, 2)), train)


class TargetVariable(nnx.Variable):
    """Part of a target network: saved, resumed and sharded like BatchNorm's running statistics, and never trained."""


class Bootstrapped(Encoder):
    """An encoder with a predictor, and its target network."""

    def __init__(self, backbone: BackboneModule, hidden: int, size: int, rngs: nnx.Rngs):
        super().__init__(backbone, hidden, size, rngs)
        self.target = _as_target(nnx.clone(Encoder(self.backbone, hidden, size, rngs)))
        self.predictor = MLP(size, hidden, size, rngs)
        self.updates = TargetVariable(jnp.zeros((), jnp.int32))

    def update_target(self, momentum: float) -> None:
        """Move the target's parameters; the first time, to the trained ones, which may have been loaded since."""
        keep = jnp.where(self.updates[...] == 0, 0.0, momentum)
        for part, target in ((self.backbone, self.target.backbone), (self.projector, self.target.projector)):
            trained = _variables(part, nnx.Param)
            for path, variable in _variables(target, TargetVariable).items():
                new = jax.lax.stop_gradient(trained[path][...])
                variable[...] = (keep * variable[...] + (1.0 - keep) * new).astype(new.dtype)
        self.updates[...] = self.updates[...] + 1


def _variables(module: nnx.Module, kind: type[nnx.Variable]) -> dict[tuple, Any]:
    return {path: value for path, value in nnx.iter_graph(module) if isinstance(value, kind)}


def _as_target(module: Encoder) -> Encoder:
    """The module with `TargetVariable` in place of each parameter."""
    for _, part in list(nnx.iter_graph(module)):
        if isinstance(part, nnx.Module):
            for name, value in list(vars(part).items()):
                if isinstance(value, nnx.Param):
                    setattr(part, name, TargetVariable(value[...]))
    return module


class ViewMetrics(Metrics):
    """Means over images of "match", "similarity" and "loss", and "embedding_std" over all of them."""

    def __init__(self, size: int):
        self.images, self.sums = 0, dict.fromkeys(("match", "similarity", "loss"), 0.0)
        self.first, self.second = np.zeros(size), np.zeros(size)

    def add(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> None:
        mask = batch["mask"]
        for name in self.sums:
            self.sums[name] += float(outputs[name][mask].sum(dtype=np.float64))
        embeddings = outputs["embedding"][mask].astype(np.float64)
        self.first += embeddings.sum(0)
        self.second += (embeddings**2).sum(0)
        self.images += int(mask.sum())

    def result(self) -> dict[str, float | None]:
        images = max(self.images, 1)
        variance = np.maximum(self.second / images - (self.first / images) ** 2, 0.0)
        return {**{name: value / images for name, value in self.sums.items()},
                "embedding_std": float(np.sqrt(variance).mean() * len(variance) ** 0.5), "images": self.images}
