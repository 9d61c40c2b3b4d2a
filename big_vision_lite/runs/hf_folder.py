"""A run as a folder to share: model.safetensors, config.json and a model card, as Hugging Face keeps models.

config.json has the run's config without its data and without paths of this machine, so that ``bvl.load`` makes a run of
the folder again, with class names and preprocessing. Where timm has the same network, weights and config.json are
timm's as well.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from big_vision_lite import __version__
from big_vision_lite import config as configs
from big_vision_lite.backbones.backbone import Backbone, PixelNormalization
from big_vision_lite.data.curation.steps import ClassSubset
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.source import Source
from big_vision_lite.data.sources.per_object import PerObject
from big_vision_lite.data.transforms.image import CentreCrop
from big_vision_lite.errors import UserError, first_line, writing
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
from big_vision_lite.heads.head import Head
from big_vision_lite.heads.keypoints import TopDown
from big_vision_lite.heads.segmentation import Segmentation
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.runs.import_export import RECORD, UnavailableSource, is_standard
from big_vision_lite.runs.serving import preprocessing
from big_vision_lite.system.atomic import write_text
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.best import CheckpointChoice
from big_vision_lite.training.metrics import last_results, read_run
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.transfer import Transfer
from big_vision_lite.training.trees import flatten
from big_vision_lite.training.workdir import read_dataset_info
from big_vision_lite.weights.convert import to_theirs
from big_vision_lite.weights.files import write_safetensors
from big_vision_lite.weights.naming import TORCHVISION

TASKS: dict[type[Head], str] = {Classification: "image-classification", FasterRCNN: "object-detection",
                                Segmentation: "image-segmentation", TopDown: "keypoint-detection"}
"""Hugging Face's names."""


