"""The commands about data: ``bvl data inspect``, ``bvl data prepare``, ``bvl data duplicates``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from big_vision_lite.commands.arguments import parse, set_up_for
from big_vision_lite.commands.sources import input_of, source_of
from big_vision_lite.data.duplicates import MIN_CORRELATION, THRESHOLD
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
    """The sources, such as test sets, that they must not be in. The training source itself: those within it."""
    out: Path = Path("duplicates")
    """Folder for exclude.txt (what `Exclude` reads), pairs.csv, pairs.html and summary.json."""
    threshold: int = THRESHOLD
    """Bits in which two hashes of 64 may differ."""
    min_correlation: float | None = MIN_CORRELATION
    """How well pixels must agree, above 0 to 1; none: hashes decide alone."""
    embed: Path | None = None
    """A run whose features must also agree."""
    max_embedding_distance: float = 0.1
    """1 minus the cosine of the angle between features."""
    runner: str | None = None
    """Any of Beam's runners; by default this machine."""
    beam_options: tuple[str, ...] = ()
    """For the runner: --beam-options=--project=... and so on."""
    shared: str | None = None
    """Folder or bucket that all machines of the runner can write to."""
    workers: int | None = None
    """Threads on this machine; by default one a core."""
    on_bad_image: Literal["list", "raise"] = "list"
    """An image that cannot be read is listed in unreadable.csv, or an error."""
    pairs_shown: int = 200
    """Pairs in pairs.html, the doubtful ones first."""


def duplicates(arguments: list[str]) -> int:
    asked = parse(Duplicates, arguments, "bvl data duplicates")
    from big_vision_lite.data.duplicates import find_duplicates

    embed = {}
    if asked.embed is not None:
        from big_vision_lite.training.embed import Embedder

        set_up_for(asked.embed)
        embedder = Embedder(asked.embed)
        embed = {"embed": embedder, "embed_size": embedder.size, "max_embedding_distance": asked.max_embedding_distance}
    against = {spec: input_of(spec) or source_of(spec) for spec in asked.against}
    summary = find_duplicates(
        input_of(asked.train) or source_of(asked.train), against, asked.out, asked.threshold,
        min_correlation=asked.min_correlation, runner=asked.runner, beam_options=asked.beam_options,
        shared=asked.shared, workers=asked.workers, on_bad_image=asked.on_bad_image, pairs_shown=asked.pairs_shown,
        **embed)
    for name, found in summary.against.items():
        print(f"{name}: {found.with_duplicates:,} of {found.images:,} images have a near-duplicate in {asked.train}")
    print(f"{summary.excluded:,} of {summary.train_images:,} training images are to be left out: "
          f"Exclude({str(asked.out / 'exclude.txt')!r}); look at {asked.out / 'pairs.html'}")
    return 0
