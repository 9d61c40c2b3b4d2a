"""The commands that exchange weights: ``bvl weights import``, ``bvl weights export``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from big_vision_lite.commands.arguments import parse, set_up_for
from big_vision_lite.errors import UserError, nearest


def weights(arguments: list[str]) -> int:
    commands = {"import": import_, "export": export}
    if not arguments or arguments[0] not in commands:
        raise UserError("expected: bvl weights import|export" + (nearest(arguments[0], commands) if arguments else ""))
    return commands[arguments[0]](arguments[1:])


@dataclasses.dataclass(frozen=True)
class Import:
    """Make a run's folder of a file of weights. Its naming (torchvision, timm, BiT, ours) is recognised."""

    file: Annotated[str, tyro.conf.Positional]
    """.safetensors or .npz, also as hf:OWNER/NAME or a URL; or .pth, which needs torch and is read without pickle."""
    out: Path
    """Folder of the run."""
    classes: Path | None = None
    """Text file with the names of the classes, one a line."""


def import_(arguments: list[str]) -> int:
    asked = parse(Import, arguments, "bvl weights import")
    from big_vision_lite.training.exchange import import_weights

    names = None
    if asked.classes is not None:
        try:
            names = asked.classes.read_text().split("\n")
        except OSError as error:
            raise UserError(f"cannot read {str(asked.classes)!r}: {error.strerror or error}") from None
        names = [name for name in map(str.strip, names) if name]
    print(f"{asked.out}: {import_weights(asked.file, asked.out, names)}")
    return 0


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's network under the names that other projects use."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    to: Literal["torchvision", "timm", "bit", "safetensors"]
    """Whose names: torchvision's, timm's, BiT's, or ours."""
    out: Path
    """The file: .safetensors; or .npz for bit."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules beside this package that the classes in the run's config may come from."""


def export(arguments: list[str]) -> int:
    asked = parse(Export, arguments, "bvl weights export")
    set_up_for(asked.run, asked.imports)
    from big_vision_lite.training.exchange import export_weights

    print(f"{asked.out}: {export_weights(asked.run, asked.out, asked.to, asked.step, asked.imports)}")
    return 0
