"""Images of a training set that are nearly the same as images of other sets, such as test sets.

    find_duplicates(ImageFolder("/photos"), {"test": ImageFolder("/photos", "test")}, Path("duplicates"))
    Input(..., curate=(Exclude("duplicates/exclude.txt"),))

Three steps of an Apache Beam pipeline, on this machine or on any of Beam's runners: a perceptual hash of each image and
of its mirror image; all pairs of hashes that differ in few bits, none missed; and, for those pairs, the correlation of
their pixels, whole and cropped, and the distance of embeddings if a network is given.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from big_vision_lite.data.source import Dataset
from big_vision_lite.data.tools.beam import check_shared, is_local, require_beam, run_pipeline
from big_vision_lite.errors import UserError, writing
from big_vision_lite.near_duplicates import MIN_CORRELATION, THRESHOLD

if TYPE_CHECKING:
    from big_vision_lite.near_duplicates.stages import Embed, Openable

LARGEST_PART = 2_000_000
"""Hashes of the training set that one call searches."""


@dataclasses.dataclass(frozen=True)
class SetSummary:
    """What a search found in one set."""

    images: int
    with_duplicates: int
    """Images with a near-duplicate in the training set; within the training set: images that are excluded."""
    unreadable: int
    plain: int
    """Images of one colour, which are skipped."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a search found, as in summary.json."""

    train_images: int
    excluded: int
    """Distinct images of the training set in all pairs."""
    train_unreadable: int
    train_plain: int
    against: dict[str, SetSummary]
    pairs: int
    threshold: int
    min_correlation: float | None
    max_embedding_distance: float | None
    fingerprints: dict[str, str]
    """Of each dataset; the training set is called "train"."""
    seconds: float


