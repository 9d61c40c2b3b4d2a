"""The command ``bvl predict``: what a run says of image files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from big_vision_lite.commands.arguments import parse, set_up_for


@dataclasses.dataclass(frozen=True)
class Predict:
    """Draw a run's predictions for image files, a PNG an image, and print them as JSON, a line an image."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""
    out: Path | None = None
    """Folder for the pictures; by default RUN/predictions."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules beside this package that the classes in the run's config may come from."""


def predict(arguments: list[str]) -> int:
    asked = parse(Predict, arguments, "bvl predict")
    set_up_for(asked.run, asked.imports)
    from big_vision_lite.training.predict import predict

    for answer in predict(asked.run, asked.images, asked.out or asked.run / "predictions", asked.step, asked.imports):
        print(json.dumps(answer), flush=True)
    return 0
