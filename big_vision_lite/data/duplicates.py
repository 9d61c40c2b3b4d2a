"""Images of a training set that are nearly the same as images of other sets, such as the test sets it is scored on.

    find_duplicates(ImageFolder("/photos"), {"test": ImageFolder("/photos", "test")}, Path("duplicates"))
    Input(..., curate=(Exclude("duplicates/exclude.txt"),))

Three steps, as an Apache Beam pipeline that runs here or on any of Beam's runners: a perceptual hash of each image
and of its mirror image; all pairs of hashes that differ in few bits, none missed; and, for those, the correlation of
their pixels, whole and cut, and the distance of embeddings if a network is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from big_vision_lite.data.cores import usable_cores
from big_vision_lite.data.source import Records
from big_vision_lite.errors import BadImageError, UserError, nearest

if TYPE_CHECKING:
    from big_vision_lite.data.near_duplicates.stages import Embed, Openable

THRESHOLD = 12
"""Bits of 64 in which the hashes of two near-duplicates may differ."""
MIN_CORRELATION = 0.8
LARGEST_PART = 2_000_000
"""Hashes of the training source that one call searches."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """How one set fared."""

    images: int
    with_duplicates: int
    """Images of which the training set has a near-duplicate; within the training set: images that are excluded."""
    unreadable: int
    plain: int
    """Images of one colour, which are not looked for."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a search found; also in summary.json."""

    train_images: int
    excluded: int
    """Different images of the training set in all pairs."""
    train_unreadable: int
    train_plain: int
    against: dict[str, Compared]
    pairs: int
    threshold: int
    min_correlation: float | None
    max_embedding_distance: float | None
    fingerprints: dict[str, str]
    """Of each source; the training source is called "train"."""
    seconds: float


def find_duplicates(
    train: Openable | Records,
    against: Mapping[str, Openable | Records],
    out: Path,
    threshold: int = THRESHOLD,
    *,
    min_correlation: float | None = MIN_CORRELATION,
    embed: Embed | None = None,
    max_embedding_distance: float = 0.1,
    embed_size: int = 224,
    runner: str | None = None,
    beam_options: Sequence[str] = (),
    workers: int | None = None,
    on_bad_image: Literal["list", "raise"] = "list",
    shared: str | None = None,
    pairs_shown: int = 200,
) -> Summary:
    """Find the near-duplicates and write exclude.txt, pairs.csv, summary.json, unreadable.csv and pairs.html.

    Args:
      train: a `Source` or `Input`, which each process opens for itself, or records, which are pickled.
      against: names and sets. A set with the fingerprint of ``train`` is searched within: of two images that are
        near the one with the smaller index stays, even when it goes itself because of a third.
      out: folder for the results; made if need be. Results of an earlier search there are replaced.
      threshold: bits, 0 to 20. No pair up to it is missed. Higher ones find more crops and cost more comparisons of
        pixels: among 20,000 x 20,000 photos about 800 pairs that are none at 8, 11,000 at 12, 60,000 at 14.
      min_correlation: of the pixels, see `near_duplicates.correlation`; None: hashes decide alone, then choose a
        threshold of about 4.
      embed: must also find pairs near: uint8 ``[n, embed_size, embed_size, 3]`` to float ``[n, d]``. It is pickled,
        by cloudpickle, and called with up to 512 images.
      max_embedding_distance: 1 minus the cosine of the embeddings' angle.
      runner: any of Beam's, with its ``beam_options``, such as "--project=..."; None or "DirectRunner": this machine.
      workers: threads on this machine; None: one a core. Where reading images is Python's own work, processes do
        better: ``beam_options=["--direct_running_mode=multi_processing"]``.
      on_bad_image: an image that cannot be read is listed, or an error once all are listed.
      shared: folder or bucket that all machines of another runner can write to, for what they find; None: ``out``.
      pairs_shown: in pairs.html, those that agree least first.

    Raises:
      UserError: Beam is not installed, an unknown runner, no set to compare with, an empty source, an argument out of
        range, or ``out`` cannot be written.
      BadImageError: with ``on_bad_image="raise"``, the first one.
    """
    local = runner in (None, "DirectRunner")
    folder = Path(out).expanduser()
    place = str(shared or folder).rstrip("/")
    _check(against, threshold, min_correlation, embed_size, "" if local else place)
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise UserError("the search for near-duplicates needs Apache Beam, which is not installed: "
                        "pip install 'big_vision_lite[beam]'") from None
    from big_vision_lite.data.near_duplicates import report, search, stages

    started = time.monotonic()
    names = ["train", *against]
    sources = (train, *against.values())
    opened = [source if isinstance(source, Records) else source.open() for source in sources]
    for name, records in zip(names, opened, strict=True):
        if not len(records):
            raise UserError(f"duplicates: source {name!r} has no images; expected at least one")
    within = tuple(records.fingerprint == opened[0].fingerprint for records in opened)
    narrowest = min(band.width for band in search.bands(threshold))
    part_bits = min(max(math.ceil(math.log2(len(opened[0]) / LARGEST_PART)), 0), narrowest)
    key = uuid.uuid4().hex
    task = stages.Task(key, sources, within, threshold, part_bits, min_correlation, embed, max_embedding_distance,
                       embed_size)
    sizes = [0 if k and within[k] else len(records) for k, records in enumerate(opened)]
    jobs = stages.index_ranges(sizes)
    writing = f"cannot write to {str(folder)!r}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # rather now than after hours
    except OSError as error:
        raise UserError(f"{writing}: {error.strerror or error}; name another folder") from None
    with (tempfile.TemporaryDirectory() as temporary, stages.already_open(key, opened),
          _quiet() if local else contextlib.nullcontext()):
        place = f"{temporary if local else place}/found.{key}"
        pairs, reports = _run(task, jobs, place, runner, beam_options, workers)
    pairs.sort(key=lambda line: (line["source"], line["train_index"], line["against_index"]))
    bad = sorted({(line["source"], line["id"], line["reason"]) for line in reports if "id" in line})
    compared = _compared(opened, within, pairs, reports)
    summary = Summary(
        train_images=len(opened[0]), excluded=len({line["train_index"] for line in pairs}),
        train_unreadable=compared[0].unreadable, train_plain=compared[0].plain,
        against=dict(zip(names[1:], compared[1:], strict=True)), pairs=len(pairs), threshold=threshold,
        min_correlation=min_correlation, max_embedding_distance=max_embedding_distance if embed else None,
        fingerprints={name: records.fingerprint for name, records in zip(names, opened, strict=True)},
        seconds=round(time.monotonic() - started, 2))
    try:
        report.write(folder, summary, pairs, [(names[k], *rest) for k, *rest in bad], names, opened, pairs_shown)
    except OSError as error:
        raise UserError(f"{writing}: {error.strerror or error}; make room there or name another folder") from error
    if bad and on_bad_image == "raise":
        raise BadImageError(bad[0][1], f"{bad[0][2]} ({len(bad):,} such, listed in {folder / 'unreadable.csv'})")
    return summary