def find_duplicates(
    train: Openable | Dataset,
    against: Mapping[str, Openable | Dataset],
    out: Path,
    threshold: int = THRESHOLD,
    *,
    min_correlation: float | None = MIN_CORRELATION,
    embed: Embed | None = None,
    max_embedding_distance: float = 0.1,
    embed_size: int = 224,
    runner: str | None = None,
    beam_options: Sequence[str] = (),
    workers: int = 1,
    shared: str | None = None,
) -> Summary:
    """Find the near-duplicates and write exclude.txt, pairs.csv, summary.json, unreadable.csv and pairs.html.

    Args:
      train: a `Source` or `Input`, which each process opens for itself, or a `Dataset`, which is pickled.
      against: the other sets by name. A set with the fingerprint of ``train`` is compared with itself: of two
        near-duplicates the one with the smaller index stays, unless it is excluded because of a third.
      out: folder for the results, created if needed. Results of an earlier search are replaced.
      threshold: bits, 0 to 20; all pairs up to it are found. Higher ones find more crops but need more comparisons of
        pixels: among 20,000 x 20,000 photos about 800 false candidates at 8, 11,000 at 12, 60,000 at 14.
      min_correlation: of the pixels, see `near_duplicates.correlation`. None: hashes alone decide; then choose a
        threshold of about 4.
      embed: a second criterion: uint8 ``[n, embed_size, embed_size, 3]`` to float ``[n, d]``. It is pickled by
        cloudpickle, and called with up to 512 images.
      max_embedding_distance: 1 minus the cosine similarity.
      runner: any of Beam's, with its ``beam_options``, such as "--project=..."; None or "DirectRunner": this machine.
      workers: threads on this machine. With two, Beam's local runner has failed on an overloaded machine
        (docs/data.md). If images are read by pure Python, processes are faster:
        ``beam_options=["--direct_running_mode=multi_processing"]``.
      shared: folder or bucket that all machines of another runner can write to, for partial results; None: ``out``.

    Raises:
      UserError: Beam is not installed, the runner is unknown, there is no set to compare with, a dataset is empty, an
        argument is out of range, or ``out`` cannot be written.
    """
    folder = Path(out).expanduser()
    shared = str(shared or folder).rstrip("/")
    _check_arguments(against, threshold, min_correlation)
    if not is_local(runner):
        check_shared(shared, "duplicates")
    require_beam("the search for near-duplicates")
    from big_vision_lite.near_duplicates import report, search, stages

    start = time.monotonic()
    names = ["train", *against]
    sources = (train, *against.values())
    opened = [source if isinstance(source, Dataset) else source.open() for source in sources]
    for name, dataset in zip(names, opened, strict=True):
        if not len(dataset):
            raise UserError(f"duplicates: source {name!r} has no images; expected at least one")
    within = tuple(dataset.fingerprint == opened[0].fingerprint for dataset in opened)
    narrowest = min(band.width for band in search.bands(threshold))
    part_bits = min(max(math.ceil(math.log2(len(opened[0]) / LARGEST_PART)), 0), narrowest)
    key = uuid.uuid4().hex
    task = stages.Task(key, sources, within, threshold, part_bits, min_correlation, embed, max_embedding_distance,
                       embed_size)
    sizes = [0 if k and within[k] else len(dataset) for k, dataset in enumerate(opened)]
    jobs = stages.index_ranges(sizes)
    with writing(folder, "name another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # better to fail now than after hours
    with tempfile.TemporaryDirectory() as temporary, stages.already_open(key, opened):
        pairs, reports = _run(task, jobs, temporary if is_local(runner) else shared, runner, beam_options, workers)
    pairs.sort(key=lambda line: (line["source"], line["train_index"], line["against_index"]))
    bad = sorted({(line["source"], line["id"], line["reason"]) for line in reports if "id" in line})
    of_train, *of_others = _set_summaries(opened, within, pairs, reports)
    summary = Summary(
        train_images=len(opened[0]), excluded=len({line["train_index"] for line in pairs}),
        train_unreadable=of_train.unreadable, train_plain=of_train.plain,
        against=dict(zip(names[1:], of_others, strict=True)), pairs=len(pairs), threshold=threshold,
        min_correlation=min_correlation, max_embedding_distance=max_embedding_distance if embed else None,
        fingerprints={name: dataset.fingerprint for name, dataset in zip(names, opened, strict=True)},
        seconds=round(time.monotonic() - start, 2))
    with writing(folder, "make room there or name another folder"):
        report.write_report(folder, summary, pairs, [(names[k], *rest) for k, *rest in bad], names, opened)
    return summary


def _check_arguments(against: Mapping[str, Any], threshold: int, min_correlation: float | None) -> None:
    if not against:
        raise UserError("duplicates: no source to compare with; name at least one, such as a test set")
    if "train" in against:
        raise UserError("duplicates: a source to compare with is called 'train'; give it another name")
    if not 0 <= threshold <= 20:
        raise UserError(f"duplicates: threshold={threshold}; expected 0 to 20 of the hash's 64 bits")
    if min_correlation is not None and not 0 < min_correlation <= 1:
        raise UserError(f"duplicates: min_correlation={min_correlation}; expected above 0 to 1, or None")


def _set_summaries(opened: Sequence[Dataset], within: Sequence[bool], pairs: Sequence[dict],
                   reports: Sequence[dict]) -> list[SetSummary]:
    """Of each dataset, the training set first."""
    summaries = []
    for number, dataset in enumerate(opened):
        side, hashed = ("train_index", 0) if within[number] else ("against_index", number)
        lines = [line for line in reports if line["source"] == hashed]
        summaries.append(SetSummary(
            images=len(dataset), with_duplicates=len({pair[side] for pair in pairs if pair["source"] == number}),
            unreadable=sum("id" in line for line in lines), plain=sum(line.get("plain", 0) for line in lines)))
    return summaries


def _run(task: Any, jobs: list[tuple[int, int, int]], shared: str, runner: str | None, beam_options: Sequence[str],
         workers: int) -> tuple[list[dict], list[dict]]:
    """The pairs, and the reports of images that were skipped; ``shared`` as in `run_pipeline`."""
    import apache_beam as beam

    from big_vision_lite.near_duplicates import stages

    def build(pipeline: Any, results: str) -> Sequence[str]:
        hashed = (pipeline | "ranges" >> beam.Create(jobs, reshuffle=False) | "spread" >> beam.Reshuffle()
                  | "hash" >> beam.ParDo(stages.Hash(task)).with_outputs("reports", main="hashes"))
        pairs = (hashed.hashes | "by part" >> beam.GroupByKey() | "search" >> beam.ParDo(stages.Search(task))
                 | "by block" >> beam.GroupByKey() | "compare" >> beam.ParDo(stages.Compare(task)))
        pairs | "write pairs" >> beam.io.WriteToText(f"{results}/pairs")
        hashed.reports | "write reports" >> beam.io.WriteToText(f"{results}/reports")
        return "pairs", "reports"

    lines = run_pipeline(build, shared, runner, beam_options, workers)
    return [*map(json.loads, lines["pairs"])], [*map(json.loads, lines["reports"])]
