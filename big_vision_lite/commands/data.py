"""The commands about data: ``bvl data inspect``, ``prepare``, ``index``, ``hold-out``, ``score`` and ``duplicates``."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from big_vision_lite.commands.arguments import Checkpoint, Imports, Source, checkpoint_of, parse
from big_vision_lite.commands.arguments import Run as RunFolder
from big_vision_lite.errors import UserError, writing
from big_vision_lite.near_duplicates import MIN_CORRELATION, THRESHOLD

if TYPE_CHECKING:
    from big_vision_lite.data.tools.shard_writer import Run


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print what a source holds, and write a contact sheet of it."""

    source: Annotated[Source, tyro.conf.Positional]
    """A folder, a json, csv or config file, or the name of a TFDS dataset; see `bvl help`."""
    out: Path | None = None
    """The contact sheet; by default NAME.png in this folder."""


def inspect(arguments: list[str]) -> int:
    options = parse(Inspect, arguments, "bvl data inspect")
    from big_vision_lite.commands.sources import input_of, source_of
    from big_vision_lite.data.tools.inspect import inspect

    inputs = input_of(options.source)
    dataset = inputs.open() if inputs else source_of(options.source).open()
    name = Path(options.source.partition(":")[0]).stem
    inspect(dataset, options.source, options.out or Path(f"{name}.png"))
    return 0


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write a source's splits as a TFDS dataset of ArrayRecord files, without TensorFlow. Run again, it resumes."""

    source: Annotated[Source, tyro.conf.Positional]
    """A folder, a json, csv or config file; see `bvl help`."""
    name: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """Name of the dataset."""
    splits: tuple[str, ...] = ()
    """Splits of the source; by default the one it names, or "train" if it names none or all images."""
    data_dir: Path | None = None
    """Folder of datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    processes: int | None = None
    """Worker processes; by default one per core."""
    on_bad_image: str = "raise"
    """raise, or skip: leave out unreadable images and list them beside the data."""
    runner: str | None = None
    """A Beam runner, whose machines have --data-dir and the source at the same places; by default this machine's
    processes."""
    beam_options: tuple[str, ...] = ()
    """Options for the runner: --beam-options=--project=... and so on."""
    workers: int = 1
    """Threads of Beam on this machine."""


def prepare(arguments: list[str]) -> int:
    options = parse(Prepare, arguments, "bvl data prepare")
    from big_vision_lite.commands.sources import source_of
    from big_vision_lite.data.sources.tfds import ALL, default_data_dir
    from big_vision_lite.data.tools.prepare import prepare

    source = source_of(options.source)
    if options.splits and "split" not in [field.name for field in dataclasses.fields(source)]:
        raise UserError(f"{type(source).__name__} has no splits; omit --splits")
    split = getattr(source, "split", None)
    sources = ({name: dataclasses.replace(source, split=name) for name in options.splits}
               or {"train" if split in (None, ALL) else split: source})
    data_dir = default_data_dir(options.data_dir and str(options.data_dir))
    folder = prepare({name: source.open() for name, source in sources.items()}, Path(data_dir), options.name,
                     processes=options.processes, on_bad_image=options.on_bad_image,
                     run=_beam(options.runner, options.beam_options, options.workers, data_dir))
    print(f"{folder} is ready: Tfds({options.name!r}, SPLIT) with " + ", ".join(sources))
    return 0


@dataclasses.dataclass(frozen=True)
class Index:
    """Make what runs must read a whole dataset for: indices of files, labels, orders and manifests. Run again, it
    resumes. Other machines find it by BVL_SHARED=FOLDER."""

    source: Annotated[Source, tyro.conf.Positional]
    """A folder, a json, csv or config file, or the name of a TFDS dataset; of a config, all that it reads."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder that all machines see; by default the cache of this one."""
    runner: str | None = None
    """A Beam runner, such as DirectRunner for this machine; by default without Beam."""
    beam_options: tuple[str, ...] = ()
    """Options for the runner: --beam-options=--project=... and so on."""
    workers: int = 1
    """Threads of Beam on this machine."""


def index(arguments: list[str]) -> int:
    options = parse(Index, arguments, "bvl data index")
    from big_vision_lite.commands.sources import inputs_of, source_of
    from big_vision_lite.data.tools.index import index
    from big_vision_lite.system.cache import cache_dir

    if options.out is not None:
        with writing(options.out, "name another folder"):
            options.out.mkdir(parents=True, exist_ok=True)
        os.environ["BVL_CACHE"] = str(options.out.absolute())
        os.environ.pop("BVL_SHARED", None)
    run = _beam(options.runner, options.beam_options, options.workers, str(cache_dir()))
    for name, data in (inputs_of(options.source) or {options.source: source_of(options.source)}).items():
        found = index(data, run)
        print(f"{name}: {found.images:,} images with {found.labels:,} labels are indexed in {cache_dir()}")
    if options.out is not None:
        print(f"set BVL_SHARED={options.out.absolute()} on all machines")
    return 0