def write_hf_folder(run: Path, out: Path, checkpoint: CheckpointChoice = "last", allowed: tuple[str, ...] = (),
                    licence: str | None = None, repository: str | None = None) -> str:
    """Write ``model.safetensors``, ``config.json`` and the model card ``README.md``. Returns a one-line summary.

    Args:
      checkpoint, allowed: as `open_run`.
      licence: of the weights, by its identifier on Hugging Face, such as apache-2.0; for the card.
      repository: OWNER/NAME where the folder will be; for the card.

    Raises:
      UserError: no such run, or ``out`` cannot be written.
    """
    trainer, state, step = open_run(run, checkpoint, allowed)
    run, out = as_path(run), as_path(out)
    arrays = {name.partition(".")[2]: np.asarray(leaf) for name, leaf in
              flatten({"params": state.eval_params, "batch_stats": state.batch_stats}).items()}
    architecture = timm_architecture(trainer.experiment)
    tensors = to_theirs(TORCHVISION, arrays) if architecture else arrays
    config = _config(run, trainer, step, architecture)
    pixels = getattr(trainer.experiment.backbone, "pixels", PixelNormalization())
    with writing(f"to {str(out)!r}", "choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
        write_safetensors(out / "model.safetensors", tensors, {"pixels": json.dumps([pixels.mean, pixels.std])})
        write_text(out / "config.json", json.dumps(config, indent=1) + "\n")
        write_text(out / "README.md", _card(run, trainer, step, architecture, licence, repository or "OWNER/NAME"))
    names = f"timm's names for {architecture}" if architecture else "our names; no other library has this network"
    return f"{len(tensors)} arrays of step {step} under {names}"


def timm_architecture(experiment: Experiment) -> str | None:
    """timm's name of the same network and head; None if it has none."""
    backbone: Any = experiment.backbone
    same = type(experiment.head) is Classification and is_standard(backbone)
    return f"resnet{backbone.depth}" if same else None


def push(folder: Path, repository: str, public: bool = False) -> str:
    """Upload a folder to a model repository on Hugging Face, which is made if it is not there. Returns its URL.

    Args:
      repository: OWNER/NAME.
      public: make a new repository public.

    Raises:
      UserError: huggingface_hub is not installed, there is no token, or the server refuses.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("--push needs huggingface_hub, which is not installed; pip install 'big_vision_lite[hub]'"
                        ) from error
    if huggingface_hub.get_token() is None:
        raise UserError("--push needs a token of Hugging Face with the right to write; set $HF_TOKEN, or log in with "
                        "hf auth login")
    client = huggingface_hub.HfApi()
    try:
        client.create_repo(repository, private=not public, exist_ok=True)
        client.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"big_vision_lite {__version__}",
                             allow_patterns=["README.md", "config.json", "model.safetensors"])
    except Exception as error:  # of HTTP, of names: without a common type
        raise UserError(f"--push {repository}: {type(error).__name__}: {first_line(error)}") from error
    return f"{client.endpoint}/{repository}"


def shared_experiment(experiment: Experiment, name: str) -> Experiment:
    """An experiment without its data and without paths of this machine: what its network is, and how it sees images."""
    def source(original: Source) -> Source:
        missing = UnavailableSource(name)
        return dataclasses.replace(original, source=missing, boxes=None) if isinstance(original, PerObject) else missing

    def seen(inputs: Input) -> Input:
        kept = tuple(step for step in inputs.curate if isinstance(step, ClassSubset))
        return dataclasses.replace(inputs, source=source(inputs.source), curate=kept, resident=None)

    head: Any = experiment.head
    if getattr(head, "hierarchy", None):
        head = dataclasses.replace(head, hierarchy=None)
    return dataclasses.replace(experiment, train=seen(experiment.train), head=head, transfer=Transfer(), branch=None,
                               evals={key: seen(inputs) for key, inputs in experiment.evals.items()}, probes={})


def _config(run: Path, trainer: Trainer, step: int, architecture: str | None) -> dict[str, Any]:
    experiment, classes = trainer.experiment, list(trainer.data.classes)
    seen, info = preprocessing(trainer), read_dataset_info(run)
    height, width = seen["size"]
    mean, std = ([value / 255 for value in seen[name]] for name in ("mean", "std"))
    view = experiment.view.transform
    crop = view.size / view.resize if isinstance(view, CentreCrop) and isinstance(view.size, int) else 1.0
    return {
        "architecture": architecture or _described(experiment.backbone),
        "num_classes": len(classes),
        "label_names": classes,
        "pretrained_cfg": {"input_size": [3, height, width], "mean": mean, "std": std, "crop_pct": crop,
                           "interpolation": "bilinear", "num_classes": len(classes), "label_names": classes},
        "preprocessing": seen,
        RECORD: {
            "version": __version__, "step": step,
            "experiment": json.loads(configs.dumps(shared_experiment(experiment, run.resolve().name))),
            "data": {"classes": classes, "multi_label": info.multi_label, "fingerprint": info.fingerprint,
                     "images": info.images, "sha256": info.sha256},
        },
    }


def _described(backbone: Backbone) -> str:
    """The network in words: "ResNet-10 of width 0.5"."""
    depth, width = getattr(backbone, "depth", None), getattr(backbone, "width", 1.0)
    return type(backbone).__name__ + (f"-{depth}" if depth else "") + (f" of width {width:g}" if width != 1.0 else "")


def _card(run: Path, trainer: Trainer, step: int, architecture: str | None, licence: str | None,
          repository: str) -> str:
    """The model card. Its numbers are those of run.json, data.json and the last evaluation."""
    experiment, data, name = trainer.experiment, read_dataset_info(run), run.resolve().name
    record, seen = read_run(run), preprocessing(trainer)
    task = next((task for kind, task in TASKS.items() if isinstance(experiment.head, kind)), None)
    results = (record.get("results") if record.get("step") == step else None) or last_results(run)
    front = ["---", f"library_name: {'timm' if architecture else 'big_vision_lite'}",
             *([f"license: {licence}"] if licence else []), *([f"pipeline_tag: {task}"] if task else []),
             "tags:", "- big_vision_lite", "- jax", "---"]
    several = "any number of labels per image" if data.multi_label else "one label per image"
    images_seen = step * experiment.train.batch_size
    lines = [
        *front, "", f"# {name}", "",
        f"{_described(experiment.backbone)} with the head {type(experiment.head).__name__}, trained with "
        f"big_vision_lite {record.get('versions', {}).get('big_vision_lite', __version__)} on {data.images:,} images "
        f"({several}) for {step:,} steps: {images_seen:,} images seen.", "",
        "```python", "import big_vision_lite as bvl", "", f'run = bvl.load("hf:{repository}")  # or this folder',
        'run.predict("photo.jpg")', "```", ""]
    if architecture:
        lines += [f'Also `timm.create_model("hf-hub:{repository}", pretrained=True)`, as {architecture}.', ""]
    mean, std = (", ".join(f"{value:g}" for value in seen[key]) for key in ("mean", "std"))
    lines += ["## Preprocessing", "", f"{seen['resize']['words']} Here: {_fields(seen['resize'])}. RGB pixels from 0 "
              f"to 255, minus ({mean}), divided by ({std}).", ""]
    scores = {key: value for key, value in results.items() if isinstance(value, int | float) and "/" in key}
    if scores:
        lines += ["## Evaluation", "", "Of the run's own evaluation data:", "", "| metric | value |", "|---|---|",
                  *(f"| {key} | {value:.6g} |" for key, value in scores.items()), ""]
    classes = data.classes
    shown = ", ".join(classes[:50]) + (", ... (all in config.json as `label_names`)" if len(classes) > 50 else "")
    lines += ["## Classes", "", f"{len(classes):,}: {shown}", ""]
    lines += ["## Limits", "", "What images it was trained on, and what it must not be used for, is for its owner to "
              "say here.", ""]
    return "\n".join(lines)


def _fields(resize: dict[str, Any]) -> str:
    """The transform's class and fields, as Python."""
    fields = ", ".join(f"{key}={value}" for key, value in resize.items() if key not in ("words", "class"))
    return f"`{resize['class']}({fields})`"
