"""The commands about data: ``bvl data inspect``, ``bvl data prepare``, ``bvl data duplicates``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from big_vision_lite.commands.arguments import parse
from big_vision_lite.commands.sources import input_of, source_of
from big_vision_lite.data.label_index import label_index
from big_vision_lite.errors import UserError, nearest


def data(arguments: list[str]) -> int:
    commands = {"inspect": inspect, "prepare": prepare, "duplicates": duplicates}
    if not arguments or arguments[0] not in commands:
        close = nearest(arguments[0], commands) if arguments else ""
        raise UserError("expected: bvl data " + "|".join(commands) + close)
    return commands[arguments[0]](arguments[1:])


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print what a source holds, and write a contact sheet of it."""

    source: Annotated[str, tyro.conf.Positional]
    """A folder, a json, csv or config file, or the name of a TFDS data set; see `bvl --help`."""
    out: Path | None = None
    """The contact sheet; by default NAME.png here."""
    curated: bool = True
    """Of a config: apply the steps of its curation."""


def inspect(arguments: list[str]) -> int:
    asked = parse(Inspect, arguments, "bvl data inspect")
    from big_vision_lite.data.inspect import inspect

    inputs = input_of(asked.source) if asked.curated else None
    records = inputs.open() if inputs else source_of(asked.source).open()
    name = Path(asked.source.partition(":")[0]).stem
    inspect(records, asked.source, asked.out or Path(f"{name}.png"))
    return 0


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write a source's splits as a TFDS data set of ArrayRecord files, without TensorFlow. Started again after it was
    stopped, it goes on."""

    source: Annotated[str, tyro.conf.Positional]
    """A folder, a json, csv or config file; see `bvl --help`."""
    name: str
    """Of the data set."""
    splits: tuple[str, ...] = ()
    """Splits of the source; by default the one that it names."""
    data_dir: Path | None = None
    """Where data sets are; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    processes: int | None = None
    """Worker processes; by default one a core."""
    on_bad_image: str = "raise"
    """raise, or skip: leave out what cannot be read and list it beside the data."""


def prepare(arguments: list[str]) -> int:
    asked = parse(Prepare, arguments, "bvl data prepare")
    from big_vision_lite.data.prepare import prepare
    from big_vision_lite.data.tfds_source import Tfds, default_data_dir

    source = source_of(asked.source)
    if asked.splits and "split" not in [field.name for field in dataclasses.fields(source)]:
        raise UserError(f"{type(source).__name__} has no splits; leave --splits out")
    split = getattr(source, "split", "train")
    sources = {name: dataclasses.replace(source, split=name) for name in asked.splits} or {split: source}
    data_dir = default_data_dir(asked.data_dir and str(asked.data_dir))
    folder = prepare({name: one.open() for name, one in sources.items()}, Path(data_dir), asked.name,
                     processes=asked.processes, on_bad_image=asked.on_bad_image)
    for name in sources:
        label_index(Tfds(asked.name, name, data_dir).open(), folder / "label_index")
    print(f"{folder} is ready: Tfds({asked.name!r}, SPLIT) with " + ", ".join(sources))
    return 0


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Find images of a training source that are nearly the same as images of other sources."""

    train: str
    """The source in which they are looked for; see `bvl --help`."""
    against: tuple[str, ...]
    """The sources, such as test sets, that they must not be in; the training source itself finds those within it."""
    out: Path = Path("duplicates")
    """Folder for exclude.txt (what `Exclude` reads), pairs.csv, pairs.html and summary.json."""


def duplicates(arguments: list[str]) -> int:
    asked = parse(Duplicates, arguments, "bvl data duplicates")
    print(asked, file=sys.stderr)
    return 0
