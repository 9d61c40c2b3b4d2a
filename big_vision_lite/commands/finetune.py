"""The command ``bvl finetune``: pretrained weights onto data of your own, with a config that it works out and keeps."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import tyro

from big_vision_lite.commands.arguments import Source, parse
from big_vision_lite.errors import UserError, writing
from big_vision_lite.system.paths import scheme

CONFIG = "config.py"
"""The config's name in the run's folder."""


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tune a pretrained network to data of your own.

    Works out network, input size, batch and length from weights, data and machine, prints the config, keeps it as
    WORKDIR/config.py and trains it. The same command goes on from there; an edited config.py is trained as it is.
    """

    source: Annotated[Source, tyro.conf.Positional]
    """Folder of class folders, of images/ and masks/, or of images/ and labels/ (YOLO); a VOC tree, a COCO json, a
    folder with annotations/instances_train*.json, a csv; with a split to evaluate on."""
    init: Annotated[str | None, tyro.conf.arg(name="from", metavar="WEIGHTS")] = None
    """A run, a file of a ResNet's weights, hf:OWNER/NAME or a URL."""
    task: Literal["classify", "detect", "segment"] | None = None
    """By default detect with boxes, segment with masks, else classify."""
    workdir: Path = Path("runs/NAME")
    """Folder for the run's files; by default runs/, and the name of the data with -finetuned."""
    minutes: float = 10.0
    """On CPUs: about how long training may take, without compiling and evaluations."""
    size: int | None = None
    """Pixels of the network's input (of the long side, with boxes or masks) instead of what is worked out."""
    batch_size: int | None = None
    """Images per step, likewise."""
    steps: int | None = None
    """Length of the run, likewise."""
    seed: int = 0
    dry_run: bool = False
    """Write and print the config, and stop."""


def finetune(arguments: list[str]) -> int:
    options = parse(Finetune, arguments, "bvl finetune", Finetune("") if not arguments else None)
    if not options.source or options.init is None:
        raise UserError("bvl finetune needs data and weights: bvl finetune /photos --from runs/quickstart, or --from "
                        "hf:timm/resnet50.a1_in1k")
    if not 0 < options.minutes < float("inf"):
        raise UserError(f"--minutes {options.minutes:g}: expected a number above 0")
    for name in ("size", "batch_size", "steps"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    name = Path(re.split(r":(?=[a-z_]+=)", options.source)[0]).expanduser().resolve().stem
    workdir = options.workdir if options.workdir != Finetune.workdir else Path("runs") / f"{name}-finetuned"
    if prefix := scheme(workdir):
        raise UserError(f"--workdir {prefix}/...: expected a folder on a disk, for {CONFIG}; bvl train takes that "
                        "config and a folder in a bucket")
    path = workdir / CONFIG
    if path.is_file():
        print(f"{path} is there: trained as it is; remove it, or choose another --workdir, to make a new one")
    else:
        text, words = _made(options, path)
        for line in words:
            print(line)
        with writing(f"to the workdir {str(workdir)!r}", "choose another --workdir"):
            workdir.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        print(f"\n{path}:\n\n{text}")
    if options.dry_run:
        return 0
    from big_vision_lite.commands.setup import run_training
    from big_vision_lite.experiment import load_experiment
    from big_vision_lite.training.distributed import Processes
    from big_vision_lite.training.watchdog import PATIENCE

    code = run_training(load_experiment(str(path)), workdir, Processes(), watchdog=PATIENCE)
    if code == 0:
        print(f"next: bvl predict {workdir} PHOTO ...; bvl report {workdir}; or edit {path} and train it with another "
              "--workdir")
    return code


def _made(options: Finetune, path: Path) -> tuple[str, list[str]]:
    """The text of the config that is to be written to ``path``, and what was decided in words."""
    from big_vision_lite.commands.setup import set_up_jax
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.recipes import finetune as recipes
    from big_vision_lite.recipes.as_python import as_python
    from big_vision_lite.system.cores import usable_cores

    data = recipes.find_data(source_of(options.source), options.task)
    start = _start(options.init)
    given = {"size": options.size, "batch_size": options.batch_size, "steps": options.steps, "seed": options.seed}
    machine = recipes.Machine("cpu", usable_cores())
    # Devices are looked for with an experiment, whose batch decides on the number of CPU devices.
    set_up_jax(recipes.finetuning(start, data, machine, options.minutes, **given | {"steps": 1}))
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        memory = (device.memory_stats() or {}).get("bytes_limit")
        machine = recipes.Machine(device.platform, usable_cores(), memory)
    experiment = recipes.finetuning(start, data, machine, options.minutes, **given)
    batch, (height, width, _) = experiment.train.batch_size, experiment.train.transform.shape
    seen = experiment.steps * batch
    summary = (f"Made by bvl finetune: {data.task} {options.source} from {options.init}.\n\n"
               f"    bvl train {path} --workdir runs/another")
    backbone = start.backbone
    shape = ", ".join(f"{name} {getattr(backbone, name)}" for name in ("depth", "width") if hasattr(backbone, name))
    return as_python(experiment, summary), [
        f"data: {len(data.opened):,} images of {len(data.opened.classes)} classes, about {data.side:.0f} pixels per "
        f"side; scored on {', '.join(data.evals)}: {data.task}",
        f"network: {type(backbone).__name__} ({shape}) from {options.init}, input {width} x {height}",
        f"length on {device.platform}: {experiment.steps:,} steps of {batch}, {seen / len(data.opened):.3g} passes"]


def _start(init: str):
    """What a run or weights hold. Raises: UserError."""
    from big_vision_lite.experiment import read_experiment
    from big_vision_lite.recipes.finetune import Start
    from big_vision_lite.runs.import_export import UnavailableSource, backbone_of_weights
    from big_vision_lite.system.paths import as_path

    init = re.sub(r"^(torchvision|timm|bit):", "", init)  # whose names the arrays have is seen from them
    config = as_path(Path(init).expanduser()) / "config.json"
    if config.is_file():
        experiment = read_experiment(config)
        view = experiment.view
        published = isinstance(view.source, UnavailableSource)
        return Start(init, experiment.backbone, None if published else max(view.transform.shape[:2]))
    return Start(init, backbone_of_weights(init), None)