def _beam(runner: str | None, beam_options: tuple[str, ...], workers: int, shared: str) -> Run | None:
    """How jobs are run on Beam; None without a runner. Raises: UserError."""
    if runner is None:
        if beam_options:
            raise UserError(f"--beam-options {' '.join(beam_options)} without a runner; add --runner")
        return None
    from big_vision_lite.data.tools.beam import check_runner, on_beam

    check_runner(runner, beam_options)
    return functools.partial(on_beam, shared=shared, runner=runner, beam_options=beam_options, workers=workers)


@dataclasses.dataclass(frozen=True)
class HoldOut:
    """Write a folder that has train/ and test/ with some of its training images in val/, by links to the files."""

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder with train/CLASS/* and usually test/CLASS/*."""
    images: int
    """Validation images, in the proportions of the classes."""
    out: Path
    """The new folder, with train/, val/ and test/."""
    seed: int = 0
    """Each seed holds out other images."""


def hold_out(arguments: list[str]) -> int:
    options = parse(HoldOut, arguments, "bvl data hold-out")
    from big_vision_lite.data.tools.hold_out import hold_out

    counts = hold_out(options.root, options.out, options.images, options.seed)
    print(f"{options.out} is ready: " + ", ".join(f"{name} {images:,}" for name, images in counts.items()) + " images")
    return 0


@dataclasses.dataclass(frozen=True)
class ScoreImages:
    """Score images by a run, for the curation step KeepByScore: loss, margin, distance to the class, likeness to an
    earlier image of the class."""

    run: RunFolder
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.arrow")]
    """The file to write."""
    source: Source | None = None
    """Images to score, with one label or more each; by default what the run was trained on. Of a CONFIG, its training
    data after curation."""
    checkpoint: Checkpoint = "last"
    imports: Imports = ()


def score(arguments: list[str]) -> int:
    options = parse(ScoreImages, arguments, "bvl data score")
    checkpoint = checkpoint_of(options.checkpoint)
    from big_vision_lite.commands.setup import set_up_for

    experiment = set_up_for(options.run, options.imports)
    from big_vision_lite.commands.sources import input_of, source_of
    from big_vision_lite.runs.score import score

    data = None
    if options.source is not None:
        data = input_of(options.source) or dataclasses.replace(
            experiment.train, source=source_of(options.source), curate=())
    table = score(options.run, options.out, data, checkpoint, options.imports)
    print(f"{options.out}: {', '.join(table.scores)} of {len(table.keys):,} images; keep some of them with "
          f"KeepByScore({str(options.out)!r}, 0.5)")
    return 0


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Find images of a training source that nearly equal images of other sources."""

    train: Source
    """The source to search; see `bvl help`."""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")]
    """Sources, such as test sets, to compare with. The training source itself: duplicates within it."""
    out: Path = Path("duplicates")
    """Folder for exclude.txt (for the curation step Exclude), pairs.csv, pairs.html and summary.json."""
    threshold: int = THRESHOLD
    """Bits of 64 in which two hashes may differ."""
    min_correlation: float | None = MIN_CORRELATION
    """Least correlation of the pixels, above 0 to 1; none: hashes alone decide."""
    embed: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """A run whose features must agree as well."""
    max_embedding_distance: float = 0.1
    """1 minus the cosine similarity of the features."""
    runner: str | None = None
    """A Beam runner; by default this machine."""
    beam_options: tuple[str, ...] = ()
    """Options for the runner: --beam-options=--project=... and so on."""
    shared: str | None = None
    """Folder or bucket that all the runner's machines can write to."""
    workers: int = 1
    """Threads on this machine."""


def duplicates(arguments: list[str]) -> int:
    options = parse(Duplicates, arguments, "bvl data duplicates")
    from big_vision_lite.commands.sources import input_of, source_of
    from big_vision_lite.near_duplicates.find import find_duplicates

    embed = {}
    if options.embed is not None:
        from big_vision_lite.commands.setup import set_up_for
        from big_vision_lite.runs.features import Embedder

        set_up_for(options.embed)
        embedder = Embedder(options.embed)
        embed = {"embed": embedder, "embed_size": embedder.size,
                 "max_embedding_distance": options.max_embedding_distance}
    against = {spec: input_of(spec) or source_of(spec) for spec in options.against}
    summary = find_duplicates(
        input_of(options.train) or source_of(options.train), against, options.out, options.threshold,
        min_correlation=options.min_correlation, runner=options.runner, beam_options=options.beam_options,
        shared=options.shared, workers=options.workers, **embed)
    for name, counts in summary.against.items():
        print(f"{name}: {counts.with_duplicates:,} of {counts.images:,} images have near-duplicates in {options.train}")
    print(f"exclude {summary.excluded:,} of {summary.train_images:,} training images with "
          f"Exclude({str(options.out / 'exclude.txt')!r}); see {options.out / 'pairs.html'}")
    return 0
