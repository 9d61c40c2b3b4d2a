"""The results of a near-duplicate search: ids to exclude, a table of pairs, counts, and a page of pictures."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from big_vision_lite.data.decode import DecodeError, decode_crop_resize, image_size
from big_vision_lite.data.source import Dataset
from big_vision_lite.errors import BadImageError, UserError

PAIRS_SHOWN = 200
"""Pairs in pairs.html, those that agree least first."""
THUMBNAIL = 128
"""Pixels of the long side."""

_OPEN = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def write_report(folder: Path, summary: Any, pairs: Sequence[dict[str, Any]], bad: Sequence[tuple[str, str, str]],
                 names: Sequence[str], datasets: Sequence[Dataset]) -> None:
    """Write all files; summary.json comes last.

    Args:
      summary: a `find.Summary`.
      pairs: see `stages.Compare`.
      bad: (name of the dataset, id, reason) of images that cannot be read.
      names, datasets: all of them, the training set first.

    Raises:
      UserError: an id cannot be written to a file of ids.
      OSError: a file cannot be written.
    """
    ids = sorted({pair["train_id"] for pair in pairs})
    for id_ in ids:
        if id_.startswith("#") or len(id_.splitlines()) != 1 or not id_.strip():
            raise UserError(f"example id {id_!r} cannot be written to exclude.txt, where each line is an id and # "
                            "starts a comment; rename the file")
    with open(folder / "exclude.txt", "w", **_OPEN) as file:
        against = ", ".join(f"{name} {summary.fingerprints[name]}" for name in names[1:])
        file.write(f"# near-duplicates, in train {summary.fingerprints['train']}, of images in {against}\n"
                   f"# threshold {summary.threshold} bits of 64, min_correlation {summary.min_correlation}, "
                   f"max_embedding_distance {summary.max_embedding_distance}\n")
        file.writelines(f"{id_}\n" for id_ in ids)
    columns = ["train_id", "against_name", "against_id", "distance"]
    columns += ["correlation"] if summary.min_correlation is not None else []
    columns += ["embedding_distance"] if summary.max_embedding_distance is not None else []
    columns += ["flipped"]
    with open(folder / "pairs.csv", "w", **_OPEN) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        for pair in pairs:
            row = {**pair, "against_name": names[pair["source"]], "flipped": int(pair["flipped"])}
            table.writerow([row[column] for column in columns])
    with open(folder / "unreadable.csv", "w", **_OPEN) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["source", "id", "reason"])
        table.writerows(bad)
    page = _page(summary, pairs, names, datasets)
    (folder / "pairs.html").write_text(page, encoding="utf-8", errors="replace")
    (folder / "summary.json").write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n")


_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; color: #1e1e1e; margin: 24px; }
table { border-collapse: collapse; margin: 12px 0 20px; }
th, td { padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 10px; border: 1px solid #ddd; border-radius: 4px; }
figure div { display: flex; gap: 10px; }
figure span { width: 50%; height: 130px; display: flex; align-items: center; justify-content: center;
  background: #eee; font-size: 12px; color: #a3420f; text-align: center; }
img { max-width: 100%; max-height: 130px; image-rendering: auto; }
figcaption { font-size: 12px; margin-top: 6px; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; } figcaption i { font-style: normal; color: #6e6e6e; }
"""


def _page(summary: Any, pairs: Sequence[dict[str, Any]], names: Sequence[str], datasets: Sequence[Dataset]) -> str:
    """A self-contained HTML page; pairs that agree least, the doubtful ones, come first."""
    ordered = sorted(pairs, key=lambda p: (-p.get("embedding_distance", 0), p.get("correlation", 0), -p["distance"]))
    shown = ordered[:PAIRS_SHOWN]
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td>{c.with_duplicates:,} of {c.images:,}</td>"
        f"<td>{c.with_duplicates / c.images:.2%}</td><td>{c.unreadable:,}</td><td>{c.plain:,}</td></tr>"
        for name, c in summary.against.items())
    figures = "\n".join(_figure(pair, names[pair["source"]], datasets[0], datasets[pair["source"]]) for pair in shown)
    counted = f"all {len(pairs):,} pairs" if len(shown) == len(pairs) else f"{len(shown):,} of {len(pairs):,} pairs"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Near-duplicates</title><style>{_STYLE}</style></head><body>
<h1>Near-duplicates</h1>
<p>{summary.excluded:,} of {summary.train_images:,} training images are near-duplicates of another image; their ids are
in exclude.txt. Hashes differ in at most {summary.threshold} of 64 bits{_conditions(summary)}.</p>
<table><tr><th>set</th><th>images with a near-duplicate</th><th>share</th><th>unreadable</th>
<th>of one colour</th></tr>{rows}</table>
<p>Showing {counted}, those that agree least first. Left: training image. Right: image of the other set.</p>
<main>
{figures}
</main></body></html>
"""


def _conditions(summary: Any) -> str:
    conditions = ""
    if summary.min_correlation is not None:
        conditions += f", the correlation of pixels is at least {summary.min_correlation:g}"
    if summary.max_embedding_distance is not None:
        conditions += f", embeddings are at most {summary.max_embedding_distance:g} apart"
    return conditions


def _figure(pair: dict[str, Any], name: str, train: Dataset, against: Dataset) -> str:
    facts = [f"{pair['distance']} bits"]
    if "correlation" in pair:
        facts.append(f"correlation {pair['correlation']:.3f}")
    if "embedding_distance" in pair:
        facts.append(f"embedding distance {pair['embedding_distance']:.3f}")
    if pair["flipped"]:
        facts.append("mirrored")
    return (f"<figure><div>{_picture(train, pair['train_index'])}{_picture(against, pair['against_index'])}</div>"
            f"<figcaption><b>{', '.join(facts)}</b><br>{_text(pair['train_id'])}<br>"
            f"<i>{_text(name)}:</i> {_text(pair['against_id'])}</figcaption></figure>")


def _picture(dataset: Dataset, index: int) -> str:
    try:
        image = dataset[index]["image"]
        height, width = image_size(image)
        scale = THUMBNAIL / max(height, width)
        small = np.empty((max(round(height * scale), 1), max(round(width * scale), 1), 3), np.uint8)
        decode_crop_resize(image, None, small)
    except (BadImageError, DecodeError) as error:
        return f"<span>{_text(str(error))}</span>"
    jpeg = base64.b64encode(simplejpeg.encode_jpeg(small, quality=85)).decode()
    return f'<span><img alt="" src="data:image/jpeg;base64,{jpeg}"></span>'


def _text(value: str) -> str:
    return html.escape(value.encode(errors="replace").decode())
