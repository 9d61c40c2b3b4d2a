"""The command ``bvl export``: a run for other people and other programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from big_vision_lite.commands.arguments import Checkpoint, Imports, Run, checkpoint_of, parse
from big_vision_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run as a folder to share, or its network as a program that runs without this package.

    hf-folder: model.safetensors, config.json and a model card, which bvl.load reads as a run again. stablehlo: for
    jax.export. onnx: by jax2onnx (extra [onnx]). savedmodel: for TensorFlow (extra [tf]).
    """

    run: Run
    to: Literal["hf-folder", "stablehlo", "onnx", "savedmodel"]
    """What to write."""
    out: Path | None = None
    """Folder for it; by default RUN/exports/ and the name of what is written."""
    licence: Annotated[str | None, tyro.conf.arg(aliases=["--license"])] = None
    """Licence of the weights, such as apache-2.0, for the model card of hf-folder."""
    push: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None
    """Upload hf-folder to this model repository on Hugging Face (extra [hub]), private if it is new."""
    public: bool = False
    """Make a new repository public."""
    checkpoint: Checkpoint = "last"
    imports: Imports = ()


def export(arguments: list[str]) -> int:
    options = parse(Export, arguments, "bvl export")
    if options.to != "hf-folder" and (options.push or options.licence):
        raise UserError(f"--push and --licence are for --to hf-folder, not for {options.to}; leave them out")
    checkpoint = checkpoint_of(options.checkpoint)
    from big_vision_lite.commands.setup import set_up_for

    set_up_for(options.run, options.imports)
    out = options.out or options.run / "exports" / options.to
    if options.to != "hf-folder":
        from big_vision_lite.runs.serving import export

        print(f"{out}: {export(options.run, out, options.to, checkpoint, options.imports)}")
        return 0
    from big_vision_lite.runs.hf_folder import push, write_hf_folder

    print(f"{out}: {write_hf_folder(options.run, out, checkpoint, options.imports, options.licence, options.push)}")
    if options.push:
        print(push(out, options.push, options.public))
    return 0
