"""Run notebooks from top to bottom in a fresh kernel, and keep their outputs.

    pip install -e '.[dev]' && python colabs/execute.py                 # all, at full size, each in a folder of its own
    python colabs/execute.py quickstart --size small --keep /tmp/there  # one, written to another folder
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
"""Tag of a cell whose pictures show artwork of others, such as emoji, which this repository does not hold."""
LEFT_OUT = "This picture shows artwork of others and is not kept with the notebook; run the cell to see it.\n"


def execute(notebook: Path, folder: Path, size: str = "full", env: Mapping[str, str] | None = None,
            timeout: float | None = None) -> Any:
    """The notebook with the outputs of a run in ``folder``.

    Args:
      size: what its cell of settings is to say.
      env: variables of the kernel's environment beside those of this process.
      timeout: seconds that a cell may take; None: any.

    Raises:
      CellExecutionError: a cell failed; the message has the cell and the error.
      ValueError: the notebook has no cell, or several, that set the size.
    """
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(notebook, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code" and SIZE.search(cell.source)]
    if len(cells) != 1:
        raise ValueError(f"{notebook}: {len(cells)} cells set SIZE, expected 1")
    asked, cells[0].source = cells[0].source, SIZE.sub(f'SIZE = "{size}"', cells[0].source)
    (folder / "repository").symlink_to(HERE.parent)  # as on Colab; and no path of this machine gets into outputs
    here = {**os.environ, "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
            **(env or {})}
    client = NotebookClient(book, timeout=timeout, kernel_name="python3", record_timing=False,
                            resources={"metadata": {"path": str(folder)}})
    client.execute(env=here)
    cells[0].source = asked
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return book


def _joined(outputs: list[Any]) -> list[Any]:
    """Pieces of one stream as one output."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def without_artwork(book: Any) -> Any:
    """The notebook with a line in place of each picture of the cells that are tagged so."""
    from nbformat.v4 import new_output

    for cell in book.cells:
        if ARTWORK in cell.metadata.get("tags", ()):
            cell.outputs = [new_output("stream", name="stdout", text=LEFT_OUT) if "image/png" in output.get("data", {})
                            else output for output in cell.outputs]
    return book


def main() -> None:
    import nbformat

    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("names", nargs="*", help="of notebooks, without .ipynb; by default all")
    asked.add_argument("--size", default="full", choices=("full", "small"))
    asked.add_argument("--keep", type=Path, default=HERE, help="folder to write to")
    options = asked.parse_args()
    for name in options.names or sorted(path.stem for path in HERE.glob("*.ipynb")):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            book = without_artwork(execute(HERE / f"{name}.ipynb", Path(folder), options.size))
        (options.keep / f"{name}.ipynb").write_text(nbformat.writes(book, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