def _check(against: Mapping[str, Any], threshold: int, min_correlation: float | None, embed_size: int,
           place: str) -> None:
    if not against:
        raise UserError("duplicates: no source to compare with; name at least one, such as a test set")
    if "train" in against:
        raise UserError("duplicates: a source to compare with is called 'train'; give it another name")
    if not 0 <= threshold <= 20:
        raise UserError(f"duplicates: threshold={threshold}; expected 0 to 20 of the hash's 64 bits")
    if min_correlation is not None and not 0 < min_correlation <= 1:
        raise UserError(f"duplicates: min_correlation={min_correlation}; expected above 0 to 1, or None")
    if embed_size < 1:
        raise UserError(f"duplicates: embed_size={embed_size}; expected pixels, at least 1")
    if set(place) & set("*?[]"):
        raise UserError(f"duplicates: shared={place!r}; Beam cannot write where a name has one of *?[]; name another "
                        "folder or bucket")


def _compared(opened: Sequence[Records], within: Sequence[bool], pairs: Sequence[dict],
              reports: Sequence[dict]) -> list[Compared]:
    """Of each source, the training source first."""
    found = []
    for k, records in enumerate(opened):
        side, read = ("train_index", 0) if within[k] else ("against_index", k)
        mine = [line for line in reports if line["source"] == read]
        found.append(Compared(
            images=len(records), with_duplicates=len({line[side] for line in pairs if line["source"] == k}),
            unreadable=sum("id" in line for line in mine), plain=sum(line.get("plain", 0) for line in mine)))
    return found


def _run(task: Any, jobs: list[tuple[int, int, int]], place: str, runner: str | None, beam_options: Sequence[str],
         workers: int | None) -> tuple[list[dict], list[dict]]:
    """The lines of all pairs, and those about images that were left out."""
    import apache_beam as beam
    from apache_beam.io.filesystems import FileSystems

    from big_vision_lite.data.near_duplicates import stages

    engine, options = _engine(runner, beam_options, workers)
    pipeline = beam.Pipeline(runner=engine, options=options)
    hashed = (pipeline | "ranges" >> beam.Create(jobs, reshuffle=False) | "spread" >> beam.Reshuffle()
              | "hash" >> beam.ParDo(stages.Hash(task)).with_outputs("reports", main="hashes"))
    pairs = (hashed.hashes | "by part" >> beam.GroupByKey() | "search" >> beam.ParDo(stages.Search(task))
             | "by block" >> beam.GroupByKey() | "compare" >> beam.ParDo(stages.Compare(task)))
    pairs | "write pairs" >> beam.io.WriteToText(f"{place}/pairs")
    hashed.reports | "write reports" >> beam.io.WriteToText(f"{place}/reports")
    try:
        pipeline.run().wait_until_finish()
        found = []
        for kind in ("pairs", "reports"):
            lines = []
            for file in FileSystems.match([f"{place}/{kind}-*"])[0].metadata_list:
                with FileSystems.open(file.path) as text:
                    lines += [json.loads(line) for line in text.read().splitlines()]
            found.append(lines)
        return tuple(found)
    except Exception as error:  # of a type of the runner's own, with the text of ours somewhere in it
        text = f"{type(error).__module__}.{type(error).__name__}: {error}"
        said = re.findall(r"big_vision_lite\.errors\.\w+: (.+?) \[while running ", text)
        if not said:
            raise
        raise UserError(said[-1]) from error
    finally:
        with contextlib.suppress(Exception):  # there may be nothing yet
            FileSystems.delete([place])


def _engine(runner: str | None, beam_options: Sequence[str], workers: int | None) -> tuple[Any, Any]:
    """The runner and its options.

    "DirectRunner" is Beam's portable local runner: the name itself may stand for one that downloads a program.
    """
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners import runner as runners

    if runner not in (None, "DirectRunner"):
        known = sorted({name.rpartition(".")[2] for name in runners._RUNNER_MAP.values()})
        try:
            return runners.create_runner(runner), PipelineOptions(list(beam_options))
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(f"Beam has no runner {runner!r}" + nearest(runner, known)) from error
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    workers = max(workers or usable_cores(), 1)
    mode = "multi_threading" if workers > 1 else "in_memory"  # decoding and comparing leave Python's lock to others
    flags = [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}", *beam_options]
    return FnApiRunner(), PipelineOptions(flags)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Beam's log of a failure, pages of it, is off: on this machine the exception says the same."""
    log = logging.getLogger("apache_beam")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
