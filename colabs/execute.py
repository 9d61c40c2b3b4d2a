"""Run notebooks from top to bottom in a fresh kernel, and save them with their outputs.

    pip install -e '.[dev]' && python colabs/execute.py             # all, at full size, each in a folder of its own
    python colabs/execute.py quickstart --size small --out executed # one, written to another folder
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZE = re.compile(r'^SIZE = "full"', re.MULTILINE)
ARTWORK = "artwork"
"""Tag of cells whose pictures show third-party artwork, such as emoji, which this repository does not contain."""
LEFT_OUT = "This picture shows third-party artwork and is not stored in the notebook; run the cell to see it.\n"


def execute(notebook: Path, folder: Path, size: str = "full", env: Mapping[str, str] | None = None,
            timeout: float | None = None) -> Any:
    """Run a notebook in ``folder`` and return it with its outputs.

    Args:
      size: value of SIZE in its settings cell.
      env: environment variables of the kernel, added to those of this process.
      timeout: seconds per cell; None: no limit.

    Raises:
      CellExecutionError: a cell failed; the message has the cell and the error.
      ValueError: not exactly one cell sets SIZE.
    """
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(notebook, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code" and SIZE.search(cell.source)]
    if len(cells) != 1:
        raise ValueError(f"{notebook}: {len(cells)} cells set SIZE, expected 1")
    settings = cells[0].source
    cells[0].source = SIZE.sub(f'SIZE = "{size}"', settings)
    (folder / "repository").symlink_to(HERE.parent)  # as on Colab, and it keeps this machine's paths out of the outputs
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    client = NotebookClient(book, timeout=timeout, kernel_name="python3", record_timing=False,
                            resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PATH": path, **(env or {})})
    cells[0].source = settings
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return book


def _joined(outputs: list[Any]) -> list[Any]:
    """Merge consecutive outputs of one stream."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def has_picture(output: Any) -> bool:
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def without_artwork(book: Any) -> Any:
    """Replace each picture in the cells tagged `ARTWORK` by a line of text."""
    from nbformat.v4 import new_output

    for cell in book.cells:
        if ARTWORK in cell.metadata.get("tags", ()):
            cell.outputs = [new_output("stream", name="stdout", text=LEFT_OUT) if has_picture(output)
                            else output for output in cell.outputs]
    return book


def main() -> None:
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks, without .ipynb (default: all)")
    parser.add_argument("--size", default="full", choices=("full", "small"))
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    options = parser.parse_args()
    for name in options.names or sorted(path.stem for path in HERE.glob("*.ipynb")):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            book = without_artwork(execute(HERE / f"{name}.ipynb", Path(folder), options.size))
        (options.out / f"{name}.ipynb").write_text(nbformat.writes(book, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
