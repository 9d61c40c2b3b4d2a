"""Runs out of files of weights, and files of weights out of runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from big_vision_lite.backbones.backbone import Backbone, Pixels
from big_vision_lite.backbones.norm import BatchNorm, GroupNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.backbones.resnet_v2 import ResNetV2
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Description, Records, Source
from big_vision_lite.data.transforms import CentreCrop
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.remote import place
from big_vision_lite.training.checkpoints import Checkpoints, flatten
from big_vision_lite.training.evaluate import open_run
from big_vision_lite.training.job import Job
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.transfer import replaced
from big_vision_lite.training.workdir import claim, write_description
from big_vision_lite.weights import (
    depth_of,
    fetch,
    load,
    pixels_of,
    read_file,
    to_bit,
    to_torchvision,
    write_safetensors,
)
from big_vision_lite.weights.convert import family
from big_vision_lite.weights.naming import NAMINGS

Format = Literal["torchvision", "timm", "bit", "safetensors"]


@dataclasses.dataclass(frozen=True)
class Elsewhere(Source):
    """Images that are not here: what imported weights were trained on."""

    weights: str = ""
    """The file that was imported."""

    def open(self) -> Records:
        raise UserError(f"this run was imported from {self.weights!r} and has no images of its own; start another run "
                        "from it (--transfer.init), or probe it")


def import_weights(source: str, out: Path, classes: Sequence[str] | None = None) -> str:
    """Make a run's folder of a file of weights, to start from, to probe and to export. Returns what was made, in words.

    Args:
      source: path, hf:OWNER/NAME or URL of a .safetensors, .npz or .pth file of a ResNet or BiT ResNet-v2.
      classes: names of the head's classes; None: their numbers.

    Raises:
      UserError: the file cannot be read, is of no network that is known, or ``out`` holds another run.
    """
    from big_vision_lite.data.cache import cache_dir
    from big_vision_lite.weights.download import is_remote

    tensors = read_file(fetch(source, cache_dir() / "weights") if is_remote(source) else Path(source).expanduser())
    depth = depth_of(tensors)
    if depth is None:
        raise UserError(f"{source}: no ResNet of a known depth; its first arrays are {', '.join(list(tensors)[:3])}")
    head = next((tensors[name] for name in ("fc.bias", "head.fc.bias", "resnet/head/conv2d/bias", "head.bias")
                 if name in tensors), None)
    count = len(head) if head is not None else 1
    if classes is not None and len(classes) != count:
        raise UserError(f"{len(classes)} names of classes, and {source} has {count} classes")
    names = tuple(classes) if classes is not None else tuple(str(i) for i in range(count))
    backbone = _backbone(tensors, depth, source)
    experiment = Experiment(Input(Elsewhere(source), CentreCrop(224), 64), {}, backbone, Classification("softmax"),
                            SGD(), steps=1)
    job = Job(experiment, Description(names, False, "elsewhere", 1, ""))
    known = flatten({"params": job.description.params, "stats": job.description.stats})
    found = load(source, {name.partition(".")[2]: leaf for name, leaf in known.items()})
    state = job.fresh()  # compiled only when the weights fit
    values = {name: found[name.partition(".")[2]] for name in known if name.partition(".")[2] in found}
    both = replaced({"params": state.params, "stats": state.stats}, values)
    out = place(out)
    resolved = claim(out, experiment)
    write_description(out, {"multi_label": False, "fingerprint": "elsewhere", "images": 1, "sha256": "",
                            "classes": list(names)})
    checkpoints = Checkpoints(out / "checkpoints", keep=1)
    checkpoints.save(0, dataclasses.replace(state, **both), resolved, {"step": 0, "bad_images": 0})
    checkpoints.wait()
    checkpoints.close()
    return f"{type(backbone).__name__}-{depth} with {count} classes, {len(found)} arrays"


def _backbone(tensors: dict[str, np.ndarray], depth: int, source: str) -> Backbone:
    """The network of these arrays, as wide as its first convolution says."""
    stem = next((array.shape for array in tensors.values() if array.shape[:3] == (7, 7, 3)
                 or array.shape[1:] == (3, 7, 7)), None)
    if stem is None:
        raise UserError(f"{source} has no first convolution of 7 x 7 pixels and 3 colours; expected an ImageNet stem")
    width = (stem[3] if stem[2] == 3 else stem[0]) / 64
    kind = next((naming.family for naming in NAMINGS if naming.recognises(tensors)), family(tensors))
    if kind == "ResNetV2":
        return ResNetV2(depth, width=width, pixels=pixels_of(source) or Pixels())
    return ResNet(depth, width=width, norm=GroupNorm() if kind == "GroupNorm ResNet" else BatchNorm(),
                  pixels=pixels_of(source) or Pixels())


def export_weights(run: Path, out: Path, form: Format, step: int | None = None, allowed: Sequence[str] = ()) -> str:
    """Write a run's network as a .safetensors file (or .npz for ``bit``), under the names that other projects use.

    Raises:
      UserError: no such run, or its network has no names elsewhere.
    """
    job, state, at = open_run(run, step, allowed)
    arrays = {name.partition(".")[2]: np.asarray(leaf) for name, leaf in
              flatten({"params": state.best_params, "stats": state.stats}).items()}
    second = isinstance(job.experiment.backbone, ResNetV2)
    if form == "safetensors":
        tensors = arrays
    elif form == "bit" or (form == "timm" and second):
        tensors = to_bit(arrays, timm=form == "timm")
    else:
        tensors = to_torchvision(arrays)
    out.parent.mkdir(parents=True, exist_ok=True)
    if form == "bit" and out.suffix == ".npz":
        np.savez(out, **tensors)
    else:
        pixels = job.experiment.backbone.pixels
        write_safetensors(out, tensors, {"pixels": json.dumps([pixels.mean, pixels.std])})
    return f"{len(tensors)} arrays of step {at}"
