"""The commands that exchange weights: ``bvl weights import``, ``bvl weights export``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from big_vision_lite.commands.arguments import Checkpoint, Imports, Run, checkpoint_of, parse
from big_vision_lite.system.parse import read_text


@dataclasses.dataclass(frozen=True)
class Import:
    """Make a run folder from a file of weights. Its naming (torchvision, timm, BiT, ours) is detected."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """.safetensors or .npz, a URL, hf:OWNER/NAME, or .pth, which needs torch and is read without pickle."""
    out: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run to make."""
    classes: Path | None = None
    """Text file with one class name per line."""
    weights: Literal["trained", "ema"] = "trained"
    """Which weights of a training script's .pth file: those that were trained, or their moving average."""


def import_(arguments: list[str]) -> int:
    options = parse(Import, arguments, "bvl weights import")
    from big_vision_lite.runs.import_export import import_weights

    names = None
    if options.classes is not None:
        names = [name for name in map(str.strip, read_text(options.classes).split("\n")) if name]
    print(f"{options.out}: {import_weights(options.file, options.out, names, options.weights == 'ema')}")
    return 0


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's network under the names that other projects use."""

    run: Run
    to: Literal["torchvision", "timm", "bit", "safetensors"]
    """Whose names: torchvision's, timm's, BiT's, or ours."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The file: .safetensors; for bit .npz."""
    checkpoint: Checkpoint = "last"
    imports: Imports = ()


def export(arguments: list[str]) -> int:
    options = parse(Export, arguments, "bvl weights export")
    checkpoint = checkpoint_of(options.checkpoint)
    from big_vision_lite.commands.setup import set_up_for

    set_up_for(options.run, options.imports)
    from big_vision_lite.runs.import_export import export_weights

    print(f"{options.out}: {export_weights(options.run, options.out, options.to, checkpoint, options.imports)}")
    return 0
