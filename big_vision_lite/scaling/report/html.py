"""A self-contained HTML page: text is escaped, figures and pictures are embedded."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1e1e1e; --soft: #5c5c5c; --line: #dcdcdc; --paper: #fff; --mark: #fff6df; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a8a8a8; --line: #3d3d3d; --paper: #161616; --mark: #35301f; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 900px;
  margin: 0 auto; padding: 16px; overflow-wrap: anywhere; }
h1 { font-size: 26px; line-height: 1.2; margin: 8px 0; } h2 { font-size: 20px; margin: 36px 0 8px; }
h3 { font-size: 16px; margin: 24px 0 4px; }
p, li { max-width: 70ch; }
.soft, figcaption { color: var(--soft); font-size: 14px; }
.answer { background: var(--mark); margin: 8px 0; padding: 8px 12px 8px 28px; border-left: 3px solid #E69F00; }
figure { margin: 12px 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
.wide { overflow-x: auto; margin: 12px 0; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.text, th.text { text-align: left; }
summary { cursor: pointer; }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --mark: #fff; }
  body { max-width: none; padding: 0; font-size: 11pt; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .wide { overflow: visible; } table { font-size: 8.5pt; }
}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A page of parts made by the functions below."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{text(title)}</title>\n'
            f'<link rel="icon" href="data:,"><style>{STYLE}</style></head><body>\n' + "\n".join(parts)
            + "\n</body></html>\n")


def text(value: str) -> str:
    return html.escape(value.encode(errors="replace").decode())


def heading(value: str, level: int = 2) -> str:
    return f"<h{level}>{text(value)}</h{level}>"


def paragraph(value: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{text(value)}</p>"


def points(values: Sequence[str], kind: str = "") -> str:
    return f"<ul{_class(kind)}>" + "".join(f"<li>{text(value)}</li>" for value in values) + "</ul>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, header first. Columns of numbers are right-aligned."""
    left = [not all(_numeric(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    lines = []
    for index, row in enumerate(rows):
        tag = "td" if index else "th"
        cells = "".join(f'<{tag}{" class=text" if left[i] else ""}>{text(cell)}</{tag}>' for i, cell in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def picture(data: bytes, kind: str, alt: str, caption: str = "") -> str:
    """An embedded image. ``kind`` is svg+xml, png or jpeg."""
    encoded = base64.b64encode(data).decode()
    figcaption = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{text(alt)}" src="data:image/{kind};base64,{encoded}">{figcaption}</figure>'


def folded(summary: str, inner: str) -> str:
    """A collapsed part."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


def _numeric(cell: str) -> bool:
    return not cell or cell == "-" or cell.replace(",", "").replace("%", "").lstrip("+-").replace(".", "", 1) \
        .replace("e+", "").replace("e-", "").isdigit()
