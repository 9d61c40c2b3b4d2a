"""Runs from weights files, and weights files from runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from big_vision_lite.backbones.backbone import Backbone, PixelNormalization
from big_vision_lite.backbones.norm import BatchNorm, GroupNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Dataset, SavedDatasetInfo, Source
from big_vision_lite.data.transforms.image import CentreCrop
from big_vision_lite.errors import UserError, writing
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.system.atomic import replacing
from big_vision_lite.training.best import CheckpointChoice
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.trees import flatten, replaced
from big_vision_lite.training.workdir import OwnedWorkdir, open_workdir, run_folder, write_dataset_info
from big_vision_lite.weights.convert import family, to_ours, to_theirs
from big_vision_lite.weights.files import Weights, read_weights, write_safetensors
from big_vision_lite.weights.naming import BIT, TIMM_BIT, TORCHVISION, depth_of, naming_of

Format = Literal["torchvision", "timm", "bit", "safetensors"]
_NO_DATA = "elsewhere"
"""Fingerprint of the data of an imported run."""


@dataclasses.dataclass(frozen=True)
class UnavailableSource(Source):
    """The data of imported weights."""

    weights: str = ""
    """The imported file."""

    def open(self) -> Dataset:
        raise UserError(f"this run was imported from {self.weights!r} and has no images of its own; start another run "
                        "from it (--transfer.init), or probe it")


def import_weights(source: str, out: Path, classes: Sequence[str] | None = None, ema: bool = False) -> str:
    """Make a run folder from a weights file, to start from, to probe and to export. Returns a one-line summary.

    Args:
      source: path, hf:OWNER/NAME or URL of a .safetensors, .npz or .pth file of a ResNet or BiT ResNet-v2.
      classes: class names of the head; None: their numbers.
      ema: take the moving average that a .pth file holds beside the network.

    Raises:
      UserError: the file cannot be read, the network is unknown, or ``out`` holds another run.
    """
    out = run_folder(out)
    weights = read_weights(source, ema)
    tensors = weights.arrays
    backbone = _backbone(weights, source)
    head = next((tensors[name] for name in ("fc.bias", "head.fc.bias", "resnet/head/conv2d/bias", "head.bias")
                 if name in tensors), None)
    count = head.size if head is not None else 1
    if classes is not None and (len(classes) != count or len(set(classes)) != count):
        raise UserError(f"{len(classes)} names of classes, {len(set(classes))} of them different; {source} has {count} "
                        "classes")
    names = tuple(classes) if classes is not None else tuple(str(i) for i in range(count))
    multi_label = count == 1  # or no classifier
    experiment = Experiment(Input(UnavailableSource(source), CentreCrop(224), 64), {}, backbone,
                            Classification("sigmoid" if multi_label else "softmax"), SGD(), steps=1)
    trainer = Trainer(experiment, SavedDatasetInfo(names, multi_label, _NO_DATA, 1, ""))
    spec = flatten({"params": trainer.state_spec.params, "batch_stats": trainer.state_spec.batch_stats})
    ours = to_ours(tensors, {name.partition(".")[2]: leaf for name, leaf in spec.items()}, source)
    state = trainer.random_init()  # compiled only when the weights fit
    loaded = {name: ours[name.partition(".")[2]] for name in spec if name.partition(".")[2] in ours}
    arrays = replaced({"params": state.params, "batch_stats": state.batch_stats}, loaded)
    with OwnedWorkdir(out):
        resolved = open_workdir(out, experiment)
        write_dataset_info(out, {"multi_label": multi_label, "fingerprint": _NO_DATA, "images": 1, "sha256": "",
                                 "classes": list(names)})
        with contextlib.closing(Checkpoints(out / "checkpoints", max_checkpoints=1)) as checkpoints:
            checkpoints.save(0, dataclasses.replace(state, **arrays), resolved, {"step": 0, "bad_images": 0})
            checkpoints.wait()
    classifier = f"{count} classes" if head is not None else "no classifier"
    return (f"{type(backbone).__name__}-{backbone.depth} with {classifier}, {len(ours)} arrays"
            + (f" of {weights.part}" if weights.part else ""))


def backbone_of_weights(source: str) -> Backbone:
    """The network of a weights file, ``hf:OWNER/NAME`` or URL. Raises: UserError as `import_weights`."""
    return _backbone(read_weights(source), source)


def _backbone(weights: Weights, source: str) -> Backbone:
    """The network of these weights; its width is that of its first convolution. Raises: UserError."""
    tensors = weights.arrays
    depth = depth_of(tensors)
    if depth is None:
        raise UserError(f"{source}: no ResNet of a known depth; its first arrays are {', '.join(list(tensors)[:3])}")
    stem = next((array.shape for array in tensors.values() if array.ndim == 4 and array.size
                 and (array.shape[:3] == (7, 7, 3) or array.shape[1:] == (3, 7, 7))), None)
    if stem is None:
        raise UserError(f"{source} has no first convolution of 7 x 7 pixels and 3 colours; expected an ImageNet stem")
    width = (stem[3] if stem[2] == 3 else stem[0]) / 64
    naming, pixels = naming_of(tensors), weights.pixels or PixelNormalization()
    kind = naming.family if naming else family(tensors)
    if kind == "ResNetV2":
        return ResNetV2(depth, width=width, pixels=pixels)
    return ResNet(depth, width=width, norm=GroupNorm() if kind == "GroupNorm ResNet" else BatchNorm(), pixels=pixels)


def export_weights(run: Path, out: Path, form: Format, checkpoint: CheckpointChoice = "last",
                   allowed: Sequence[str] = ()) -> str:
    """Write a run's network as a .safetensors file (or .npz for ``bit``), under the names of another project.

    Raises:
      UserError: no such run, or its network has no names there.
    """
    trainer, state, step = open_run(run, checkpoint, allowed)
    arrays = {name.partition(".")[2]: np.asarray(leaf) for name, leaf in
              flatten({"params": state.eval_params, "batch_stats": state.batch_stats}).items()}
    timm = TIMM_BIT if isinstance(trainer.experiment.backbone, ResNetV2) else TORCHVISION
    naming = {"torchvision": TORCHVISION, "timm": timm, "bit": BIT}.get(form)
    tensors = to_theirs(naming, arrays) if naming else arrays
    with writing(f"weights to {str(out)!r}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if form == "bit" and out.suffix == ".npz":
            with replacing(out) as temporary:
                np.savez(temporary, **tensors)
        else:
            pixels = trainer.experiment.backbone.pixels
            write_safetensors(out, tensors, {"pixels": json.dumps([pixels.mean, pixels.std])})
    return f"{len(tensors)} arrays of step {step}"
