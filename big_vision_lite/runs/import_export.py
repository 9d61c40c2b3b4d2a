"""Runs from weights files, and weights files from runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from big_vision_lite import config as configs
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
from big_vision_lite.system.parse import convert, read_json
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
RECORD = "big_vision_lite"
"""The key in the config.json of a shared folder (`runs.hf_folder`) under which the run is described."""
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


class _Record(msgspec.Struct):
    """What a shared folder says about its run."""

    experiment: dict[str, Any]
    data: SavedDatasetInfo
    step: int


def import_weights(source: str, out: Path, classes: Sequence[str] | None = None, ema: bool = False) -> str:
    """Make a run folder from a weights file, to start from, to probe and to export. Returns a one-line summary.

    The weights of a folder that ``bvl export --to hf-folder`` wrote are the whole run again, without its data.

    Args:
      source: path, hf:OWNER/NAME or URL of a .safetensors, .npz or .pth file of a ResNet or BiT ResNet-v2.
      classes: class names of the head; None: their numbers.
      ema: take the moving average that a .pth file holds beside the network.

    Raises:
      UserError: the file cannot be read, the network is unknown, or ``out`` holds another run.
    """
    out = run_folder(out)
    weights = read_weights(source, ema)
    record = _record_beside(weights)
    if record is not None:
        if classes is not None:
            raise UserError(f"{source} has names of its {len(record.data.classes)} classes; leave the others out")
        configs.check_format(record.experiment, Path(source))
        experiment = configs.from_json({key: value for key, value in record.experiment.items() if key != "format"},
                                       source=source)
        if not isinstance(experiment, Experiment):
            raise UserError(f"{source}: its config.json describes a {type(experiment).__name__}, not an Experiment")
        count = _make_run(out, experiment, record.data, weights, source, record.step)
        return f"run of {len(record.data.classes)} classes, {count} arrays of step {record.step}"
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
    loaded = _make_run(out, experiment, SavedDatasetInfo(names, multi_label, _NO_DATA, 1, ""), weights, source)
    classifier = f"{count} classes" if head is not None else "no classifier"
    return (f"{type(backbone).__name__}-{backbone.depth} with {classifier}, {loaded} arrays"
            + (f" of {weights.part}" if weights.part else ""))


def _make_run(out: Path, experiment: Experiment, data: SavedDatasetInfo, weights: Weights, source: str,
              step: int = 0) -> int:
    """Write a run with these weights as its checkpoint. Returns the number of arrays. Raises: UserError."""
    trainer = Trainer(experiment, data)
    spec = flatten({"params": trainer.state_spec.params, "batch_stats": trainer.state_spec.batch_stats})
    ours = to_ours(weights.arrays, {name.partition(".")[2]: leaf for name, leaf in spec.items()}, source)
    state = trainer.random_init()  # compiled only when the weights fit
    loaded = {name: ours[name.partition(".")[2]] for name in spec if name.partition(".")[2] in ours}
    arrays = replaced({"params": state.params, "batch_stats": state.batch_stats}, loaded)
    if state.ema_params is not None:  # what is shared is what evaluation uses
        arrays["ema_params"] = jax.tree.map(jnp.copy, arrays["params"])
    with OwnedWorkdir(out):
        resolved = open_workdir(out, experiment)
        write_dataset_info(out, {"multi_label": data.multi_label, "fingerprint": data.fingerprint,
                                 "images": data.images, "sha256": data.sha256, "classes": list(data.classes)})
        with contextlib.closing(Checkpoints(out / "checkpoints", max_checkpoints=1)) as checkpoints:
            checkpoints.save(step, dataclasses.replace(state, **arrays), resolved, {"step": step, "bad_images": 0})
            checkpoints.wait()
    return len(ours)


def _record_beside(weights: Weights) -> _Record | None:
    """What the config.json beside a weights file says about a run; None if it is another project's.

    Raises: UserError when it is damaged."""
    path = weights.file.with_name("config.json") if weights.file else None
    try:
        values = read_json(path, dict[str, Any]) if path and path.is_file() else {}
    except UserError:  # says nothing about a run
        return None
    return convert(values[RECORD], _Record, path) if isinstance(values.get(RECORD), dict) else None


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
    backbone = trainer.experiment.backbone
    ours_alone = naming is TORCHVISION and not is_standard(backbone)
    return f"{len(tensors)} arrays of step {step}" + (
        f"; {form} itself has no such ResNet, so only programs that build it can read them" if ours_alone else "")


def is_standard(backbone: Backbone) -> bool:
    """Whether torchvision and timm have this ResNet, for their names to mean something there."""
    return (isinstance(backbone, ResNet) and isinstance(backbone.norm, BatchNorm) and 18 <= backbone.depth <= 152
            and (backbone.width, backbone.stem, backbone.output_stride) == (1.0, "imagenet", 32))
